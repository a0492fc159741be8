//! Writes a GGUF file's tensors to one f32 safetensors file, a few megabytes at a time.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use bounds::limits::LINE;
use bounds::shown;
use candle_core::Device;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::quantized::gguf_file::{Content, TensorInfo};
use compare::units::count;
use serde_json::{Map, Value, json};

use super::metadata::Metadata;
use super::names::{Architecture, Change};
use super::{Problem, damaged, first_line};
use crate::spec::checkpoint::{Error, Progress, Settings, Step};

/// Bytes of f32 per step, which bounds the memory that an import needs.
const CHUNK_BYTES: usize = 8 << 20;

/// One tensor of the GGUF file and its name in the safetensors file.
#[derive(Debug)]
pub(super) struct Entry {
    theirs: String,
    ours: String,
    change: Change,
}

/// The tensors to write, ordered by transformers' names. An unknown or missing tensor is an error, because the result
/// would be a different model.
pub(super) fn plan(
    architecture: Architecture,
    content: &Content,
    metadata: &Metadata<'_>,
) -> Result<Vec<Entry>, Problem> {
    let key = |name: &str| format!("{}.{name}", architecture.name());
    let layers = metadata.need_whole(&key("block_count"), "num_hidden_layers")? as usize;
    let heads = metadata.need_whole(&key("attention.head_count"), "num_attention_heads")? as usize;
    let key_value_heads = match metadata.integer(&key("attention.head_count_kv")) {
        None => heads,
        Some(_) => metadata.need_whole(&key("attention.head_count_kv"), "num_key_value_heads")? as usize,
    };

    if let Some(missing) = architecture.required(layers).find(|name| !content.tensor_infos.contains_key(name))
    {
        return Err(damaged(format!("tensor `{missing}` is missing")));
    }
    let mut entries = Vec::new();
    for (theirs, info) in &content.tensor_infos {
        if theirs == "rope_freqs.weight" {
            continue; // becomes a part of the config
        }
        let ours = architecture.translate(theirs, layers).ok_or_else(|| {
            let told = shown(theirs, LINE.most);
            let name = architecture.name();
            damaged(format!("tensor `{told}` has no place in a {name} model of {}", count(layers, "layer")))
        })?;
        let change = architecture.change(theirs, heads, key_value_heads);
        let rows = info.shape.dims().first().copied().unwrap_or_default();
        if let Change::Interleaved { heads } = change
            && (heads == 0 || rows % (2 * heads) != 0)
        {
            return Err(damaged(format!(
                "tensor `{theirs}` has {rows} rows, which {heads} heads do not divide evenly"
            )));
        }
        entries.push(Entry { theirs: theirs.clone(), ours, change });
    }
    entries.sort_by(|a, b| a.ours.cmp(&b.ours));
    Ok(entries)
}

/// Writes the safetensors file, with tensors in the order of the plan.
pub(super) fn write(
    path: &Path,
    content: &Content,
    plan: &[Entry],
    target: &Path,
    settings: &Settings,
    progress: Progress<'_>,
) -> Result<(), Error> {
    let source = bounds::file::open(path).map_err(Error::io("read", path))?;
    let failed = Error::io("write", target);
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut total = 0;
    for entry in plan {
        let shape = content.tensor_infos[&entry.theirs].shape.dims();
        let end = total + shape.iter().product::<usize>() as u64 * 4;
        header.insert(
            entry.ours.clone(),
            json!({"dtype": "F32", "shape": shape, "data_offsets": [total, end]}),
        );
        total = end;
    }
    let mut header = Value::Object(header).to_string();
    // The data starts aligned, as in files of the safetensors library.
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));

    let mut file = match File::create(target) {
        Ok(file) => BufWriter::with_capacity(1 << 20, file),
        Err(error) => return Err(failed(error)),
    };
    let mut put = |bytes: &[u8]| file.write_all(bytes).map_err(Error::io("write", target));
    put(&(header.len() as u64).to_le_bytes())?;
    put(header.as_bytes())?;
    let mut done = 0;
    for entry in plan {
        let info = &content.tensor_infos[&entry.theirs];
        let mut sink = |bytes: &[u8]| {
            done += bytes.len() as u64;
            progress(Step::Import { tensor: &entry.ours, done, total });
            if settings.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            put(bytes)
        };
        copy(path, &source, content.tensor_data_offset, info, entry, &mut sink)?;
    }
    let file = file.into_inner().map_err(|error| Error::io("write", target)(error.into_error()))?;
    file.sync_all().map_err(Error::io("sync", target))
}

