//! The key-value cache of one layer, in the layout that the attention kernel reads.
//!
//! Keys: `[batch, kv_head, slots/32, head_dim units, 32]`, panels of 32 keys; a unit is one f32 or two bf16 along
//! `head_dim`. Values: `[batch, kv_head, slots units, head_dim padded to 32]`; a unit is one f32 or the bf16 of two
//! neighbouring slots. `tile.rs` reads both as right operands without repacking.

use super::arena::AlignedBuf;
use super::element::Element;
use super::tile::PANEL;
use std::marker::PhantomData;

/// The largest `head_dim` that attention's scratch memory has room for.
pub const MAX_HEAD_DIM: usize = 512;

/// Keys and values of one layer. Slots are token positions in the cache, padding included.
pub struct KvCache<T: Element> {
    pub(crate) keys: AlignedBuf<f32>,
    pub(crate) values: AlignedBuf<f32>,
    pub(crate) shape: CacheShape,
    kind: PhantomData<T>,
}

/// Sizes of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// Sequences.
    pub batch: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Elements of a head, at most [`MAX_HEAD_DIM`].
    pub head_dim: usize,
    /// Slots; rounded up to a multiple of 32.
    pub capacity: usize,
}

impl<T: Element> KvCache<T> {
    /// An empty cache.
    ///
    /// # Panics
    /// If `head_dim` is zero or above [`MAX_HEAD_DIM`].
    pub fn new(shape: CacheShape) -> Self {
        assert!((1..=MAX_HEAD_DIM).contains(&shape.head_dim), "head_dim {}", shape.head_dim);
        let shape = CacheShape { capacity: shape.capacity.next_multiple_of(PANEL), ..shape };
        let heads = shape.batch * shape.kv_heads;
        Self {
            keys: AlignedBuf::zeroed(heads * shape.capacity * shape.key_units::<T>()),
            values: AlignedBuf::zeroed(heads * shape.capacity / T::PER_UNIT * shape.value_row()),
            shape,
            kind: PhantomData,
        }
    }

    /// The sizes, with the rounded capacity.
    pub fn shape(&self) -> CacheShape {
        self.shape
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        (self.keys.len() + self.values.len()) * size_of::<f32>()
    }

    /// Copies the key in a slot to `out: [head_dim]`; for tests and for inspecting a cache.
    pub fn key(&self, batch: usize, head: usize, slot: usize, out: &mut [T]) {
        let base = self.shape.key_at::<T>(batch, head, slot);
        for (d, x) in out.iter_mut().enumerate().take(self.shape.head_dim) {
            *x = T::from_unit(self.keys[base + d / T::PER_UNIT * PANEL], d);
        }
    }

    /// Copies the value in a slot to `out: [head_dim]`.
    pub fn value(&self, batch: usize, head: usize, slot: usize, out: &mut [T]) {
        let base = self.shape.value_at::<T>(batch, head, slot);
        for (d, x) in out.iter_mut().enumerate().take(self.shape.head_dim) {
            *x = T::from_unit(self.values[base + d], slot);
        }
    }
}

impl CacheShape {
    /// Units of a key.
    pub(crate) fn key_units<T: Element>(&self) -> usize {
        self.head_dim.div_ceil(T::PER_UNIT)
    }

    /// Units from one row of values to the next.
    pub(crate) fn value_row(&self) -> usize {
        self.head_dim.next_multiple_of(PANEL)
    }

    /// Index of the first unit of a key; its other units follow at a distance of `PANEL`.
    pub(crate) fn key_at<T: Element>(&self, batch: usize, head: usize, slot: usize) -> usize {
        let units = self.key_units::<T>();
        (batch * self.kv_heads + head) * self.capacity * units + slot / PANEL * PANEL * units + slot % PANEL
    }

    /// Index of the first unit of a value; its other units follow contiguously.
    pub(crate) fn value_at<T: Element>(&self, batch: usize, head: usize, slot: usize) -> usize {
        let head = batch * self.kv_heads + head;
        (head * self.capacity + slot) / T::PER_UNIT * self.value_row()
    }
}
