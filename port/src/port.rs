//! A port: one forward pass, and what tfcheck must know to run it.

use candle_core::Tensor;
use protocol::{ATTENTION_MASK, Positions};

use crate::named::NamedTensors;
use crate::recording::Inputs;

/// A port that is loaded.
pub struct Port {
    pub(crate) pass: Pass,
    pub(crate) caches: bool,
    pub(crate) reads_mask: bool,
    pub(crate) positions: Option<Positions>,
}

/// One forward pass.
pub(crate) enum Pass {
    /// Over tokens, of which the first has this position; 0 empties the KV cache first.
    Text(Box<TextPass>),
    /// Over the tensors of these names.
    Tensors(&'static [&'static str], Box<TensorsPass>),
}

pub(crate) type TextPass = dyn FnMut(&Inputs, usize) -> candle_core::Result<Tensor>;

pub(crate) type TensorsPass = dyn FnMut(&NamedTensors) -> candle_core::Result<Tensor>;

impl Port {
    /// A port without a KV cache: a function from [`Inputs`] to logits.
    ///
    /// Logits are `[batch, seq, vocab_size]`, or for last positions alone `[batch, 1, vocab_size]` or `[batch,
    /// vocab_size]`; a classifier gives `[batch, labels]`.
    pub fn new(mut pass: impl FnMut(&Inputs) -> candle_core::Result<Tensor> + 'static) -> Self {
        Self {
            pass: Pass::Text(Box::new(move |inputs, _| pass(inputs))),
            caches: false,
            reads_mask: true,
            positions: None,
        }
    }

    /// A port that takes other tensors than text: images, sound, tokens of a decoder. It takes those of the names `takes`, which
    /// are transformers' arguments.
    ///
    /// Its output is `[batch, positions, width]`, `[batch, width]` for whole rows, or has more axes, of which all but the first
    /// and the last are positions.
    pub fn of_tensors(
        takes: &'static [&'static str],
        pass: impl FnMut(&NamedTensors) -> candle_core::Result<Tensor> + 'static,
    ) -> Self {
        Self {
            pass: Pass::Tensors(takes, Box::new(pass)),
            caches: false,
            reads_mask: takes.contains(&ATTENTION_MASK),
            positions: None,
        }
    }

    /// A port with a KV cache. The second argument is the position of the inputs' first token, which is the number of
    /// tokens in the cache; for 0 the port must empty its cache. The attention mask covers the cached tokens too.
    pub fn cached(pass: impl FnMut(&Inputs, usize) -> candle_core::Result<Tensor> + 'static) -> Self {
        Self { pass: Pass::Text(Box::new(pass)), caches: true, reads_mask: true, positions: None }
    }

    /// A port whose cache cannot continue after a prefill.
    #[must_use]
    pub fn without_cache(self) -> Self {
        Self { caches: false, ..self }
    }

    /// A port that does not look at the attention mask; tfcheck then says that padded rows attend to their padding.
    #[must_use]
    pub fn without_mask(self) -> Self {
        Self { reads_mask: false, ..self }
    }

    /// The positions of the logits, where their shape does not tell.
    #[must_use]
    pub fn giving(self, positions: Positions) -> Self {
        Self { positions: Some(positions), ..self }
    }

    /// [`Self::giving`], unless the positions are known.
    #[must_use]
    pub fn giving_by_default(self, positions: Positions) -> Self {
        Self { positions: self.positions.or(Some(positions)), ..self }
    }
}
