//! Rows in a buffer of the pool, or a part of their columns.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, OnceLock, RwLockReadGuard, RwLockWriteGuard};

use candle_core::{Device, Tensor};

use super::buffers::Buffer;
use super::{Float, Host};
use crate::error::Result;
use crate::kernels::{AlignedBuf, Pool};
use crate::lock::{lock, read, write};

mod deferred;

pub(crate) use deferred::{Deferred, Operation};

/// Whether the rows of a deferred operation get a buffer immediately, or only if they are read: logits become a
/// tensor, and a summand is added to other rows, without a buffer of their own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    Now,
    Later,
}

/// `[batch, seq, columns]`: neighbouring columns of the rows of a buffer.
pub(crate) struct Slot<T: Float> {
    host: Arc<Host>,
    buffer: Arc<Buffer<T, Deferred<T>>>,
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
            host: Arc::clone(&self.host),
            buffer: Arc::clone(&self.buffer),
            tensor: self.tensor.clone(),
            ..*self
        }
    }
}

impl<T: Float> Slot<T> {
    /// Whole rows of unspecified content.
    pub(crate) fn take(host: &Arc<Host>, batch: usize, seq: usize, width: usize) -> Self {
        let buffer = T::buffers(host).pool.acquire(batch * seq * width);
        let host = Arc::clone(host);
        Self { host, buffer, batch, seq, width, first: 0, columns: width, tensor: OnceLock::new() }
    }

    /// Whole rows, computed by `deferred` when they are read.
    pub(crate) fn deferred(host: &Arc<Host>, deferred: Deferred<T>, room: Room) -> Self {
        let (batch, seq, width) = (deferred.xs.batch, deferred.xs.seq, deferred.width());
        let slot = Self::take(host, batch, if room == Room::Now { seq } else { 0 }, width);
        *lock(&slot.buffer.deferred) = Some(deferred);
        Self { seq, ..slot }
    }

    /// The deferred operation of these whole rows, for a caller that folds it into another.
    pub(crate) fn pending(&self) -> Option<Deferred<T>> {
        if self.is_whole() { lock(&self.buffer.deferred).clone() } else { None }
    }

    /// A copy of a tensor, whose last dimension becomes the columns.
    pub(crate) fn from_tensor(host: &Arc<Host>, tensor: &Tensor) -> Result<Self> {
        let dims = tensor.dims();
        let (batch, seq) = match dims {
            [batch, seq, _] => (*batch, *seq),
            _ => (tensor.elem_count() / dims.last().copied().unwrap_or(1).max(1), 1),
        };
        let slot = Self::take(host, batch, seq, tensor.elem_count() / (batch * seq));
        slot.write().copy_from_slice(&tensor.to_dtype(T::DTYPE)?.flatten_all()?.to_vec1::<T>()?);
        Ok(slot)
    }

    pub(crate) fn rows(&self) -> usize {
        self.batch * self.seq
    }

    /// Runs the deferred operation, if there is one.
    pub(crate) fn settle(&self) {
        // A separate statement takes the operation, because the lock must not be held while the operation runs.
        let deferred = lock(&self.buffer.deferred).take();
        if let Some(deferred) = deferred {
            deferred.run(&mut self.unsettled());
        }
    }

