//! Checks a GGUF file's header before candle reads it, and its tensors' places before their bytes are read.
//!
//! candle bounds what it allocates by the file's length, but it takes the last of two equal keys or tensors, any alignment
//! and any offset. Here each of them is an error, and the header's sizes are compared with the limits.

use std::collections::BTreeSet;
use std::io::{BufRead, Read};

use bounds::limits::{GGUF_ALIGNMENT, GGUF_ELEMENTS, GGUF_KEYS, GGUF_STRING_BYTES, GGUF_TENSORS, LINE};
use bounds::shown;
use candle_core::quantized::gguf_file::Content;

use super::{Problem, damaged};

/// Types of values (ggml's `gguf_type`), with the bytes of a scalar.
const SCALARS: [Option<u64>; 13] = [
    Some(1),
    Some(1),
    Some(2),
    Some(2),
    Some(4),
    Some(4),
    Some(4),
    Some(1),
    None,
    None,
    Some(8),
    Some(8),
    Some(8),
];
/// Types of tensors that candle dequantises (ggml's `ggml_type`, candle's `GgmlDType::from_u32`).
const KINDS: [u32; 15] = [0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 30];
const F32: u32 = 6;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const F64: u32 = 12;
/// candle's and ggml's alignment where the file names none.
const ALIGNMENT: u64 = 32;

/// A header that is read once from front to back.
struct Scan<'a> {
    reader: &'a mut dyn BufRead,
    /// Bytes of the file that are not read yet.
    left: u64,
    /// Version 1 has counts and lengths of 32 bits.
    is_first_version: bool,
    /// Array elements so far.
    elements: u64,
}

/// Checks the header of a file of `length` bytes, and returns the alignment of its tensors.
pub(super) fn check(reader: &mut dyn BufRead, length: u64) -> Result<u64, Problem> {
    let mut scan = Scan { reader, left: length, is_first_version: false, elements: 0 };
    if &scan.bytes::<4>()? != b"GGUF" {
        return Err((
            "it does not begin with GGUF".to_owned(),
            "the file is of another format, or a download error; fetch it again".to_owned(),
        ));
    }
    let version = scan.u32()?;
    if !(1..=3).contains(&version) {
        return Err((
            format!("it is GGUF version {version}, and tfcheck reads 1 to 3"),
            "convert it anew, or fetch it again".to_owned(),
        ));
    }
    scan.is_first_version = version == 1;
    let tensors = scan.length()?;
    let keys = scan.length()?;
    for (count, limit) in [(tensors, GGUF_TENSORS), (keys, GGUF_KEYS)] {
        limit.check(count).map_err(|error| damaged(format!("it claims {error}")))?;
    }
    let mut alignment = ALIGNMENT;
    let mut known = BTreeSet::new();
    for _ in 0..keys {
        let key = scan.string()?;
        let kind = scan.u32()?;
        if key == "general.alignment" {
            alignment = scan.alignment(kind)?;
        } else {
            scan.value(kind, &key)?;
        }
        let told = shown(&key, LINE.most).into_owned();
        if !known.insert(key) {
            return Err(damaged(format!("its metadata hold `{told}` twice")));
        }
    }
    known.clear();
    for _ in 0..tensors {
        let name = scan.string()?;
        let told = shown(&name, LINE.most).into_owned();
        let dimensions = scan.u32()?;
        if !(1..=4).contains(&dimensions) {
            return Err(damaged(format!("tensor `{told}` has {dimensions} dimensions")));
        }
        for _ in 0..dimensions {
            scan.length()?;
        }
        let kind = scan.u32()?;
        if !KINDS.contains(&kind) {
            return Err((
                format!(
                    "tensor `{told}` is quantised in a way that tfcheck does not read (ggml type {kind})"
                ),
                "take the file in F16, BF16, Q8_0 or a K quantisation, or the checkpoint's safetensors"
                    .to_owned(),
            ));
        }
        scan.bytes::<8>()?;
        if !known.insert(name) {
            return Err(damaged(format!("it holds tensor `{told}` twice")));
        }
    }
    Ok(alignment)
}

