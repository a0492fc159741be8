//! A computation on a GPU that has not been launched yet, so that what follows may be folded into it.

use std::sync::Arc;

use super::kernels::{Gemv, GemvEpilogue, Map, MapOp, NormForm};
use super::rows::DeviceRows;
use super::weights::{DeviceLinear, DeviceNorm};
use super::{MatMul, Region, matmul};
use crate::error::Result;
use crate::kernels::Epilogue;

/// Work on rows. While a job waits, nobody writes to them: they are lent to it.
#[derive(Clone)]
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) xs: DeviceRows,
}

#[derive(Clone)]
pub(super) enum Work {
    Product(Arc<DeviceLinear>, Epilogue),
    Norm(Arc<DeviceNorm>),
}

impl Job {
    /// Columns of the result.
    pub(super) fn width(&self) -> usize {
        match &self.work {
            Work::Product(weight, _) => weight.n,
            Work::Norm(_) => self.xs.width,
        }
    }

    /// A buffer for the result.
    pub(super) fn room(&self) -> Result<Arc<Region>> {
        self.xs.space.lend_elements(self.xs.rows() * self.width())
    }

    pub(super) fn run(&self, out: &Region) -> Result<()> {
        match &self.work {
            Work::Product(weight, epilogue) => product(weight, *epilogue, &self.xs, out),
            Work::Norm(norm) => self.xs.norm_to(norm, out, self.xs.width),
        }
    }

    /// The factor of a product that can be added as it is computed.
    fn summand(&self) -> Option<(&DeviceLinear, f32)> {
        match &self.work {
            Work::Product(weight, Epilogue::Store) => Some((weight, 1.0)),
            Work::Product(weight, Epilogue::Scale(factor)) if weight.bias.is_none() => {
                Some((weight, *factor))
            }
            _ => None,
        }
    }

    /// The result plus `residual` in `out`; false, and nothing done, where that is not one launch.
    pub(super) fn add(&self, residual: &Region, out: &Region) -> Result<bool> {
        match self.summand() {
            Some((weight, factor)) if Gemv::takes(weight.space.dtype, self.xs.rows(), weight.k) => {
                gemv(weight, weight.n, GemvEpilogue::Add(factor), &self.xs, out, residual)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Adds the result to `sum`; false, and nothing done, where that cannot be folded in.
    pub(super) fn add_to(&self, sum: &Region) -> Result<bool> {
        match &self.work {
            Work::Product(..) => {
                let Some((weight, factor)) = self.summand() else { return Ok(false) };
                product(weight, Epilogue::Add(factor), &self.xs, sum)?;
            }
            Work::Norm(norm) => {
                let xs = &self.xs;
                let form = NormForm::NormThenAdd;
                norm.launch(form, [xs.rows(), xs.width], (&*xs.region()?, xs.width), (sum, xs.width))?;
            }
        }
        Ok(true)
    }
}

/// `out = epilogue(xs @ weight^T + bias)`; few rows stream the weight, and do a norm that they are owed on the way.
pub(super) fn product(
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

/// A product of few rows to `n` columns; what is added is added to `residual`.
pub(super) fn gemv(
    weight: &DeviceLinear,
    n: usize,
    epilogue: GemvEpilogue,
    xs: &DeviceRows,
    out: &Region,
    residual: &Region,
) -> Result<()> {
    let norm = xs.owed_norm();
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