/// Dequantises one tensor, a few rows at a time.
fn copy(
    path: &Path,
    source: &File,
    data: u64,
    info: &TensorInfo,
    entry: &Entry,
    sink: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let problem = |reason: String| {
        let (reason, help) = damaged(format!("tensor `{}`: {reason}", entry.theirs));
        Error::Gguf { path: path.to_owned(), reason, help }
    };
    let dims = info.shape.dims();
    // A quantised block never spans two rows, so rows can be read separately.
    let (rows, columns) = match (entry.change, dims) {
        // The bias of an interleaved projection is permuted like a matrix with one value per row.
        (Change::Interleaved { .. }, &[length]) => (length, 1),
        _ => (dims.iter().rev().skip(1).product::<usize>(), dims.last().copied().unwrap_or(1)),
    };
    let block = info.ggml_dtype.block_size();
    if columns % block != 0 {
        return Err(problem(format!(
            "rows of {columns} are not a multiple of {block}, the block of {:?}",
            info.ggml_dtype
        )));
    }
    let row_bytes = columns / block * info.ggml_dtype.type_size();
    let read = |row: usize, bytes: &mut [u8]| {
        let offset = data + info.offset + (row * row_bytes) as u64;
        source.read_exact_at(bytes, offset).map_err(|error| problem(format!("its data end early ({error})")))
    };
    let step = (CHUNK_BYTES / 4 / columns.max(1)).max(1);
    let mut raw = Vec::new();
    for first in (0..rows).step_by(step) {
        let count = step.min(rows - first);
        raw.resize(count * row_bytes, 0);
        match entry.change {
            Change::Interleaved { heads } => {
                for (row, bytes) in (first..).zip(raw.chunks_exact_mut(row_bytes)) {
                    read(interleaved_row(row, rows / heads), bytes)?;
                }
            }
            Change::None | Change::PlusOne => read(first, &mut raw)?,
        }
        let values = qtensor_from_ggml(info.ggml_dtype, &raw, vec![count, columns], &Device::Cpu)
            .and_then(|tensor| tensor.dequantize(&Device::Cpu))
            .and_then(|tensor| tensor.flatten_all()?.to_vec1::<f32>())
            .map_err(|error| problem(first_line(&error)))?;
        let shift = if entry.change == Change::PlusOne { 1.0 } else { 0.0 };
        let bytes: Vec<u8> = values.into_iter().flat_map(|value| (value - shift).to_le_bytes()).collect();
        sink(&bytes)?;
    }
    Ok(())
}

/// Row in llama.cpp's layout of transformers' row `row`. Within a head of `head_dim` rows, llama.cpp stores rows `j` and
/// `head_dim/2 + j` (the two halves that rope rotates) next to each other, at `2j` and `2j + 1`.
fn interleaved_row(row: usize, head_dim: usize) -> usize {
    let (head, inner) = (row / head_dim, row % head_dim);
    let (half, j) = (inner / (head_dim / 2), inner % (head_dim / 2));
    head * head_dim + 2 * j + half
}

#[cfg(test)]
mod tests {
    use super::interleaved_row;

    #[test]
    fn heads_are_interleaved_row_by_row_and_never_mixed() {
        // Two heads of six: transformers keeps [x0 x1 x2 | y0 y1 y2], llama.cpp [x0 y0 x1 y1 x2 y2].
        let rows: Vec<_> = (0..12).map(|row| interleaved_row(row, 6)).collect();
        assert_eq!(rows, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }
}
