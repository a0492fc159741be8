//! ModernBERT: an encoder of pre-norm blocks, with windowed and full layers that each have their own rope base, one
//! projection for gate and up of the MLP, and norms without bias (transformers 5.23.0,
//! `models/modernbert/modeling_modernbert.py` and `configuration_modernbert.py`).

use serde_json::Value;

use crate::config::{ConfigReader, head_dim};
use crate::error::{Error, Result};
use crate::layers::{
    Activation, Attention, Embedding, LayerNorm, LayerType, Linear, Mask, PerLayerType, Rope, RopeParameters,
    RotaryEmbedding, Rotation, add, first_position, mean_of_real_tokens, multiply, one_per_row, split,
};
use crate::model::{Model, Task, unknown_head};
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::Xs;

#[expect(clippy::struct_excessive_bools, reason = "they are the config's")]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_attention_heads: usize,
    hidden_activation: Activation,
    norm_eps: f64,
    norm_bias: bool,
    attention_bias: bool,
    mlp_bias: bool,
    layer_types: Vec<LayerType>,
    ropes: PerLayerType<RopeParameters>,
    /// Distance in tokens to which a windowed layer attends on either side.
    sliding_window: usize,
    decoder_bias: bool,
    classifier_bias: bool,
    classifier_activation: Activation,
    tie_word_embeddings: bool,
}

impl Config {
    fn read(config: &ConfigReader) -> Result<Self> {
        let num_hidden_layers = config.usize_or("num_hidden_layers", 22)?;
        // Older configs give the period of full-attention layers instead of `layer_types`.
        let period = config.usize_or("global_attn_every_n_layers", 3)?.max(1);
        let layer_types = LayerType::read(config, num_hidden_layers, |layer| {
            if layer % period == 0 { LayerType::Full } else { LayerType::Sliding }
        })?;
        let hidden_size = config.usize_or("hidden_size", 768)?;
        let num_attention_heads = config.usize_or("num_attention_heads", 12)?;
        head_dim(("hidden_size", hidden_size), ("num_attention_heads", num_attention_heads))?;
        Ok(Self {
            vocab_size: config.usize_or("vocab_size", 50368)?,
            hidden_size,
            intermediate_size: config.usize_or("intermediate_size", 1152)?,
            num_attention_heads,
            hidden_activation: Activation::read(config, "hidden_activation", "gelu")?,
            norm_eps: config.f64_or("norm_eps", 1e-5)?,
            norm_bias: config.bool_or("norm_bias", false)?,
            attention_bias: config.bool_or("attention_bias", false)?,
            mlp_bias: config.bool_or("mlp_bias", false)?,
            layer_types,
            ropes: ropes(config)?,
            sliding_window: config.usize_or("local_attention", 128)? / 2,
            decoder_bias: config.bool_or("decoder_bias", true)?,
            classifier_bias: config.bool_or("classifier_bias", false)?,
            classifier_activation: Activation::read(config, "classifier_activation", "gelu")?,
            tie_word_embeddings: config.bool_or("tie_word_embeddings", true)?,
        })
    }

    fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// The norm over `hidden_size` with the weights `weights`.
    fn norm(&self, weights: &Weights) -> Result<LayerNorm> {
        LayerNorm::load(weights, self.hidden_size, self.norm_eps, self.norm_bias)
    }
}

/// transformers 5 has one object per layer type; transformers 4 has `global_rope_theta` and `local_rope_theta`
/// (`ModernBertConfig.convert_rope_params_to_dict`). `rope_scaling`, which transformers would merge into both, is
/// rejected.
fn ropes(config: &ConfigReader) -> Result<PerLayerType<RopeParameters>> {
    config.refuse_unless("rope_scaling", &Value::Null)?;
    let max = config.usize_or("max_position_embeddings", 8192)?;
    let nested = config.optional_object("rope_parameters")?;
    let read = |layer_type: &str, theta_key: &str, default: f64| {
        let object = nested.as_ref().map(|nested| nested.optional_object(layer_type)).transpose()?;
        let theta = config.f64_or(theta_key, default)?;
        RopeParameters::read_object(config, object.flatten().as_ref(), theta, max)
    };
    Ok(PerLayerType {
        full: read("full_attention", "global_rope_theta", 160_000.0)?,
        sliding: read("sliding_attention", "local_rope_theta", 10_000.0)?,
    })
}

struct SelfAttention {
    path: String,
    size: usize,
    /// q, k and v, concatenated along the output dimension.
    wqkv: Linear,
    attention: Attention,
    wo: Linear,
}

