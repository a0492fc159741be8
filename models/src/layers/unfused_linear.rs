//! A linear layer that rounds its product before it adds the bias.

use candle_core::Tensor;

use super::Linear;
use super::linear::linear;
use crate::error::Result;
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::Xs;

/// `round(xs @ weight^T) + bias`: falcon was trained without fusing the two operations, which makes a difference in
/// 16-bit dtypes (transformers 5.23.0, `FalconLinear`).
///
/// The fused backend rounds once, as for any other linear layer.
#[derive(Clone)]
pub struct UnfusedLinear(Backend);

#[derive(Clone)]
enum Backend {
    Eager {
        path: String,
        /// Weight `[in, out]`, as in [`Linear`].
        weight: Tensor,
        /// `[out]`.
        bias: Option<Tensor>,
    },
    Fused(Linear),
}

impl UnfusedLinear {
    /// Loads `weight`, `[out, in]`, and, if `bias`, `bias`, `[out]`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(weights: &Weights, input: usize, output: usize, bias: bool) -> Result<Self> {
        if weights.workspace().is_some() {
            return Ok(Self(Backend::Fused(Linear::load(weights, input, output, bias)?)));
        }
        Ok(Self(Backend::Eager {
            path: weights.path().to_owned(),
            weight: weights.get("weight", (output, input))?.t()?.contiguous()?,
            bias: bias.then(|| weights.get("bias", output)).transpose()?,
        }))
    }

    /// `xs: [.., in]` to `[.., out]`; sums in F32 for 16-bit dtypes, in the dtype itself otherwise.
    ///
    /// # Errors
    /// If the last dimension of `xs` is not `in`.
    pub fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        let (path, weight, bias) = match &self.0 {
            Backend::Eager { path, weight, bias } => (path, weight, bias),
            Backend::Fused(linear) => return linear.forward(pass, xs),
        };
        pass.module(path, xs.clone(), |_, xs| {
            let ys = linear(xs.tensor()?, weight, None)?;
            Ok(match bias {
                Some(bias) => ys.broadcast_add(bias)?.into(),
                None => ys.into(),
            })
        })
    }
}