    pub(crate) fn read(&self) -> Reading<'_, T> {
        self.settle();
        Reading { rows: read(&self.buffer.rows), len: self.rows() * self.width }
    }

    pub(crate) fn write(&self) -> Writing<'_, T> {
        self.settle();
        self.unsettled()
    }

    fn unsettled(&self) -> Writing<'_, T> {
        let len = self.rows() * self.width;
        let mut rows = write(&self.buffer.rows);
        if rows.len() < len {
            // The old memory is freed before the new is allocated.
            *rows = AlignedBuf::zeroed(0);
            *rows = AlignedBuf::zeroed(len);
        }
        Writing { rows, len }
    }

    /// Whether only the pool and this slot hold the buffer, so that it may be written to.
    fn is_sole(&self) -> bool {
        Arc::strong_count(&self.buffer) == 2
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.columns == self.width
    }

    /// Whether `next` are the columns after these in the same rows.
    pub(crate) fn is_before(&self, next: &Self) -> bool {
        Arc::ptr_eq(&self.buffer, &next.buffer) && self.first + self.columns == next.first
    }

    /// The columns from `first` on, in the same buffer.
    pub(crate) fn part(&self, first: usize, columns: usize) -> Self {
        Self { first: self.first + first, columns, tensor: OnceLock::new(), ..self.clone() }
    }

    /// The same columns as a new value, after their content has changed.
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

    /// The columns as whole rows, copied only if they are a part of wider rows.
    pub(crate) fn whole(&self) -> Self {
        if self.is_whole() { self.clone() } else { self.copied() }
    }

    /// The columns as whole rows that may be written to: in place if nothing else holds them.
    pub(crate) fn owned(self) -> Self {
        if self.is_whole() && self.is_sole() { self.changed() } else { self.copied() }
    }

    /// The columns of every `count` neighbouring rows as one row, without a copy of whole rows.
    pub(crate) fn merged(&self, count: usize) -> Self {
        let whole = self.whole();
        // A deferred operation writes rows of their own width.
        whole.settle();
        let (seq, columns) = (whole.seq / count, whole.columns * count);
        Self { seq, width: columns, columns, tensor: OnceLock::new(), ..whole }
    }

    pub(crate) fn copied(&self) -> Self {
        let copy = Self::take(&self.host, self.batch, self.seq, self.columns);
        self.copy_to(&mut copy.write(), self.columns, 0);
        copy
    }

    /// The value as a tensor; made once.
    pub(crate) fn tensor(&self) -> &Tensor {
        self.tensor.get_or_init(|| {
            let mut values = vec![T::default(); self.rows() * self.columns];
            self.copy_to(&mut values, self.columns, 0);
            self.tensor_of(values)
        })
    }

    /// As [`Rows::observed`](super::Rows::observed).
    pub(crate) fn observed(&self) -> Tensor {
        if let Some(tensor) = self.tensor.get() {
            return tensor.clone();
        }
        let mut values = vec![T::default(); self.rows() * self.columns];
        match self.pending() {
            Some(deferred) => deferred.run(&mut values),
            None => self.copy_to(&mut values, self.columns, 0),
        }
        self.tensor_of(values)
    }

    /// The value as a tensor; a deferred product writes directly to it.
    pub(crate) fn into_tensor(mut self) -> Tensor {
        if let Some(tensor) = self.tensor.take() {
            return tensor;
        }
        match self.pending().and_then(|deferred| deferred.run_new()) {
            Some(values) => self.tensor_of(values),
            None => self.tensor().clone(),
        }
    }

    fn tensor_of(&self, values: Vec<T>) -> Tensor {
        Tensor::from_vec(values, (self.batch, self.seq, self.columns), &Device::Cpu)
            .expect("as many values as the shape has")
    }

    pub(crate) fn host(&self) -> &Arc<Host> {
        &self.host
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.host.pool
    }

    /// One part of every group, concatenated.
    pub(crate) fn gathered(&self, groups: usize, start: usize, size: usize) -> Self {
        let out = Self::take(&self.host, self.batch, self.seq, groups * size);
        let (from, mut to) = (self.read(), out.write());
        for (from, to) in from.chunks_exact(self.width).zip(to.chunks_exact_mut(groups * size)) {
            let from = &from[self.first..self.first + self.columns];
            for (from, to) in from.chunks_exact(self.columns / groups).zip(to.chunks_exact_mut(size)) {
                to.copy_from_slice(&from[start..start + size]);
            }
        }
        drop(to);
        out
    }
}

/// The rows of a slot to read; a buffer may be longer.
pub(crate) struct Reading<'a, T: Float> {
    rows: RwLockReadGuard<'a, AlignedBuf<T>>,
    len: usize,
}

impl<T: Float> Deref for Reading<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.rows[..self.len]
    }
}

/// The rows of a slot to write.
pub(crate) struct Writing<'a, T: Float> {
    rows: RwLockWriteGuard<'a, AlignedBuf<T>>,
    len: usize,
}

impl<T: Float> Deref for Writing<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.rows[..self.len]
    }
}

impl<T: Float> DerefMut for Writing<'_, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.rows[..self.len]
    }
}
