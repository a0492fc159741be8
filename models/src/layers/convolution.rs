//! Convolutions over time, for the features of speech.

use candle_core::Tensor;

use super::Linear;
use crate::error::Result;
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::Xs;

/// Positions that a kernel covers: one before and one after its own, with zeros beyond the ends.
const KERNEL: usize = 3;

/// A convolution with a kernel of three positions and padding of one (torch's `Conv1d`), as a product with the
/// neighbouring positions of each.
pub struct Convolution {
    path: String,
    stride: usize,
    /// Over the features of the positions under the kernel, position by position.
    projection: Linear,
}

impl Convolution {
    /// Loads `weight`, `[output, input, 3]`, and `bias`, `[output]`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(weights: &Weights, input: usize, output: usize, stride: usize) -> Result<Self> {
        let weight = weights.get("weight", (output, input, KERNEL))?;
        let weight = weight.transpose(1, 2)?.contiguous()?.flatten_from(1)?;
        Ok(Self { path: weights.path().to_owned(), stride, projection: Linear::of(weights, &weight, true)? })
    }

    /// `xs: [batch, time, input]` to `[batch, (time - 1) / stride + 1, output]`. A probe observes `[batch, features,
    /// time]`, as torch's `Conv1d` takes and returns it.
    ///
    /// # Errors
    /// If the last dimension of `xs` is not `input`.
    pub fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        let out = self.convolve(xs)?;
        if !pass.is_observed() {
            return Ok(out);
        }
        let (input, shown) = (turned(&xs.observed()?)?, turned(&out.observed()?)?);
        let before = pass.replaced();
        let shown = pass.shared(&self.path, &input.into(), shown.into(), |xs| {
            let out = self.convolve(&turned(xs.tensor()?)?.into())?;
            Ok(turned(out.tensor()?)?.into())
        })?;
        if pass.replaced() == before { Ok(out) } else { Ok(turned(shown.tensor()?)?.into()) }
    }

    fn convolve(&self, xs: &Xs) -> Result<Xs> {
        let xs = xs.tensor()?;
        let time = xs.dim(1)?;
        let padded = xs.pad_with_zeros(1, 1, 1)?;
        let at = |offset: usize| {
            let indices = (0..time).step_by(self.stride).map(|position| (position + offset) as u32);
            padded.index_select(&Tensor::from_iter(indices, xs.device())?, 1)
        };
        let neighbours = (0..KERNEL).map(at).collect::<candle_core::Result<Vec<_>>>()?;
        self.projection.product(&Tensor::cat(&neighbours, 2)?.into())
    }
}

/// `[batch, a, b]` to `[batch, b, a]`.
fn turned(xs: &Tensor) -> Result<Tensor> {
    Ok(xs.transpose(1, 2)?.contiguous()?)
}
