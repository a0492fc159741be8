//! Inputs from files and logits to files, as candle tensors.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use protocol::{
    ATTENTION_MASK, DECODER_INPUT_IDS, Dtype, Failed, INPUT_IDS, LOGITS, POSITION_IDS, Role, role,
};

use super::failure::{exception, failure, unsupported};
use crate::Inputs;

/// Pictures, of which a row of the batch has one.
const PIXEL_VALUES: &str = "pixel_values";
/// Token types of texts.
const SEGMENTS: &str = "token_type_ids";

/// The candle dtype of a request.
pub fn dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::Bf16 => DType::BF16,
        Dtype::F16 => DType::F16,
    }
}

/// The candle device of this name: `cpu`, or `cuda:` and a number.
///
/// # Errors
/// When there is no such device, or the worker was built without CUDA.
pub fn device(name: &str) -> Result<Device, Failed> {
    if name == "cpu" {
        return Ok(Device::Cpu);
    }
    let number = name.strip_prefix("cuda:").and_then(|number| number.parse().ok());
    let number = number.ok_or_else(|| unsupported(format!("no such device: {name}")))?;
    if !candle_core::utils::cuda_is_available() {
        return Err(unsupported(format!("{name}: the worker has to be built with `--features cuda`")));
    }
    Device::new_cuda(number).map_err(|error| unsupported(format!("{name}: {error}")))
}

/// The tensors of an inputs file; without an attention mask, nothing is padding. Inputs without tokens of their own have the
/// decoder's in their place (speech) or one for each picture.
///
/// # Errors
/// When the file cannot be read. Inputs without any tokens are unsupported.
pub fn inputs(path: &Path, device: &Device) -> Result<FileInputs, Failed> {
    let mut tensors = candle_core::safetensors::load(path, device).map_err(failure)?;
    for name in [INPUT_IDS, DECODER_INPUT_IDS, POSITION_IDS] {
        tensors.get(name).map_or(Ok(()), |tensor| check_whole(name, tensor))?;
    }
    let pictures = || {
        let pictures = tensors.get(PIXEL_VALUES)?.dims().first().copied()?;
        Some(Tensor::zeros((pictures, 1), DType::I64, device))
    };
    let ids =
        tensors.get(INPUT_IDS).or_else(|| tensors.get(DECODER_INPUT_IDS)).cloned().map(Ok).or_else(pictures);
    let ids = ids.transpose().map_err(failure)?;
    tensors.remove(INPUT_IDS);
    let input_ids = ids.ok_or_else(|| unsupported("the inputs have no tokens, which the model needs"))?;
    let positions = tensors.remove(POSITION_IDS).map_or_else(|| input_ids.zeros_like(), Ok);
    Ok(FileInputs {
        position_ids: positions.map_err(failure)?,
        attention_mask: tensors.remove(ATTENTION_MASK),
        // A native model computes no loss and has no segments of texts, which processors mark all alike.
        others: tensors
            .into_iter()
            .filter(|(name, _)| role(name) != Role::Labels && name != SEGMENTS)
            .collect(),
        input_ids,
    })
}

/// Refuses numbers that u32 cannot hold, which candle would wrap, and the largest one, at which its embedding is 0.
fn check_whole(name: &str, tensor: &Tensor) -> Result<(), Failed> {
    if tensor.dtype() != DType::I64 {
        return Ok(());
    }
    let host = tensor.flatten_all().and_then(|tensor| tensor.to_device(&Device::Cpu));
    let values = host.and_then(|tensor| tensor.to_vec1::<i64>()).map_err(failure)?;
    match values.iter().find(|value| !(0..i64::from(u32::MAX)).contains(*value)) {
        Some(value) => Err(exception(format!(
            "`{name}` of the inputs holds {value}, which is neither an id nor a position"
        ))),
        None => Ok(()),
    }
}

/// The content of an inputs file; tokens are i64 `[batch, seq]`.
pub struct FileInputs {
    /// Token ids.
    pub input_ids: Tensor,
    /// The position of each token among the real tokens of its sequence.
    pub position_ids: Tensor,
    /// 1 for a real token and 0 for padding.
    pub attention_mask: Option<Tensor>,
    /// All other tensors, by the names of the model's arguments.
    pub others: BTreeMap<String, Tensor>,
}

impl FileInputs {
    /// Refuses inputs with other tensors than a model of text takes.
    ///
    /// # Errors
    /// Unsupported: which tensor it is.
    pub fn of_text(self) -> Result<Self, Failed> {
        match self.others.keys().next() {
            Some(name) => Err(unsupported(format!("it takes no {name}, which the inputs have"))),
            None => Ok(self),
        }
    }

    /// The inputs as a port takes them, u32; without an attention mask in the file, it is all ones.
    ///
    /// # Errors
    /// When a tensor cannot be converted.
    pub fn for_port(&self) -> Result<Inputs, Failed> {
        let narrow = |tensor: &Tensor| tensor.to_dtype(DType::U32).map_err(failure);
        let mask = self.attention_mask.as_ref();
        let ones = || self.input_ids.ones_like().map_err(failure);
        Ok(Inputs {
            input_ids: narrow(&self.input_ids)?,
            attention_mask: narrow(&mask.map_or_else(ones, |mask| Ok(mask.clone()))?)?,
            position_ids: narrow(&self.position_ids)?,
        })
    }
}

/// Writes logits as f32 (f64 for an f64 model); the file appears complete or not at all.
///
/// # Errors
/// When the file cannot be written.
pub fn write_logits(logits: &Tensor, path: &Path) -> Result<(), Failed> {
    write_outputs(logits, &[], path)
}

/// As [`write_logits`], with further outputs under their names.
///
/// # Errors
/// As [`write_logits`].
pub fn write_outputs(main: &Tensor, further: &[(&str, Tensor)], path: &Path) -> Result<(), Failed> {
    let kept = if main.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let stored = |tensor: &Tensor| tensor.to_dtype(kept)?.to_device(&Device::Cpu);
    let all = std::iter::once((LOGITS, main)).chain(further.iter().map(|(name, tensor)| (*name, tensor)));
    let outputs = all.map(|(name, tensor)| Ok((name, stored(tensor)?)));
    let outputs: HashMap<&str, Tensor> = outputs.collect::<candle_core::Result<_>>().map_err(failure)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let partial = tempfile::Builder::new()
        .prefix(".partial-")
        .tempfile_in(folder)
        .map_err(|error| exception(format!("cannot write into {}: {error}", folder.display())))?;
    candle_core::safetensors::save(&outputs, partial.path()).map_err(failure)?;
    let finish = || -> std::io::Result<()> {
        std::fs::File::open(partial.path())?.sync_all()?;
        partial.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    finish().map_err(|error| exception(format!("cannot write {}: {error}", path.display())))
}
