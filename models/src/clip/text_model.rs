//! CLIP's encoder of texts: blocks with a causal mask and learned positions, pooled at each text's end token. By itself it has
//! its own projection or none (transformers 5.23.0, `CLIPTextModel` and `CLIPTextModelWithProjection` of
//! `models/clip/modeling_clip.py`).

use super::{Config, Encoder};
use crate::config::ConfigReader;
use crate::error::{Error, Result};
use crate::layers::{Embedding, LayerNorm, Linear, Mask, add, one_per_row, position_ids, position_of_each};
use crate::model::{Model, Task, unknown_head};
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::Xs;

/// The encoder of texts.
pub(super) struct TextModel {
    pub(super) config: Config,
    path: String,
    embeddings_path: String,
    token_embedding: Embedding,
    position_embedding: Embedding,
    encoder: Encoder,
    final_layer_norm: LayerNorm,
    eos_token_id: usize,
}

impl TextModel {
    pub(super) fn load(reader: &ConfigReader, weights: &Weights) -> Result<Self> {
        let config = Config::read(reader, [512, 2048, 8])?;
        let embeddings = weights.pp("embeddings");
        let size = config.hidden_size;
        let table = |name: &str, rows: usize| Embedding::load(&embeddings.pp(name), rows, size);
        Ok(Self {
            path: weights.path().to_owned(),
            embeddings_path: embeddings.path().to_owned(),
            token_embedding: table("token_embedding", reader.usize_or("vocab_size", 49408)?)?,
            position_embedding: table("position_embedding", reader.usize_or("max_position_embeddings", 77)?)?,
            encoder: Encoder::load(&config, &weights.pp("encoder"))?,
            final_layer_norm: config.norm(&weights.pp("final_layer_norm"))?,
            eos_token_id: reader.usize_or("eos_token_id", 49407)?,
            config,
        })
    }

    /// The normalised state of every token, `[texts, seq, hidden_size]`.
    pub(super) fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        let ids = Xs::from(pass.input_ids().clone());
        pass.module(&self.path, ids, |pass, ids| {
            let xs = pass.module(&self.embeddings_path, ids, |pass, ids| {
                let words = self.token_embedding.forward(pass, &ids)?;
                let positions = position_ids(pass)?;
                add(words, self.position_embedding.forward(pass, &positions)?)
            })?;
            let mask = Mask::causal(pass, None)?;
            let xs = self.encoder.forward(pass, xs, &mask)?;
            self.final_layer_norm.forward(pass, &xs)
        })
    }

    /// `xs: [texts, seq, hidden_size]` to the state of each text's end token, `[texts, hidden_size]`.
    pub(super) fn pooled(&self, pass: &Pass, xs: &Xs) -> Result<Xs> {
        position_of_each(xs, &end_tokens(pass, self.eos_token_id)?)
    }
}

/// The position of each text's first `eos_token_id`, or 0 if it has none. Where the config has the id 2, which early
/// checkpoints say wrongly, it is that of the largest id instead.
fn end_tokens(pass: &Pass, eos_token_id: usize) -> Result<Vec<u32>> {
    let ids: Vec<Vec<u32>> = pass.input_ids().to_vec2()?;
    let first = |row: Vec<u32>| {
        let wanted = match eos_token_id {
            2 => row.iter().copied().max(),
            id => u32::try_from(id).ok(),
        };
        row.iter().position(|id| Some(*id) == wanted).unwrap_or(0) as u32
    };
    Ok(ids.into_iter().map(first).collect())
}

/// The encoder by itself.
struct ClipText {
    text_model: TextModel,
    /// Absent if the output is hidden states.
    text_projection: Option<Linear>,
}

pub(crate) fn build(config: &ConfigReader, weights: &Weights, task: Option<Task>) -> Result<Box<dyn Model>> {
    let has_projection = match task.unwrap_or(Task::HiddenStates) {
        Task::HiddenStates => false,
        Task::Embeddings => true,
        task => return Err(unknown_head("clip_text_model", task)),
    };
    let text_model = TextModel::load(config, &weights.body("text_model", has_projection))?;
    let Config { hidden_size, projection_dim, .. } = text_model.config;
    let project = || Linear::load(&weights.pp("text_projection"), hidden_size, projection_dim, false);
    Ok(Box::new(ClipText { text_projection: has_projection.then(project).transpose()?, text_model }))
}

impl Model for ClipText {
    fn output(&self) -> &'static str {
        if self.text_projection.is_some() { "text_embeds" } else { "last_hidden_state" }
    }

    /// `text_embeds`, `[texts, projection_dim]`, and beside it `last_hidden_state`; without a projection
    /// `last_hidden_state`, `[texts, seq, hidden_size]`, and beside it `pooler_output`.
    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        if pass.has_cache() {
            return Err(Error::Unsupported("clip_text_model with a KV cache".to_owned()));
        }
        let xs = self.text_model.forward(pass)?;
        let pooled = self.text_model.pooled(pass, &xs)?;
        let Some(text_projection) = &self.text_projection else {
            pass.output("pooler_output", &pooled)?;
            return Ok(xs);
        };
        pass.output("last_hidden_state", &xs)?;
        let embeds = text_projection.forward(pass, &pooled)?;
        one_per_row(pass, &embeds)
    }
}
