//! Writes the files of a checkpoint: each is written under a temporary name, synced and renamed.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::fill::fill;
use crate::checkpoints::Error;
use crate::checkpoints::Tensor;

/// Number of values that a thread generates at a time: 1 MiB.
const PIECE: usize = 1 << 18;
/// Number of files that this process has begun to write. It makes temporary names unique, because tests write the
/// same checkpoint in several threads.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Streams f32 tensors, which must be sorted by name, into a safetensors file.
pub(super) fn write_safetensors(path: &Path, tensors: &[Tensor], seed: u64) -> Result<(), Error> {
    write(path, |file| {
        file.write_all(&header(tensors))?;
        let mut bytes = vec![0; 4 * PIECE * rayon::current_num_threads()];
        for tensor in tensors {
            for start in (0..tensor.len()).step_by(bytes.len() / 4) {
                let len = (tensor.len() - start).min(bytes.len() / 4);
                let bytes = &mut bytes[..4 * len];
                bytes.par_chunks_mut(4 * PIECE).enumerate().for_each(|(index, bytes)| {
                    let mut values = vec![0f32; bytes.len() / 4];
                    fill(tensor, seed, start + index * PIECE, &mut values);
                    for (bytes, value) in bytes.chunks_exact_mut(4).zip(values) {
                        bytes.copy_from_slice(&value.to_le_bytes());
                    }
                });
                file.write_all(bytes)?;
            }
        }
        Ok(())
    })
}

/// Writes a text file.
pub(super) fn write_text(path: &Path, text: &str) -> Result<(), Error> {
    write(path, |file| file.write_all(text.as_bytes()))
}

fn write(path: &Path, content: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), Error> {
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_extension(format!("tmp-{}-{count}", std::process::id()));
    let written = File::create(&temporary)
        .and_then(|mut file| content(&mut file).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|source| {
        // The first error is the one to report; the leftover may not even exist.
        let _ = std::fs::remove_file(&temporary);
        Error::Io { path: path.into(), source }
    })
}

/// The header with its length. transformers requires `format: pt`; spaces align the data to eight bytes.
fn header(tensors: &[Tensor]) -> Vec<u8> {
    let mut entries = Map::new();
    entries.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut start = 0;
    for tensor in tensors {
        let end = start + 4 * tensor.len();
        entries.insert(
            tensor.name.clone(),
            json!({ "dtype": "F32", "shape": tensor.shape, "data_offsets": [start, end] }),
        );
        start = end;
    }
    let mut json = Value::Object(entries).to_string();
    json.extend(std::iter::repeat_n(' ', json.len().next_multiple_of(8) - json.len()));
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.into_bytes());
    bytes
}
