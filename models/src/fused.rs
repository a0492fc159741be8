//! Values of the fused form: rows in buffers that a workspace lends, takes back and lends again, so that a
//! second pass of the same shape allocates none. Rows may still be owed a job: who reads them runs it, and
//! who would only have changed the result (a sum, a factor, an activation) runs it with that folded in.
//!
//! Layers call what is here and need not know where it computes: on the CPU in F32 or BF16 (`host.rs`, `slot.rs`), or
//! on a GPU (`cuda/`).

use std::sync::Arc;

use candle_core::Tensor;
use half::bf16;

use crate::cuda::{DeviceRows, Space};
use crate::error::{Error, Result};
use crate::kernels::Epilogue;
use crate::pass::{Value, Xs};

mod host;
mod job;
mod norm;
mod packed;
mod slot;

use host::{Buffer, read};
pub(crate) use host::{Float, Host, LayerCache, Vectors, lock};
pub(crate) use job::{Job, Work};
pub(crate) use norm::{Norm, NormWeights};
pub(crate) use packed::{GateUp, Packed};
pub(crate) use slot::{Room, Slot};

/// Where a checkpoint computes in the fused form, and what it keeps there between passes.
#[derive(Clone)]
pub(crate) enum Workspace {
    Host(Arc<Host>),
    Gpu(Arc<Space>),
}

/// A value of the fused form.
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

    /// The value as a tensor of its own; what is owed is computed for it, and stays owed.
    pub(crate) fn looked_at(&self) -> Result<Tensor> {
        match self {
            Self::F32(slot) => Ok(slot.looked_at()),
            Self::Bf16(slot) => Ok(slot.looked_at()),
            Self::Gpu(rows) => rows.looked_at(),
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

    /// Of each of `groups` neighbouring groups of columns the `size` columns from `start` on, side by side.
    pub(crate) fn gathered(&self, groups: usize, start: usize, size: usize) -> Self {
        match self {
            Self::F32(slot) => Self::F32(slot.gathered(groups, start, size)),
            Self::Bf16(slot) => Self::Bf16(slot.gathered(groups, start, size)),
            Self::Gpu(rows) => Self::Gpu(rows.gathered(groups, start, size)),
        }
    }

    pub(crate) fn into_xs(self) -> Xs {
        Xs::from_value(Value::Fused(self))
    }
}

/// `xs + ys`, in place where nobody else holds `xs`; a product or norm still owed for `ys` adds itself.
pub(crate) fn sum(xs: Rows, ys: &Rows) -> Result<Rows> {
    match (xs, ys) {
        (Rows::F32(xs), Rows::F32(ys)) => Ok(Rows::F32(job::sum(xs, ys))),
        (Rows::Bf16(xs), Rows::Bf16(ys)) => Ok(Rows::Bf16(job::sum(xs, ys))),
        (Rows::Gpu(xs), Rows::Gpu(ys)) => xs.plus(ys).map(Rows::Gpu),
        _ => Err(two_kinds()),
    }
}

/// `xs * ys`, in place where nobody else holds `xs`.
pub(crate) fn product(xs: Rows, ys: &Rows) -> Result<Rows> {
    match (xs, ys) {
        (Rows::F32(xs), Rows::F32(ys)) => Ok(Rows::F32(job::product(xs, ys))),
        (Rows::Bf16(xs), Rows::Bf16(ys)) => Ok(Rows::Bf16(job::product(xs, ys))),
        (Rows::Gpu(xs), Rows::Gpu(ys)) => xs.times(ys).map(Rows::Gpu),
        _ => Err(two_kinds()),
    }
}

/// `xs` with a factor, an activation or a soft cap: folded into a product that is still owed, else a pass of its own.
pub(crate) fn finished(xs: Rows, epilogue: Epilogue, room: Room) -> Result<Rows> {
    match xs {
        Rows::F32(xs) => Ok(Rows::F32(job::finished(xs, epilogue, room))),
        Rows::Bf16(xs) => Ok(Rows::Bf16(job::finished(xs, epilogue, room))),
        Rows::Gpu(xs) => xs.finished(epilogue).map(Rows::Gpu),
    }
}

fn two_kinds() -> Error {
    Error::Inputs("an operation on values of two dtypes".to_owned())
}
