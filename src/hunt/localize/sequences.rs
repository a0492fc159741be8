//! The sequence that a module runs over: an encoder-decoder has modules of two lengths, and patches of an image are no tokens.

use std::borrow::Cow;
use std::path::Path;

use compare::logits::LogitsError;
use compare::mask::Mask;

/// Names of submodules that project the encoder's states inside of a decoder's cross-attention.
const CROSS_ATTENTION: [&str; 4] = ["EncDecAttention", "encoder_attn", "cross_attn", "crossattention"];
const OF_THE_ENCODER: [&str; 6] = ["k", "v", "k_proj", "v_proj", "key", "value"];
/// A table over pairs of positions, the same for all rows of the batch (T5).
const TABLE: &str = "relative_attention_bias";

/// The positions of each sequence of the inputs.
pub(super) struct Sequences {
    /// Those that the output follows.
    output: Mask,
    /// Those of the encoder, if the output follows a decoder's tokens.
    encoder: Option<Mask>,
    /// Of positions that are no tokens: tensors are compared whole.
    none: Mask,
}

impl Sequences {
    /// # Errors
    /// As [`Mask::of_inputs`].
    pub(super) fn of_inputs(path: &Path) -> Result<Self, LogitsError> {
        let none = Mask::all_real(0, 0);
        Ok(Self {
            // A model without tokens has no padding.
            output: Mask::of_inputs(path)?.unwrap_or_else(|| none.clone()),
            encoder: Mask::of_encoder(path)?,
            none,
        })
    }

    /// The positions that the output follows.
    pub(super) fn output(&self) -> &Mask {
        &self.output
    }

    /// Whether the module at `path` runs over another sequence than the output's, so that a forward pass that continues a
    /// cache runs it over the same positions again, or not at all.
    pub(super) fn is_other(&self, path: &str) -> bool {
        !std::ptr::eq(self.tokens_of(path), &raw const self.output)
    }

    /// The positions in a tensor of `shape` of the module at `path`.
    pub(super) fn of(&self, path: &str, shape: &[usize]) -> Cow<'_, Mask> {
        let known = self.tokens_of(path);
        match *shape {
            // Each query has scores, whether it is a token or not.
            [rows, _, queries, _]
                if path.ends_with(".softmax") && (known.batch(), known.seq()) != (rows, queries) =>
            {
                Cow::Owned(Mask::all_real(rows, queries))
            }
            _ => Cow::Borrowed(known),
        }
    }

    fn tokens_of(&self, path: &str) -> &Mask {
        let segments: Vec<&str> = path.split('.').collect();
        let last = segments.last().copied().unwrap_or_default();
        if last == TABLE
            || segments.iter().any(|name| name.starts_with("vision") || name.starts_with("visual"))
        {
            return &self.none;
        }
        let Some(encoder) = &self.encoder else { return &self.output };
        let is_cross = segments.iter().any(|name| CROSS_ATTENTION.contains(name));
        let first = segments.iter().find(|name| ["encoder", "decoder"].contains(name));
        if first == Some(&"encoder") || is_cross && OF_THE_ENCODER.contains(&last) {
            encoder
        } else {
            &self.output
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_of_an_encoder_have_its_positions_and_patches_have_none() {
        let sequences = Sequences {
            output: Mask::all_real(2, 20),
            encoder: Some(Mask::all_real(2, 16)),
            none: Mask::all_real(0, 0),
        };
        for (path, seq) in [
            ("encoder.block.0.layer.0.SelfAttention.q", 16),
            ("decoder.block.0.layer.0.SelfAttention.k", 20),
            ("decoder.block.0.layer.1.EncDecAttention", 20),
            ("decoder.block.0.layer.1.EncDecAttention.k", 16),
            ("model.encoder.layers.0", 16),
            ("model.decoder.layers.0.encoder_attn.q_proj", 20),
            ("model.decoder.layers.0.encoder_attn.v_proj", 16),
            ("decoder.bert.encoder.layer.0", 20),
            ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias", 0),
            ("vision_model.encoder.layers.0", 0),
            ("lm_head", 20),
        ] {
            assert_eq!(sequences.of(path, &[2, 16, 64]).seq(), seq, "{path}");
            assert_eq!(sequences.is_other(path), seq != 20, "{path}");
        }
        assert_eq!(
            sequences.of("vision_model.encoder.layers.0.self_attn.softmax", &[2, 4, 10, 10]).seq(),
            10
        );
        let one = Sequences { encoder: None, ..sequences };
        assert_eq!(one.of("bert.encoder.layer.0", &[2, 20, 64]).seq(), 20);
    }
}
