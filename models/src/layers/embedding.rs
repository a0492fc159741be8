//! The token embedding.

use std::sync::Arc;

use candle_core::{DType, Device, Storage, Tensor};

use crate::error::{Error, Result};
use crate::fused::{Packed, Workspace};
use crate::pass::{Pass, Xs};
use crate::weights::Weights;

/// A table looked up by id.
#[derive(Clone)]
pub struct Embedding {
    path: String,
    form: EmbeddingForm,
    vocab_size: usize,
    hidden_size: usize,
    /// 0-dimensional, in the model's dtype; and its value.
    scale: Option<(Tensor, f32)>,
}

#[derive(Clone)]
pub(super) enum EmbeddingForm {
    /// `[vocab_size, hidden_size]`.
    Eager(Tensor),
    /// Packed like a linear layer, so that a tied head shares it.
    Fused(Arc<Workspace>, Packed),
}

impl Embedding {
    /// Loads `weight`, `[vocab_size, hidden_size]`.
    ///
    /// # Errors
    /// If the tensor is missing or has another shape.
    pub fn load(weights: &Weights, vocab_size: usize, hidden_size: usize) -> Result<Self> {
        let form = match weights.workspace() {
            None => EmbeddingForm::Eager(weights.get("weight", (vocab_size, hidden_size))?),
            Some(workspace) => {
                let packed = Packed::load(workspace, &[(weights.clone(), vocab_size)], hidden_size, None)?;
                EmbeddingForm::Fused(Arc::clone(workspace), packed)
            }
        };
        Ok(Self { path: weights.path().to_owned(), form, vocab_size, hidden_size, scale: None })
    }

    /// Multiplies what is looked up by `scale`, itself rounded to the model's dtype
    /// (transformers 5.23.0, `Gemma3TextScaledWordEmbedding`).
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn scaled_by(mut self, scale: f64) -> Result<Self> {
        let scale = match &self.form {
            EmbeddingForm::Eager(weight) => Tensor::new(scale, weight.device())?.to_dtype(weight.dtype())?,
            EmbeddingForm::Fused(_, packed) => Tensor::new(scale, &Device::Cpu)?.to_dtype(packed.dtype())?,
        };
        let value = scale.to_dtype(DType::F32)?.to_scalar()?;
        self.scale = Some((scale, value));
        Ok(self)
    }

    /// `[vocab_size, hidden_size]`.
    pub(super) fn shape(&self) -> (usize, usize) {
        (self.vocab_size, self.hidden_size)
    }

    pub(super) fn form(&self) -> &EmbeddingForm {
        &self.form
    }

    /// `ids: [batch, seq]` to `[batch, seq, hidden_size]`.
    ///
    /// # Errors
    /// If an id is not in the vocabulary.
    pub fn forward(&self, pass: &mut Pass, ids: &Xs) -> Result<Xs> {
        pass.module(&self.path, ids.clone(), |_, ids| match &self.form {
            EmbeddingForm::Eager(weight) => {
                let ids = ids.tensor();
                let mut dims = ids.dims().to_vec();
                dims.push(self.hidden_size);
                let xs = weight.index_select(&ids.flatten_all()?, 0)?.reshape(dims)?;
                Ok(match &self.scale {
                    Some((scale, _)) => xs.broadcast_mul(scale)?.into(),
                    None => xs.into(),
                })
            }
            EmbeddingForm::Fused(workspace, packed) => {
                let scale = self.scale.as_ref().map(|(_, value)| *value);
                with_ids(ids.tensor(), |ids, shape| packed.rows(workspace, ids, shape, scale))
            }
        })
    }
}

/// The ids where they lie, `[batch, seq]`, and their shape.
fn with_ids(ids: &Tensor, look_up: impl FnOnce(&[u32], (usize, usize)) -> Result<Xs>) -> Result<Xs> {
    let shape = ids.dims2()?;
    let ids = ids.to_dtype(DType::U32)?.contiguous()?;
    let (storage, layout) = ids.storage_and_layout();
    let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        return Err(Error::Unsupported("the fused form off the CPU".to_owned()));
    };
    look_up(&storage.as_slice::<u32>()?[start..end], shape)
}