impl Scan<'_> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let mut bytes = [0; N];
        self.take(N as u64)?;
        self.reader.read_exact(&mut bytes).map_err(|error| damaged(format!("it ends early ({error})")))?;
        Ok(bytes)
    }

    /// Counts bytes that are about to be read.
    fn take(&mut self, count: u64) -> Result<(), Problem> {
        self.left = self.left.checked_sub(count).ok_or_else(|| {
            damaged(format!("its header asks for {count} bytes where {} are left", self.left))
        })?;
        Ok(())
    }

    fn u32(&mut self) -> Result<u32, Problem> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn length(&mut self) -> Result<u64, Problem> {
        if self.is_first_version { self.u32().map(u64::from) } else { self.bytes().map(u64::from_le_bytes) }
    }

    fn string(&mut self) -> Result<String, Problem> {
        let length = self.length()?;
        GGUF_STRING_BYTES.check(length).map_err(|error| damaged(format!("it claims {error}")))?;
        self.take(length)?;
        let mut bytes = vec![0; length as usize];
        self.reader.read_exact(&mut bytes).map_err(|error| damaged(format!("it ends early ({error})")))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn skip(&mut self, count: u64) -> Result<(), Problem> {
        self.take(count)?;
        let mut part = (&mut *self.reader).take(count);
        let read = std::io::copy(&mut part, &mut std::io::sink());
        match read {
            Ok(read) if read == count => Ok(()),
            _ => Err(damaged("it ends within its header")),
        }
    }

    fn value(&mut self, kind: u32, key: &str) -> Result<(), Problem> {
        let told = || shown(key, LINE.most).into_owned();
        match kind {
            STRING => self.string().map(drop),
            F32 | F64 => match self.float(kind)? {
                number if number.is_finite() => Ok(()),
                number => Err(damaged(format!("`{}` is {number}", told()))),
            },
            ARRAY => {
                let inner = self.u32()?;
                let count = self.length()?;
                if inner == ARRAY {
                    return Err(damaged(format!("`{}` is a list of lists", told())));
                }
                self.elements = self.elements.saturating_add(count);
                GGUF_ELEMENTS
                    .check(self.elements)
                    .map_err(|error| damaged(format!("`{}` brings its metadata to {error}", told())))?;
                match inner {
                    STRING => (0..count).try_for_each(|_| self.string().map(drop)),
                    // An element may be infinite: the score of a token that is never merged.
                    F32 | F64 => (0..count).try_for_each(|_| match self.float(inner)? {
                        number if number.is_nan() => Err(damaged(format!("`{}` holds NaN", told()))),
                        _ => Ok(()),
                    }),
                    _ => self.skip(count * scalar(inner)?),
                }
            }
            _ => self.skip(scalar(kind)?),
        }
    }

    fn float(&mut self, kind: u32) -> Result<f64, Problem> {
        if kind == F32 {
            self.bytes().map(|bytes| f64::from(f32::from_le_bytes(bytes)))
        } else {
            self.bytes().map(f64::from_le_bytes)
        }
    }

    fn alignment(&mut self, kind: u32) -> Result<u64, Problem> {
        let number = match kind {
            0 | 1 => self.bytes::<1>().map(|bytes| u64::from(bytes[0]))?,
            2 | 3 => self.bytes().map(|bytes| u64::from(u16::from_le_bytes(bytes)))?,
            4 | 5 => self.u32().map(u64::from)?,
            _ => return Err(damaged("`general.alignment` is not a whole number")),
        };
        // The format asks for a multiple of 8 (ggml's docs/gguf.md).
        if number.is_power_of_two() && number >= 8 && GGUF_ALIGNMENT.check(number).is_ok() {
            Ok(number)
        } else {
            Err(damaged(format!(
                "`general.alignment` is {number} where a power of two from 8 to {} is needed",
                GGUF_ALIGNMENT.most
            )))
        }
    }
}

fn scalar(kind: u32) -> Result<u64, Problem> {
    let size = SCALARS.get(kind as usize).copied().flatten();
    size.ok_or_else(|| damaged(format!("its metadata hold a value of unknown type {kind}")))
}

/// Checks that each tensor lies within the file of `length` bytes, aligned, and that one follows the other, as ggml writes them.
pub(super) fn check_places(content: &Content, alignment: u64, length: u64) -> Result<(), Problem> {
    let mut places = Vec::new();
    for (name, info) in &content.tensor_infos {
        let told = || shown(name, LINE.most).into_owned();
        let dims = info.shape.dims();
        let elements = dims.iter().try_fold(1_u64, |product, dim| product.checked_mul(*dim as u64));
        let block = info.ggml_dtype.block_size() as u64;
        let columns = dims.last().copied().unwrap_or(1) as u64;
        let (Some(elements @ 1..), 0) = (elements, columns % block) else {
            let kind = info.ggml_dtype;
            let needed = if block > 1 {
                format!("; a row of {kind:?} holds a multiple of {block} values")
            } else {
                String::new()
            };
            return Err(damaged(format!("tensor `{}` of {kind:?} has the shape {dims:?}{needed}", told())));
        };
        let end = (elements / block)
            .checked_mul(info.ggml_dtype.type_size() as u64)
            .and_then(|bytes| bytes.checked_add(info.offset));
        let is_inside =
            end.and_then(|end| end.checked_add(content.tensor_data_offset)).is_some_and(|end| end <= length);
        let (Some(end), true) = (end, is_inside) else {
            return Err(damaged(format!("tensor `{}` reaches beyond the end of the file", told())));
        };
        if info.offset % alignment != 0 {
            let offset = info.offset;
            return Err(damaged(format!(
                "tensor `{}` begins at byte {offset} of the data, which {alignment} does not divide",
                told()
            )));
        }
        places.push((info.offset, end, name));
    }
    places.sort_unstable();
    let told = |name: &str| shown(name, LINE.most).into_owned();
    let mut due = 0;
    for (at, (begin, end, name)) in places.iter().enumerate() {
        if at > 0 && *begin < places[at - 1].1 {
            return Err(damaged(format!(
                "tensors `{}` and `{}` overlap",
                told(places[at - 1].2),
                told(name)
            )));
        }
        if *begin != due {
            let place = format!("begins at byte {begin} of the data, where {due} was due");
            return Err(damaged(format!("tensor `{}` {place}", told(name))));
        }
        // The file's length bounds it.
        due = end.next_multiple_of(alignment);
    }
    Ok(())
}
