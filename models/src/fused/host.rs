//! What the fused form keeps on the CPU: a thread pool, and buffers that are lent, taken back and lent again, so that
//! a second pass of the same shape allocates none.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use candle_core::WithDType;
use half::bf16;

use super::{Job, Rows, Slot};
use crate::error::Result;
use crate::kernels::{AlignedBuf, CacheShape, Element, KvCache, Plain, Pool};
use crate::pass::Xs;

/// An element type of the fused form.
pub(crate) trait Float: Element + Plain + WithDType {
    fn slot(rows: &Rows) -> Option<&Slot<Self>>;
    fn rows(slot: Slot<Self>) -> Rows;
    fn shelf(workspace: &Host) -> &Shelf<Self>;
    fn cache(layer: &mut LayerCache) -> Option<&mut KvCache<Self>>;
    fn layer_cache(cache: KvCache<Self>) -> LayerCache;
}

/// A layer's keys and values in the kernels' own layout.
pub(crate) enum LayerCache {
    F32(KvCache<f32>),
    Bf16(KvCache<bf16>),
}

macro_rules! float {
    ($float:ty, $variant:ident, $shelf:ident) => {
        impl Float for $float {
            fn slot(rows: &Rows) -> Option<&Slot<Self>> {
                match rows {
                    Rows::$variant(slot) => Some(slot),
                    _ => None,
                }
            }

            fn rows(slot: Slot<Self>) -> Rows {
                Rows::$variant(slot)
            }

            fn shelf(workspace: &Host) -> &Shelf<Self> {
                &workspace.$shelf
            }

            fn cache(layer: &mut LayerCache) -> Option<&mut KvCache<Self>> {
                match layer {
                    LayerCache::$variant(cache) => Some(cache),
                    _ => None,
                }
            }

            fn layer_cache(cache: KvCache<Self>) -> LayerCache {
                LayerCache::$variant(cache)
            }
        }
    };
}

float!(f32, F32, f32);
float!(bf16, Bf16, bf16);

/// Lent while anybody but the shelf holds it.
pub(super) struct Buffer<T: Float> {
    pub(super) rows: RwLock<AlignedBuf<T>>,
    /// What the rows are still owed.
    pub(super) job: Mutex<Option<Job<T>>>,
}

/// Buffers of one element type.
pub(crate) struct Shelf<T: Float> {
    buffers: Mutex<Vec<Arc<Buffer<T>>>>,
    /// Keys and values of a layer in a pass without a cache: read in the same layer and never again.
    passing: Mutex<Option<KvCache<T>>>,
}

impl<T: Float> Default for Shelf<T> {
    fn default() -> Self {
        Self { buffers: Mutex::default(), passing: Mutex::new(None) }
    }
}

impl<T: Float> Shelf<T> {
    /// The smallest free buffer with room for `len` values, or the largest of those without.
    pub(super) fn lend(&self, len: usize) -> Arc<Buffer<T>> {
        let mut buffers = lock(&self.buffers);
        let mut best: Option<(&Arc<Buffer<T>>, usize)> = None;
        for buffer in buffers.iter().filter(|buffer| Arc::strong_count(buffer) == 1) {
            // A job that nobody asked for would keep its input lent.
            drop(lock(&buffer.job).take());
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
        let buffer = Arc::new(Buffer { rows: RwLock::new(AlignedBuf::zeroed(0)), job: Mutex::new(None) });
        buffers.push(Arc::clone(&buffer));
        buffer
    }

    fn forget_jobs(&self) {
        for buffer in lock(&self.buffers).iter() {
            drop(lock(&buffer.job).take());
        }
    }

    fn bytes(&self) -> usize {
        let buffers: usize = lock(&self.buffers).iter().map(|buffer| read(&buffer.rows).len()).sum();
        buffers * size_of::<T>() + lock(&self.passing).as_ref().map_or(0, KvCache::bytes)
    }
}

/// The thread pool and the buffers of one loaded checkpoint.
pub(crate) struct Host {
    pub(crate) pool: Pool,
    f32: Shelf<f32>,
    bf16: Shelf<bf16>,
    vectors: Mutex<Vectors>,
    /// Of the weights packed for it.
    packed_bytes: AtomicUsize,
}

/// The small vectors of a pass, kept from one to the next.
#[derive(Default)]
pub(crate) struct Vectors {
    pub(crate) positions: Vec<i64>,
    pub(crate) rows: Vec<u32>,
    pub(crate) keys: Vec<Range<usize>>,
}

impl Host {
    /// As many threads as the rest of candle uses.
    pub(crate) fn new() -> Self {
        Self {
            pool: Pool::new(rayon::current_num_threads()),
            f32: Shelf::default(),
            bf16: Shelf::default(),
            vectors: Mutex::default(),
            packed_bytes: AtomicUsize::new(0),
        }
    }

    /// Runs `body` on an empty cache of this shape.
    pub(crate) fn with_passing_cache<T: Float>(
        &self,
        shape: CacheShape,
        body: impl FnOnce(&mut KvCache<T>) -> Result<Xs>,
    ) -> Result<Xs> {
        let mut passing = lock(&T::shelf(self).passing);
        let fits = |cache: &KvCache<T>| {
            let found = cache.shape();
            found.capacity >= shape.capacity && CacheShape { capacity: shape.capacity, ..found } == shape
        };
        let cache = passing.take().filter(fits).unwrap_or_else(|| KvCache::new(shape));
        body(passing.insert(cache))
    }

    pub(crate) fn take_vectors(&self) -> Vectors {
        std::mem::take(&mut lock(&self.vectors))
    }

    pub(crate) fn keep_vectors(&self, vectors: Vectors) {
        *lock(&self.vectors) = vectors;
    }

    /// Drops what no layer asked for by the end of a pass.
    pub(crate) fn forget_jobs(&self) {
        self.f32.forget_jobs();
        self.bf16.forget_jobs();
    }

    pub(crate) fn count_packed(&self, bytes: usize) {
        self.packed_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Of the packed weights, and of the buffers kept between passes.
    pub(crate) fn bytes(&self) -> (usize, usize) {
        (self.packed_bytes.load(Ordering::Relaxed), self.f32.bytes() + self.bf16.bytes())
    }
}

/// A poisoned lock says that an earlier pass panicked; what it left is overwritten before it is read.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}
