//! BERT: an encoder of post-norm blocks with learned positions and token types
//! (transformers 5.23.0, `models/bert/modeling_bert.py` and `configuration_bert.py`). `RoBERTa` has the same encoder.

use crate::config::{ConfigReader, head_dim};
use crate::error::Result;
use crate::layers::{
    Activation, Attention, Embedding, Joined, LayerNorm, Linear, Mask, add, first_position, one_per_row,
    position_ids, position_ids_after, token_type_ids,
};
use crate::model::{Model, Task, unknown_head};
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::Xs;

/// Where the positions of a sequence start.
#[derive(Clone, Copy)]
pub(crate) enum Positions {
    FromZero,
    /// At `pad_token_id + 1` for the first real token; padding has the position `pad_token_id`.
    AfterPadding,
}

pub(crate) struct Config {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    hidden_act: Activation,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    layer_norm_eps: f64,
    /// The position of padding, if real tokens count from the position after it; `None` if positions count from 0.
    padding_idx: Option<usize>,
    pub(crate) tie_word_embeddings: bool,
}

impl Config {
    /// `vocab_size` is the default of that key. With [`Positions::AfterPadding`], `pad_token_id` is read, 1 by
    /// default.
    pub(crate) fn read(config: &ConfigReader, vocab_size: usize, positions: Positions) -> Result<Self> {
        config.refuse_unless("is_decoder", &false.into())?;
        // transformers 5 has no relative position embeddings and ignores the key.
        config.refuse_unless("position_embedding_type", &"absolute".into())?;
        let hidden_size = config.usize_or("hidden_size", 768)?;
        let num_attention_heads = config.usize_or("num_attention_heads", 12)?;
        head_dim(("hidden_size", hidden_size), ("num_attention_heads", num_attention_heads))?;
        Ok(Self {
            vocab_size: config.usize_or("vocab_size", vocab_size)?,
            hidden_size,
            intermediate_size: config.usize_or("intermediate_size", 3072)?,
            num_hidden_layers: config.usize_or("num_hidden_layers", 12)?,
            num_attention_heads,
            hidden_act: Activation::read(config, "hidden_act", "gelu")?,
            max_position_embeddings: config.usize_or("max_position_embeddings", 512)?,
            type_vocab_size: config.usize_or("type_vocab_size", 2)?,
            layer_norm_eps: config.f64_or("layer_norm_eps", 1e-12)?,
            padding_idx: match positions {
                Positions::FromZero => None,
                Positions::AfterPadding => Some(config.usize_or("pad_token_id", 1)?),
            },
            tie_word_embeddings: config.bool_or("tie_word_embeddings", true)?,
        })
    }

    /// The norm over `hidden_size` with the weights `weights`.
    pub(crate) fn norm(&self, weights: &Weights) -> Result<LayerNorm> {
        LayerNorm::load(weights, self.hidden_size, self.layer_norm_eps, true)
    }
}

#[expect(clippy::struct_field_names, reason = "fields are named as the checkpoint names them")]
pub(crate) struct Embeddings {
    path: String,
    pub(crate) word_embeddings: Embedding,
    position_embeddings: Embedding,
    padding_idx: Option<usize>,
    token_type_embeddings: Embedding,
    layer_norm: LayerNorm,
}

impl Embeddings {
    fn load(config: &Config, weights: &Weights) -> Result<Self> {
        let table = |name: &str, rows: usize| Embedding::load(&weights.pp(name), rows, config.hidden_size);
        Ok(Self {
            path: weights.path().to_owned(),
            word_embeddings: table("word_embeddings", config.vocab_size)?,
            position_embeddings: table("position_embeddings", config.max_position_embeddings)?,
            padding_idx: config.padding_idx,
            token_type_embeddings: table("token_type_embeddings", config.type_vocab_size)?,
            layer_norm: config.norm(&weights.pp("LayerNorm"))?,
        })
    }

    fn forward(&self, pass: &mut Pass, ids: &Xs) -> Result<Xs> {
        pass.module(&self.path, ids.clone(), |pass, ids| {
            let words = self.word_embeddings.forward(pass, &ids)?;
            let types = token_type_ids(pass)?;
            let types = self.token_type_embeddings.forward(pass, &types)?;
            let positions = match self.padding_idx {
                Some(padding_idx) => position_ids_after(pass, padding_idx)?,
                None => position_ids(pass)?,
            };
            let positions = self.position_embeddings.forward(pass, &positions)?;
            self.layer_norm.forward(pass, &add(add(words, types)?, positions)?)
        })
    }
}

