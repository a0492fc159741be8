//! The parts of a decoder around its layers: the token embedding, the final norm, the head, and operations on logits.

use super::{Embedding, LayerNorm, Linear, RmsNorm, divide, scale, soft_cap};
use crate::error::Result;
use crate::model::{Task, unknown_head};
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::Xs;

/// The weights of a decoder without its head, and whether the model has a head.
pub struct DecoderBody {
    checkpoint: Weights,
    weights: Weights,
    has_head: bool,
}

impl DecoderBody {
    /// The body of a causal LM, stored under `name` (transformers' `base_model_prefix`).
    ///
    /// # Errors
    /// If the task is neither next-token logits nor hidden states.
    pub fn new(model_type: &str, name: &str, weights: &Weights, task: Option<Task>) -> Result<Self> {
        let has_head = match task.unwrap_or(Task::CausalLm) {
            Task::CausalLm => true,
            Task::HiddenStates => false,
            task => return Err(unknown_head(model_type, task)),
        };
        Ok(Self { checkpoint: weights.clone(), weights: weights.body(name, has_head), has_head })
    }

    /// The weights of a module of the body.
    #[must_use]
    pub fn pp(&self, name: &str) -> Weights {
        self.weights.pp(name)
    }

    /// Loads the modules `<name>.0` to `<name>.<count - 1>`.
    ///
    /// # Errors
    /// The first error that `load` returns.
    pub fn layers<Block>(
        &self,
        name: &str,
        count: usize,
        load: impl Fn(&Weights, usize) -> Result<Block>,
    ) -> Result<Vec<Block>> {
        let layers = self.weights.pp(name);
        (0..count).map(|layer| load(&layers.pp(layer), layer)).collect()
    }

    /// The weights of the head, which older checkpoints call `old`; `None` if the model's output is hidden states.
    #[must_use]
    pub fn head_or(&self, old: &str) -> Option<Weights> {
        self.has_head.then(|| self.checkpoint.pp_or("lm_head", old))
    }

    /// The head `lm_head`, without a bias; with `tie_word_embeddings` it uses the embedding's weight. `None` if the
    /// model's output is hidden states.
    ///
    /// # Errors
    /// If the head is not tied and its tensor is missing.
    pub fn lm_head(&self, embed_tokens: &Embedding, tie_word_embeddings: bool) -> Result<Option<Linear>> {
        let load = |weights: Weights| Linear::lm_head(&weights, embed_tokens, tie_word_embeddings, false);
        self.head_or("lm_head").map(load).transpose()
    }
}

/// The norm after the last layer.
pub enum FinalNorm {
    /// A root-mean-square norm.
    Rms(RmsNorm),
    /// A layer norm.
    Layer(LayerNorm),
}

impl From<RmsNorm> for FinalNorm {
    fn from(norm: RmsNorm) -> Self {
        Self::Rms(norm)
    }
}

impl From<LayerNorm> for FinalNorm {
    fn from(norm: LayerNorm) -> Self {
        Self::Layer(norm)
    }
}

/// The operation on the logits after the head, named after its config key.
#[derive(Clone, Copy, Debug)]
enum AfterHead {
    Unchanged,
    /// The logits are multiplied by the value.
    LogitScale(f64),
    /// The logits are divided by the value.
    LogitsScaling(f64),
    /// `cap * tanh(logits / cap)`.
    FinalLogitSoftcapping(f64),
}

/// The parts of a decoder before and after its layers.
pub struct DecoderEnds {
    path: String,
    embed_tokens: Embedding,
    embedding_multiplier: Option<f64>,
    norm: FinalNorm,
    lm_head: Option<Linear>,
    after_head: AfterHead,
}

impl DecoderEnds {
    /// The ends of `body`; without `lm_head` the model's output is hidden states.
    pub fn new(
        body: &DecoderBody,
        embed_tokens: Embedding,
        norm: impl Into<FinalNorm>,
        lm_head: Option<Linear>,
    ) -> Self {
        Self {
            path: body.weights.path().to_owned(),
            embed_tokens,
            embedding_multiplier: None,
            norm: norm.into(),
            lm_head,
            after_head: AfterHead::Unchanged,
        }
    }

    /// Multiplies the embeddings, in the model's dtype (transformers 5.23.0, `GraniteModel`).
    #[must_use]
    pub fn embedding_multiplier(self, factor: f64) -> Self {
        Self { embedding_multiplier: Some(factor), ..self }
    }

    /// Multiplies the logits (transformers 5.23.0, `CohereForCausalLM`).
    #[must_use]
    pub fn logit_scale(self, factor: f64) -> Self {
        Self { after_head: AfterHead::LogitScale(factor), ..self }
    }

    /// Divides the logits (transformers 5.23.0, `GraniteForCausalLM`).
    #[must_use]
    pub fn logits_scaling(self, divisor: f64) -> Self {
        Self { after_head: AfterHead::LogitsScaling(divisor), ..self }
    }

    /// Applies `cap * tanh(logits / cap)` if the config has a cap (transformers 5.23.0, `Gemma2ForCausalLM`).
    #[must_use]
    pub fn final_logit_softcapping(self, cap: Option<f64>) -> Self {
        Self { after_head: cap.map_or(AfterHead::Unchanged, AfterHead::FinalLogitSoftcapping), ..self }
    }

    /// Computes logits, `[batch, seq, vocab_size]`, or hidden states, `[batch, seq, hidden_size]`, from the forward
    /// pass's token ids. `layers` runs the layers between embedding and final norm and returns the shape of its
    /// input.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn forward(&self, pass: &mut Pass, layers: impl FnOnce(&mut Pass, Xs) -> Result<Xs>) -> Result<Xs> {
        let ids = Xs::from(pass.input_ids().clone());
        let xs = pass.module(&self.path, ids, |pass, ids| {
            let mut xs = self.embed_tokens.forward(pass, &ids)?;
            if let Some(factor) = self.embedding_multiplier {
                xs = scale(xs, factor)?;
            }
            let xs = layers(pass, xs)?;
            match &self.norm {
                FinalNorm::Rms(norm) => norm.forward(pass, &xs),
                FinalNorm::Layer(norm) => norm.forward(pass, &xs),
            }
        })?;
        let Some(lm_head) = &self.lm_head else {
            return Ok(xs);
        };
        let logits = lm_head.forward(pass, &xs)?;
        match self.after_head {
            AfterHead::Unchanged => Ok(logits),
            AfterHead::LogitScale(factor) => scale(logits, factor),
            AfterHead::LogitsScaling(divisor) => divide(logits, divisor),
            AfterHead::FinalLogitSoftcapping(cap) => soft_cap(logits, cap),
        }
    }
}
