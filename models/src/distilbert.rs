//! DistilBERT: BERT's encoder without token types, with different module names and a fixed norm eps (transformers
//! 5.23.0, `models/distilbert/modeling_distilbert.py` and `configuration_distilbert.py`).

use crate::config::{ConfigReader, head_dim};
use crate::error::Result;
use crate::layers::{
    Activation, Attention, Embedding, Joined, LayerNorm, Linear, Mask, add, first_position, one_per_row,
    position_ids,
};
use crate::model::{Model, Task, unknown_head};
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::Xs;

struct Config {
    vocab_size: usize,
    max_position_embeddings: usize,
    n_layers: usize,
    n_heads: usize,
    dim: usize,
    hidden_dim: usize,
    activation: Activation,
    tie_word_embeddings: bool,
}

impl Config {
    fn read(config: &ConfigReader) -> Result<Self> {
        let (dim, n_heads) = (config.usize_or("dim", 768)?, config.usize_or("n_heads", 12)?);
        head_dim(("dim", dim), ("n_heads", n_heads))?;
        Ok(Self {
            vocab_size: config.usize_or("vocab_size", 30522)?,
            max_position_embeddings: config.usize_or("max_position_embeddings", 512)?,
            n_layers: config.usize_or("n_layers", 6)?,
            n_heads,
            dim,
            hidden_dim: config.usize_or("hidden_dim", 4 * 768)?,
            activation: Activation::read(config, "activation", "gelu")?,
            tie_word_embeddings: config.bool_or("tie_word_embeddings", true)?,
        })
    }

    /// The norm over `dim` with the weights `weights`; its eps is a constant in transformers' code, not a config key.
    fn norm(&self, weights: &Weights) -> Result<LayerNorm> {
        LayerNorm::load(weights, self.dim, 1e-12, true)
    }
}

#[expect(clippy::struct_field_names, reason = "fields are named as the checkpoint names them")]
struct Embeddings {
    path: String,
    word_embeddings: Embedding,
    position_embeddings: Embedding,
    layer_norm: LayerNorm,
}

impl Embeddings {
    fn load(config: &Config, weights: &Weights) -> Result<Self> {
        let table = |name: &str, rows: usize| Embedding::load(&weights.pp(name), rows, config.dim);
        Ok(Self {
            path: weights.path().to_owned(),
            word_embeddings: table("word_embeddings", config.vocab_size)?,
            position_embeddings: table("position_embeddings", config.max_position_embeddings)?,
            layer_norm: config.norm(&weights.pp("LayerNorm"))?,
        })
    }

    fn forward(&self, pass: &mut Pass, ids: &Xs) -> Result<Xs> {
        pass.module(&self.path, ids.clone(), |pass, ids| {
            let words = self.word_embeddings.forward(pass, &ids)?;
            let positions = position_ids(pass)?;
            let positions = self.position_embeddings.forward(pass, &positions)?;
            self.layer_norm.forward(pass, &add(words, positions)?)
        })
    }
}

struct SelfAttention {
    path: String,
    qkv: Joined<3>,
    attention: Attention,
    out_lin: Linear,
}

impl SelfAttention {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        let dim = config.dim;
        let head_dim = dim / config.n_heads;
        Ok(Self {
            path: weights.path().to_owned(),
            qkv: Joined::load(weights, dim, [("q_lin", dim), ("k_lin", dim), ("v_lin", dim)], true)?,
            attention: Attention {
                layer,
                num_heads: config.n_heads,
                num_kv_heads: config.n_heads,
                head_dim,
                scale: (head_dim as f64).powf(-0.5),
                soft_cap: None,
            },
            out_lin: Linear::load(&weights.pp("out_lin"), dim, dim, true)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs, mask: &Mask) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let qkv = self.qkv.forward(pass, &xs)?;
            let mixed = self.attention.forward(pass, qkv, None, mask)?;
            self.out_lin.forward(pass, &mixed)
        })
    }
}

struct Mlp {
    path: String,
    act_path: String,
    lin1: Linear,
    activation: Activation,
    lin2: Linear,
}

impl Mlp {
    fn load(config: &Config, weights: &Weights) -> Result<Self> {
        Ok(Self {
            path: weights.path().to_owned(),
            act_path: weights.pp("activation").path().to_owned(),
            lin1: Linear::load(&weights.pp("lin1"), config.dim, config.hidden_dim, true)?,
            activation: config.activation,
            lin2: Linear::load(&weights.pp("lin2"), config.hidden_dim, config.dim, true)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let h = self.lin1.forward(pass, &xs)?;
            let h = self.activation.forward(pass, &self.act_path, &h)?;
            self.lin2.forward(pass, &h)
        })
    }
}

