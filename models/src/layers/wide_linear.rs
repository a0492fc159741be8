//! A linear layer that stays in F32 in an F16 model.

use candle_core::{DType, Tensor};

use super::Linear;
use super::linear::linear;
use crate::error::Result;
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::Xs;

/// `xs @ weight^T`; in F16 the weight, the product and the output are F32 (transformers 5.23.0,
/// `_keep_in_fp32_modules`).
pub struct WideLinear(Backend);

enum Backend {
    Linear(Linear),
    Wide {
        path: String,
        /// `[in, out]`, F32.
        weight: Tensor,
    },
}

impl WideLinear {
    /// Loads `weight`, `[out, in]`.
    ///
    /// # Errors
    /// If the tensor is missing or has another shape.
    pub fn load(weights: &Weights, input: usize, output: usize) -> Result<Self> {
        if weights.dtype() != DType::F16 {
            return Ok(Self(Backend::Linear(Linear::load(weights, input, output, false)?)));
        }
        let weight = weights.get_in(DType::F32, "weight", (output, input))?.t()?.contiguous()?;
        Ok(Self(Backend::Wide { path: weights.path().to_owned(), weight }))
    }

    /// `xs: [.., in]` to `[.., out]`, in F32 if the model is in F16.
    ///
    /// # Errors
    /// If the last dimension of `xs` is not `in`.
    pub fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        match &self.0 {
            Backend::Linear(linear) => linear.forward(pass, xs),
            Backend::Wide { path, weight } => {
                let xs = xs.tensor()?.to_dtype(DType::F32)?;
                pass.module(path, xs.into(), |_, xs| Ok(linear(xs.tensor()?, weight, None)?.into()))
            }
        }
    }
}
