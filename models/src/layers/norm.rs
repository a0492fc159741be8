//! RMS normalisation.

use candle_core::{D, DType, Tensor};

use super::accumulation;
use crate::deviations::Deviation;
use crate::error::Result;
use crate::fused::{Norm, NormWeights, Rows};
use crate::pass::{LaterNorm, Pass};
use crate::weights::Weights;
use crate::xs::{Value, Xs};

/// `x / sqrt(mean(x^2) + eps) * weight`, over groups of `size` values along the last dimension.
///
/// The fused backend rounds once, at the end.
pub struct RmsNorm {
    path: String,
    /// `[size]`, in the model's dtype if the normalised value is rounded before it is multiplied, else in the
    /// accumulation dtype; for [`RmsNorm::load_offset`] the 1 is already added.
    weight: Tensor,
    eps: f64,
    rounds_before_weight: bool,
    fused: Option<Norm>,
}

impl RmsNorm {
    /// llama's: `weight * round(x / rms)` (transformers 5.23.0, `LlamaRMSNorm`).
    ///
    /// # Errors
    /// If the tensor is missing or has another shape.
    pub fn load(weights: &Weights, size: usize, eps: f64) -> Result<Self> {
        Self::new(weights, weights.get("weight", size)?, eps, true)
    }

    /// olmo2's: `round(weight * x / rms)` (transformers 5.23.0, `Olmo2RMSNorm`).
    ///
    /// # Errors
    /// If the tensor is missing or has another shape.
    pub fn load_rounded_once(weights: &Weights, size: usize, eps: f64) -> Result<Self> {
        let weight = weights.get("weight", size)?;
        Self::new(weights, weight.to_dtype(accumulation(weight.dtype()))?, eps, false)
    }

    /// gemma's: `round((1 + weight) * x / rms)` (transformers 5.23.0, `Gemma3RMSNorm`).
    ///
    /// # Errors
    /// If the tensor is missing or has another shape.
    pub fn load_offset(weights: &Weights, size: usize, eps: f64) -> Result<Self> {
        let weight = weights.get("weight", size)?;
        let weight = (weight.to_dtype(accumulation(weight.dtype()))? + 1.0)?;
        Self::new(weights, weight, eps, false)
    }

    fn new(weights: &Weights, weight: Tensor, eps: f64, rounds_before_weight: bool) -> Result<Self> {
        let fused = match weights.workspace() {
            Some(workspace) => {
                let weights = vec![weight.to_dtype(DType::F32)?.to_vec1()?];
                let norm = NormWeights { weights, bias: None, eps: eps as f32, centred: false };
                Some(Norm::new(workspace, norm)?)
            }
            None => None,
        };
        Ok(Self { path: weights.path().to_owned(), weight, eps, rounds_before_weight, fused })
    }

    /// `xs: [.., n * size]`, same shape out; the mean is computed in F32 (F64 in F64).
    ///
    /// The fused backend normalises a part of a joined projection in place.
    ///
    /// # Errors
    /// If the last dimension is not a multiple of `size`.
    pub fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        normalised(pass, &self.path, (self, self.fused.as_ref()), xs, Self::eager)
    }

    /// The same norm without its fused form.
    fn eager(&self) -> Self {
        Self { path: self.path.clone(), weight: self.weight.clone(), fused: None, ..*self }
    }

    fn apply(&self, pass: &Pass, xs: &Tensor) -> Result<Tensor> {
        let size = self.weight.dim(0)?;
        let grouped = xs.reshape(((), size))?;
        let mut wide = grouped.to_dtype(accumulation(xs.dtype()))?;
        if pass.deviates(Deviation::RmsNormCentred) {
            wide = wide.broadcast_sub(&(wide.sum_keepdim(D::Minus1)? / size as f64)?)?;
        }
        let variance = mean_of_squares(pass, &wide, size)?;
        let root = root(pass, &variance, pass.eps_of(&self.path, self.eps))?;
        let normed = if pass.deviates(Deviation::NormRootBf16) {
            wide.broadcast_div(&pass.coarse(Deviation::NormRootBf16, root)?)?
        } else {
            wide.broadcast_mul(&root.recip()?)?
        };
        let out = if self.rounds_before_weight {
            normed.to_dtype(self.weight.dtype())?.broadcast_mul(&self.weight)?
        } else {
            normed.broadcast_mul(&self.weight)?.to_dtype(xs.dtype())?
        };
        Ok(out.reshape(xs.dims())?)
    }
}

impl LaterNorm for RmsNorm {
    fn normed(&self, pass: &Pass, xs: &Tensor) -> Result<Tensor> {
        self.apply(pass, xs)
    }
}

/// The mean of the squares of each row, `[.., 1]`.
pub(super) fn mean_of_squares(pass: &Pass, rows: &Tensor, size: usize) -> Result<Tensor> {
    let rounded = |xs: Tensor| pass.coarse(Deviation::NormSumsBf16, xs);
    let sum = rounded(rounded(rows.sqr()?)?.sum_keepdim(D::Minus1)?)?;
    rounded((sum / size as f64)?)
}

/// `sqrt(variance + eps)`.
pub(super) fn root(pass: &Pass, variance: &Tensor, eps: f64) -> Result<Tensor> {
    if pass.deviates(Deviation::NormEpsOutside) {
        return Ok((variance.sqrt()? + eps)?);
    }
    Ok((variance + eps)?.sqrt()?)
}

/// A norm as a module of the forward pass: in its fused form where there is one, else as `eager` makes it, unless the pass leaves it
/// out or applies it later on purpose.
pub(super) fn normalised<N: LaterNorm + 'static>(
    pass: &mut Pass,
    path: &str,
    (norm, fused_norm): (&N, Option<&Norm>),
    xs: &Xs,
    eager: impl FnOnce(&N) -> N,
) -> Result<Xs> {
    pass.module(path, xs.clone(), |pass, xs| match fused(fused_norm, &xs) {
        Some(rows) => rows.map(Xs::from),
        None if pass.lacks_norm(path) => Ok(xs),
        None if pass.postpones_norm(path) => {
            pass.postpone_norm(Box::new(eager(norm)));
            Ok(xs)
        }
        None => {
            let normed = norm.normed(pass, xs.tensor()?)?;
            pass.keep_norm(path, &normed);
            Ok(normed.into())
        }
    })
}

/// The norm of a value in the fused backend; `None` if the value must be normalised as a tensor.
pub(super) fn fused(norm: Option<&Norm>, xs: &Xs) -> Option<Result<Rows>> {
    match (xs.value(), norm) {
        (Value::Fused(rows), Some(norm)) => norm.forward(rows),
        _ => None,
    }
}
