//! T5: an encoder and a decoder of pre-norm blocks with biases by distance instead of positions, scores that are not
//! scaled, norms without a mean, and no biases in linear layers
//! (transformers 5.23.0, `models/t5/modeling_t5.py` and `configuration_t5.py`).

use bounds::config::Refused;
use serde_json::Value;

use crate::config::ConfigReader;
use crate::error::{Error, Result};
use crate::layers::{
    Activation, Attention, Buckets, Embedding, GateUp, Joined, Linear, Mask, Memory, RelativeBias, RmsNorm,
    WideLinear, add_wide, clamp_f16, scale,
};
use crate::model::{Model, Task, unknown_head};
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::Xs;

struct Config {
    vocab_size: usize,
    d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_layers: usize,
    num_decoder_layers: usize,
    num_heads: usize,
    relative_attention_num_buckets: usize,
    relative_attention_max_distance: usize,
    layer_norm_epsilon: f64,
    dense_act_fn: Activation,
    is_gated_act: bool,
    scale_decoder_outputs: bool,
}

impl Config {
    fn read(config: &ConfigReader) -> Result<Self> {
        config.refuse_unless("is_decoder", &false.into())?;
        let (dense_act_fn, is_gated_act) = feed_forward(config)?;
        let num_layers = config.usize_or("num_layers", 6)?;
        let buckets = config.usize_or("relative_attention_num_buckets", 32)?;
        let max_distance = config.usize_or("relative_attention_max_distance", 128)?;
        // Half of an encoder's buckets are for keys after the query, and half of those for one distance each.
        if buckets < 4 {
            let needed = "at least 4 buckets";
            return Err(Refused::new("relative_attention_num_buckets", &buckets.into(), needed).into());
        }
        if max_distance <= buckets / 2 {
            let needed = format!("a distance above half of the buckets ({buckets})");
            return Err(Refused::new("relative_attention_max_distance", &max_distance.into(), needed).into());
        }
        let num_heads = config.usize_or("num_heads", 8)?;
        // The logits are those of T5 1.1, without the factor, exactly where a config says that the embeddings are not
        // tied. A config that transformers 5 has saved says so in a key of its own.
        let is_scaled = config.bool_or("tie_word_embeddings", true)?;
        Ok(Self {
            vocab_size: config.usize_or("vocab_size", 32128)?,
            d_model: config.usize_or("d_model", 512)?,
            d_kv: config.usize_or("d_kv", 64)?,
            d_ff: config.usize_or("d_ff", 2048)?,
            num_layers,
            num_decoder_layers: config.usize_or("num_decoder_layers", num_layers)?,
            num_heads,
            relative_attention_num_buckets: buckets,
            relative_attention_max_distance: max_distance,
            layer_norm_epsilon: config.f64_or("layer_norm_epsilon", 1e-6)?,
            dense_act_fn,
            is_gated_act,
            scale_decoder_outputs: config.bool_or("scale_decoder_outputs", is_scaled)?,
        })
    }

    fn norm(&self, weights: &Weights) -> Result<RmsNorm> {
        RmsNorm::load(&weights.pp("layer_norm"), self.d_model, self.layer_norm_epsilon)
    }

    fn attention(&self, layer: usize) -> Attention {
        Attention {
            layer,
            num_heads: self.num_heads,
            num_kv_heads: self.num_heads,
            head_dim: self.d_kv,
            scale: 1.0,
            soft_cap: None,
        }
    }
}

/// The activation of the feed-forward layer and whether it is gated: `<activation>` or `gated-<activation>` of
/// `feed_forward_proj`, where `gated-gelu` means the tanh approximation. Keys that transformers saves with the two
/// derived values replace them.
fn feed_forward(config: &ConfigReader) -> Result<(Activation, bool)> {
    let proj = config.str_or("feed_forward_proj", "relu")?;
    let (name, is_gated) = match proj.strip_prefix("gated-") {
        Some("gelu") => ("gelu_new", true),
        Some(name) => (name, true),
        None => (proj, false),
    };
    if name.contains('-') {
        return Err(config.unknown("feed_forward_proj", &Value::from(proj)));
    }
    let activation = Activation::read(config, "dense_act_fn", name)?;
    Ok((activation, config.bool_or("is_gated_act", is_gated)?))
}

