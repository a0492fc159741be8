//! The similarity of images and texts (CLIP, Radford et al. 2021).

use candle_core::{D, Tensor};

use super::rounded;
use crate::error::Result;
use crate::weights::Weights;
use crate::xs::Xs;

/// The scaled cosine of embeddings.
pub struct Similarity {
    /// `exp(logit_scale)`, 0-dimensional.
    scale: Tensor,
}

impl Similarity {
    /// Loads `logit_scale`, a logarithm.
    ///
    /// # Errors
    /// If the tensor is missing or is not 0-dimensional.
    pub fn load(weights: &Weights) -> Result<Self> {
        Ok(Self { scale: rounded(&weights.get("logit_scale", ())?, Tensor::exp)? })
    }

    /// `images: [images, features]`, `texts: [texts, features]` to `logits_per_image`, `[images, texts]`; each operation
    /// is rounded (transformers 5.23.0, `CLIPModel.forward` of `modeling_clip.py`).
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, images: &Xs, texts: &Xs) -> Result<Xs> {
        let (images, texts) = (normalised(images.tensor()?)?, normalised(texts.tensor()?)?);
        let logits_per_text = texts.matmul(&images.t()?)?.broadcast_mul(&self.scale)?;
        Ok(logits_per_text.t()?.contiguous()?.into())
    }
}

/// `xs: [rows, features]` to rows of length 1.
fn normalised(xs: &Tensor) -> Result<Tensor> {
    let squares = rounded(xs, Tensor::sqr)?;
    let sums = rounded(&squares, |squares| squares.sum_keepdim(D::Minus1))?;
    let norms = rounded(&sums, Tensor::sqrt)?;
    rounded(xs, |xs| xs.broadcast_div(&norms.to_dtype(xs.dtype())?))
}
