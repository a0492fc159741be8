//! Memory layout of attention's operands: heads of the projection, KV cache, state of the forward pass.

use crate::cuda::dtype::Dtype;
use crate::cuda::gpu::Region;
use crate::error::{Error, Result};

/// Most features per head that the attention kernels support.
pub const MAX_HEAD_DIM: usize = 256;

/// Positions of the heads in a row of a joined projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QkvLayout {
    /// Query heads, a multiple of `kv_heads`.
    pub q_heads: usize,
    /// Number of key heads, equal to the number of value heads.
    pub kv_heads: usize,
    /// Features per head.
    pub head_dim: usize,
    /// Row stride (from one token to the next) in elements.
    pub row: usize,
    /// Column of the first query head, key head and value head.
    pub q_first: usize,
    /// See `q_first`.
    pub k_first: usize,
    /// See `q_first`.
    pub v_first: usize,
    /// Columns from the query heads of one key head to those of the next; the query heads of one key head are adjacent.
    pub q_group: usize,
    /// Columns from one key (or value) head to the next.
    pub kv_head: usize,
}

impl QkvLayout {
    /// All queries, then all keys, then all values.
    pub fn joined(q_heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self {
            q_heads,
            kv_heads,
            head_dim,
            row: (q_heads + 2 * kv_heads) * head_dim,
            q_first: 0,
            k_first: q_heads * head_dim,
            v_first: (q_heads + kv_heads) * head_dim,
            q_group: q_heads / kv_heads.max(1) * head_dim,
            kv_head: head_dim,
        }
    }

    /// One group per key head: its query heads, its key head, its value head (gpt_neox, falcon).
    pub fn grouped(q_heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        let group = (q_heads / kv_heads.max(1) + 2) * head_dim;
        Self {
            k_first: group - 2 * head_dim,
            v_first: group - head_dim,
            q_group: group,
            kv_head: group,
            ..Self::joined(q_heads, kv_heads, head_dim)
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let Self { q_heads, kv_heads, head_dim, row, .. } = *self;
        let fits = kv_heads > 0
            && head_dim > 0
            && q_heads.is_multiple_of(kv_heads)
            && self.q_first + (kv_heads - 1) * self.q_group + q_heads / kv_heads * head_dim <= row
            && self.k_first.max(self.v_first) + (kv_heads - 1) * self.kv_head + head_dim <= row;
        if fits { Ok(()) } else { Err(Error::Gpu(format!("heads do not fit their row: {self:?}"))) }
    }
}

/// A layer's keys and values, `[batch, kv_heads, capacity, head_dim]` each.
#[derive(Clone, Copy, Debug)]
pub struct CacheRegions<'a> {
    /// Keys of the layer.
    pub keys: &'a Region,
    /// Values of the layer.
    pub values: &'a Region,
    /// Slots per sequence.
    pub capacity: usize,
}

impl CacheRegions<'_> {
    pub(super) fn checked(
        self,
        region: &Region,
        dtype: Dtype,
        batch: usize,
        layout: QkvLayout,
    ) -> Result<u64> {
        region.checked("cache", batch * layout.kv_heads * self.capacity * layout.head_dim, dtype.size())
    }
}

/// Cache slots and key ranges of a forward pass, in device memory, so that a captured graph can run again with other
/// values.
#[derive(Clone, Copy, Debug)]
pub struct PassState<'a> {
    /// i32, `[1]`: cache slot of the first new token.
    pub first_slot: &'a Region,
    /// i32, `[batch, 2]`: first slot that holds a key, and the slot after the last one. Slots from `capacity` on are
    /// never read.
    pub keys: &'a Region,
    /// Padding inside the ranges; `None` if there is none.
    pub visible: Option<Visible<'a>>,
}

/// u8, `[batch, row]`: 0 if a slot is padding; slots from `row` on are visible.
#[derive(Clone, Copy, Debug)]
pub struct Visible<'a> {
    /// The flags.
    pub region: &'a Region,
    /// Flags per sequence.
    pub row: usize,
}
