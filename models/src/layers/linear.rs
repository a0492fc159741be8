//! Linear layers.

use candle_core::{D, DType, Tensor};

use super::{Embedding, accumulation};
use crate::error::Result;
use crate::pass::{Pass, Xs};
use crate::weights::Weights;

/// `xs @ weight^T + bias`.
#[derive(Clone, Debug)]
pub struct Linear {
    path: String,
    /// `[out, in]`.
    weight: Tensor,
    /// `[out]`.
    bias: Option<Tensor>,
}

impl Linear {
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

    /// Loads `weight` the other way round, `[in, out]`, and `bias`, `[out]` (transformers' `Conv1D`).
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load_transposed(weights: &Weights, input: usize, output: usize) -> Result<Self> {
        Ok(Self {
            path: weights.path().to_owned(),
            weight: weights.get("weight", (input, output))?.t()?.contiguous()?,
            bias: Some(weights.get("bias", output)?),
        })
    }

    /// A head that shares the embedding's weight.
    pub fn tied(path: &str, embedding: &Embedding) -> Self {
        Self { path: path.to_owned(), weight: embedding.weight().clone(), bias: None }
    }

    /// The head of a causal LM: `lm_head.weight`, or the embedding's where the two are tied.
    ///
    /// # Errors
    /// If the head is not tied and its tensor is missing.
    pub fn lm_head(weights: &Weights, embedding: &Embedding, tied: bool) -> Result<Self> {
        let weights = weights.pp("lm_head");
        if tied {
            return Ok(Self::tied(weights.path(), embedding));
        }
        let (vocab_size, hidden_size) = embedding.weight().dims2()?;
        Self::load(&weights, hidden_size, vocab_size, false)
    }

    /// Takes `bias`, `[out]`, besides the weight: a head whose weight alone may be tied.
    ///
    /// # Errors
    /// If the tensor is missing or has another shape.
    pub fn with_bias(mut self, weights: &Weights) -> Result<Self> {
        self.bias = Some(weights.get("bias", self.weight.dim(0)?)?);
        Ok(self)
    }

    /// Goes by another module path than the checkpoint's name for its weight.
    #[must_use]
    pub fn named(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    /// `xs: [.., in]` to `[.., out]`; sums in F32 for 16-bit dtypes, in the dtype itself otherwise.
    ///
    /// # Errors
    /// If the last dimension of `xs` is not `in`.
    pub fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |_, xs| {
            Ok(linear(xs.tensor(), &self.weight, self.bias.as_ref())?.into())
        })
    }
}

/// Several linear layers that read the same input: q, k and v, or gate and up.
#[derive(Clone, Debug)]
pub struct Joined<const N: usize> {
    parts: [Linear; N],
}

impl<const N: usize> Joined<N> {
    /// Loads the layers `(name, out)` under `weights`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(weights: &Weights, input: usize, parts: [(&str, usize); N], bias: bool) -> Result<Self> {
        let parts = parts
            .iter()
            .map(|(name, output)| Linear::load(&weights.pp(name), input, *output, bias))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { parts: parts.try_into().unwrap_or_else(|_| unreachable!("N parts make N layers")) })
    }

    /// `xs: [.., in]` to one `[.., out]` a part.
    ///
    /// # Errors
    /// If the last dimension of `xs` is not `in`.
    pub fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<[Xs; N]> {
        let parts = self.parts.iter().map(|part| part.forward(pass, xs)).collect::<Result<Vec<_>>>()?;
        Ok(parts.try_into().unwrap_or_else(|_| unreachable!("N layers give N values")))
    }
}

pub(super) fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (output, input) = weight.dims2()?;
    let mut dims = xs.dims().to_vec();
    let rows = xs.elem_count() / xs.dim(D::Minus1)?;
    if let Some(last) = dims.last_mut() {
        *last = output;
    }
    let dtype = xs.dtype();
    let xs = xs.reshape((rows, input))?;
    let ys = match bias {
        None => xs.matmul(&weight.t()?)?,
        // torch's addmm adds the bias to the F32 sum and rounds once.
        Some(bias) if matches!(dtype, DType::BF16 | DType::F16) => {
            let wide = accumulation(dtype);
            let sums = xs.to_dtype(wide)?.matmul(&weight.to_dtype(wide)?.t()?)?;
            sums.broadcast_add(&bias.to_dtype(wide)?)?.to_dtype(dtype)?
        }
        Some(bias) => xs.matmul(&weight.t()?)?.broadcast_add(bias)?,
    };
    Ok(ys.reshape(dims)?)
}
