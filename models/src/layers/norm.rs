//! Normalisation layers.

use candle_core::{D, Tensor};

use super::accumulation;
use crate::error::Result;
use crate::pass::{Pass, Xs};
use crate::weights::Weights;

/// `x / sqrt(mean(x^2) + eps)`, times the weight; over groups of `size` along the last dimension.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    path: String,
    /// `[size]`, in the model's dtype; for [`RmsNorm::load_offset`] in the accumulation dtype, with the 1 added.
    weight: Tensor,
    eps: f64,
    rounds_before_weight: bool,
}

impl RmsNorm {
    /// llama's: `weight * round(x / rms)` (transformers 5.23.0, `LlamaRMSNorm`).
    ///
    /// # Errors
    /// If the tensor is missing or has another shape.
    pub fn load(weights: &Weights, size: usize, eps: f64) -> Result<Self> {
        Ok(Self {
            path: weights.path().to_owned(),
            weight: weights.get("weight", size)?,
            eps,
            rounds_before_weight: true,
        })
    }

    /// gemma's: `round((1 + weight) * x / rms)` (transformers 5.23.0, `Gemma3RMSNorm`).
    ///
    /// # Errors
    /// If the tensor is missing or has another shape.
    pub fn load_offset(weights: &Weights, size: usize, eps: f64) -> Result<Self> {
        let weight = weights.get("weight", size)?;
        Ok(Self {
            path: weights.path().to_owned(),
            weight: (weight.to_dtype(accumulation(weight.dtype()))? + 1.0)?,
            eps,
            rounds_before_weight: false,
        })
    }

    /// `xs: [.., n * size]`, same shape out; the mean is taken in F32 (F64 in F64).
    ///
    /// # Errors
    /// If the last dimension is no multiple of `size`.
    pub fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |_, xs| Ok(self.apply(xs.tensor())?.into()))
    }

    fn apply(&self, xs: &Tensor) -> Result<Tensor> {
        let size = self.weight.dim(0)?;
        let grouped = xs.reshape(((), size))?;
        let wide = grouped.to_dtype(accumulation(xs.dtype()))?;
        let variance = (wide.sqr()?.sum_keepdim(D::Minus1)? / size as f64)?;
        let normed = wide.broadcast_mul(&(variance + self.eps)?.sqrt()?.recip()?)?;
        let out = if self.rounds_before_weight {
            normed.to_dtype(xs.dtype())?.broadcast_mul(&self.weight)?
        } else {
            normed.broadcast_mul(&self.weight)?.to_dtype(xs.dtype())?
        };
        Ok(out.reshape(xs.dims())?)
    }
}
