//! The token embedding.

use candle_core::{DType, Device, Tensor};

use super::packed::Packed;
use crate::error::Result;
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::Xs;

/// An embedding table: returns the row of each id.
#[derive(Clone)]
pub struct Embedding {
    path: String,
    backend: EmbeddingBackend,
    vocab_size: usize,
    hidden_size: usize,
    dtype: DType,
    /// The scale as a 0-dimensional tensor in the model's dtype, and as a number.
    scale: Option<(Tensor, f32)>,
}

#[derive(Clone)]
pub(super) enum EmbeddingBackend {
    /// `[vocab_size, hidden_size]`.
    Eager(Tensor),
    /// Packed like a linear layer, so that a tied head can share it.
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

    /// The same table under another module path.
    #[must_use]
    pub fn named(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    /// Multiplies the embeddings by `scale`, which is first rounded to the model's dtype (transformers 5.23.0,
    /// `Gemma3TextScaledWordEmbedding`).
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
