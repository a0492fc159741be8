//! Operations between layers, element by element.

use candle_core::Tensor;

use super::accumulation;
use crate::error::Result;
use crate::fused::{Float, Slot};
use crate::kernels;
use crate::pass::{Value, Xs};

/// Applies `operation` in the accumulation dtype and rounds its result once to `xs`'s dtype, as torch does
/// for 16-bit dtypes; candle rounds at each step inside an operation. In F32 and F64 it changes nothing.
///
/// # Errors
/// If a tensor operation fails.
pub fn rounded(
    xs: &Tensor,
    operation: impl FnOnce(&Tensor) -> candle_core::Result<Tensor>,
) -> Result<Tensor> {
    let dtype = xs.dtype();
    let wide = xs.to_dtype(accumulation(dtype))?;
    Ok(operation(&wide)?.to_dtype(dtype)?)
}

/// `xs + ys`, the residual connection. Shapes equal.
///
/// # Errors
/// If the shapes differ.
pub fn add(xs: Xs, ys: Xs) -> Result<Xs> {
    match (xs.value(), ys.value()) {
        (Value::F32(x), Value::F32(y)) => Ok(sum(x, y).into_xs()),
        (Value::Bf16(x), Value::Bf16(y)) => Ok(sum(x, y).into_xs()),
        _ => Ok((xs.into_tensor() + ys.into_tensor())?.into()),
    }
}

/// In place where nobody else holds `xs`.
fn sum<T: Float>(xs: &Slot<T>, ys: &Slot<T>) -> Slot<T> {
    let ys = ys.whole();
    let out = if xs.is_whole() && xs.is_sole() {
        xs.clone().changed()
    } else {
        let out = Slot::take(xs.workspace(), xs.batch, xs.seq, xs.columns);
        xs.copy_to(&mut out.write(), xs.columns, 0);
        out
    };
    kernels::add(&xs.workspace().pool, &mut out.write(), &ys.read(), 1.0);
    out
}

/// `xs * ys`. Shapes equal.
///
/// # Errors
/// If the shapes differ.
pub fn multiply(xs: Xs, ys: Xs) -> Result<Xs> {
    Ok((xs.into_tensor() * ys.into_tensor())?.into())
}

/// `xs * factor`, the factor not rounded to a 16-bit dtype (torch's multiplication by a Python float).
///
/// # Errors
/// If a tensor operation fails.
pub fn scale(xs: Xs, factor: f64) -> Result<Xs> {
    Ok(scaled(&xs.into_tensor(), factor)?.into())
}

/// `xs / divisor`, the divisor not rounded to a 16-bit dtype.
///
/// # Errors
/// If a tensor operation fails.
pub fn divide(xs: Xs, divisor: f64) -> Result<Xs> {
    Ok(divided(&xs.into_tensor(), divisor)?.into())
}

/// `cap * tanh(xs / cap)`, each step rounded to the dtype of `xs`.
///
/// # Errors
/// If a tensor operation fails.
pub fn soft_cap(xs: Xs, cap: f64) -> Result<Xs> {
    Ok(soft_capped(&xs.into_tensor(), cap)?.into())
}

pub(super) fn scaled(xs: &Tensor, factor: f64) -> Result<Tensor> {
    rounded(xs, |xs| xs.affine(factor, 0.0))
}

/// A division, not a multiplication by the reciprocal: they differ in the last bit.
fn divided(xs: &Tensor, divisor: f64) -> Result<Tensor> {
    let divisor = Tensor::new(divisor, xs.device())?;
    rounded(xs, |xs| xs.broadcast_div(&divisor.to_dtype(xs.dtype())?))
}

pub(super) fn soft_capped(xs: &Tensor, cap: f64) -> Result<Tensor> {
    let xs = divided(xs, cap)?;
    let xs = rounded(&xs, Tensor::tanh)?;
    scaled(&xs, cap)
}
