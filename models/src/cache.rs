//! Keys and values of the tokens that went before.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::fused::{Float, LayerCache};
use crate::kernels::{CacheShape, KvCache, Pool, QkvLayout, rope_into_cache};

/// The keys and values that earlier passes left, per layer; what makes prefill in chunks, or token
/// by token, give the same numbers as one pass. A cache belongs to the checkpoint that first filled it.
#[derive(Default)]
pub struct Cache {
    layers: Vec<Option<Layer>>,
    batch: Option<usize>,
    len: usize,
}

enum Layer {
    /// `[batch, num_kv_heads, len, head_dim]` each.
    Eager(Tensor, Tensor),
    Fused(LayerCache),
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
        self.batch
    }

    fn layer(&mut self, layer: usize) -> &mut Option<Layer> {
        if self.layers.len() <= layer {
            self.layers.resize_with(layer + 1, || None);
        }
        &mut self.layers[layer]
    }

    /// Appends one layer's `[batch, num_kv_heads, seq, head_dim]` and returns what the layer may now attend to.
    ///
    /// Anything beyond `self.len` is the leaving of a pass that failed half-way, and is dropped.
    pub(crate) fn append(&mut self, layer: usize, keys: Tensor, values: Tensor) -> Result<(Tensor, Tensor)> {
        let len = self.len;
        let entry = self.layer(layer);
        let (keys, values) = match entry {
            Some(Layer::Eager(past_keys, past_values)) if len > 0 => (
                Tensor::cat(&[&past_keys.narrow(2, 0, len)?, &keys], 2)?,
                Tensor::cat(&[&past_values.narrow(2, 0, len)?, &values], 2)?,
            ),
            None if len > 0 => return Err(other_model()),
            Some(Layer::Fused(_)) => return Err(other_model()),
            _ => (keys, values),
        };
        *entry = Some(Layer::Eager(keys.clone(), values.clone()));
        Ok((keys, values))
    }

    /// One layer's cache in the kernels' layout with room for `shape.capacity` tokens, what it holds kept.
    pub(crate) fn fused<T: Float>(
        &mut self,
        layer: usize,
        pool: &Pool,
        shape: CacheShape,
    ) -> Result<&mut KvCache<T>> {
        let len = self.len;
        let entry = self.layer(layer);
        let old = match entry.take() {
            Some(Layer::Fused(cache)) => Some(cache),
            None if len == 0 => None,
            _ => return Err(other_model()),
        };
        let cache = match old {
            None => T::layer_cache(KvCache::new(shape)),
            Some(mut cache) => {
                let past = T::cache(&mut cache).ok_or_else(other_model)?;
                let found = past.shape();
                if (CacheShape { capacity: shape.capacity, ..found }) != shape {
                    return Err(other_model());
                }
                if found.capacity >= shape.capacity {
                    cache
                } else {
                    // Twice what is needed, so that decoding copies seldom.
                    let shape = CacheShape { capacity: 2 * shape.capacity, ..shape };
                    T::layer_cache(grown(pool, past, shape, len))
                }
            }
        };
        let Layer::Fused(cache) = entry.insert(Layer::Fused(cache)) else { unreachable!("inserted above") };
        T::cache(cache).ok_or_else(other_model)
    }

    /// Takes in the `seq` tokens that a whole pass has appended.
    pub(crate) fn advance(&mut self, batch: usize, seq: usize) {
        self.batch = Some(batch);
        self.len += seq;
    }
}

fn other_model() -> Error {
    Error::Inputs("the cache was filled by another model or form".to_owned())
}

/// A cache of `shape` that holds the first `len` tokens of `past`.
fn grown<T: Float>(pool: &Pool, past: &KvCache<T>, shape: CacheShape, len: usize) -> KvCache<T> {
    let CacheShape { batch, kv_heads, head_dim, .. } = shape;
    let mut rows = vec![T::default(); batch * len * 2 * kv_heads * head_dim];
    for (token, row) in rows.chunks_exact_mut(2 * kv_heads * head_dim).enumerate() {
        let (keys, values) = row.split_at_mut(kv_heads * head_dim);
        for head in 0..kv_heads {
            let part = head * head_dim..(head + 1) * head_dim;
            past.key(token / len, head, token % len, &mut keys[part.clone()]);
            past.value(token / len, head, token % len, &mut values[part]);
        }
    }
    let mut cache = KvCache::new(shape);
    let layout = QkvLayout { tokens: len, q_heads: 0, first_slot: 0 };
    rope_into_cache(pool, layout, &mut rows, None, &mut cache);
    cache
}
