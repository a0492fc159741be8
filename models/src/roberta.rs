//! `RoBERTa`: BERT's encoder with positions that count from the padding id, and other heads
//! (transformers 5.23.0, `models/roberta/modeling_roberta.py` and `configuration_roberta.py`).

use crate::config::ConfigReader;
use crate::error::Result;
use crate::layers::{
    Activation, Attention, Embedding, Joined, LayerNorm, Linear, Mask, add, first_position, one_per_row,
    position_ids_after, token_type_ids,
};
use crate::model::{Model, Task, unknown_head};
use crate::pass::{Pass, Xs};
use crate::weights::Weights;

struct Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    hidden_act: Activation,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    /// Where positions start, less one.
    pad_token_id: usize,
    layer_norm_eps: f64,
    tie_word_embeddings: bool,
}

impl Config {
    fn read(config: &ConfigReader, default_vocab_size: usize) -> Result<Self> {
        config.refuse_unless("is_decoder", &false.into())?;
        // The relative kinds were taken out in transformers 5, which ignores the key.
        config.refuse_unless("position_embedding_type", &"absolute".into())?;
        Ok(Self {
            vocab_size: config.usize_or("vocab_size", default_vocab_size)?,
            hidden_size: config.usize_or("hidden_size", 768)?,
            intermediate_size: config.usize_or("intermediate_size", 3072)?,
            num_hidden_layers: config.usize_or("num_hidden_layers", 12)?,
            num_attention_heads: config.usize_or("num_attention_heads", 12)?,
            hidden_act: Activation::read(config, "hidden_act", "gelu")?,
            max_position_embeddings: config.usize_or("max_position_embeddings", 512)?,
            type_vocab_size: config.usize_or("type_vocab_size", 2)?,
            pad_token_id: config.usize_or("pad_token_id", 1)?,
            layer_norm_eps: config.f64_or("layer_norm_eps", 1e-12)?,
            tie_word_embeddings: config.bool_or("tie_word_embeddings", true)?,
        })
    }

    /// The norm over `hidden_size` that stands at `weights`.
    fn norm(&self, weights: &Weights) -> Result<LayerNorm> {
        LayerNorm::load(weights, self.hidden_size, self.layer_norm_eps, true)
    }
}

#[expect(clippy::struct_field_names, reason = "fields are named as the checkpoint names them")]
struct Embeddings {
    path: String,
    word_embeddings: Embedding,
    position_embeddings: Embedding,
    token_type_embeddings: Embedding,
    padding_idx: usize,
    layer_norm: LayerNorm,
}

impl Embeddings {
    fn load(config: &Config, weights: &Weights) -> Result<Self> {
        let table = |name: &str, rows: usize| Embedding::load(&weights.pp(name), rows, config.hidden_size);
        Ok(Self {
            path: weights.path().to_owned(),
            word_embeddings: table("word_embeddings", config.vocab_size)?,
            position_embeddings: table("position_embeddings", config.max_position_embeddings)?,
            token_type_embeddings: table("token_type_embeddings", config.type_vocab_size)?,
            padding_idx: config.pad_token_id,
            layer_norm: config.norm(&weights.pp("LayerNorm"))?,
        })
    }

    fn forward(&self, pass: &mut Pass, ids: &Xs) -> Result<Xs> {
        pass.module(&self.path, ids.clone(), |pass, ids| {
            let words = self.word_embeddings.forward(pass, &ids)?;
            let types = token_type_ids(pass)?;
            let types = self.token_type_embeddings.forward(pass, &types)?;
            let positions = position_ids_after(pass, self.padding_idx)?;
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

/// The end of either half of a block: a projection, the residual, the norm.
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

/// The encoder, up to its last hidden states.
#[expect(clippy::struct_field_names, reason = "fields are named as the checkpoint names them")]
struct Encoder {
    path: String,
    embeddings: Embeddings,
    encoder_path: String,
    layer: Vec<Block>,
}

impl Encoder {
    fn load(config: &Config, weights: &Weights) -> Result<Self> {
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

    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
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

/// What stands on the encoder.
enum Head {
    MaskedLm(MaskedLm),
    SequenceClassification(SequenceClassification),
    HiddenStates,
}

struct MaskedLm {
    path: String,
    dense: Linear,
    layer_norm: LayerNorm,
    decoder: Linear,
}

impl MaskedLm {
    fn load(config: &Config, weights: &Weights, words: &Embedding) -> Result<Self> {
        let size = config.hidden_size;
        Ok(Self {
            path: weights.path().to_owned(),
            dense: Linear::load(&weights.pp("dense"), size, size, true)?,
            layer_norm: config.norm(&weights.pp("layer_norm"))?,
            // The bias is tied along with the weight, to a parameter of its own.
            decoder: if config.tie_word_embeddings {
                Linear::tied(&weights.pp_as("decoder", ""), words, true)?
            } else {
                Linear::load(&weights.pp("decoder"), size, config.vocab_size, true)?
            },
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let h = self.dense.forward(pass, &xs)?;
            // Whatever hidden_act says.
            let h = Activation::Gelu.inline(&h)?;
            let h = self.layer_norm.forward(pass, &h)?;
            self.decoder.forward(pass, &h)
        })
    }
}

struct SequenceClassification {
    path: String,
    dense: Linear,
    out_proj: Linear,
}

impl SequenceClassification {
    fn load(config: &Config, weights: &Weights, num_labels: usize) -> Result<Self> {
        let size = config.hidden_size;
        Ok(Self {
            path: weights.path().to_owned(),
            dense: Linear::load(&weights.pp("dense"), size, size, true)?,
            out_proj: Linear::load(&weights.pp("out_proj"), size, num_labels, true)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let h = self.dense.forward(pass, &first_position(&xs)?)?;
            let labels = self.out_proj.forward(pass, &Activation::Tanh.inline(&h)?)?;
            one_per_row(pass, &labels)
        })
    }
}

struct Roberta {
    encoder: Encoder,
    head: Head,
}

pub(crate) fn build(config: &ConfigReader, weights: &Weights, task: Option<Task>) -> Result<Box<dyn Model>> {
    build_as("roberta", 50265, config, weights, task)
}

/// What `xlm-roberta` shares: all but its name and a default.
pub(crate) fn build_as(
    model_type: &str,
    default_vocab_size: usize,
    reader: &ConfigReader,
    weights: &Weights,
    task: Option<Task>,
) -> Result<Box<dyn Model>> {
    let config = Config::read(reader, default_vocab_size)?;
    let task = task.unwrap_or(Task::HiddenStates);
    let encoder = Encoder::load(&config, &weights.body("roberta", task != Task::HiddenStates))?;
    let words = &encoder.embeddings.word_embeddings;
    let head = match task {
        Task::MaskedLm => Head::MaskedLm(MaskedLm::load(&config, &weights.pp("lm_head"), words)?),
        Task::SequenceClassification => {
            let classifier = weights.pp("classifier");
            let labels = reader.num_labels()?;
            Head::SequenceClassification(SequenceClassification::load(&config, &classifier, labels)?)
        }
        Task::HiddenStates => Head::HiddenStates,
        Task::CausalLm => return Err(unknown_head(model_type, task)),
    };
    Ok(Box::new(Roberta { encoder, head }))
}

impl Model for Roberta {
    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        let xs = self.encoder.forward(pass)?;
        match &self.head {
            Head::MaskedLm(head) => head.forward(pass, &xs),
            Head::SequenceClassification(head) => head.forward(pass, &xs),
            Head::HiddenStates => Ok(xs),
        }
    }
}
