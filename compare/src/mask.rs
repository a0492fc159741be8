//! Which positions of an output are compared.

use std::path::Path;

use bounds::limits::INPUTS_BYTES;
use safetensors::{Dtype as Stored, SafeTensors};

use super::logits::LogitsError;

/// Name of the mask tensor in the worker protocol.
const ATTENTION_MASK: &str = "attention_mask";
/// The tokens whose positions an output can follow, and their masks, in the worker protocol; the first that the inputs have.
const TOKENS: [[&str; 2]; 2] =
    [["decoder_input_ids", "decoder_attention_mask"], ["input_ids", ATTENTION_MASK]];

/// Which positions of the inputs are real tokens, `[batch, seq]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    batch: usize,
    seq: usize,
    real: Vec<bool>,
}

impl Mask {
    /// A mask from its values in row-major order; `None` if their number is not `batch * seq`.
    pub fn new(batch: usize, seq: usize, real: Vec<bool>) -> Option<Self> {
        (real.len() == batch * seq).then_some(Self { batch, seq, real })
    }

    /// A mask without padding.
    pub fn all_real(batch: usize, seq: usize) -> Self {
        Self { batch, seq, real: vec![true; batch * seq] }
    }

    /// The positions that a model's outputs follow: those of `decoder_input_ids` in the inputs file if it has them, else of
    /// `input_ids`, with the mask that belongs to them. `None` if the inputs have no tokens.
    ///
    /// # Errors
    /// The file cannot be read, or holds tokens or a mask that are no i64 `[batch, seq]`.
    pub fn of_inputs(path: &Path) -> Result<Option<Self>, LogitsError> {
        let bytes = bounds::file::read(path, INPUTS_BYTES).map_err(|error| LogitsError::io(path, error))?;
        let tensors = opened(path, &bytes)?;
        for known in TOKENS {
            if let Some(mask) = real(path, &tensors, known)? {
                return Ok(Some(mask));
            }
        }
        integers(path, &tensors, ATTENTION_MASK)
    }

    /// The positions of an encoder whose decoder has tokens of its own: those of `input_ids`, with the mask that belongs to
    /// them; a mask of no positions if the encoder has no tokens. `None` if the inputs have no `decoder_input_ids`.
    ///
    /// # Errors
    /// As [`Mask::of_inputs`].
    pub fn of_encoder(path: &Path) -> Result<Option<Self>, LogitsError> {
        let bytes = bounds::file::read(path, INPUTS_BYTES).map_err(|error| LogitsError::io(path, error))?;
        let tensors = opened(path, &bytes)?;
        let [[decoder, _], encoder] = TOKENS;
        if tensors.tensor(decoder).is_err() {
            return Ok(None);
        }
        Ok(Some(real(path, &tensors, encoder)?.unwrap_or_else(|| Self::all_real(0, 0))))
    }

    /// The positions of the tokens `tokens` of the inputs file, with the mask that belongs to them; `None` if the inputs do
    /// not have them.
    ///
    /// # Errors
    /// As [`Mask::of_inputs`].
    pub fn of_tokens(path: &Path, tokens: &str) -> Result<Option<Self>, LogitsError> {
        let Some(known) = TOKENS.into_iter().find(|[name, _]| *name == tokens) else { return Ok(None) };
        let bytes = bounds::file::read(path, INPUTS_BYTES).map_err(|error| LogitsError::io(path, error))?;
        let tensors = opened(path, &bytes)?;
        real(path, &tensors, known)
    }

    /// The positions of an output with `batch` rows of `seq` positions: these, if they are as many; otherwise the output
    /// follows no tokens, and all of its positions count.
    #[must_use]
    pub fn fitting(known: Option<Self>, (batch, seq): (usize, usize)) -> Self {
        known
            .filter(|mask| (mask.batch, mask.seq) == (batch, seq))
            .unwrap_or_else(|| Self::all_real(batch, seq))
    }

    /// Batch size.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Sequence length, padding included.
    pub fn seq(&self) -> usize {
        self.seq
    }

    /// True where `(row, position)` holds a real token.
    pub fn is_real(&self, row: usize, position: usize) -> bool {
        self.real[row * self.seq + position]
    }

    /// The last real position of a row; `None` if the row is all padding.
    pub fn last_real(&self, row: usize) -> Option<usize> {
        (0..self.seq).rev().find(|&position| self.is_real(row, position))
    }
}

/// Which of the tokens are real, by the mask of that name, or all of them without it; `None` if the file has no such tokens.
fn real(path: &Path, tensors: &SafeTensors, [tokens, mask]: [&str; 2]) -> Result<Option<Mask>, LogitsError> {
    let Some(tokens) = integers(path, tensors, tokens)? else { return Ok(None) };
    let mask = integers(path, tensors, mask)?;
    Ok(Some(mask.unwrap_or_else(|| Mask::all_real(tokens.batch, tokens.seq))))
}

fn opened<'a>(path: &Path, bytes: &'a [u8]) -> Result<SafeTensors<'a>, LogitsError> {
    SafeTensors::deserialize(bytes)
        .map_err(|error| LogitsError::invalid(path, format!("is not a safetensors file: {error}")))
}

/// Where the tensor `name` is not 0; `None` if the file does not have it.
fn integers(path: &Path, tensors: &SafeTensors, name: &str) -> Result<Option<Mask>, LogitsError> {
    let Ok(view) = tensors.tensor(name) else { return Ok(None) };
    match (view.dtype(), view.shape()) {
        (Stored::I64, &[batch, seq]) => {
            let real = view.data().as_chunks::<8>().0.iter().map(|&b| i64::from_le_bytes(b) != 0);
            Ok(Some(Mask { batch, seq, real: real.collect() }))
        }
        // Codes of several codebooks for each position are no tokens of a text, and all of their positions are real.
        (Stored::I64, &[_, _, _]) if name == "input_ids" => Ok(None),
        (dtype, shape) => {
            let problem = format!("holds {name} of {dtype:?} {shape:?}, not i64 [batch, seq]");
            Err(LogitsError::invalid(path, problem))
        }
    }
}
