//! Inputs from files and logits to files, as candle tensors.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use protocol::{ATTENTION_MASK, Dtype, Failed, INPUT_IDS, LOGITS, POSITION_IDS};

use super::failure::{exception, failure};
use crate::Inputs;

/// The candle dtype of a request.
pub fn dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::Bf16 => DType::BF16,
        Dtype::F16 => DType::F16,
    }
}

/// The tensors of an inputs file, i64; without an attention mask, nothing is padding.
///
/// # Errors
/// When the file cannot be read or lacks a tensor.
pub fn inputs(path: &Path, device: &Device) -> Result<FileInputs, Failed> {
    let mut tensors = candle_core::safetensors::load(path, device).map_err(failure)?;
    let mut take = |name: &str| {
        tensors.remove(name).ok_or_else(|| exception(format!("{} has no tensor {name}", path.display())))
    };
    Ok(FileInputs {
        input_ids: take(INPUT_IDS)?,
        position_ids: take(POSITION_IDS)?,
        attention_mask: tensors.remove(ATTENTION_MASK),
        others: tensors.into_iter().collect(),
    })
}

/// The content of an inputs file; token ids, mask and positions are i64 `[batch, seq]` each.
pub struct FileInputs {
    /// Token ids.
    pub input_ids: Tensor,
    /// The position of each token among the real tokens of its sequence.
    pub position_ids: Tensor,
    /// 1 for a real token and 0 for padding.
    pub attention_mask: Option<Tensor>,
    /// All further tensors by name.
    pub others: BTreeMap<String, Tensor>,
}

impl FileInputs {
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
    let kept = if logits.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let logits = logits.to_dtype(kept).and_then(|logits| logits.to_device(&Device::Cpu)).map_err(failure)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let partial = tempfile::Builder::new()
        .prefix(".partial-")
        .tempfile_in(folder)
        .map_err(|error| exception(format!("cannot write into {}: {error}", folder.display())))?;
    candle_core::safetensors::save(&[(LOGITS, logits)].into(), partial.path()).map_err(failure)?;
    let finish = || -> std::io::Result<()> {
        std::fs::File::open(partial.path())?.sync_all()?;
        partial.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    finish().map_err(|error| exception(format!("cannot write {}: {error}", path.display())))
}
