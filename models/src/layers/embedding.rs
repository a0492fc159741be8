//! The token embedding.

use candle_core::{D, Tensor};

use crate::error::Result;
use crate::pass::{Pass, Xs};
use crate::weights::Weights;

/// A table looked up by id.
#[derive(Clone, Debug)]
pub struct Embedding {
    path: String,
    /// `[vocab_size, hidden_size]`.
    weight: Tensor,
    /// 0-dimensional, in the model's dtype.
    scale: Option<Tensor>,
}

impl Embedding {
    /// Loads `weight`, `[vocab_size, hidden_size]`.
    ///
    /// # Errors
    /// If the tensor is missing or has another shape.
    pub fn load(weights: &Weights, vocab_size: usize, hidden_size: usize) -> Result<Self> {
        Ok(Self {
            path: weights.path().to_owned(),
            weight: weights.get("weight", (vocab_size, hidden_size))?,
            scale: None,
        })
    }

    /// Multiplies what is looked up by `scale`, itself rounded to the model's dtype
    /// (transformers 5.23.0, `Gemma3TextScaledWordEmbedding`).
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn scaled_by(mut self, scale: f64) -> Result<Self> {
        let scale = Tensor::new(scale, self.weight.device())?;
        self.scale = Some(scale.to_dtype(self.weight.dtype())?);
        Ok(self)
    }

    /// `[vocab_size, hidden_size]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `ids: [batch, seq]` to `[batch, seq, hidden_size]`.
    ///
    /// # Errors
    /// If an id is not in the vocabulary.
    pub fn forward(&self, pass: &mut Pass, ids: &Xs) -> Result<Xs> {
        pass.module(&self.path, ids.clone(), |pass, ids| {
            let ids = ids.tensor();
            let mut dims = ids.dims().to_vec();
            dims.push(self.weight.dim(D::Minus1)?);
            let xs = self.weight.index_select(&ids.flatten_all()?, 0)?.reshape(dims)?;
            let xs: Xs = match &self.scale {
                Some(scale) => xs.broadcast_mul(scale)?.into(),
                None => xs.into(),
            };
            pass.adopt(xs)
        })
    }
}