impl SelfAttention {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        let size = config.hidden_size;
        Ok(Self {
            path: weights.path().to_owned(),
            size,
            wqkv: Linear::load(&weights.pp("Wqkv"), size, 3 * size, config.attention_bias)?,
            attention: Attention {
                layer,
                num_heads: config.num_attention_heads,
                num_kv_heads: config.num_attention_heads,
                head_dim: config.head_dim(),
                scale: (config.head_dim() as f64).powf(-0.5),
                soft_cap: None,
            },
            wo: Linear::load(&weights.pp("Wo"), size, size, config.attention_bias)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs, rope: &Rope, mask: &Mask) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let qkv = split(&self.wqkv.forward(pass, &xs)?, [self.size; 3])?;
            let mixed = self.attention.forward(pass, qkv, Some(rope), mask)?;
            self.wo.forward(pass, &mixed)
        })
    }
}

struct Mlp {
    path: String,
    act_path: String,
    size: usize,
    /// The input of the activation and the gate, concatenated along the output dimension.
    wi: Linear,
    act: Activation,
    wo: Linear,
}

impl Mlp {
    fn load(config: &Config, weights: &Weights) -> Result<Self> {
        let (outer, size) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            path: weights.path().to_owned(),
            act_path: weights.pp("act").path().to_owned(),
            size,
            wi: Linear::load(&weights.pp("Wi"), outer, 2 * size, config.mlp_bias)?,
            act: config.hidden_activation,
            wo: Linear::load(&weights.pp("Wo"), size, outer, config.mlp_bias)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let [input, gate] = split(&self.wi.forward(pass, &xs)?, [self.size; 2])?;
            let input = self.act.forward(pass, &self.act_path, &input)?;
            self.wo.forward(pass, &multiply(input, gate)?)
        })
    }
}

struct Block {
    path: String,
    layer_type: LayerType,
    /// `None` in the first layer, whose input the embeddings have already normalised.
    attn_norm: Option<LayerNorm>,
    attn: SelfAttention,
    mlp_norm: LayerNorm,
    mlp: Mlp,
}

impl Block {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        Ok(Self {
            path: weights.path().to_owned(),
            layer_type: config.layer_types[layer],
            attn_norm: (layer > 0).then(|| config.norm(&weights.pp("attn_norm"))).transpose()?,
            attn: SelfAttention::load(config, &weights.pp("attn"), layer)?,
            mlp_norm: config.norm(&weights.pp("mlp_norm"))?,
            mlp: Mlp::load(config, &weights.pp("mlp"))?,
        })
    }

    fn forward(
        &self,
        pass: &mut Pass,
        xs: Xs,
        ropes: &PerLayerType<Rope>,
        masks: &PerLayerType<Mask>,
    ) -> Result<Xs> {
        let (rope, mask) = (ropes.get(self.layer_type), masks.get(self.layer_type));
        pass.module(&self.path, xs, |pass, xs| {
            let h = match &self.attn_norm {
                Some(norm) => norm.forward(pass, &xs)?,
                None => xs.clone(),
            };
            let h = self.attn.forward(pass, &h, rope, mask)?;
            let xs = add(xs, h)?;
            let h = self.mlp_norm.forward(pass, &xs)?;
            let h = self.mlp.forward(pass, &h)?;
            add(xs, h)
        })
    }
}

/// The encoder; its output is the last hidden states.
struct Encoder {
    path: String,
    embeddings_path: String,
    tok_embeddings: Embedding,
    norm: LayerNorm,
    layers: Vec<Block>,
    final_norm: LayerNorm,
    rotary_emb: PerLayerType<RotaryEmbedding>,
    sliding_window: usize,
}

impl Encoder {
    fn load(config: &Config, weights: &Weights) -> Result<Self> {
        let (embeddings, layers) = (weights.pp("embeddings"), weights.pp("layers"));
        let rotary_emb = |rope: &RopeParameters| {
            RotaryEmbedding::new(rope.clone(), config.head_dim()).rotating(Rotation::RoundedTables)
        };
        Ok(Self {
            path: weights.path().to_owned(),
            embeddings_path: embeddings.path().to_owned(),
            tok_embeddings: Embedding::load(
                &embeddings.pp("tok_embeddings"),
                config.vocab_size,
                config.hidden_size,
            )?,
            norm: config.norm(&embeddings.pp("norm"))?,
            layers: (0..config.layer_types.len())
                .map(|layer| Block::load(config, &layers.pp(layer), layer))
                .collect::<Result<_>>()?,
            final_norm: config.norm(&weights.pp("final_norm"))?,
            rotary_emb: PerLayerType {
                full: rotary_emb(&config.ropes.full),
                sliding: rotary_emb(&config.ropes.sliding),
            },
            sliding_window: config.sliding_window,
        })
    }

    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        let ids = Xs::from(pass.input_ids().clone());
        pass.module(&self.path, ids, |pass, ids| {
            let mut xs = pass.module(&self.embeddings_path, ids, |pass, ids| {
                let xs = self.tok_embeddings.forward(pass, &ids)?;
                self.norm.forward(pass, &xs)
            })?;
            let ropes = PerLayerType {
                full: self.rotary_emb.full.forward(pass)?,
                sliding: self.rotary_emb.sliding.forward(pass)?,
            };
            let masks = PerLayerType {
                full: Mask::bidirectional(pass, None)?,
                sliding: Mask::bidirectional(pass, Some(self.sliding_window))?,
            };
            for layer in &self.layers {
                xs = layer.forward(pass, xs, &ropes, &masks)?;
            }
            self.final_norm.forward(pass, &xs)
        })
    }
}

