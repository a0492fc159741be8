//! An operation on a GPU that has not been launched yet, so that later operations can be fused into it.

use std::sync::Arc;

use super::DeviceRows;
use crate::cuda::gpu::{MatMul, Region, matmul};
use crate::cuda::kernels::{Gemv, GemvEpilogue, Map, MapOp, NormForm};
use crate::cuda::weights::{DeviceLinear, DeviceNorm};
use crate::error::Result;
use crate::kernels::Epilogue;

/// An operation on rows. It holds a reference to them, so that they are not overwritten before it runs.
#[derive(Clone)]
pub(in crate::cuda) struct Deferred {
    pub(in crate::cuda) operation: Operation,
    pub(in crate::cuda) xs: DeviceRows,
}

#[derive(Clone)]
pub(in crate::cuda) enum Operation {
    Product(Arc<DeviceLinear>, Epilogue),
    Norm(Arc<DeviceNorm>),
}

impl Deferred {
    /// Columns of the result.
    pub(in crate::cuda) fn width(&self) -> usize {
        match &self.operation {
            Operation::Product(weight, _) => weight.n,
            Operation::Norm(_) => self.xs.width,
        }
    }

    /// Acquires a buffer for the result.
    pub(in crate::cuda) fn room(&self) -> Result<Arc<Region>> {
        self.xs.space.acquire_elements(self.xs.rows() * self.width())
    }

    pub(in crate::cuda) fn run(&self, out: &Region) -> Result<()> {
        match &self.operation {
            Operation::Product(weight, epilogue) => product(weight, *epilogue, &self.xs, out),
            Operation::Norm(norm) => self.xs.norm_to(norm, out, self.xs.width),
        }
    }

    /// The weight and factor of a product that a kernel can add to a residual; `None` if the epilogue does not allow
    /// it.
    fn summand(&self) -> Option<(&DeviceLinear, f32)> {
        match &self.operation {
            Operation::Product(weight, Epilogue::Store) => Some((weight, 1.0)),
            Operation::Product(weight, Epilogue::Scale(factor)) if weight.bias.is_none() => {
                Some((weight, *factor))
            }
            _ => None,
        }
    }

    /// Writes the result plus `residual` to `out`. Returns false and does nothing if that needs more than one launch.
    pub(in crate::cuda) fn add(&self, residual: &Region, out: &Region) -> Result<bool> {
        match self.summand() {
            Some((weight, factor)) if Gemv::takes(weight.space.dtype, self.xs.rows(), weight.k) => {
                gemv(weight, weight.n, GemvEpilogue::Add(factor), &self.xs, out, residual)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Adds the result to `sum`. Returns false and does nothing if the sum cannot be fused.
    pub(in crate::cuda) fn add_to(&self, sum: &Region) -> Result<bool> {
        match &self.operation {
            Operation::Product(..) => {
                let Some((weight, factor)) = self.summand() else { return Ok(false) };
                product(weight, Epilogue::Add(factor), &self.xs, sum)?;
            }
            Operation::Norm(norm) => {
                let xs = &self.xs;
                let form = NormForm::NormThenAdd;
                norm.launch(form, [xs.rows(), xs.width], (&*xs.region()?, xs.width), (sum, xs.width))?;
            }
        }
        Ok(true)
    }
}

/// `out = epilogue(xs @ weight^T + bias)`; where [`Gemv::takes`] is true, a GEMV kernel that also computes a deferred
/// norm of `xs`, else [`matmul`].
pub(in crate::cuda) fn product(
    weight: &DeviceLinear,
    epilogue: Epilogue,
    xs: &DeviceRows,
    out: &Region,
) -> Result<()> {
    let space = &weight.space;
    if Gemv::takes(space.dtype, xs.rows(), weight.k) {
        let epilogue = match epilogue {
            Epilogue::Store => GemvEpilogue::Store,
            Epilogue::Scale(factor) => GemvEpilogue::Scale(factor),
            Epilogue::Add(factor) => GemvEpilogue::Add(factor),
            Epilogue::Activate(activation) => GemvEpilogue::Activate(activation.into()),
            Epilogue::SoftCap(cap) => GemvEpilogue::SoftCap(cap),
        };
        return gemv(weight, weight.n, epilogue, xs, out, out);
    }
    let (alpha, beta, after) = match epilogue {
        Epilogue::Store => (1.0, 0.0, None),
        Epilogue::Scale(factor) if weight.bias.is_none() => (factor, 0.0, None),
        Epilogue::Scale(factor) => (1.0, 0.0, Some(MapOp::Scale(factor))),
        Epilogue::Add(factor) => (factor, 1.0, None),
        Epilogue::Activate(activation) => (1.0, 0.0, Some(MapOp::Activate(activation.into()))),
        Epilogue::SoftCap(cap) => (1.0, 0.0, Some(MapOp::SoftCap(cap))),
    };
    let spec = MatMul {
        m: xs.rows(),
        n: weight.n,
        k: weight.k,
        xs_row: xs.width,
        out_row: weight.n,
        dtype: space.dtype,
        out_dtype: space.dtype,
        alpha,
        beta,
    };
    matmul(&spec, &*xs.region()?, &weight.weight, weight.bias.as_ref(), out)?;
    match after {
        None => Ok(()),
        Some(op) => {
            let len = xs.rows() * weight.n;
            Map { dtype: space.dtype, op, len, xs: out, other: None, out }.launch()
        }
    }
}

/// A GEMV with `n` output columns, including a deferred norm of `xs`; [`GemvEpilogue::Add`] adds to `residual`.
pub(in crate::cuda) fn gemv(
    weight: &DeviceLinear,
    n: usize,
    epilogue: GemvEpilogue,
    xs: &DeviceRows,
    out: &Region,
    residual: &Region,
) -> Result<()> {
    let norm = xs.pending_norm();
    let source = norm.as_ref().map_or(xs, |(_, source)| source);
    Gemv {
        dtype: weight.space.dtype,
        out_dtype: weight.space.dtype,
        rows: source.rows(),
        n,
        k: weight.k,
        xs: &*source.region()?,
        xs_row: source.width,
        weight: &weight.weight,
        bias: weight.bias.as_ref(),
        norm: norm.as_ref().map(|(norm, _)| norm.of_rows()),
        epilogue,
        out,
        out_row: n,
    }
    .launch_onto(residual)
}