struct SelfAttention {
    path: String,
    qkv: Joined<3>,
    attention: Attention,
}

impl SelfAttention {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        let size = config.hidden_size;
        let head_dim = size / config.num_attention_heads;
        Ok(Self {
            path: weights.path().to_owned(),
            qkv: Joined::load(weights, size, [("query", size), ("key", size), ("value", size)], true)?,
            attention: Attention {
                layer,
                num_heads: config.num_attention_heads,
                num_kv_heads: config.num_attention_heads,
                head_dim,
                scale: (head_dim as f64).powf(-0.5),
                soft_cap: None,
            },
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs, mask: &Mask) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let qkv = self.qkv.forward(pass, &xs)?;
            self.attention.forward(pass, qkv, None, mask)
        })
    }
}

/// The output of each half of a block: a projection, the residual addition, the norm.
struct Output {
    path: String,
    dense: Linear,
    layer_norm: LayerNorm,
}

impl Output {
    fn load(config: &Config, weights: &Weights, input: usize) -> Result<Self> {
        Ok(Self {
            path: weights.path().to_owned(),
            dense: Linear::load(&weights.pp("dense"), input, config.hidden_size, true)?,
            layer_norm: config.norm(&weights.pp("LayerNorm"))?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs, residual: &Xs) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let h = self.dense.forward(pass, &xs)?;
            self.layer_norm.forward(pass, &add(h, residual.clone())?)
        })
    }
}

struct Block {
    path: String,
    attention_path: String,
    self_attention: SelfAttention,
    attention_output: Output,
    intermediate_path: String,
    intermediate: Linear,
    act_path: String,
    intermediate_act_fn: Activation,
    output: Output,
}

impl Block {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        let (attention, intermediate) = (weights.pp("attention"), weights.pp("intermediate"));
        let (size, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            path: weights.path().to_owned(),
            attention_path: attention.path().to_owned(),
            self_attention: SelfAttention::load(config, &attention.pp("self"), layer)?,
            attention_output: Output::load(config, &attention.pp("output"), size)?,
            intermediate_path: intermediate.path().to_owned(),
            intermediate: Linear::load(&intermediate.pp("dense"), size, inner, true)?,
            act_path: intermediate.pp("intermediate_act_fn").path().to_owned(),
            intermediate_act_fn: config.hidden_act,
            output: Output::load(config, &weights.pp("output"), inner)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: Xs, mask: &Mask) -> Result<Xs> {
        pass.module(&self.path, xs, |pass, xs| {
            let xs = pass.module(&self.attention_path, xs, |pass, xs| {
                let mixed = self.self_attention.forward(pass, &xs, mask)?;
                self.attention_output.forward(pass, &mixed, &xs)
            })?;
            let h = pass.module(&self.intermediate_path, xs.clone(), |pass, xs| {
                let h = self.intermediate.forward(pass, &xs)?;
                self.intermediate_act_fn.forward(pass, &self.act_path, &h)
            })?;
            self.output.forward(pass, &h, &xs)
        })
    }
}

/// The encoder; its output is the last hidden states.
#[expect(clippy::struct_field_names, reason = "fields are named as the checkpoint names them")]
pub(crate) struct Encoder {
    path: String,
    pub(crate) embeddings: Embeddings,
    encoder_path: String,
    layer: Vec<Block>,
}

impl Encoder {
    pub(crate) fn load(config: &Config, weights: &Weights) -> Result<Self> {
        let encoder = weights.pp("encoder");
        let layer = encoder.pp("layer");
        Ok(Self {
            path: weights.path().to_owned(),
            embeddings: Embeddings::load(config, &weights.pp("embeddings"))?,
            encoder_path: encoder.path().to_owned(),
            layer: (0..config.num_hidden_layers)
                .map(|index| Block::load(config, &layer.pp(index), index))
                .collect::<Result<_>>()?,
        })
    }