/// A block's self-attention with its norm and residual connection.
struct SelfAttention {
    path: String,
    layer_norm: RmsNorm,
    attention_path: String,
    qkv: Joined<3>,
    attention: Attention,
    o: Linear,
}

impl SelfAttention {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        let attention = weights.pp("SelfAttention");
        let (size, inner) = (config.d_model, config.num_heads * config.d_kv);
        Ok(Self {
            path: weights.path().to_owned(),
            layer_norm: config.norm(weights)?,
            attention_path: attention.path().to_owned(),
            qkv: Joined::load(&attention, size, [("q", inner), ("k", inner), ("v", inner)], false)?,
            attention: config.attention(layer),
            o: Linear::load(&attention.pp("o"), inner, size, false)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: Xs, mask: &Mask) -> Result<Xs> {
        pass.module(&self.path, xs, |pass, xs| {
            let h = self.layer_norm.forward(pass, &xs)?;
            let h = pass.module(&self.attention_path, h, |pass, h| {
                let qkv = self.qkv.forward(pass, &h)?;
                let mixed = self.attention.forward(pass, qkv, None, mask)?;
                self.o.forward(pass, &mixed)
            })?;
            add_wide(xs, h)
        })
    }
}

/// A decoder block's attention to the encoder, with its norm and residual connection.
struct CrossAttention {
    path: String,
    layer_norm: RmsNorm,
    attention_path: String,
    q: Linear,
    kv: Joined<2>,
    attention: Attention,
    o: Linear,
}

impl CrossAttention {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        let attention = weights.pp("EncDecAttention");
        let (size, inner) = (config.d_model, config.num_heads * config.d_kv);
        Ok(Self {
            path: weights.path().to_owned(),
            layer_norm: config.norm(weights)?,
            attention_path: attention.path().to_owned(),
            q: Linear::load(&attention.pp("q"), size, inner, false)?,
            kv: Joined::load(&attention, size, [("k", inner), ("v", inner)], false)?,
            attention: config.attention(layer),
            o: Linear::load(&attention.pp("o"), inner, size, false)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: Xs, memory: &Memory) -> Result<Xs> {
        pass.module(&self.path, xs, |pass, xs| {
            let h = self.layer_norm.forward(pass, &xs)?;
            let h = pass.module(&self.attention_path, h, |pass, h| {
                let q = self.q.forward(pass, &h)?;
                let kv = memory.states().map(|states| self.kv.forward(pass, states)).transpose()?;
                let mixed = self.attention.forward_cross(pass, &q, kv, memory)?;
                self.o.forward(pass, &mixed)
            })?;
            add_wide(xs, h)
        })
    }
}

/// The first half of the feed-forward layer.
enum FeedForwardIn {
    Plain { wi: Linear, act_path: String, act: Activation },
    Gated(GateUp),
}

/// A block's feed-forward layer with its norm and residual connection.
struct Mlp {
    path: String,
    layer_norm: RmsNorm,
    dense_path: String,
    wi: FeedForwardIn,
    wo: WideLinear,
}

impl Mlp {
    fn load(config: &Config, weights: &Weights) -> Result<Self> {
        let dense = weights.pp("DenseReluDense");
        let (size, inner, act) = (config.d_model, config.d_ff, config.dense_act_fn);
        let wi = if config.is_gated_act {
            FeedForwardIn::Gated(GateUp::load(&dense, ["wi_0", "wi_1", "act"], (size, inner), act, false)?)
        } else {
            let wi = Linear::load(&dense.pp("wi"), size, inner, false)?;
            FeedForwardIn::Plain { wi, act_path: dense.pp("act").path().to_owned(), act }
        };
        Ok(Self {
            path: weights.path().to_owned(),
            layer_norm: config.norm(weights)?,
            dense_path: dense.path().to_owned(),
            wi,
            wo: WideLinear::load(&dense.pp("wo"), inner, size)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: Xs) -> Result<Xs> {
        pass.module(&self.path, xs, |pass, xs| {
            let h = self.layer_norm.forward(pass, &xs)?;
            let h = pass.module(&self.dense_path, h, |pass, h| {
                let h = match &self.wi {
                    FeedForwardIn::Plain { wi, act_path, act } => {
                        let h = wi.forward(pass, &h)?;
                        act.forward(pass, act_path, &h)?
                    }
                    FeedForwardIn::Gated(gate_up) => gate_up.forward(pass, &h)?,
                };
                self.wo.forward(pass, &h)
            })?;
            add_wide(xs, h)
        })
    }
}

struct Block {
    path: String,
    self_attention: SelfAttention,
    /// Absent in the encoder.
    cross_attention: Option<CrossAttention>,
    mlp: Mlp,
}

impl Block {
    fn load(config: &Config, weights: &Weights, layer: usize, is_decoder: bool) -> Result<Self> {
        let layers = weights.pp("layer");
        let cross = is_decoder.then(|| CrossAttention::load(config, &layers.pp(1), layer)).transpose()?;
        Ok(Self {
            path: weights.path().to_owned(),
            self_attention: SelfAttention::load(config, &layers.pp(0), layer)?,
            mlp: Mlp::load(config, &layers.pp(if is_decoder { 2 } else { 1 }))?,
            cross_attention: cross,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: Xs, mask: &Mask, memory: Option<&Memory>) -> Result<Xs> {
        pass.module(&self.path, xs, |pass, xs| {
            let mut xs = clamp_f16(self.self_attention.forward(pass, xs, mask)?)?;
            if let (Some(cross_attention), Some(memory)) = (&self.cross_attention, memory) {
                xs = clamp_f16(cross_attention.forward(pass, xs, memory)?)?;
            }
            clamp_f16(self.mlp.forward(pass, xs)?)
        })
    }
}

/// The encoder or the decoder.
struct Stack {
    path: String,
    embed_tokens: Embedding,
    /// Of the first block's self-attention; all blocks use it.
    relative_attention_bias: RelativeBias,
    block: Vec<Block>,
    final_layer_norm: RmsNorm,
}

impl Stack {
    fn load(config: &Config, weights: &Weights, shared: &Embedding, is_decoder: bool) -> Result<Self> {
        let (blocks, embed_tokens) = (weights.pp("block"), weights.pp("embed_tokens"));
        let buckets = Buckets {
            count: config.relative_attention_num_buckets,
            max_distance: config.relative_attention_max_distance,
            bidirectional: !is_decoder,
        };
        let bias = blocks.pp(0).pp("layer").pp(0).pp("SelfAttention").pp("relative_attention_bias");
        let layers = if is_decoder { config.num_decoder_layers } else { config.num_layers };
        Ok(Self {
            path: weights.path().to_owned(),
            // Old checkpoints repeat the shared embedding.
            embed_tokens: if embed_tokens.has("weight") {
                Embedding::load(&embed_tokens, config.vocab_size, config.d_model)?
            } else {
                shared.clone().named(embed_tokens.path())
            },
            relative_attention_bias: RelativeBias::load(&bias, buckets, config.num_heads)?,
            block: (0..layers)
                .map(|layer| Block::load(config, &blocks.pp(layer), layer, is_decoder))
                .collect::<Result<_>>()?,
            final_layer_norm: RmsNorm::load(
                &weights.pp("final_layer_norm"),
                config.d_model,
                config.layer_norm_epsilon,
            )?,
        })
    }

    /// The last hidden states over the pass's tokens, `[batch, seq, d_model]`; only the decoder has a `memory`.
    fn forward(&self, pass: &mut Pass, memory: Option<&Memory>) -> Result<Xs> {
        let ids = Xs::from(pass.input_ids().clone());
        pass.module(&self.path, ids, |pass, ids| {
            let xs = self.embed_tokens.forward(pass, &ids)?;
            let mask = match memory {
                Some(_) => Mask::causal(pass, None)?,
                None => Mask::bidirectional(pass, None)?,
            };
            let mask = self.relative_attention_bias.mask(pass, mask)?;
            let xs = self.block.iter().try_fold(xs, |xs, block| block.forward(pass, xs, &mask, memory))?;
            self.final_layer_norm.forward(pass, &xs)
        })
    }
}

struct T5 {
    encoder: Stack,
    decoder: Stack,
    /// The factor of the last hidden states before the head.
    output_scale: Option<f64>,
    /// Absent if the output is hidden states.
    lm_head: Option<Linear>,
}

pub(crate) fn build(config: &ConfigReader, weights: &Weights, task: Option<Task>) -> Result<Box<dyn Model>> {
    let config = Config::read(config)?;
    let shared = Embedding::load(&weights.pp("shared"), config.vocab_size, config.d_model)?;
    let lm_head = weights.pp("lm_head");
    let lm_head = match task.unwrap_or(Task::Seq2SeqLm) {
        // Whatever the config says, the head is tied where the checkpoint has no weight for it (`T5Config` of 5.23.0).
        Task::Seq2SeqLm => Some(Linear::lm_head(&lm_head, &shared, !lm_head.has("weight"), false)?),
        Task::HiddenStates => None,
        task => return Err(unknown_head("t5", task)),
    };
    Ok(Box::new(T5 {
        encoder: Stack::load(&config, &weights.pp("encoder"), &shared, false)?,
        decoder: Stack::load(&config, &weights.pp("decoder"), &shared, true)?,
        output_scale: config.scale_decoder_outputs.then(|| (config.d_model as f64).powf(-0.5)),
        lm_head,
    }))
}

/// The encoder by itself (`T5EncoderModel`).
struct T5Encoder(Stack);

/// Builds `T5EncoderModel`, whose output is hidden states. What a checkpoint has of a decoder is not read.
pub(crate) fn build_encoder(
    config: &ConfigReader,
    weights: &Weights,
    task: Option<Task>,
) -> Result<Box<dyn Model>> {
    match task {
        None | Some(Task::HiddenStates) => {}
        Some(task) => return Err(unknown_head("t5", task)),
    }
    let config = Config::read(config)?;
    let shared = Embedding::load(&weights.pp("shared"), config.vocab_size, config.d_model)?;
    Ok(Box::new(T5Encoder(Stack::load(&config, &weights.pp("encoder"), &shared, false)?)))
}

impl Model for T5Encoder {
    fn output(&self) -> &'static str {
        "last_hidden_state"
    }

    /// The last hidden states, `[batch, seq, d_model]`.
    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        if pass.has_cache() {
            return Err(Error::Unsupported("the encoder of t5 with a KV cache".to_owned()));
        }
        self.0.forward(pass, None)
    }
}

impl Model for T5 {
    fn inputs(&self) -> &'static [&'static str] {
        &["decoder_input_ids", "decoder_attention_mask"]
    }

    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        let memory = Memory::new(pass, |pass| {
            let tokens = pass.encoder_tokens()?;
            pass.over(tokens, |pass| self.encoder.forward(pass, None))
        })?;
        let mut xs = self.decoder.forward(pass, Some(&memory))?;
        let Some(lm_head) = &self.lm_head else {
            return Ok(xs);
        };
        if let Some(factor) = self.output_scale {
            xs = scale(xs, factor)?;
        }
        lm_head.forward(pass, &xs)
    }
}