struct Block {
    path: String,
    attention: SelfAttention,
    sa_layer_norm: LayerNorm,
    ffn: Mlp,
    output_layer_norm: LayerNorm,
}

impl Block {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        Ok(Self {
            path: weights.path().to_owned(),
            attention: SelfAttention::load(config, &weights.pp("attention"), layer)?,
            sa_layer_norm: config.norm(&weights.pp("sa_layer_norm"))?,
            ffn: Mlp::load(config, &weights.pp("ffn"))?,
            output_layer_norm: config.norm(&weights.pp("output_layer_norm"))?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: Xs, mask: &Mask) -> Result<Xs> {
        pass.module(&self.path, xs, |pass, xs| {
            let h = self.attention.forward(pass, &xs, mask)?;
            let xs = self.sa_layer_norm.forward(pass, &add(h, xs.clone())?)?;
            let h = self.ffn.forward(pass, &xs)?;
            self.output_layer_norm.forward(pass, &add(h, xs)?)
        })
    }
}

/// The encoder; its output is the last hidden states.
struct Encoder {
    path: String,
    embeddings: Embeddings,
    transformer_path: String,
    layer: Vec<Block>,
}

impl Encoder {
    fn load(config: &Config, weights: &Weights) -> Result<Self> {
        let transformer = weights.pp("transformer");
        let layer = transformer.pp("layer");
        Ok(Self {
            path: weights.path().to_owned(),
            embeddings: Embeddings::load(config, &weights.pp("embeddings"))?,
            transformer_path: transformer.path().to_owned(),
            layer: (0..config.n_layers)
                .map(|index| Block::load(config, &layer.pp(index), index))
                .collect::<Result<_>>()?,
        })
    }

    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        let ids = Xs::from(pass.input_ids().clone());
        pass.module(&self.path, ids, |pass, ids| {
            let xs = self.embeddings.forward(pass, &ids)?;
            let mask = Mask::bidirectional(pass, None)?;
            pass.module(&self.transformer_path, xs, |pass, xs| {
                self.layer.iter().try_fold(xs, |xs, layer| layer.forward(pass, xs, &mask))
            })
        })
    }
}

/// The head, by task; its modules have no common parent.
enum Head {
    MaskedLm {
        vocab_transform: Linear,
        activation: Activation,
        vocab_layer_norm: LayerNorm,
        vocab_projector: Linear,
    },
    SequenceClassification {
        pre_classifier: Linear,
        classifier: Linear,
    },
    HiddenStates,
}

struct DistilBert {
    encoder: Encoder,
    head: Head,
}

pub(crate) fn build(reader: &ConfigReader, weights: &Weights, task: Option<Task>) -> Result<Box<dyn Model>> {
    let config = Config::read(reader)?;
    let task = task.unwrap_or(Task::HiddenStates);
    let encoder = Encoder::load(&config, &weights.body("distilbert", task != Task::HiddenStates))?;
    let words = &encoder.embeddings.word_embeddings;
    let linear = |name: &str, output: usize| Linear::load(&weights.pp(name), config.dim, output, true);
    let head = match task {
        Task::MaskedLm => Head::MaskedLm {
            vocab_transform: linear("vocab_transform", config.dim)?,
            activation: config.activation,
            vocab_layer_norm: config.norm(&weights.pp("vocab_layer_norm"))?,
            vocab_projector: if config.tie_word_embeddings {
                Linear::tied(&weights.pp("vocab_projector"), words, true)?
            } else {
                linear("vocab_projector", config.vocab_size)?
            },
        },
        Task::SequenceClassification => Head::SequenceClassification {
            pre_classifier: linear("pre_classifier", config.dim)?,
            classifier: linear("classifier", reader.num_labels()?)?,
        },
        Task::HiddenStates => Head::HiddenStates,
        Task::CausalLm | Task::Seq2SeqLm | Task::Similarity | Task::Embeddings => {
            return Err(unknown_head("distilbert", task));
        }
    };
    Ok(Box::new(DistilBert { encoder, head }))
}

impl Model for DistilBert {
    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        let xs = self.encoder.forward(pass)?;
        match &self.head {
            Head::MaskedLm { vocab_transform, activation, vocab_layer_norm, vocab_projector } => {
                let h = vocab_transform.forward(pass, &xs)?;
                let h = activation.forward(pass, "activation", &h)?;
                let h = vocab_layer_norm.forward(pass, &h)?;
                vocab_projector.forward(pass, &h)
            }
            Head::SequenceClassification { pre_classifier, classifier } => {
                let h = pre_classifier.forward(pass, &first_position(pass, &xs)?)?;
                let labels = classifier.forward(pass, &Activation::Relu.inline(&h)?)?;
                one_per_row(pass, &labels)
            }
            Head::HiddenStates => Ok(xs),
        }
    }
}
