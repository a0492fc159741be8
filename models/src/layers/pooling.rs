//! Pooling: reduces a sequence to one vector.

use candle_core::{D, DType, Tensor};

use super::rounded;
use crate::deviations::Deviation;
use crate::error::Result;
use crate::fused::Rows;
use crate::pass::Pass;
use crate::xs::{Value, Xs};

/// `xs: [batch, seq, features]` to the first position, `[batch, features]`, even if that is padding.
///
/// # Errors
/// If a tensor operation fails.
pub fn first_position(pass: &Pass, xs: &Xs) -> Result<Xs> {
    if let Value::Fused(Rows::Gpu(rows)) = xs.value() {
        return Ok(rows.first_position()?.into());
    }
    if pass.deviates(Deviation::PooledMean) {
        return mean_of_real_tokens(pass, xs);
    }
    let xs = xs.tensor()?;
    let position = if pass.deviates(Deviation::PooledLast) { xs.dim(1)? - 1 } else { 0 };
    Ok(xs.narrow(1, position, 1)?.squeeze(1)?.contiguous()?.into())
}

/// `xs: [batch, seq, features]` to one position of each sequence, `[batch, features]`.
///
/// # Errors
/// If there is not one position for each sequence.
pub fn position_of_each(xs: &Xs, positions: &[u32]) -> Result<Xs> {
    let xs = xs.tensor()?;
    let (batch, seq, features) = xs.dims3()?;
    let rows: Vec<u32> =
        positions.iter().zip(0..).map(|(position, row): (_, u32)| row * seq as u32 + position).collect();
    let rows = Tensor::from_vec(rows, batch, xs.device())?;
    Ok(xs.reshape((batch * seq, features))?.index_select(&rows, 0)?.into())
}

/// Reshapes a value with one vector per sequence to `[batch, features]`, because the fused backend keeps the position
/// dimension.
///
/// # Errors
/// If `xs` does not hold one vector per sequence.
pub fn one_per_row(pass: &Pass, xs: &Xs) -> Result<Xs> {
    if let Value::Fused(Rows::Gpu(rows)) = xs.value() {
        return Ok(rows.flat().into());
    }
    let features = xs.tensor()?.dim(D::Minus1)?;
    Ok(xs.tensor()?.reshape((pass.batch(), features))?.into())
}

/// `xs: [batch, seq, features]` to the mean over real tokens, `[batch, features]`; for 16-bit dtypes the sum is in
/// F32, and both the sum and the quotient are rounded (transformers 5.23.0, `ModernBertForSequenceClassification`).
///
/// # Errors
/// If a tensor operation fails.
pub fn mean_of_real_tokens(pass: &Pass, xs: &Xs) -> Result<Xs> {
    if let Value::Fused(Rows::Gpu(rows)) = xs.value() {
        let real = pass.device_pass()?.real(pass)?;
        return Ok(rows.mean_of_real_tokens(real.as_deref())?.into());
    }
    let xs = xs.tensor()?;
    let (batch, seq, _) = xs.dims3()?;
    let real: Vec<f64> = match pass.padding() {
        Some(padding) => padding.iter().map(|real| f64::from(u8::from(*real))).collect(),
        None => vec![1.0; batch * seq],
    };
    let real = Tensor::from_vec(real, (batch, seq, 1), xs.device())?;
    let count = real.sum(1)?.to_dtype(DType::F32)?;
    let sum = rounded(xs, |xs| xs.broadcast_mul(&real.to_dtype(xs.dtype())?)?.sum(1))?;
    let mean = rounded(&sum, |sum| sum.broadcast_div(&count.to_dtype(sum.dtype())?))?;
    Ok(mean.into())
}
