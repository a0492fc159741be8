//! The token embedding.

use candle_core::{DType, Device, Tensor};

use super::packed::Packed;
use crate::error::Result;
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::Xs;

/// A table looked up by id.
#[derive(Clone)]
pub struct Embedding {
    path: String,
    backend: EmbeddingBackend,
    vocab_size: usize,
    hidden_size: usize,
    dtype: DType,
    /// 0-dimensional, in the model's dtype; and its value.
    scale: Option<(Tensor, f32)>,
}

#[derive(Clone)]
pub(super) enum EmbeddingBackend {
    /// `[vocab_size, hidden_size]`.
    Eager(Tensor),
    /// Packed like a linear layer, so that a tied head shares it.
    Fused(Packed),
}

impl Embedding {
    /// Loads `weight`, `[vocab_size, hidden_size]`.
    ///
    /// # Errors
    /// If the tensor is missing or has another shape.
    pub fn load(weights: &Weights, vocab_size: usize, hidden_size: usize) -> Result<Self> {
        let backend = match weights.workspace() {
            None => EmbeddingBackend::Eager(weights.get("weight", (vocab_size, hidden_size))?),
            Some(workspace) => {
                let packed = Packed::load(workspace, &[(weights.clone(), vocab_size)], hidden_size, None)?;
                EmbeddingBackend::Fused(packed)
            }
        };
        Ok(Self {
            path: weights.path().to_owned(),
            backend,
            vocab_size,
            hidden_size,
            dtype: weights.dtype(),
            scale: None,
        })
    }

    /// Multiplies what is looked up by `scale`, itself rounded to the model's dtype
    /// (transformers 5.23.0, `Gemma3TextScaledWordEmbedding`).
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn scaled_by(mut self, scale: f64) -> Result<Self> {
        let device = match &self.backend {
            EmbeddingBackend::Eager(weight) => weight.device(),
            EmbeddingBackend::Fused(_) => &Device::Cpu,
        };
        let scale = Tensor::new(scale, device)?.to_dtype(self.dtype)?;
        let value = scale.to_dtype(DType::F32)?.to_scalar()?;
        self.scale = Some((scale, value));
        Ok(self)
    }

    /// `[vocab_size, hidden_size]`.
    pub(super) fn shape(&self) -> (usize, usize) {
        (self.vocab_size, self.hidden_size)
    }

    pub(super) fn backend(&self) -> &EmbeddingBackend {
        &self.backend
    }

    /// `ids: [batch, seq]` to `[batch, seq, hidden_size]`.
    ///
    /// # Errors
    /// If an id is not in the vocabulary.
    pub fn forward(&self, pass: &mut Pass, ids: &Xs) -> Result<Xs> {
        pass.module(&self.path, ids.clone(), |pass, ids| match &self.backend {
            EmbeddingBackend::Eager(weight) => {
                let ids = ids.tensor()?;
                let mut dims = ids.dims().to_vec();
                dims.push(self.hidden_size);
                let xs = weight.index_select(&ids.flatten_all()?, 0)?.reshape(dims)?;
                Ok(match &self.scale {
                    Some((scale, _)) => xs.broadcast_mul(scale)?.into(),
                    None => xs.into(),
                })
            }
            EmbeddingBackend::Fused(packed) => {
                let scale = self.scale.as_ref().map(|(_, value)| *value);
                packed.rows(pass, ids.tensor()?, scale)
            }
        })
    }
}
