//! The key-value cache of a model.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::Tensor;

use crate::cuda::{DeviceCache, Space};
use crate::error::{Error, Result};
use crate::fused::{Float, LayerCache};
use crate::kernels::{CacheShape, KvCache, Pool, QkvLayout, rope_into_cache};

/// The keys and values of earlier forward passes, per layer. Prefill in chunks or token by token gives the same
/// numbers as one full-sequence forward pass. A cache belongs to the checkpoint that first filled it.
pub struct Cache {
    layers: Vec<Option<Layer>>,
    batch: Option<usize>,
    len: usize,
    /// Minimum number of slots that a layer is allocated with.
    capacity: usize,
    /// A number that is unique within the process.
    id: usize,
    /// What an encoder-decoder's decoder attends to in the encoder; the first forward pass fills it.
    cross: Cross,
    /// For each row, how far positions are from the number of its tokens, where images have fewer positions than tokens.
    position_deltas: Vec<i64>,
}

/// The mask over the encoder's positions, and their keys and values in each layer.
#[derive(Default)]
struct Cross {
    mask: Option<CrossMask>,
    layers: Vec<Option<Layer>>,
}

/// The mask of cross-attention, computed once per forward pass: each query attends to every position of another sequence
/// that is not padding (transformers 5.23.0, `masking_utils.py`, `create_bidirectional_mask`).
#[derive(Clone, Debug)]
pub(crate) struct CrossMask {
    /// The bias added to the scores, `[batch, 1, 1, keys]`: 0 for an admitted key, else the dtype's lowest finite value;
    /// `None` if every key is admitted.
    pub(crate) bias: Option<Tensor>,
    /// For each sequence, the range from the first real key to the last.
    pub(crate) keys: Vec<Range<usize>>,
    /// `[batch, keys]`, false at padding; `None` if no padding lies inside a range.
    pub(crate) visible: Option<Vec<bool>>,
}

enum Layer {
    /// `[batch, num_kv_heads, len, head_dim]` each.
    Eager(Tensor, Tensor),
    Fused(LayerCache),
    Gpu(DeviceCache),
}

impl Default for Cache {
    fn default() -> Self {
        Self::with_capacity(0)
    }
}

