//! Values of the fused backend: rows in buffers of a pool, which forward passes acquire and return, so that a second
//! forward pass of the same shape allocates none. The operation that computes rows may be deferred until they are
//! read; an operation that would only change the result (a sum, a factor, an activation) is then folded into it.
//!
//! Layers call these functions on every device: on the CPU they compute in F32 or BF16 (`slot.rs`), on a GPU in
//! `cuda/`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use candle_core::{Tensor, WithDType};
use half::bf16;

use crate::cuda::{DeviceRows, Space};
use crate::error::{Error, Result};
use crate::inputs::Vectors;
use crate::kernels::{CacheShape, Element, Epilogue, KvCache, Plain, Pool};
use crate::lock::lock;

mod buffers;
mod fold;
mod norm;
mod slot;

use buffers::BufferPool;
pub(crate) use norm::{Norm, NormWeights};
pub(crate) use slot::{Deferred, Operation, Room, Slot};

/// The device on which a checkpoint computes in the fused backend, with the buffers kept between forward passes.
#[derive(Clone)]
pub(crate) enum Workspace {
    Host(Arc<Host>),
    Gpu(Arc<Space>),
}

/// A value of the fused backend.
#[derive(Clone)]
pub(crate) enum Rows {
    F32(Slot<f32>),
    Bf16(Slot<bf16>),
    Gpu(DeviceRows),
}

impl Rows {
    /// The value as a tensor; made once.
    pub(crate) fn tensor(&self) -> Result<&Tensor> {
        match self {
            Self::F32(slot) => Ok(slot.tensor()),
            Self::Bf16(slot) => Ok(slot.tensor()),
            Self::Gpu(rows) => rows.tensor(),
        }
    }

    pub(crate) fn into_tensor(self) -> Result<Tensor> {
        match self {
            Self::F32(slot) => Ok(slot.into_tensor()),
            Self::Bf16(slot) => Ok(slot.into_tensor()),
            Self::Gpu(rows) => rows.tensor().cloned(),
        }
    }

    /// A copy of the value for a probe. A deferred operation is computed for the copy alone and stays deferred, so that
    /// observing does not change which kernels run.
    pub(crate) fn observed(&self) -> Result<Tensor> {
        match self {
            Self::F32(slot) => Ok(slot.observed()),
            Self::Bf16(slot) => Ok(slot.observed()),
            Self::Gpu(rows) => rows.observed(),
        }
    }

    /// The columns from `first` on, in the same buffer.
    pub(crate) fn part(&self, first: usize, columns: usize) -> Self {
        match self {
            Self::F32(slot) => Self::F32(slot.part(first, columns)),
            Self::Bf16(slot) => Self::Bf16(slot.part(first, columns)),
            Self::Gpu(rows) => Self::Gpu(rows.part(first, columns)),
        }
    }

    /// The `size` columns from `start` on of each of `groups` neighbouring groups of columns, concatenated.
    pub(crate) fn gathered(&self, groups: usize, start: usize, size: usize) -> Self {
        match self {
            Self::F32(slot) => Self::F32(slot.gathered(groups, start, size)),
            Self::Bf16(slot) => Self::Bf16(slot.gathered(groups, start, size)),
            Self::Gpu(rows) => Self::Gpu(rows.gathered(groups, start, size)),
        }
    }
}

/// An element type of the fused backend on the CPU.
pub(crate) trait Float: Element + Plain + WithDType {
    fn slot(rows: &Rows) -> Option<&Slot<Self>>;
    fn rows(slot: Slot<Self>) -> Rows;
    fn buffers(host: &Host) -> &HostBuffers<Self>;
    fn cache(layer: &mut LayerCache) -> Option<&mut KvCache<Self>>;
    fn layer_cache(cache: KvCache<Self>) -> LayerCache;
}

/// A layer's keys and values in the layout of the kernels.
pub(crate) enum LayerCache {
    F32(KvCache<f32>),
    Bf16(KvCache<bf16>),
}

