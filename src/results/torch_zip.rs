//! Finds the tensor in a legacy run's `logits_<note>.pt` without executing pickled code.
//!
//! `torch.save` writes a zip whose members are stored, not compressed. candle's pickle reader turns `data.pkl` into plain
//! objects only; they give the storage's member and layout.

use std::io::{BufReader, Read};
use std::path::Path;

use bounds::limits::{LINE, PICKLE_BYTES};
use candle_core::DType;
use candle_core::pickle::{Object, Stack, TensorInfo};
use compare::logits::{Logits, LogitsError};
use compare::{Dtype, Positions};

/// Objects that a pickle may repeat. torch repeats none in the pickle of one tensor.
const MOST_REPEATS: usize = 8;

/// Opens the archive's one contiguous float tensor as logits of the last position.
///
/// # Errors
/// When the file cannot be read, or is not an archive of one such tensor.
pub fn open(path: &Path) -> Result<Logits, LogitsError> {
    bounds::caught(|| open_archive(path))
        .unwrap_or_else(|panic| Err(LogitsError::invalid(path, format!("is damaged: its reader {panic}"))))
}

fn open_archive(path: &Path) -> Result<Logits, LogitsError> {
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
    let mut pickle = Vec::new();
    member
        .take(PICKLE_BYTES.most + 1)
        .read_to_end(&mut pickle)
        .map_err(|error| invalid(format!("is damaged: {error}")))?;
    PICKLE_BYTES.check(pickle.len() as u64).map_err(|error| invalid(format!("has {error}")))?;
    let info = tensor_info(&pickle, folder)
        .map_err(|error| {
            // candle's errors carry a backtrace where one is asked for.
            let error = bounds::shown(error.lines().next().unwrap_or_default(), LINE.most);
            invalid(format!("holds a pickle that candle cannot read: {error}"))
        })?
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
    let elements = info.layout.dims().iter().try_fold(1_usize, |product, dim| product.checked_mul(*dim));
    let place = elements.and_then(|elements| {
        let skipped = info.layout.start_offset().checked_mul(storage.size())?;
        Some((skipped, elements.checked_mul(storage.size())?.checked_add(skipped)?))
    });
    let (skipped, needed) =
        place.ok_or_else(|| invalid(format!("claims a shape {:?} beyond all memory", info.layout.dims())))?;
    if member.size() < needed as u64 {
        return Err(invalid(format!("is truncated: storage of {} bytes, {needed} needed", member.size())));
    }
    Logits::at(path, start + skipped as u64, storage, info.layout.dims(), Positions::Last)
}

/// Reads the pickle; `None` if its object is not a tensor. candle derives the storage's member name from the pickle's
/// folder.
///
/// candle allocates what an operation claims, and copies an object each time that it is repeated, so both are checked first.
fn tensor_info(pickle: &[u8], folder: &Path) -> Result<Option<TensorInfo>, String> {
    let mut stack = Stack::empty();
    let (mut rest, mut repeats) = (pickle, 0);
    loop {
        repeats += check_operation(rest)?;
        if repeats > MOST_REPEATS {
            return Err(format!("it repeats more than {MOST_REPEATS} objects"));
        }
        if stack.read(&mut rest).map_err(|error| error.to_string())? {
            break;
        }
    }
    let object = stack.finalize().map_err(|error| error.to_string())?;
    object.into_tensor_info(Object::Unicode("logits".to_owned()), folder).map_err(|error| error.to_string())
}

/// Checks the length that the next operation claims; returns 1 if it repeats an object.
fn check_operation(rest: &[u8]) -> Result<usize, String> {
    let Some((operation, arguments)) = rest.split_first() else { return Err("it ends early".to_owned()) };
    // Opcodes of Python's pickletools: BINUNICODE, BINSTRING, BINBYTES and LONG4; BINUNICODE8, BINBYTES8 and BYTEARRAY8.
    let (width, length) = match operation {
        b'X' | b'T' | b'B' | 0x8b => {
            (4, arguments.first_chunk().map(|bytes| u64::from(u32::from_le_bytes(*bytes))))
        }
        0x8d | 0x8e | 0x96 => (8, arguments.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))),
        _ => (0, Some(0)),
    };
    match length {
        Some(length) if length <= (arguments.len().saturating_sub(width)) as u64 => {
            // GET, BINGET and LONG_BINGET.
            Ok(usize::from(matches!(operation, b'g' | b'h' | b'j')))
        }
        _ => Err("it claims more bytes than it has".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pickles_that_claim_or_repeat_too_much_are_refused() {
        let check = |pickle: &[u8], expected: &str| {
            let error = tensor_info(pickle, Path::new("archive")).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check(b"\x80\x02X\xff\xff\xff\xffx", "more bytes than it has");
        check(b"\x80\x04\x8e\0\0\0\0\0\0\0\x40", "more bytes than it has");
        check(&[&b"\x80\x02]q\0"[..], &b"(h\0h\0tq\0".repeat(60)].concat(), "repeats more than");
        check(b"", "ends early");
    }
}
