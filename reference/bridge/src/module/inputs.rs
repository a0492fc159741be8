//! Converts the inputs file to arguments of `forward`.

use std::fs;
use std::path::Path;

use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyDict};
use safetensors::{Dtype, SafeTensors};

use super::failure::Stop;
use protocol::{ATTENTION_MASK, INPUT_IDS, POSITION_IDS};

/// Keyword arguments for `model.forward`, each only if the model takes it, and notes on the others.
///
/// Encoders get no position ids, because they count positions themselves: BERT from the start of the
/// sequence, RoBERTa from its first token that is not padding (`create_position_ids_from_input_ids` in
/// `modeling_roberta.py`).
pub(super) fn arguments<'py>(
    py: Python<'py>,
    torch: &Bound<'py, PyAny>,
    model: &Bound<'py, PyAny>,
    counts_positions: bool,
    path: &Path,
    device: &str,
) -> Result<(Bound<'py, PyDict>, Vec<String>), Stop> {
    let bytes =
        fs::read(path).map_err(|error| Stop::exception(format!("inputs {}: {error}", path.display())))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| Stop::exception(format!("inputs {}: {error}", path.display())))?;
    let parameters = py
        .import("inspect")?
        .call_method1("signature", (model.getattr("forward")?,))?
        .getattr("parameters")?;
    let takes = |name: &str| parameters.contains(name);
    let class = model.get_type().name()?.to_string();
    let arguments = PyDict::new(py);
    let mut notes = Vec::new();

    let input_ids = tensor(py, torch, &file, INPUT_IDS)?;
    let has_mask = file.names().contains(&ATTENTION_MASK);
    let mask = has_mask.then(|| tensor(py, torch, &file, ATTENTION_MASK)).transpose()?;
    let positions = tensor(py, torch, &file, POSITION_IDS)?;
    arguments.set_item(INPUT_IDS, input_ids.call_method1("to", (device,))?)?;
    let takes_mask = takes(ATTENTION_MASK)?;
    if let Some(mask) = mask.as_ref().filter(|_| takes_mask) {
        arguments.set_item(ATTENTION_MASK, mask.call_method1("to", (device,))?)?;
    } else if let Some(mask) = mask {
        let all_real: bool = mask.call_method0("all")?.call_method0("item")?.extract()?;
        if !all_real {
            return Err(Stop::unsupported(format!(
                "{class} takes no attention_mask, and the inputs have padding"
            )));
        }
        notes.push(format!("{class} takes no attention_mask"));
    }
    if counts_positions {
        notes.push(format!("{class} counts positions itself"));
    } else if takes(POSITION_IDS)? {
        arguments.set_item(POSITION_IDS, positions.call_method1("to", (device,))?)?;
    } else {
        notes.push(format!("{class} takes no position_ids"));
    }
    if takes("use_cache")? {
        arguments.set_item("use_cache", false)?;
    }
    Ok((arguments, notes))
}

/// The tensors of an inputs file.
pub(super) fn names(path: &Path) -> Result<Vec<String>, Stop> {
    let bytes = fs::read(path)?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| Stop::exception(format!("inputs {}: {error}", path.display())))?;
    Ok(file.names().into_iter().map(ToString::to_string).collect())
}

/// The i64 tensor `name` as torch's, on the CPU.
fn tensor<'py>(
    py: Python<'py>,
    torch: &Bound<'py, PyAny>,
    file: &SafeTensors<'_>,
    name: &str,
) -> Result<Bound<'py, PyAny>, Stop> {
    let view = file.tensor(name).map_err(|error| Stop::exception(format!("inputs: {name}: {error}")))?;
    if view.dtype() != Dtype::I64 {
        return Err(Stop::exception(format!("inputs: {name} is {:?} and not I64", view.dtype())));
    }
    let keywords = PyDict::new(py);
    keywords.set_item("dtype", torch.getattr("int64")?)?;
    let flat = torch.call_method("frombuffer", (PyByteArray::new(py, view.data()),), Some(&keywords))?;
    Ok(flat.call_method1("reshape", (view.shape().to_vec(),))?)
}
