//! A layer's KV cache on a GPU.

use std::sync::Arc;

use super::gpu::Region;
use super::kernels::CopyColumns;
use super::space::Space;
use crate::error::Result;

/// Keys and values of a layer, `[batch, kv_heads, capacity, head_dim]` each.
#[derive(Clone)]
pub(crate) struct DeviceCache {
    pub(super) keys: Arc<Region>,
    pub(super) values: Arc<Region>,
    /// Batch size, key heads, features per head.
    pub(crate) shape: [usize; 3],
    pub(crate) capacity: usize,
}

impl DeviceCache {
    pub(crate) fn new(space: &Space, shape: [usize; 3], capacity: usize) -> Result<Self> {
        let len = shape.iter().product::<usize>() * capacity;
        let room = || Region::room(&space.gpu, space.dtype, len).map(Arc::new);
        Ok(Self { keys: room()?, values: room()?, shape, capacity })
    }

    /// Temporary keys and values of one layer, in a forward pass without a KV cache.
    pub(super) fn passing(space: &Space, shape: [usize; 3], capacity: usize) -> Result<Self> {
        let len = shape.iter().product::<usize>() * capacity;
        Ok(Self { keys: space.acquire_elements(len)?, values: space.acquire_elements(len)?, shape, capacity })
    }

    /// A copy with a larger capacity; the first `len` slots are copied.
    pub(crate) fn grown(&self, space: &Space, capacity: usize, len: usize) -> Result<Self> {
        let [batch, kv_heads, head_dim] = self.shape;
        let grown = Self::new(space, self.shape, capacity)?;
        for (from, to) in [(&self.keys, &grown.keys), (&self.values, &grown.values)] {
            CopyColumns {
                dtype: space.dtype,
                rows: batch * kv_heads,
                groups: 1,
                size: len * head_dim,
                from,
                from_strides: (self.capacity * head_dim, 0),
                to,
                to_strides: (capacity * head_dim, 0),
            }
            .launch()?;
        }
        // Decode attention reads older cache slots before it waits for the previous launch to end, so the copies must
        // have finished.
        space.gpu.synchronize()?;
        Ok(grown)
    }
}
