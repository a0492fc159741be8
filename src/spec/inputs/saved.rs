//! A batch on disk: `inputs.safetensors` for the workers, `inputs.json` for people and for resuming.

use std::path::{Path, PathBuf};

use bounds::limits::INPUTS_BYTES;
use reference::protocol::{ATTENTION_MASK, INPUT_IDS, POSITION_IDS};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::{Error, Inputs, Tensor, Tensors, batch};
use crate::spec::atomic;

/// Where a batch was saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// `inputs.safetensors`.
    pub safetensors: PathBuf,
    /// `inputs.json`.
    pub json: PathBuf,
}

/// `inputs.json`: all of a batch except the tensors.
#[derive(Serialize, Deserialize)]
struct Description {
    schema_version: u32,
    inputs: Inputs,
}

const SCHEMA_VERSION: u32 = 1;

impl Inputs {
    /// Writes the batch into `folder`, each file atomically.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<Saved, Error> {
        let saved =
            Saved { safetensors: folder.join("inputs.safetensors"), json: folder.join("inputs.json") };
        let damaged = |path: &Path, reason: String| Error::Damaged { path: path.to_owned(), reason };
        self.tokens().write(&saved.safetensors, &self.tensors)?;
        let description = Description { schema_version: SCHEMA_VERSION, inputs: self.clone() };
        let json = serde_json::to_vec_pretty(&description)
            .map_err(|error| damaged(&saved.json, error.to_string()))?;
        write(&saved.json, &json)?;
        Ok(saved)
    }
}

/// The tokens of a batch, each tensor `[batch, seq]`.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a> {
    /// Batch size and sequence length; a length of 0 means that there are no tokens.
    pub shape: (usize, usize),
    /// Token ids.
    pub input_ids: &'a [i64],
    /// 1 at real tokens; without it the model is given no mask.
    pub attention_mask: Option<&'a [i64]>,
    /// Positions.
    pub position_ids: &'a [i64],
}

impl Inputs {
    /// The tokens of the batch.
    pub fn tokens(&self) -> Tokens<'_> {
        Tokens {
            shape: (self.batch, self.seq),
            input_ids: &self.input_ids,
            attention_mask: Some(&self.attention_mask),
            position_ids: &self.position_ids,
        }
    }
}

impl Tokens<'_> {
    /// Writes the tokens and `tensors` as workers read them.
    ///
    /// # Errors
    /// When the file cannot be written, or a tensor is not of its shape.
    pub fn write(&self, path: &Path, tensors: &Tensors) -> Result<(), Error> {
        let (batch, seq) = self.shape;
        let parts = [
            (INPUT_IDS, Some(self.input_ids)),
            (ATTENTION_MASK, self.attention_mask),
            (POSITION_IDS, Some(self.position_ids)),
        ];
        let given = parts.into_iter().filter(|_| seq > 0).filter_map(|(name, values)| Some((name, values?)));
        let tokens: Vec<(&str, Tensor)> = given
            .map(|(name, values)| (name, Tensor::integers(vec![batch, seq], values.iter().copied())))
            .collect();
        let others = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        let file = tokens
            .iter()
            .map(|(name, tensor)| (*name, tensor))
            .chain(others)
            .map(|(name, tensor)| {
                Ok((name, TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes)?))
            })
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
            .and_then(|views| safetensors::serialize(views, None))
            .map_err(|error| Error::Damaged { path: path.to_owned(), reason: error.to_string() })?;
        write(path, &file)
    }
}

/// Reads the batch that [`Inputs::save`] wrote into `folder`, and checks that both files are of the same batch.
///
/// # Errors
/// When a file is missing, unreadable, or does not have the expected digest.
pub fn load(folder: &Path) -> Result<Inputs, Error> {
    let (json, tensors) = (folder.join("inputs.json"), folder.join("inputs.safetensors"));
    let damaged = |path: &Path, reason: String| Error::Damaged { path: path.to_owned(), reason };
    let description: Description = serde_json::from_slice(&read(&json)?)
        .map_err(|error| damaged(&json, format!("is not a batch of inputs: {error}")))?;
    let mut inputs = description.inputs;
    let bytes = read(&tensors)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| damaged(&tensors, error.to_string()))?;
    for (name, values) in [
        (INPUT_IDS, &mut inputs.input_ids),
        (ATTENTION_MASK, &mut inputs.attention_mask),
        (POSITION_IDS, &mut inputs.position_ids),
    ] {
        if inputs.seq == 0 {
            break;
        }
        let view = file.tensor(name).map_err(|error| damaged(&tensors, error.to_string()))?;
        if view.dtype() != Dtype::I64 || view.shape() != [inputs.batch, inputs.seq] {
            return Err(damaged(&tensors, format!("`{name}` is not i64 [{}, {}]", inputs.batch, inputs.seq)));
        }
        let (chunks, _) = view.data().as_chunks::<8>();
        *values = chunks.iter().map(|chunk| i64::from_le_bytes(*chunk)).collect();
    }
    for (name, tensor) in &mut inputs.tensors {
        let view = file.tensor(name).map_err(|error| damaged(&tensors, error.to_string()))?;
        if view.dtype() != tensor.dtype || view.shape() != tensor.shape {
            return Err(damaged(&tensors, format!("`{name}` is not {}", tensor.said())));
        }
        tensor.bytes = view.data().to_vec();
    }
    if batch::digest(&inputs) != inputs.digest {
        return Err(damaged(
            &tensors,
            format!("does not have the digest {} that inputs.json states", inputs.digest),
        ));
    }
    Ok(inputs)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    atomic::write(path, bytes).map_err(|source| Error::Io { action: "write", path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    bounds::file::read(path, INPUTS_BYTES).map_err(|source| Error::Io {
        action: "read",
        path: path.to_owned(),
        source,
    })
}
