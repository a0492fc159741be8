//! Keys and values of the tokens that went before.

use candle_core::Tensor;

use crate::error::Result;

/// The keys and values that earlier passes left, per layer; what makes prefill in chunks, or token
/// by token, give the same numbers as one pass.
#[derive(Debug, Default)]
pub struct Cache {
    layers: Vec<Option<(Tensor, Tensor)>>,
    len: usize,
}

impl Cache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many tokens it holds, per row.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no tokens.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The batch size that it was filled with.
    pub(crate) fn batch(&self) -> Option<usize> {
        let (keys, _) = self.layers.first()?.as_ref()?;
        keys.dims().first().copied()
    }

    /// Appends one layer's `[batch, num_kv_heads, seq, head_dim]` and returns what the layer may now attend to.
    ///
    /// Anything beyond `self.len` is the leaving of a pass that failed half-way, and is dropped.
    pub(crate) fn append(&mut self, layer: usize, keys: Tensor, values: Tensor) -> Result<(Tensor, Tensor)> {
        if self.layers.len() <= layer {
            self.layers.resize(layer + 1, None);
        }
        let (keys, values) = match &self.layers[layer] {
            Some((past_keys, past_values)) if self.len > 0 => (
                Tensor::cat(&[&past_keys.narrow(2, 0, self.len)?, &keys], 2)?,
                Tensor::cat(&[&past_values.narrow(2, 0, self.len)?, &values], 2)?,
            ),
            _ => (keys, values),
        };
        self.layers[layer] = Some((keys.clone(), values.clone()));
        Ok((keys, values))
    }

    /// Takes in the `seq` tokens that a whole pass has appended.
    pub(crate) fn advance(&mut self, seq: usize) {
        self.len += seq;
    }
}