    pub(crate) fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        let ids = Xs::from(pass.input_ids().clone());
        pass.module(&self.path, ids, |pass, ids| {
            let xs = self.embeddings.forward(pass, &ids)?;
            let mask = Mask::bidirectional(pass, None)?;
            pass.module(&self.encoder_path, xs, |pass, xs| {
                self.layer.iter().try_fold(xs, |xs, layer| layer.forward(pass, xs, &mask))
            })
        })
    }
}

/// The head, by task.
enum Head {
    MaskedLm(MaskedLm),
    SequenceClassification(SequenceClassification),
    HiddenStates,
}

struct MaskedLm {
    cls_path: String,
    path: String,
    transform_path: String,
    dense: Linear,
    act_path: String,
    transform_act_fn: Activation,
    layer_norm: LayerNorm,
    decoder: Linear,
}

impl MaskedLm {
    fn load(config: &Config, weights: &Weights, words: &Embedding) -> Result<Self> {
        let predictions = weights.pp("predictions");
        let transform = predictions.pp("transform");
        let size = config.hidden_size;
        Ok(Self {
            cls_path: weights.path().to_owned(),
            path: predictions.path().to_owned(),
            transform_path: transform.path().to_owned(),
            dense: Linear::load(&transform.pp("dense"), size, size, true)?,
            act_path: transform.pp("transform_act_fn").path().to_owned(),
            transform_act_fn: config.hidden_act,
            layer_norm: config.norm(&transform.pp("LayerNorm"))?,
            // With tied weights the decoder still has its own bias.
            decoder: if config.tie_word_embeddings {
                Linear::tied(&predictions.pp_as("decoder", ""), words, true)?
            } else {
                Linear::load(&predictions.pp("decoder"), size, config.vocab_size, true)?
            },
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        pass.module(&self.cls_path, xs.clone(), |pass, xs| {
            pass.module(&self.path, xs.clone(), |pass, xs| {
                let h = pass.module(&self.transform_path, xs, |pass, xs| {
                    let h = self.dense.forward(pass, &xs)?;
                    let h = self.transform_act_fn.forward(pass, &self.act_path, &h)?;
                    self.layer_norm.forward(pass, &h)
                })?;
                self.decoder.forward(pass, &h)
            })
        })
    }
}

struct SequenceClassification {
    pooler_path: String,
    pooler: Linear,
    activation_path: String,
    classifier: Linear,
}

impl SequenceClassification {
    fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        let pooled = pass.module(&self.pooler_path, xs.clone(), |pass, xs| {
            let h = self.pooler.forward(pass, &first_position(pass, &xs)?)?;
            Activation::Tanh.forward(pass, &self.activation_path, &h)
        })?;
        let labels = self.classifier.forward(pass, &pooled)?;
        one_per_row(pass, &labels)
    }
}

struct Bert {
    encoder: Encoder,
    head: Head,
}

pub(crate) fn build(reader: &ConfigReader, weights: &Weights, task: Option<Task>) -> Result<Box<dyn Model>> {
    let config = Config::read(reader, 30522, Positions::FromZero)?;
    let task = task.unwrap_or(Task::HiddenStates);
    let inner = weights.body("bert", task != Task::HiddenStates);
    let encoder = Encoder::load(&config, &inner)?;
    let size = config.hidden_size;
    let head = match task {
        Task::MaskedLm => {
            Head::MaskedLm(MaskedLm::load(&config, &weights.pp("cls"), &encoder.embeddings.word_embeddings)?)
        }
        Task::SequenceClassification => {
            let pooler = inner.pp("pooler");
            Head::SequenceClassification(SequenceClassification {
                pooler_path: pooler.path().to_owned(),
                pooler: Linear::load(&pooler.pp("dense"), size, size, true)?,
                activation_path: pooler.pp("activation").path().to_owned(),
                classifier: Linear::load(&weights.pp("classifier"), size, reader.num_labels()?, true)?,
            })
        }
        Task::HiddenStates => Head::HiddenStates,
        Task::CausalLm | Task::Seq2SeqLm | Task::Similarity | Task::Embeddings => {
            return Err(unknown_head("bert", task));
        }
    };
    Ok(Box::new(Bert { encoder, head }))
}

impl Model for Bert {
    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        let xs = self.encoder.forward(pass)?;
        match &self.head {
            Head::MaskedLm(head) => head.forward(pass, &xs),
            Head::SequenceClassification(head) => head.forward(pass, &xs),
            Head::HiddenStates => Ok(xs),
        }
    }
}
