//! The tokens that go through a native model's KV cache: those of a decoder, with images in their places or without, or of an
//! encoder-decoder's decoder.

use std::ops::Range;

use candle_core::{Result, Tensor};
use models::{Inputs, Kind};
use reference::protocol::{DECODER_ATTENTION_MASK, DECODER_INPUT_IDS, Role, role};

/// Which tokens stand for images.
const TOKEN_TYPES: &str = "mm_token_type_ids";

/// Which input holds the tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CachedTokens {
    /// `input_ids` of a decoder, with their mask and positions. The first forward pass takes the images.
    Own,
    /// `decoder_input_ids`, with their mask; the encoder's inputs stay whole in each forward pass.
    Decoder,
}

impl CachedTokens {
    /// `None` for a model without a KV cache.
    pub(super) fn of(kind: Kind) -> Option<Self> {
        match kind {
            Kind::Decoder | Kind::ImageTextDecoder => Some(Self::Own),
            kind if kind.follows_decoder() => Some(Self::Decoder),
            _ => None,
        }
    }

    /// The token ids, `[batch, seq]`; `None` if the inputs have none.
    pub(super) fn ids(self, inputs: &Inputs) -> Option<&Tensor> {
        match self {
            Self::Own => Some(&inputs.input_ids),
            Self::Decoder => inputs.tensors.get(DECODER_INPUT_IDS),
        }
    }

    fn mask(self, inputs: &Inputs) -> Option<&Tensor> {
        match self {
            Self::Own => inputs.attention_mask.as_ref(),
            Self::Decoder => inputs.tensors.get(DECODER_ATTENTION_MASK),
        }
    }

    /// The inputs of a forward pass over the columns `columns` of the tokens, with the mask up to their end.
    pub(super) fn part(self, inputs: &Inputs, columns: &Range<usize>) -> Result<Inputs> {
        let part = |tensor: &Tensor, from: usize| tensor.narrow(1, from, columns.end - from)?.contiguous();
        let ids = self.ids(inputs).map(|ids| part(ids, columns.start)).transpose()?;
        let mask = self.mask(inputs).map(|mask| part(mask, 0)).transpose()?;
        let positions = inputs.position_ids.as_ref().map(|positions| part(positions, columns.start));
        let mut step = self.with(inputs, ids, mask, positions.transpose()?);
        if columns.start > 0 {
            self.take_images(&mut step);
        } else if let Some(types) = inputs.tensors.get(TOKEN_TYPES) {
            step = step.with(TOKEN_TYPES, part(types, 0)?);
        }
        Ok(step)
    }

    /// The inputs of one decode step: each sequence's first token again, at the next position, not masked.
    pub(super) fn next(self, inputs: &Inputs) -> Result<Inputs> {
        let mask = self.mask(inputs).map(|mask| {
            let one = mask.narrow(1, 0, 1)?.ones_like()?;
            Tensor::cat(&[mask, &one], 1)
        });
        let positions = inputs.position_ids.as_ref().map(|positions| {
            let last = positions.narrow(1, positions.dim(1)? - 1, 1)?;
            &last + &last.ones_like()?
        });
        let ids = self.ids(inputs).map(|ids| ids.narrow(1, 0, 1)).transpose()?;
        let mut step = self.with(inputs, ids, mask.transpose()?, positions.transpose()?);
        self.take_images(&mut step);
        Ok(step)
    }

    /// Takes the images away, which the cache holds already. An encoder's inputs stay.
    fn take_images(self, step: &mut Inputs) {
        if self == Self::Own {
            let is_of_images = |name: &str| {
                matches!(role(name), Role::Pixels | Role::PixelMask | Role::Grid | Role::TokenTypes)
            };
            step.tensors.retain(|name, _| !is_of_images(name));
        }
    }

    /// The same inputs with other token ids.
    pub(super) fn with_ids(self, mut inputs: Inputs, ids: Tensor) -> Inputs {
        match self {
            Self::Own => inputs.input_ids = ids,
            Self::Decoder => inputs = inputs.with(DECODER_INPUT_IDS, ids),
        }
        inputs
    }

    fn with(
        self,
        inputs: &Inputs,
        ids: Option<Tensor>,
        mask: Option<Tensor>,
        positions: Option<Tensor>,
    ) -> Inputs {
        let mut changed = Inputs { position_ids: positions, ..inputs.clone() };
        match (self, mask) {
            (Self::Own, mask) => changed.attention_mask = mask,
            (Self::Decoder, Some(mask)) => changed = changed.with(DECODER_ATTENTION_MASK, mask),
            (Self::Decoder, None) => {}
        }
        match ids {
            Some(ids) => self.with_ids(changed, ids),
            None => changed,
        }
    }
}
