//! Normalisation layers.

use std::sync::Arc;

use candle_core::{D, DType, Tensor};

use super::accumulation;
use crate::error::Result;
use crate::fused::{Float, Job, Room, Slot, Work};
use crate::kernels::Norm;
use crate::pass::{Pass, Value, Xs};
use crate::weights::Weights;

/// `x / sqrt(mean(x^2) + eps)`, times the weight; over groups of `size` along the last dimension.
///
/// The fused form rounds once, at the end.
pub struct RmsNorm {
    path: String,
    /// `[size]`, in the model's dtype where the value is rounded before it is multiplied, else in the accumulation
    /// dtype; for [`RmsNorm::load_offset`] with the 1 added.
    weight: Tensor,
    eps: f64,
    rounds_before_weight: bool,
    fused: Option<Arc<Norm>>,
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
            Some(_) => Some(Arc::new(Norm::rms(weight.to_dtype(DType::F32)?.to_vec1()?, eps as f32))),
            None => None,
        };
        Ok(Self { path: weights.path().to_owned(), weight, eps, rounds_before_weight, fused })
    }

    /// `xs: [.., n * size]`, same shape out; the mean is taken in F32 (F64 in F64).
    ///
    /// In the fused form a part of a joined projection is normed in place.
    ///
    /// # Errors
    /// If the last dimension is no multiple of `size`.
    pub fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |_, xs| match (xs.value(), &self.fused) {
            (Value::F32(slot), Some(norm)) => Ok(fused(norm, slot).into_xs()),
            (Value::Bf16(slot), Some(norm)) => Ok(fused(norm, slot).into_xs()),
            _ => Ok(self.apply(xs.tensor())?.into()),
        })
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

/// Whole rows are owed, so that a sum may take the norm over; parts are normed in place.
pub(super) fn fused<T: Float>(norm: &Arc<Norm>, xs: &Slot<T>) -> Slot<T> {
    if xs.is_whole() && xs.width == norm.size() {
        xs.settle();
        let job = Job { work: Work::Norm(Arc::clone(norm)), xs: xs.clone() };
        return Slot::owed(xs.workspace(), job, Room::Now);
    }
    if xs.is_whole() {
        let out = Slot::take(xs.workspace(), xs.batch, xs.seq, xs.width);
        norm.forward(xs.pool(), &xs.read(), &mut out.write());
        return out;
    }
    norm.heads_in_place(xs.pool(), &mut xs.write(), xs.width, xs.first, xs.columns / norm.size());
    xs.clone().changed()
}
