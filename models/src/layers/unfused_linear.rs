//! A linear layer that rounds before its bias.

use candle_core::Tensor;

use super::linear::linear;
use crate::error::Result;
use crate::pass::{Pass, Xs};
use crate::weights::Weights;

/// `round(xs @ weight^T) + bias`: falcon was trained without fusing the two, and in 16 bits the rounding
/// between them shows (transformers 5.23.0, `FalconLinear`).
#[derive(Clone, Debug)]
pub struct UnfusedLinear {
    path: String,
    /// `[out, in]`.
    weight: Tensor,
    /// `[out]`.
    bias: Option<Tensor>,
}

impl UnfusedLinear {
    /// Loads `weight`, `[out, in]`, and, where `bias` says so, `bias`, `[out]`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(weights: &Weights, input: usize, output: usize, bias: bool) -> Result<Self> {
        Ok(Self {
            path: weights.path().to_owned(),
            weight: weights.get("weight", (output, input))?,
            bias: bias.then(|| weights.get("bias", output)).transpose()?,
        })
    }

    /// `xs: [.., in]` to `[.., out]`; sums in F32 for 16-bit dtypes, in the dtype itself otherwise.
    ///
    /// # Errors
    /// If the last dimension of `xs` is not `in`.
    pub fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |_, xs| {
            let ys = linear(xs.tensor(), &self.weight, None)?;
            Ok(match &self.bias {
                Some(bias) => ys.broadcast_add(bias)?.into(),
                None => ys.into(),
            })
        })
    }
}