macro_rules! float {
    ($float:ty, $variant:ident, $buffers:ident) => {
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

            fn buffers(host: &Host) -> &HostBuffers<Self> {
                &host.$buffers
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

/// The buffers that a checkpoint keeps between forward passes, for one element type.
pub(crate) struct HostBuffers<T: Float> {
    pool: BufferPool<T, Deferred<T>>,
    /// Keys and values of one layer in a forward pass without a cache; no other layer reads them.
    passing: Mutex<Option<KvCache<T>>>,
}

impl<T: Float> Default for HostBuffers<T> {
    fn default() -> Self {
        Self { pool: BufferPool::default(), passing: Mutex::new(None) }
    }
}

impl<T: Float> HostBuffers<T> {
    fn bytes(&self) -> usize {
        self.pool.bytes() + lock(&self.passing).as_ref().map_or(0, KvCache::bytes)
    }
}

/// The thread pool and the buffers of one loaded checkpoint on the CPU.
pub(crate) struct Host {
    pub(crate) pool: Pool,
    f32: HostBuffers<f32>,
    bf16: HostBuffers<bf16>,
    vectors: Mutex<Vectors>,
    /// Bytes of the packed weights.
    packed_bytes: AtomicUsize,
}

impl Host {
    /// A host with as many threads as candle uses.
    pub(crate) fn new() -> Self {
        Self {
            pool: Pool::new(rayon::current_num_threads()),
            f32: HostBuffers::default(),
            bf16: HostBuffers::default(),
            vectors: Mutex::default(),
            packed_bytes: AtomicUsize::new(0),
        }
    }

    /// Runs `body` on an empty cache of this shape.
    pub(crate) fn with_passing_cache<T: Float, U>(
        &self,
        shape: CacheShape,
        body: impl FnOnce(&mut KvCache<T>) -> Result<U>,
    ) -> Result<U> {
        let mut passing = lock(&T::buffers(self).passing);
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

    /// Drops the deferred operations whose results no layer has read by the end of a forward pass.
    pub(crate) fn drop_deferred(&self) {
        self.f32.pool.drop_deferred();
        self.bf16.pool.drop_deferred();
    }

    pub(crate) fn count_packed(&self, bytes: usize) {
        self.packed_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of the packed weights, and of the buffers kept between forward passes.
    pub(crate) fn bytes(&self) -> (usize, usize) {
        (self.packed_bytes.load(Ordering::Relaxed), self.f32.bytes() + self.bf16.bytes())
    }
}

/// `xs + ys`, in place if nothing else holds `xs`; a deferred product or norm that computes `ys` adds its result
/// itself.
pub(crate) fn sum(xs: Rows, ys: &Rows) -> Result<Rows> {
    match (xs, ys) {
        (Rows::F32(xs), Rows::F32(ys)) => Ok(Rows::F32(fold::sum(xs, ys))),
        (Rows::Bf16(xs), Rows::Bf16(ys)) => Ok(Rows::Bf16(fold::sum(xs, ys))),
        (Rows::Gpu(xs), Rows::Gpu(ys)) => xs.plus(ys).map(Rows::Gpu),
        _ => Err(two_kinds()),
    }
}

/// `xs * ys`, in place if nothing else holds `xs`.
pub(crate) fn product(xs: Rows, ys: &Rows) -> Result<Rows> {
    match (xs, ys) {
        (Rows::F32(xs), Rows::F32(ys)) => Ok(Rows::F32(fold::product(xs, ys))),
        (Rows::Bf16(xs), Rows::Bf16(ys)) => Ok(Rows::Bf16(fold::product(xs, ys))),
        (Rows::Gpu(xs), Rows::Gpu(ys)) => xs.times(ys).map(Rows::Gpu),
        _ => Err(two_kinds()),
    }
}

/// `xs` with a factor, an activation or a soft cap: folded into the deferred product that computes `xs`, else applied
/// in a separate loop over memory.
pub(crate) fn finished(xs: Rows, epilogue: Epilogue, room: Room) -> Result<Rows> {
    match xs {
        Rows::F32(xs) => Ok(Rows::F32(fold::finished(xs, epilogue, room))),
        Rows::Bf16(xs) => Ok(Rows::Bf16(fold::finished(xs, epilogue, room))),
        Rows::Gpu(xs) => xs.finished(epilogue).map(Rows::Gpu),
    }
}

fn two_kinds() -> Error {
    Error::Inputs("an operation on values of two dtypes".to_owned())
}
