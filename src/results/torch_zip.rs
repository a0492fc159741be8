//! Finds the tensor in a legacy run's `logits_<note>.pt` without executing pickled code.
//!
//! `torch.save` writes a zip whose members are stored, not compressed. candle's pickle reader turns `data.pkl` into plain
//! objects only; they give the storage's member and layout.

use std::io::BufReader;
use std::path::Path;

use candle_core::DType;
use candle_core::pickle::{Object, Stack, TensorInfo};
use compare::logits::{Logits, LogitsError};
use compare::{Dtype, Positions};

/// Opens the archive's one contiguous float tensor as logits of the last position.
///
/// # Errors
/// When the file cannot be read, or is not an archive of one such tensor.
pub fn open(path: &Path) -> Result<Logits, LogitsError> {
    let invalid = |problem: String| LogitsError::invalid(path, problem);
    let file = bounds::file::open(path).map_err(|error| LogitsError::io(path, error))?;
    let mut archive = zip::ZipArchive::new(BufReader::new(file))
        .map_err(|error| invalid(format!("is not a torch zip: {error}")))?;
    let names: Vec<String> =
        archive.file_names().filter_map(|name| name.ok().map(std::borrow::Cow::into_owned)).collect();
    let pickle_name = names
        .iter()
        .find(|name| name.ends_with("/data.pkl"))
        .ok_or_else(|| invalid("is not a torch zip: it has no data.pkl".to_owned()))?;

    let folder = Path::new(pickle_name.trim_end_matches(".pkl"));
    let member = archive.by_name(pickle_name).map_err(|error| invalid(format!("is damaged: {error}")))?;
    let info = tensor_info(BufReader::new(member), folder)
        .map_err(|error| invalid(format!("holds a pickle that candle cannot read: {error}")))?
        .ok_or_else(|| invalid("holds a pickle that is not one tensor".to_owned()))?;
    let storage = match info.dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::BF16 => Dtype::Bf16,
        DType::F16 => Dtype::F16,
        other => {
            return Err(invalid(format!("holds logits of dtype {other:?}, not a float")));
        }
    };
    if !info.layout.is_contiguous() {
        return Err(invalid("holds a strided view, not a contiguous tensor".to_owned()));
    }

    let member = archive.by_name(&info.path).map_err(|error| invalid(format!("is damaged: {error}")))?;
    if member.compression() != zip::CompressionMethod::Stored {
        return Err(invalid("holds a compressed tensor; torch.save stores them".to_owned()));
    }
    let start = member.data_start().ok_or_else(|| invalid("is damaged: no data offset".to_owned()))?;
    let skipped = info.layout.start_offset() * storage.size();
    let needed = skipped + info.layout.shape().elem_count() * storage.size();
    if member.size() < needed as u64 {
        return Err(invalid(format!("is truncated: storage of {} bytes, {needed} needed", member.size())));
    }
    Logits::at(path, start + skipped as u64, storage, info.layout.dims(), Positions::Last)
}

/// Reads the pickle; `None` if its object is not a tensor. candle derives the storage's member name from the pickle's
/// folder.
fn tensor_info(mut pickle: impl std::io::BufRead, folder: &Path) -> candle_core::Result<Option<TensorInfo>> {
    let mut stack = Stack::empty();
    stack.read_loop(&mut pickle)?;
    stack.finalize()?.into_tensor_info(Object::Unicode("logits".to_owned()), folder)
}