impl Cache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty cache with room for `tokens` per sequence. It grows when needed; the eager backend ignores the
    /// capacity and allocates as it appends.
    pub fn with_capacity(tokens: usize) -> Self {
        static CACHES: AtomicUsize = AtomicUsize::new(0);
        let id = CACHES.fetch_add(1, Ordering::Relaxed);
        Self {
            layers: Vec::new(),
            batch: None,
            len: 0,
            capacity: tokens,
            id,
            cross: Cross::default(),
            position_deltas: Vec::new(),
        }
    }

    /// Removes all but the first `len` tokens of each sequence, so that a forward pass can continue from there.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Number of tokens in the cache, per sequence.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the cache holds no tokens.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The batch size that the cache was filled with.
    pub(crate) fn batch(&self) -> Option<usize> {
        self.batch
    }

    fn layer(&mut self, layer: usize) -> &mut Option<Layer> {
        if self.layers.len() <= layer {
            self.layers.resize_with(layer + 1, || None);
        }
        &mut self.layers[layer]
    }

    /// Appends one layer's keys and values, each `[batch, num_kv_heads, seq, head_dim]`, and returns all keys and
    /// values that the layer may attend to.
    ///
    /// Slots beyond `self.len` were written by a failed forward pass and are dropped.
    pub(crate) fn append(&mut self, layer: usize, keys: Tensor, values: Tensor) -> Result<(Tensor, Tensor)> {
        let len = self.len;
        let entry = self.layer(layer);
        let (keys, values) = match entry {
            Some(Layer::Eager(past_keys, past_values)) if len > 0 => (
                Tensor::cat(&[&past_keys.narrow(2, 0, len)?, &keys], 2)?,
                Tensor::cat(&[&past_values.narrow(2, 0, len)?, &values], 2)?,
            ),
            None if len > 0 => return Err(other_model()),
            Some(Layer::Fused(_) | Layer::Gpu(_)) => return Err(other_model()),
            _ => (keys, values),
        };
        *entry = Some(Layer::Eager(keys.clone(), values.clone()));
        Ok((keys, values))
    }

    /// The mask over the encoder's positions that the first forward pass kept.
    pub(crate) fn cross_mask(&self) -> Result<CrossMask> {
        self.cross.mask.clone().ok_or_else(other_model)
    }

    /// Keeps the mask over the encoder's positions.
    pub(crate) fn keep_cross_mask(&mut self, mask: CrossMask) {
        self.cross.mask = Some(mask);
    }

    /// Keeps how far each row's positions are from the number of its tokens.
    pub(crate) fn keep_position_deltas(&mut self, deltas: Vec<i64>) {
        self.position_deltas = deltas;
    }

    /// How far each row's positions are from the number of its tokens.
    pub(crate) fn position_deltas(&self) -> Result<Vec<i64>> {
        let known = Some(self.position_deltas.len()) == self.batch;
        known.then(|| self.position_deltas.clone()).ok_or_else(other_model)
    }

    fn keep_cross_layer(&mut self, layer: usize, kept: Layer) {
        let layers = &mut self.cross.layers;
        if layers.len() <= layer {
            layers.resize_with(layer + 1, || None);
        }
        layers[layer] = Some(kept);
    }

    /// Keeps one layer's keys and values of the encoder's positions, `[batch, num_kv_heads, keys, head_dim]` each.
    pub(crate) fn keep_cross(&mut self, layer: usize, keys: Tensor, values: Tensor) {
        self.keep_cross_layer(layer, Layer::Eager(keys, values));
    }

    /// One layer's keys and values of the encoder's positions that the first forward pass kept.
    pub(crate) fn cross(&self, layer: usize) -> Result<(Tensor, Tensor)> {
        match self.cross.layers.get(layer) {
            Some(Some(Layer::Eager(keys, values))) => Ok((keys.clone(), values.clone())),
            _ => Err(other_model()),
        }
    }

    /// As [`Cache::keep_cross`], in the layout of the CPU kernels.
    pub(crate) fn keep_fused_cross<T: Float>(&mut self, layer: usize, kept: KvCache<T>) {
        self.keep_cross_layer(layer, Layer::Fused(T::layer_cache(kept)));
    }

    /// As [`Cache::cross`], in the layout of the CPU kernels.
    pub(crate) fn fused_cross<T: Float>(&mut self, layer: usize) -> Result<&mut KvCache<T>> {
        match self.cross.layers.get_mut(layer) {
            Some(Some(Layer::Fused(cache))) => T::cache(cache).ok_or_else(other_model),
            _ => Err(other_model()),
        }
    }

    /// One layer's cache in the layout of the CPU kernels, with room for `shape.capacity` tokens; its tokens are kept
    /// when it grows.
    pub(crate) fn fused<T: Float>(
        &mut self,
        layer: usize,
        pool: &Pool,
        shape: CacheShape,
    ) -> Result<&mut KvCache<T>> {
        let (len, room) = (self.len, shape.capacity.max(self.capacity));
        let entry = self.layer(layer);
        let old = match entry.take() {
            Some(Layer::Fused(cache)) => Some(cache),
            None if len == 0 => None,
            _ => return Err(other_model()),
        };
        let cache = match old {
            None => T::layer_cache(KvCache::new(CacheShape { capacity: room, ..shape })),
            Some(mut cache) => {
                let past = T::cache(&mut cache).ok_or_else(other_model)?;
                let found = past.shape();
                if (CacheShape { capacity: shape.capacity, ..found }) != shape {
                    return Err(other_model());
                }
                if found.capacity >= shape.capacity {
                    cache
                } else {
                    // The capacity doubles, so that decoding rarely copies.
                    let shape = CacheShape { capacity: 2 * shape.capacity, ..shape };
                    T::layer_cache(grown(pool, past, shape, len))
                }
            }
        };
        let Layer::Fused(cache) = entry.insert(Layer::Fused(cache)) else { unreachable!("inserted above") };
        T::cache(cache).ok_or_else(other_model)
    }

    /// One layer's cache on a GPU, `[batch, kv_heads, head_dim]`, allocated on first use. It must already have room
    /// for `slots` tokens (see [`Cache::make_room`]).
    pub(crate) fn device(
        &mut self,
        layer: usize,
        space: &Space,
        shape: [usize; 3],
        slots: usize,
    ) -> Result<&DeviceCache> {
        let (len, room) = (self.len, slots.max(self.capacity));
        let entry = self.layer(layer);
        match entry {
            None if len == 0 => *entry = Some(Layer::Gpu(DeviceCache::new(space, shape, room)?)),
            Some(Layer::Gpu(cache)) if cache.shape == shape && cache.capacity >= slots => {}
            _ => return Err(other_model()),
        }
        let Some(Layer::Gpu(cache)) = entry else { unreachable!("made above") };
        Ok(cache)
    }

    /// Grows the layers on a GPU to at least `slots` tokens before a forward pass, because the forward pass itself
    /// must not allocate. The cache's tokens are kept.
    pub(crate) fn make_room(&mut self, space: &Space, slots: usize) -> Result<()> {
        let len = self.len;
        for layer in self.layers.iter_mut().flatten() {
            if let Layer::Gpu(cache) = layer
                && cache.capacity < slots
            {
                // The capacity doubles, so that decoding rarely copies.
                *cache = cache.grown(space, 2 * slots, len)?;
            }
        }
        Ok(())
    }

    /// Slots of each layer on a GPU; 0 before the first layer is allocated.
    pub(crate) fn slots(&self) -> usize {
        let slots = |layer: &Layer| match layer {
            Layer::Gpu(cache) => Some(cache.capacity),
            _ => None,
        };
        self.layers.iter().flatten().find_map(slots).unwrap_or(0)
    }

    /// A number that is unique within the process.
    pub(crate) fn id(&self) -> usize {
        self.id
    }

    /// Counts the `seq` tokens that a complete forward pass has appended.
    pub(crate) fn advance(&mut self, batch: usize, seq: usize) {
        self.batch = Some(batch);
        self.len += seq;
    }
}

fn other_model() -> Error {
    Error::Inputs("the cache was filled by another model or backend".to_owned())
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
