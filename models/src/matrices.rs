//! Matrices read from safetensors files block by block. A mapped file counts as memory of the process once it is
//! read, so mapping it while packing weights would double the memory of the checkpoint.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use half::{bf16, f16};
use safetensors::Dtype;

use crate::error::{Error, Result};
use crate::fused::Float;
use crate::lock::lock;

/// Bytes that are read at a time.
const BLOCK_BYTES: usize = 4 << 20;

/// The files of a checkpoint and the place of each tensor in them.
pub(crate) struct Matrices {
    files: Vec<(PathBuf, Mutex<File>)>,
    /// For each tensor name, the index of the file and the byte offset of the data.
    places: BTreeMap<String, (usize, u64)>,
}

/// Converts little-endian values of a file's dtype and appends them.
type Convert<T> = fn(&[u8], &mut Vec<T>);

impl Matrices {
    pub(crate) fn open(paths: &[PathBuf]) -> Result<Self> {
        let (mut files, mut places) = (Vec::new(), BTreeMap::new());
        for path in paths {
            let mut file = bounds::file::open(path).map_err(|error| unreadable(path, error))?;
            let mut len = [0; 8];
            file.read_exact(&mut len).map_err(|error| unreadable(path, error))?;
            let len = u64::from_le_bytes(len);
            // The mapping has already validated the header and its length.
            let mut header = vec![0; len as usize];
            file.read_exact(&mut header).map_err(|error| unreadable(path, error))?;
            let header: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&header)
                .map_err(|error| Error::Parse { path: path.clone(), reason: error.to_string() })?;
            for (name, entry) in header {
                if let Some(start) = entry["data_offsets"][0].as_u64() {
                    places.insert(name, (files.len(), 8 + len + start));
                }
            }
            files.push((path.clone(), Mutex::new(file)));
        }
        Ok(Self { files, places })
    }

    /// Passes the rows of a tensor to `take` in blocks, converted as candle's `to_dtype` does; `take` also gets the
    /// number of the block's first row.
    pub(crate) fn each_block<T: Float>(
        &self,
        name: &str,
        dtype: Dtype,
        (rows, columns): (usize, usize),
        mut take: impl FnMut(usize, &[T]),
    ) -> Result<()> {
        let missing = || Error::MissingTensor { name: name.to_owned() };
        let (file, start) = *self.places.get(name).ok_or_else(missing)?;
        let (path, file) = &self.files[file];
        let (width, convert): (usize, Convert<T>) = match dtype {
            Dtype::F32 => (4, |bytes, out| {
                out.extend(bytes.as_chunks().0.iter().map(|x| T::from_f32(f32::from_le_bytes(*x))));
            }),
            Dtype::BF16 => (2, |bytes, out| {
                out.extend(bytes.as_chunks().0.iter().map(|x| T::from_f32(bf16::from_le_bytes(*x).to_f32())));
            }),
            Dtype::F16 => (2, |bytes, out| {
                out.extend(bytes.as_chunks().0.iter().map(|x| T::from_f32(f16::from_le_bytes(*x).to_f32())));
            }),
            Dtype::F64 => (8, |bytes, out| {
                out.extend(bytes.as_chunks().0.iter().map(|x| T::from_f64(f64::from_le_bytes(*x))));
            }),
            other => return Err(Error::Unsupported(format!("tensor {name} in dtype {other:?}"))),
        };
        let rows_at_once = (BLOCK_BYTES / (columns * width)).max(1);
        let mut bytes = vec![0; rows.min(rows_at_once) * columns * width];
        let mut values = Vec::with_capacity(bytes.len() / width);
        let mut file = lock(file);
        file.seek(SeekFrom::Start(start)).map_err(|error| unreadable(path, error))?;
        for first in (0..rows).step_by(rows_at_once) {
            let bytes = &mut bytes[..rows_at_once.min(rows - first) * columns * width];
            file.read_exact(bytes).map_err(|error| unreadable(path, error))?;
            values.clear();
            convert(bytes, &mut values);
            take(first, &values);
        }
        Ok(())
    }
}

fn unreadable(path: &Path, source: std::io::Error) -> Error {
    Error::Read { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::{DType, Device, Tensor};

    use super::*;

    /// The matrix is longer than a block in every dtype.
    #[test]
    fn blocks_hold_what_candle_converts_to() {
        let (rows, columns) = (700, 2053);
        let values: Vec<f64> = (0..rows * columns).map(|i| (i as f64 * 0.7).sin() * 9.0).collect();
        let exact = Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let dtypes = [
            (DType::F64, Dtype::F64),
            (DType::F32, Dtype::F32),
            (DType::F16, Dtype::F16),
            (DType::BF16, Dtype::BF16),
        ];
        let named = dtypes.map(|(dtype, _)| (dtype.as_str().to_owned(), exact.to_dtype(dtype).unwrap()));
        let tensors = HashMap::from(named);
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let matrices = Matrices::open(&[path]).unwrap();
        for (dtype, stored) in dtypes {
            let tensor = &tensors[dtype.as_str()];
            check::<f32>(&matrices, dtype.as_str(), stored, tensor);
            check::<bf16>(&matrices, dtype.as_str(), stored, tensor);
        }
    }

    fn check<T: Float>(matrices: &Matrices, name: &str, stored: Dtype, tensor: &Tensor) {
        let mut found = Vec::new();
        let shape = tensor.dims2().unwrap();
        let take = |first: usize, rows: &[T]| {
            assert_eq!(first * shape.1, found.len());
            found.extend_from_slice(rows);
        };
        matrices.each_block(name, stored, shape, take).unwrap();
        let expected = tensor.to_dtype(T::DTYPE).unwrap().flatten_all().unwrap().to_vec1::<T>().unwrap();
        assert!(found == expected, "{name} to {:?}", T::DTYPE);
    }
}
