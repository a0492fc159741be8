//! Values of the fused form: rows in buffers that a workspace lends, takes back and lends again, so that a
//! second pass of the same shape allocates none.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use candle_core::{Device, Tensor, WithDType};
use half::bf16;

use crate::error::Result;
use crate::kernels::{AlignedBuf, CacheShape, Element, KvCache, Plain, Pool};
use crate::pass::{Value, Xs};

/// An element type of the fused form.
pub(crate) trait Float: Element + Plain + WithDType {
    fn slot(value: &Value) -> Option<&Slot<Self>>;
    fn value(slot: Slot<Self>) -> Value;
    fn shelf(workspace: &Workspace) -> &Shelf<Self>;
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
            fn slot(value: &Value) -> Option<&Slot<Self>> {
                match value {
                    Value::$variant(slot) => Some(slot),
                    _ => None,
                }
            }

            fn value(slot: Slot<Self>) -> Value {
                Value::$variant(slot)
            }

            fn shelf(workspace: &Workspace) -> &Shelf<Self> {
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

type Buffer<T> = Arc<RwLock<AlignedBuf<T>>>;

/// Buffers of one element type: lent while anybody but the shelf holds them.
pub(crate) struct Shelf<T: Float> {
    buffers: Mutex<Vec<Buffer<T>>>,
    /// Keys and values of a layer in a pass without a cache: read in the same layer and never again.
    passing: Mutex<Option<KvCache<T>>>,
}

impl<T: Float> Default for Shelf<T> {
    fn default() -> Self {
        Self { buffers: Mutex::default(), passing: Mutex::new(None) }
    }
}

/// The thread pool and the buffers of one loaded checkpoint.
pub(crate) struct Workspace {
    pub(crate) pool: Pool,
    f32: Shelf<f32>,
    bf16: Shelf<bf16>,
}

impl Workspace {
    /// As many threads as the rest of candle uses.
    pub(crate) fn new() -> Self {
        Self { pool: Pool::new(rayon::current_num_threads()), f32: Shelf::default(), bf16: Shelf::default() }
    }

    /// Runs `body` on an empty cache of this shape.
    pub(crate) fn with_passing_cache<T: Float>(
        &self,
        shape: CacheShape,
        body: impl FnOnce(&mut KvCache<T>) -> Result<Xs>,
    ) -> Result<Xs> {
        let mut passing = T::shelf(self).passing.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |cache: &KvCache<T>| {
            let found = cache.shape();
            found.capacity >= shape.capacity && CacheShape { capacity: shape.capacity, ..found } == shape
        };
        let cache = passing.take().filter(fits).unwrap_or_else(|| KvCache::new(shape));
        body(passing.insert(cache))
    }
}

/// `[batch, seq, columns]`: neighbouring columns of the rows of a buffer.
pub(crate) struct Slot<T: Float> {
    workspace: Arc<Workspace>,
    buffer: Buffer<T>,
    pub(crate) batch: usize,
    pub(crate) seq: usize,
    /// Elements from one row of the buffer to the next.
    pub(crate) width: usize,
    pub(crate) first: usize,
    pub(crate) columns: usize,
    tensor: OnceLock<Tensor>,
}

impl<T: Float> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Self {
            workspace: Arc::clone(&self.workspace),
            buffer: Arc::clone(&self.buffer),
            tensor: self.tensor.clone(),
            ..*self
        }
    }
}

impl<T: Float> Slot<T> {
    /// Whole rows of unspecified content.
    pub(crate) fn take(workspace: &Arc<Workspace>, batch: usize, seq: usize, width: usize) -> Self {
        let len = batch * seq * width;
        let mut buffers = T::shelf(workspace).buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let free = |buffer: &&Buffer<T>| {
            Arc::strong_count(buffer) == 1
                && buffer.read().unwrap_or_else(PoisonError::into_inner).len() == len
        };
        let buffer = if let Some(buffer) = buffers.iter().find(free) {
            Arc::clone(buffer)
        } else {
            let buffer = Arc::new(RwLock::new(AlignedBuf::zeroed(len)));
            buffers.push(Arc::clone(&buffer));
            buffer
        };
        drop(buffers);
        Self {
            workspace: Arc::clone(workspace),
            buffer,
            batch,
            seq,
            width,
            first: 0,
            columns: width,
            tensor: OnceLock::new(),
        }
    }

    /// The value of `xs`, copied only if it is a tensor; a tensor's last dimension becomes the columns.
    pub(crate) fn of(workspace: &Arc<Workspace>, xs: &Xs) -> Result<Self> {
        if let Some(slot) = T::slot(xs.value()) {
            return Ok(slot.clone());
        }
        let tensor = xs.tensor();
        let dims = tensor.dims();
        let (batch, seq) = match dims {
            [batch, seq, _] => (*batch, *seq),
            _ => (tensor.elem_count() / dims.last().copied().unwrap_or(1).max(1), 1),
        };
        let slot = Self::take(workspace, batch, seq, tensor.elem_count() / (batch * seq));
        slot.write().copy_from_slice(&tensor.to_dtype(T::DTYPE)?.flatten_all()?.to_vec1::<T>()?);
        Ok(slot)
    }

    pub(crate) fn rows(&self) -> usize {
        self.batch * self.seq
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, AlignedBuf<T>> {
        self.buffer.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, AlignedBuf<T>> {
        self.buffer.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody but the shelf and this slot holds the buffer, so that it may be written to.
    pub(crate) fn is_sole(&self) -> bool {
        Arc::strong_count(&self.buffer) == 2
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.columns == self.width
    }

    /// Whether `next` are the columns behind these in the same rows.
    pub(crate) fn is_before(&self, next: &Self) -> bool {
        Arc::ptr_eq(&self.buffer, &next.buffer) && self.first + self.columns == next.first
    }

    /// The columns from `first` on, in the same buffer.
    pub(crate) fn part(&self, first: usize, columns: usize) -> Self {
        Self { first: self.first + first, columns, tensor: OnceLock::new(), ..self.clone() }
    }

    /// The same place, its content having changed.
    pub(crate) fn changed(self) -> Self {
        Self { tensor: OnceLock::new(), ..self }
    }

    /// Copies the columns to `to`, rows of `width` elements, from column `first` on.
    pub(crate) fn copy_to(&self, to: &mut [T], width: usize, first: usize) {
        let from = self.read();
        for (from, to) in from.chunks_exact(self.width).zip(to.chunks_exact_mut(width)) {
            to[first..first + self.columns].copy_from_slice(&from[self.first..self.first + self.columns]);
        }
    }

    /// The columns as whole rows, copied only if they are a part.
    pub(crate) fn whole(&self) -> Self {
        if self.is_whole() {
            return self.clone();
        }
        let whole = Self::take(&self.workspace, self.batch, self.seq, self.columns);
        self.copy_to(&mut whole.write(), self.columns, 0);
        whole
    }

    /// The value as a tensor; made once.
    pub(crate) fn tensor(&self) -> &Tensor {
        self.tensor.get_or_init(|| {
            let mut values = vec![T::default(); self.rows() * self.columns];
            self.copy_to(&mut values, self.columns, 0);
            Tensor::from_vec(values, (self.batch, self.seq, self.columns), &Device::Cpu)
                .expect("as many values as the shape has")
        })
    }

    pub(crate) fn workspace(&self) -> &Arc<Workspace> {
        &self.workspace
    }

    pub(crate) fn into_xs(self) -> Xs {
        Xs::from_value(T::value(self))
    }
}
