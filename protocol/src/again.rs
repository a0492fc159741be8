//! Requests that drive a loaded model again: with other inputs, in several forward passes, by its own generation.

use std::ops::Range;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Gives the loaded model other inputs, with which every later request is carried out; its weights and whatever state it
/// keeps stay as they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewInputs {
    /// As [`super::Load::inputs`]; without an [`super::ATTENTION_MASK`], the model is given none.
    pub inputs: PathBuf,
}

/// The inputs that a model has taken.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TakenInputs {
    /// Tensors of the inputs that the model has no argument for: [`super::ATTENTION_MASK`], [`super::POSITION_IDS`].
    #[serde(default)]
    pub unused: Vec<String>,
}

/// Asks for tokens that the runner generates greedily after the inputs, with its own code for generation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generate {
    /// Tokens to generate for each row; an end token does not stop them.
    pub tokens: usize,
}

/// Generated tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Generated {
    /// The new token ids of each row, without the inputs.
    pub ids: Vec<Vec<i64>>,
}

/// Where the forward passes over `seq` tokens begin and end: `[0, prefill)` and a token each, or `chunks`; `None` for one
/// forward pass over all of them.
///
/// # Errors
/// In words, when there is nothing to prefill, nothing left to decode, or the chunks do not cover the sequence.
pub fn forward_passes(
    prefill: Option<usize>,
    chunks: &[usize],
    seq: usize,
) -> Result<Option<Vec<Range<usize>>>, String> {
    match prefill {
        Some(_) if !chunks.is_empty() => Err("both a prefill and chunks were asked for".to_owned()),
        Some(prefill) if prefill == 0 || prefill >= seq => {
            Err(format!("a prefill of {prefill} where sequences have {seq} tokens"))
        }
        Some(prefill) => {
            let decoded = (prefill..seq).map(|at| at..at + 1);
            Ok(Some(std::iter::once(0..prefill).chain(decoded).collect()))
        }
        None if chunks.is_empty() => Ok(None),
        None => {
            let mut at = 0_usize;
            let mut passes = Vec::new();
            for &length in chunks {
                let end = at.checked_add(length).filter(|&end| length > 0 && end <= seq);
                let end =
                    end.ok_or_else(|| format!("chunks {chunks:?} where sequences have {seq} tokens"))?;
                passes.push(at..end);
                at = end;
            }
            if at < seq {
                return Err(format!("chunks {chunks:?} where sequences have {seq} tokens"));
            }
            Ok(Some(passes))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::forward_passes;

    #[test]
    fn forward_passes_cover_the_sequence_once_and_in_order() {
        assert_eq!(forward_passes(None, &[], 5), Ok(None));
        assert_eq!(forward_passes(Some(3), &[], 5), Ok(Some(vec![0..3, 3..4, 4..5])));
        assert_eq!(forward_passes(None, &[2, 1, 2], 5), Ok(Some(vec![0..2, 2..3, 3..5])));
        let wrong: [(Option<usize>, &[usize]); 6] =
            [(Some(0), &[]), (Some(5), &[]), (Some(2), &[5]), (None, &[2, 2]), (None, &[5, 0]), (None, &[6])];
        for (prefill, chunks) in wrong {
            assert!(forward_passes(prefill, chunks, 5).is_err(), "{prefill:?} {chunks:?}");
        }
        assert!(forward_passes(None, &[1, usize::MAX], 5).is_err());
    }
}
