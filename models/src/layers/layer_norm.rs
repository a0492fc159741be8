//! Layer normalisation with a mean.

use candle_core::{D, Tensor};

use super::accumulation;
use super::norm::{mean_of_squares, normalised, root};
use crate::deviations::Deviation;
use crate::error::Result;
use crate::fused::{Norm, NormWeights};
use crate::pass::{LaterNorm, Pass};
use crate::weights::Weights;
use crate::xs::Xs;

/// `(x - mean) / sqrt(variance + eps) * weight + bias` over groups of `size` values along the last dimension; the
/// variance is without Bessel's correction.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    path: String,
    /// `[heads, size]`, one row for each group, in the accumulation dtype.
    weight: Tensor,
    /// Same shape and dtype as `weight`.
    bias: Option<Tensor>,
    eps: f64,
    fused: Option<Norm>,
}

impl LayerNorm {
    /// torch's `nn.LayerNorm`: `weight`, `[size]`, and, if `bias`, `bias`, `[size]`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(weights: &Weights, size: usize, eps: f64, bias: bool) -> Result<Self> {
        let bias = bias.then(|| weights.get("bias", size)).transpose()?;
        Self::new(weights, &weights.get("weight", size)?.unsqueeze(0)?, bias.as_ref(), eps)
    }

    fn new(weights: &Weights, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Self> {
        let wide = accumulation(weight.dtype());
        let (weight, bias) =
            (weight.to_dtype(wide)?, bias.map(|bias| bias.to_dtype(wide)?.unsqueeze(0)).transpose()?);
        let fused = match weights.workspace() {
            Some(workspace) => {
                let bias = bias.as_ref().map(|bias| bias.flatten_all()?.to_vec1::<f32>()).transpose()?;
                let weights = weight.to_vec2::<f32>()?;
                Some(Norm::new(workspace, NormWeights { weights, bias, eps: eps as f32, centred: true })?)
            }
            None => None,
        };
        Ok(Self { path: weights.path().to_owned(), weight, bias, eps, fused })
    }

    /// A norm for each head, without biases: `weight`, `[heads, size]` (transformers 5.23.0, `CohereLayerNorm` of
    /// `q_norm`).
    ///
    /// # Errors
    /// If the tensor is missing or has another shape.
    pub fn load_heads(weights: &Weights, heads: usize, size: usize, eps: f64) -> Result<Self> {
        Self::new(weights, &weights.get("weight", (heads, size))?, None, eps)
    }

    /// A norm for each head, without biases: `norms.<head>.weight`, `[size]` (transformers 5.23.0,
    /// `StableLmLayerNormPerHead`).
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load_each_head(weights: &Weights, heads: usize, size: usize, eps: f64) -> Result<Self> {
        let norms = weights.pp("norms");
        let rows = (0..heads).map(|head| norms.pp(head).get("weight", size)).collect::<Result<Vec<_>>>()?;
        Self::new(weights, &Tensor::stack(&rows, 0)?, None, eps)
    }

    /// `xs: [.., heads * size]`, same shape out. Mean and variance are computed in F32 (F64 in F64), the variance
    /// from differences to the mean, and the result is rounded once.
    ///
    /// # Errors
    /// If the last dimension is not a multiple of `heads * size`.
    pub fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        normalised(pass, &self.path, (self, self.fused.as_ref()), xs, Self::eager)
    }

    /// The same norm without its fused form.
    fn eager(&self) -> Self {
        let (path, weight, bias) = (self.path.clone(), self.weight.clone(), self.bias.clone());
        Self { path, weight, bias, fused: None, ..*self }
    }

    fn apply(&self, pass: &Pass, xs: &Tensor) -> Result<Tensor> {
        let (heads, size) = self.weight.dims2()?;
        let wide = xs.reshape(((), heads, size))?.to_dtype(accumulation(xs.dtype()))?;
        let mut centred = wide;
        if !pass.deviates(Deviation::LayerNormNotCentred) {
            let mean = (centred.sum_keepdim(D::Minus1)? / size as f64)?;
            centred = centred.broadcast_sub(&mean)?;
        }
        let variance = mean_of_squares(pass, &centred, size)?;
        let normed =
            centred.broadcast_mul(&root(pass, &variance, pass.eps_of(&self.path, self.eps))?.recip()?)?;
        let scaled = normed.broadcast_mul(&self.weight)?;
        let out = match &self.bias {
            Some(bias) => scaled.broadcast_add(bias)?,
            None => scaled,
        };
        Ok(out.to_dtype(xs.dtype())?.reshape(xs.dims())?)
    }
}

impl LaterNorm for LayerNorm {
    fn normed(&self, pass: &Pass, xs: &Tensor) -> Result<Tensor> {
        self.apply(pass, xs)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::inputs::Inputs;

    fn norm(dtype: DType) -> LayerNorm {
        let row = |values: [f64; 4]| {
            Tensor::new(&[values], &Device::Cpu).unwrap().to_dtype(accumulation(dtype)).unwrap()
        };
        LayerNorm {
            path: String::new(),
            weight: row([0.5, 1.0, -2.0, 3.0]),
            bias: Some(row([1.0, 0.0, -1.0, 0.25])),
            eps: 1e-3,
            fused: None,
        }
    }

    #[test]
    fn a_mean_of_a_thousand_does_not_cancel_the_variance() {
        let xs = Tensor::new(&[1000.5f64, 1001.25, 998.0, 1003.75], &Device::Cpu).unwrap();
        let inputs = Inputs::new(Tensor::zeros((1, 1), DType::U32, &Device::Cpu).unwrap());
        let pass = Pass::new(&inputs, DType::F64, &Device::Cpu, None, None, None).unwrap();
        let exact: Vec<f64> = norm(DType::F64).apply(&pass, &xs).unwrap().to_vec1().unwrap();
        let single = norm(DType::F32).apply(&pass, &xs.to_dtype(DType::F32).unwrap()).unwrap();
        let single: Vec<f32> = single.to_vec1().unwrap();
        // mean 1000.875, variance 4.203125
        assert!((exact[0] - (1.0 + 0.5 * -0.375 / (4.203_125_f64 + 1e-3).sqrt())).abs() < 1e-13);
        for (single, exact) in single.into_iter().zip(exact) {
            // All sums are exact in F32; E[x^2] - mean^2 would have an error of about 0.1.
            assert!((f64::from(single) - exact).abs() < 1e-6, "{single} {exact}");
        }
    }
}
