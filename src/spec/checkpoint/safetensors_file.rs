//! Compares a safetensors file's header with the file's length, which finds truncated and damaged weights without reading
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bounds::limits::{LINE, SAFETENSORS_HEADER_BYTES, TENSORS};
use bounds::shown;
use reference::protocol::Dtype;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;

use super::Error;

/// Names of the tensors in one file.
pub(crate) type TensorNames = BTreeSet<String>;

/// Checks that the header is complete, that the tensors fill the rest without gaps, and that the file has the length that
/// they need; and that no weight is stored as integers, unless the checkpoint is quantised.
pub(crate) fn check(path: &Path, is_quantised: bool) -> Result<TensorNames, Error> {
    let bad = |reason: String| Error::BadSafetensors { path: path.to_owned(), reason };
    let Header { tensors, data_begin, found } = header(path)?;
    let mut ranges = Vec::new();
    for (name, tensor) in &tensors {
        let (begin, end) = range(tensor).ok_or_else(|| {
            let tensor = bounds::shown(&tensor.to_string(), 200).into_owned();
            bad(format!(
                "tensor `{}` has no dtype, shape or offsets that fit each other: {tensor}",
                told(name)
            ))
        })?;
        let dtype = tensor.get("dtype").and_then(Value::as_str).unwrap_or_default();
        if !is_quantised && name.ends_with(".weight") && INTEGERS.contains(&dtype) {
            return Err(Error::IntegerWeight {
                path: path.to_owned(),
                tensor: told(name),
                dtype: dtype.to_owned(),
            });
        }
        ranges.push((begin, end, name));
    }
    ranges.sort_unstable();
    let mut end_of_data = 0;
    for (begin, end, name) in &ranges {
        if *begin != end_of_data {
            return Err(bad(format!(
                "tensor `{}` starts at byte {begin} of the data, where {end_of_data} was due",
                told(name)
            )));
        }
        end_of_data = *end;
    }
    let expected = data_begin.saturating_add(end_of_data);
    if expected != found {
        return Err(Error::WrongLength { path: path.to_owned(), expected, found });
    }
    Ok(ranges.into_iter().map(|(_, _, name)| name.clone()).collect())
}

/// dtype of the first tensor of floats in the file that tfcheck knows, in the order of the data.
pub(crate) fn float_dtype(path: &Path) -> Option<Dtype> {
    let dtype = |tensor: &Value| match tensor.get("dtype")?.as_str()? {
        "F64" => Some(Dtype::F64),
        "F32" => Some(Dtype::F32),
        "BF16" => Some(Dtype::Bf16),
        "F16" => Some(Dtype::F16),
        _ => None,
    };
    let header = header(path).ok()?;
    let first = header.tensors.values().filter_map(|tensor| Some((range(tensor)?.0, dtype(tensor)?)));
    first.min_by_key(|(begin, _)| *begin).map(|(_, dtype)| dtype)
}

/// Where a tensor's bytes lie in the file; `None` if the file has no such tensor.
pub(crate) fn bytes_of(path: &Path, name: &str) -> Option<Range<u64>> {
    let Header { tensors, data_begin, .. } = header(path).ok()?;
    let (begin, end) = range(tensors.get(name)?)?;
    Some(data_begin + begin..data_begin + end)
}

/// Size from which a file is checked for holes, which a download leaves that reserves its space first. File systems that
/// compress store weights in far more than a 64th of their size.
const SPARSE_BYTES: u64 = 1 << 30;

/// dtypes of integers. Buffers such as masks and positions have them, weights do not.
const INTEGERS: [&str; 9] = ["I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL"];

/// A tensor's name in a message.
fn told(name: &str) -> String {
    shown(name, LINE.most).into_owned()
}

/// The header's object, in which a key that occurs twice is an error: readers differ in which one they take.
struct Entries(BTreeMap<String, Value>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Unique;
        impl<'de> Visitor<'de> for Unique {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if entries.len() as u64 >= TENSORS.most {
                        return Err(A::Error::custom(format!("more than {} tensors", TENSORS.most)));
                    }
                    let written = told(&name);
                    if entries.insert(name, value).is_some() {
                        return Err(A::Error::custom(format!("`{written}` is listed twice")));
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Unique)
    }
}

struct Header {
    /// By name.
    tensors: BTreeMap<String, Value>,
    /// Where the tensors' bytes begin in the file.
    data_begin: u64,
    /// Bytes of the file.
    found: u64,
}

fn header(path: &Path) -> Result<Header, Error> {
    let bad = |reason: String| Error::BadSafetensors { path: path.to_owned(), reason };
    let mut file = bounds::file::open(path).map_err(Error::io("read", path))?;
    let found = file.metadata().map_err(Error::io("read", path))?.len();
    let held = file.metadata().map_err(Error::io("read", path))?.blocks().saturating_mul(512);
    if found > SPARSE_BYTES && held < found / 64 {
        return Err(bad(format!(
            "only {held} of its {found} bytes are on disk: its download is not complete"
        )));
    }
    if found < 8 {
        return Err(bad(format!("it is {found} bytes long, shorter than the length of its header")));
    }
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(Error::io("read", path))?;
    if length == *b"version " {
        return Err(bad("it is a git-lfs pointer, not the weights; run `git lfs pull` there".to_owned()));
    }
    let length = u64::from_le_bytes(length);
    if SAFETENSORS_HEADER_BYTES.check(length).is_err() {
        return Err(bad(format!("its header claims {length} bytes, more than the format allows")));
    }
    if length > found - 8 {
        return Err(Error::WrongLength { path: path.to_owned(), expected: 8 + length, found });
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(Error::io("read", path))?;
    let Entries(mut tensors) = serde_json::from_slice(&header).map_err(|error| {
        bad(format!("its header cannot be read: {}", shown(&error.to_string(), LINE.most)))
    })?;
    let is_text = |map: &Value| map.as_object().is_some_and(|map| map.values().all(Value::is_string));
    if tensors.remove("__metadata__").is_some_and(|metadata| !is_text(&metadata)) {
        return Err(bad("its `__metadata__` is not an object of texts".to_owned()));
    }
    Ok(Header { tensors, data_begin: 8 + length, found })
}

/// The byte range of a header entry; `None` unless its length fits the entry's shape and dtype.
fn range(tensor: &Value) -> Option<(u64, u64)> {
    let offsets = tensor.get("data_offsets")?.as_array()?;
    let (begin, end) = (offsets.first()?.as_u64()?, offsets.get(1)?.as_u64()?);
    let bits: u64 = match tensor.get("dtype")?.as_str()? {
        "F64" | "I64" | "U64" | "C64" => 64,
        "F32" | "I32" | "U32" => 32,
        "F16" | "BF16" | "I16" | "U16" => 16,
        "F8_E4M3" | "F8_E5M2" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" | "I8" | "U8" | "BOOL" => 8,
        "F6_E2M3" | "F6_E3M2" => 6,
        "F4" => 4,
        _ => return None,
    };
    let mut elements = 1u64;
    for dimension in tensor.get("shape")?.as_array()? {
        elements = elements.checked_mul(dimension.as_u64()?)?;
    }
    let bytes = elements.checked_mul(bits)?.div_ceil(8);
    (end.checked_sub(begin)? == bytes).then_some((begin, end))
}
