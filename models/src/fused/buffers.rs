//! A pool of buffers on the CPU that forward passes acquire and return, so that a second forward pass of the same
//! shape allocates none.

use std::sync::{Arc, Mutex, RwLock};

use crate::kernels::{AlignedBuf, Plain};
use crate::lock::{lock, read};

/// Rows of `T`, in use while anything but the pool holds them.
pub(super) struct Buffer<T: Plain, Deferred> {
    pub(super) rows: RwLock<AlignedBuf<T>>,
    /// The operation that computes the rows and has not run yet.
    pub(super) deferred: Mutex<Option<Deferred>>,
}

/// Buffers of one element type.
pub(crate) struct BufferPool<T: Plain, Deferred> {
    buffers: Mutex<Vec<Arc<Buffer<T, Deferred>>>>,
}

impl<T: Plain, Deferred> Default for BufferPool<T, Deferred> {
    fn default() -> Self {
        Self { buffers: Mutex::default() }
    }
}

impl<T: Plain, Deferred> BufferPool<T, Deferred> {
    /// The smallest free buffer with room for `len` values, or the largest of those without.
    pub(super) fn acquire(&self, len: usize) -> Arc<Buffer<T, Deferred>> {
        let mut buffers = lock(&self.buffers);
        let mut best: Option<(&Arc<Buffer<T, Deferred>>, usize)> = None;
        for buffer in buffers.iter().filter(|buffer| Arc::strong_count(buffer) == 1) {
            // A deferred operation whose result was not read would keep its input in use.
            drop(lock(&buffer.deferred).take());
            let found = read(&buffer.rows).len();
            let is_better = best.is_none_or(|(_, best)| {
                if found >= len { best < len || found < best } else { best < len && found > best }
            });
            if is_better {
                best = Some((buffer, found));
            }
        }
        if let Some((buffer, _)) = best {
            return Arc::clone(buffer);
        }
        let buffer =
            Arc::new(Buffer { rows: RwLock::new(AlignedBuf::zeroed(0)), deferred: Mutex::new(None) });
        buffers.push(Arc::clone(&buffer));
        buffer
    }

    /// Drops the deferred operations whose results were not read.
    pub(super) fn drop_deferred(&self) {
        for buffer in lock(&self.buffers).iter() {
            drop(lock(&buffer.deferred).take());
        }
    }

    /// Bytes of all buffers, in use or not.
    pub(super) fn bytes(&self) -> usize {
        let values: usize = lock(&self.buffers).iter().map(|buffer| read(&buffer.rows).len()).sum();
        values * size_of::<T>()
    }
}