/// The layers with which both heads begin.
struct PredictionHead {
    path: String,
    act_path: String,
    dense: Linear,
    act: Activation,
    norm: LayerNorm,
}

impl PredictionHead {
    fn load(config: &Config, weights: &Weights) -> Result<Self> {
        let size = config.hidden_size;
        Ok(Self {
            path: weights.path().to_owned(),
            act_path: weights.pp("act").path().to_owned(),
            dense: Linear::load(&weights.pp("dense"), size, size, config.classifier_bias)?,
            act: config.classifier_activation,
            norm: config.norm(&weights.pp("norm"))?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let h = self.dense.forward(pass, &xs)?;
            let h = self.act.forward(pass, &self.act_path, &h)?;
            self.norm.forward(pass, &h)
        })
    }
}

/// How a classifier reduces a sequence to one vector.
#[derive(Clone, Copy)]
enum Pooling {
    Cls,
    Mean,
}

impl Pooling {
    fn read(config: &ConfigReader) -> Result<Self> {
        match config.str_or("classifier_pooling", "cls")? {
            "cls" => Ok(Self::Cls),
            "mean" => Ok(Self::Mean),
            unknown => Err(config.unknown("classifier_pooling", &unknown.into())),
        }
    }
}

/// The head, by task.
enum Head {
    MaskedLm { head: PredictionHead, decoder: Linear },
    SequenceClassification { pooling: Pooling, head: PredictionHead, classifier: Linear },
    HiddenStates,
}

struct ModernBert {
    encoder: Encoder,
    head: Head,
}

pub(crate) fn build(reader: &ConfigReader, weights: &Weights, task: Option<Task>) -> Result<Box<dyn Model>> {
    let config = Config::read(reader)?;
    let task = task.unwrap_or(Task::HiddenStates);
    // The key is read for every head, so that it is never listed as unread.
    let pooling = Pooling::read(reader)?;
    let encoder = Encoder::load(&config, &weights.body("model", task != Task::HiddenStates))?;
    let size = config.hidden_size;
    let head = match task {
        Task::MaskedLm => {
            let saved = weights.pp("decoder");
            let decoder = if config.tie_word_embeddings {
                Linear::tied(&saved, &encoder.tok_embeddings, config.decoder_bias)?
            } else {
                Linear::load(&saved, size, config.vocab_size, config.decoder_bias)?
            };
            Head::MaskedLm { head: PredictionHead::load(&config, &weights.pp("head"))?, decoder }
        }
        Task::SequenceClassification => Head::SequenceClassification {
            pooling,
            head: PredictionHead::load(&config, &weights.pp("head"))?,
            classifier: Linear::load(&weights.pp("classifier"), size, reader.num_labels()?, true)?,
        },
        Task::HiddenStates => Head::HiddenStates,
        Task::CausalLm | Task::Seq2SeqLm | Task::Similarity | Task::Embeddings => {
            return Err(unknown_head("modernbert", task));
        }
    };
    Ok(Box::new(ModernBert { encoder, head }))
}

/// In a windowed layer, a padded position may attend to no key. transformers' lowest finite mask then averages all
/// keys; the eager backend does the same, but the fused kernel does not. A classifier that reads such a position is
/// rejected.
fn refuse_padded_first_position(pass: &Pass) -> Result<()> {
    let is_padded = pass
        .padding()
        .is_some_and(|padding| padding.chunks(pass.seq()).any(|row| row.first() == Some(&false)));
    if pass.workspace().is_some() && is_padded {
        return Err(Error::Unsupported(
            "modernbert's cls pooling over left padding in the fused backend; pad on the right".to_owned(),
        ));
    }
    Ok(())
}

impl Model for ModernBert {
    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        let xs = self.encoder.forward(pass)?;
        match &self.head {
            Head::MaskedLm { head, decoder } => {
                let h = head.forward(pass, &xs)?;
                decoder.forward(pass, &h)
            }
            Head::SequenceClassification { pooling, head, classifier } => {
                let pooled = match pooling {
                    Pooling::Cls => {
                        refuse_padded_first_position(pass)?;
                        first_position(pass, &xs)?
                    }
                    Pooling::Mean => mean_of_real_tokens(pass, &xs)?,
                };
                let h = head.forward(pass, &pooled)?;
                let labels = classifier.forward(pass, &h)?;
                one_per_row(pass, &labels)
            }
            Head::HiddenStates => Ok(xs),
        }
    }
}
