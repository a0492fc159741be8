//! Reads inputs from files and writes logits to files, as candle tensors.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use reference::protocol::{ATTENTION_MASK, Dtype, Failed, INPUT_IDS, LOGITS, POSITION_IDS};

use super::failure::{exception, tensor_failure};

pub(super) fn dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::Bf16 => DType::BF16,
        Dtype::F16 => DType::F16,
    }
}

pub(super) fn inputs(path: &Path, device: &Device) -> Result<models::Inputs, Failed> {
    let mut tensors = candle_core::safetensors::load(path, device).map_err(tensor_failure)?;
    let mut take = |name: &str| {
        tensors.remove(name).ok_or_else(|| exception(format!("{} has no tensor {name}", path.display())))
    };
    Ok(models::Inputs {
        input_ids: take(INPUT_IDS)?,
        position_ids: Some(take(POSITION_IDS)?),
        // Without one, there is no padding.
        attention_mask: tensors.remove(ATTENTION_MASK),
    })
}

/// Writes logits as f32 (f64 for an f64 model); the file appears complete or not at all.
pub(super) fn write_logits(logits: &Tensor, path: &Path) -> Result<(), Failed> {
    let kept = if logits.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let logits =
        logits.to_dtype(kept).and_then(|logits| logits.to_device(&Device::Cpu)).map_err(tensor_failure)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let partial = tempfile::Builder::new()
        .prefix(".partial-")
        .tempfile_in(folder)
        .map_err(|error| exception(format!("cannot write into {}: {error}", folder.display())))?;
    candle_core::safetensors::save(&[(LOGITS, logits)].into(), partial.path()).map_err(tensor_failure)?;
    let finish = || -> std::io::Result<()> {
        std::fs::File::open(partial.path())?.sync_all()?;
        partial.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    finish().map_err(|error| exception(format!("cannot write {}: {error}", path.display())))
}
