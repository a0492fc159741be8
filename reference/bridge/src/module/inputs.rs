//! Converts the inputs file to arguments of `forward`.

use std::fs;
use std::path::Path;

use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyDict};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::failure::Stop;
use protocol::{ATTENTION_MASK, INPUT_IDS, POSITION_IDS, Role, role};

/// A model that gets inputs.
pub(super) struct Recipient<'a, 'py> {
    pub(super) torch: &'a Bound<'py, PyAny>,
    pub(super) model: &'a Bound<'py, PyAny>,
    /// The device of the inputs.
    pub(super) device: &'a str,
    /// torch's name of the dtype of floating-point inputs.
    pub(super) dtype: &'static str,
    /// Whether the model gets no position ids. Encoders count positions themselves: BERT from the start of the sequence,
    /// RoBERTa from its first token that is not padding (`create_position_ids_from_input_ids` in `modeling_roberta.py`).
    pub(super) counts_positions: bool,
    /// Outputs that the model computes only if asked to.
    pub(super) outputs: &'a [String],
}

/// Keyword arguments for `model.forward`, each only if the model takes it, and notes on the others.
pub(super) fn arguments<'py>(
    to: &Recipient<'_, 'py>,
    path: &Path,
) -> Result<(Bound<'py, PyDict>, Vec<String>), Stop> {
    let Recipient { torch, model, device, .. } = *to;
    let py = torch.py();
    let bytes =
        fs::read(path).map_err(|error| Stop::exception(format!("inputs {}: {error}", path.display())))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| Stop::exception(format!("inputs {}: {error}", path.display())))?;
    let takes = Takes::of(model)?;
    let class = model.get_type().name()?.to_string();
    let arguments = PyDict::new(py);
    let mut notes = Vec::new();
    let mut names = file.names();
    names.sort_unstable();
    for name in names {
        let view = file.tensor(name).map_err(|error| Stop::exception(format!("inputs: {name}: {error}")))?;
        let mut tensor = tensor(torch, name, &view)?.call_method1("to", (device,))?;
        match role(name) {
            Role::Tokens => {}
            Role::Positions if to.counts_positions => {
                notes.push(format!("{class} counts positions itself"));
                continue;
            }
            Role::Positions if takes.by_name(POSITION_IDS)? => {}
            Role::Positions => {
                notes.push(format!("{class} takes no position_ids"));
                continue;
            }
            Role::Mask | Role::DecoderMask | Role::PixelMask if takes.by_name(name)? => {}
            Role::Mask | Role::DecoderMask | Role::PixelMask => {
                if !tensor.call_method0("all")?.call_method0("item")?.extract::<bool>()? {
                    return Err(Stop::unsupported(format!(
                        "{class} takes no {name}, and the inputs have padding"
                    )));
                }
                notes.push(format!("{class} takes no {name}"));
                continue;
            }
            Role::TokenTypes if takes.by_name(name)? => {}
            Role::TokenTypes => {
                notes.push(format!("{class} takes no {name}"));
                continue;
            }
            _ if takes.any(name)? => {
                if tensor.call_method0("is_floating_point")?.extract()? {
                    tensor = tensor.call_method1("to", (torch.getattr(to.dtype)?,))?;
                }
            }
            _ => return Err(Stop::unsupported(format!("{class} takes no {name}, which the inputs have"))),
        }
        arguments.set_item(name, tensor)?;
    }
    if takes.by_name("use_cache")? || takes.by_name("past_key_values")? && takes.has_others {
        arguments.set_item("use_cache", false)?;
    }
    for output in to.outputs {
        let name = format!("output_{output}");
        if takes.any(&name)? {
            arguments.set_item(name, true)?;
        } else {
            notes.push(format!("{class} has no {output}"));
        }
    }
    Ok((arguments, notes))
}

/// The arguments of a model's `forward`.
pub(super) struct Takes<'py> {
    parameters: Bound<'py, PyAny>,
    /// Whether it has `**kwargs`, which it hands on: models of several parts do since 5.0.
    pub(super) has_others: bool,
}

impl<'py> Takes<'py> {
    pub(super) fn of(model: &Bound<'py, PyAny>) -> PyResult<Self> {
        let inspect = model.py().import("inspect")?;
        let parameters =
            inspect.call_method1("signature", (model.getattr("forward")?,))?.getattr("parameters")?;
        let keywords = inspect.getattr("Parameter")?.getattr("VAR_KEYWORD")?;
        let mut has_others = false;
        for parameter in parameters.call_method0("values")?.try_iter()? {
            has_others |= parameter?.getattr("kind")?.eq(&keywords)?;
        }
        Ok(Self { parameters, has_others })
    }

    pub(super) fn by_name(&self, name: &str) -> PyResult<bool> {
        self.parameters.contains(name)
    }

    fn any(&self, name: &str) -> PyResult<bool> {
        Ok(self.has_others || self.by_name(name)?)
    }
}

/// The tensors of an inputs file.
pub(super) fn names(path: &Path) -> Result<Vec<String>, Stop> {
    let bytes = fs::read(path)?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| Stop::exception(format!("inputs {}: {error}", path.display())))?;
    Ok(file.names().into_iter().map(ToString::to_string).collect())
}

/// A tensor of an inputs file as torch's, on the CPU.
fn tensor<'py>(
    torch: &Bound<'py, PyAny>,
    name: &str,
    view: &TensorView<'_>,
) -> Result<Bound<'py, PyAny>, Stop> {
    let dtype = match view.dtype() {
        Dtype::BOOL => "bool",
        Dtype::U8 => "uint8",
        Dtype::I32 => "int32",
        Dtype::I64 => "int64",
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        Dtype::F32 => "float32",
        Dtype::F64 => "float64",
        other => return Err(Stop::exception(format!("inputs: {name} is {other:?}"))),
    };
    if matches!(name, INPUT_IDS | ATTENTION_MASK | POSITION_IDS) && view.dtype() != Dtype::I64 {
        return Err(Stop::exception(format!("inputs: {name} is {:?} and not I64", view.dtype())));
    }
    let py = torch.py();
    let keywords = PyDict::new(py);
    keywords.set_item("dtype", torch.getattr(dtype)?)?;
    if view.data().is_empty() {
        return Ok(torch.call_method("zeros", (view.shape().to_vec(),), Some(&keywords))?);
    }
    let flat = torch.call_method("frombuffer", (PyByteArray::new(py, view.data()),), Some(&keywords))?;
    Ok(flat.call_method1("reshape", (view.shape().to_vec(),))?)
}
