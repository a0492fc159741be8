//! Elementwise operations between layers.

use candle_core::{DType, Tensor};
use half::f16;

use super::accumulation;
use crate::deviations::Deviation;
use crate::error::Result;
use crate::fused::{Room, finished, product, sum};
use crate::kernels::Epilogue;
use crate::pass::Pass;
use crate::xs::{Value, Xs};

/// Applies `operation` in the accumulation dtype and rounds its result once to the dtype of `xs`, as torch does for
/// 16-bit dtypes; candle would round at each step inside the operation. In F32 and F64 this changes nothing.
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
/// In the fused backend a deferred product or norm that computes `ys` adds its result to `xs` without rounding it first.
///
/// # Errors
/// If the shapes differ.
pub fn add(xs: Xs, ys: Xs) -> Result<Xs> {
    match (xs.into_value(), ys.into_value()) {
        (Value::Fused(xs), Value::Fused(ys)) => sum(xs, &ys).map(Xs::from),
        (xs, ys) => Ok((Xs::from(xs).into_tensor()? + Xs::from(ys).into_tensor()?)?.into()),
    }
}

/// `xs + ys` in the wider of their dtypes: a residual stream that a layer kept in F32 ([`WideLinear`]) has widened.
/// Shapes equal.
///
/// # Errors
/// If the shapes differ.
///
/// [`WideLinear`]: super::WideLinear
pub fn add_wide(xs: Xs, ys: Xs) -> Result<Xs> {
    match (xs.value(), ys.value()) {
        (Value::Tensor(left), Value::Tensor(right)) if left.dtype() != right.dtype() => {
            Ok((left.to_dtype(DType::F32)? + right.to_dtype(DType::F32)?)?.into())
        }
        _ => add(xs, ys),
    }
}

/// `xs`; if it is in F16 and has infinities, all of its values are limited to the largest finite one less 1000
/// (transformers 5.23.0, `T5Block.forward`).
///
/// # Errors
/// If a tensor operation fails.
pub fn clamp_f16(xs: Xs) -> Result<Xs> {
    let tensor = match xs.value() {
        Value::Tensor(tensor) if tensor.dtype() == DType::F16 => tensor,
        _ => return Ok(xs),
    };
    let most = f16::MAX.to_f64();
    let largest = tensor.abs()?.max_all()?.to_scalar::<f16>()?;
    if largest.is_infinite() { Ok(tensor.clamp(1000.0 - most, most - 1000.0)?.into()) } else { Ok(xs) }
}

/// `xs`; if it is in F16, its values are limited to the largest finite one less 1000 (transformers 5.23.0,
/// `WhisperEncoderLayer.forward`).
///
/// # Errors
/// If a tensor operation fails.
pub fn limit_f16(xs: Xs) -> Result<Xs> {
    let most = f16::MAX.to_f64() - 1000.0;
    match xs.value() {
        Value::Tensor(tensor) if tensor.dtype() == DType::F16 => Ok(tensor.clamp(-most, most)?.into()),
        _ => Ok(xs),
    }
}

/// The residual addition `xs + h` at the end of an attention or MLP. Shapes equal.
///
/// # Errors
/// If the shapes differ.
pub fn residual(pass: &mut Pass, xs: Xs, h: Xs) -> Result<Xs> {
    let xs = pass.kept_norm().map_or(xs, Xs::from);
    let Some(h) = pass.parallel(h)? else { return Ok(xs) };
    let mut sum = add(xs, h)?;
    // An ordinary pass leaves the sum deferred.
    if pass.deviates(Deviation::ResidualBf16) {
        sum = pass.coarse(Deviation::ResidualBf16, sum.into_tensor()?)?.into();
    }
    match pass.postponed_norm() {
        Some(norm) => Ok(norm.normed(pass, sum.tensor()?)?.into()),
        None => Ok(sum),
    }
}

/// `xs * ys`. Shapes equal.
///
/// # Errors
/// If the shapes differ.
pub fn multiply(xs: Xs, ys: Xs) -> Result<Xs> {
    match (xs.into_value(), ys.into_value()) {
        (Value::Fused(xs), Value::Fused(ys)) => product(xs, &ys).map(Xs::from),
        (xs, ys) => Ok((Xs::from(xs).into_tensor()? * Xs::from(ys).into_tensor()?)?.into()),
    }
}

/// `xs * factor`. The factor is not rounded to a 16-bit dtype, as in torch's multiplication by a Python float.
///
/// # Errors
/// If a tensor operation fails.
pub fn scale(xs: Xs, factor: f64) -> Result<Xs> {
    match xs.into_value() {
        Value::Tensor(xs) => Ok(scaled(&xs, factor)?.into()),
        Value::Fused(xs) => finished(xs, Epilogue::Scale(factor as f32), Room::Later).map(Xs::from),
    }
}

/// `xs / divisor`. The divisor is not rounded to a 16-bit dtype; the fused backend multiplies by its reciprocal.
///
/// # Errors
/// If a tensor operation fails.
pub fn divide(xs: Xs, divisor: f64) -> Result<Xs> {
    match xs.into_value() {
        Value::Tensor(xs) => Ok(divided(&xs, divisor)?.into()),
        xs @ Value::Fused(_) => scale(Xs::from(xs), 1.0 / divisor),
    }
}

/// `cap * tanh(xs / cap)`. The eager backend rounds each step to the dtype of `xs`, the fused backend only the last.
///
/// # Errors
/// If a tensor operation fails.
pub fn soft_cap(xs: Xs, cap: f64) -> Result<Xs> {
    match xs.into_value() {
        Value::Tensor(xs) => Ok(soft_capped(&xs, cap)?.into()),
        Value::Fused(xs) => finished(xs, Epilogue::SoftCap(cap as f32), Room::Later).map(Xs::from),
    }
}

pub(super) fn scaled(xs: &Tensor, factor: f64) -> Result<Tensor> {
    rounded(xs, |xs| xs.affine(factor, 0.0))
}

/// Divides instead of multiplying by the reciprocal, because the two differ in the last bit.
fn divided(xs: &Tensor, divisor: f64) -> Result<Tensor> {
    let divisor = Tensor::new(divisor, xs.device())?;
    rounded(xs, |xs| xs.broadcast_div(&divisor.to_dtype(xs.dtype())?))
}

pub(super) fn soft_capped(xs: &Tensor, cap: f64) -> Result<Tensor> {
    let xs = divided(xs, cap)?;
    let xs = rounded(&xs, Tensor::tanh)?;
    scaled(&xs, cap)
}
