//! Granite: llama with multipliers on embeddings, scores, residuals and logits
//! (transformers 5.23.0, `models/granite/modeling_granite.py` and `configuration_granite.py`).

use crate::config::ConfigReader;
use crate::error::Result;
use crate::layers::{
    Activation, Attention, Embedding, GatedMlp, Joined, Linear, Mask, RmsNorm, Rope, RopeParameters,
    RotaryEmbedding, add, divide, scale,
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
    num_key_value_heads: usize,
    head_dim: usize,
    hidden_act: Activation,
    rms_norm_eps: f64,
    rope: RopeParameters,
    attention_bias: bool,
    mlp_bias: bool,
    embedding_multiplier: f64,
    /// What logits are divided by.
    logits_scaling: f64,
    residual_multiplier: f64,
    /// What scores are multiplied by.
    attention_multiplier: f64,
    tie_word_embeddings: bool,
}

impl Config {
    fn read(config: &ConfigReader) -> Result<Self> {
        let hidden_size = config.usize_or("hidden_size", 4096)?;
        let num_attention_heads = config.usize_or("num_attention_heads", 32)?;
        let max_position_embeddings = config.usize_or("max_position_embeddings", 2048)?;
        Ok(Self {
            vocab_size: config.usize_or("vocab_size", 32000)?,
            hidden_size,
            intermediate_size: config.usize_or("intermediate_size", 11008)?,
            num_hidden_layers: config.usize_or("num_hidden_layers", 32)?,
            num_attention_heads,
            num_key_value_heads: config.usize_or("num_key_value_heads", num_attention_heads)?,
            head_dim: config.usize_or("head_dim", hidden_size / num_attention_heads)?,
            hidden_act: Activation::read(config, "hidden_act", "silu")?,
            rms_norm_eps: config.f64_or("rms_norm_eps", 1e-6)?,
            rope: RopeParameters::read(config, 10_000.0, max_position_embeddings)?,
            attention_bias: config.bool_or("attention_bias", false)?,
            mlp_bias: config.bool_or("mlp_bias", false)?,
            embedding_multiplier: config.f64_or("embedding_multiplier", 1.0)?,
            logits_scaling: config.f64_or("logits_scaling", 1.0)?,
            residual_multiplier: config.f64_or("residual_multiplier", 1.0)?,
            attention_multiplier: config.f64_or("attention_multiplier", 1.0)?,
            tie_word_embeddings: config.bool_or("tie_word_embeddings", false)?,
        })
    }
}

struct SelfAttention {
    path: String,
    qkv: Joined<3>,
    attention: Attention,
    o_proj: Linear,
}

impl SelfAttention {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        let q_size = config.num_attention_heads * config.head_dim;
        let kv_size = config.num_key_value_heads * config.head_dim;
        Ok(Self {
            path: weights.path().to_owned(),
            qkv: Joined::load(
                weights,
                config.hidden_size,
                [("q_proj", q_size), ("k_proj", kv_size), ("v_proj", kv_size)],
                config.attention_bias,
            )?,
            attention: Attention {
                layer,
                num_heads: config.num_attention_heads,
                num_kv_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
                scale: config.attention_multiplier,
                soft_cap: None,
            },
            o_proj: Linear::load(&weights.pp("o_proj"), q_size, config.hidden_size, config.attention_bias)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs, rope: &Rope, mask: &Mask) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let qkv = self.qkv.forward(pass, &xs)?;
            let mixed = self.attention.forward(pass, qkv, Some(rope), mask)?;
            self.o_proj.forward(pass, &mixed)
        })
    }
}

struct Block {
    path: String,
    input_layernorm: RmsNorm,
    self_attn: SelfAttention,
    post_attention_layernorm: RmsNorm,
    mlp: GatedMlp,
    residual_multiplier: f64,
}

impl Block {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        let norm = |name: &str| RmsNorm::load(&weights.pp(name), config.hidden_size, config.rms_norm_eps);
        Ok(Self {
            path: weights.path().to_owned(),
            input_layernorm: norm("input_layernorm")?,
            self_attn: SelfAttention::load(config, &weights.pp("self_attn"), layer)?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: GatedMlp::load(
                &weights.pp("mlp"),
                config.hidden_size,
                config.intermediate_size,
                config.hidden_act,
                config.mlp_bias,
            )?,
            residual_multiplier: config.residual_multiplier,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: Xs, rope: &Rope, mask: &Mask) -> Result<Xs> {
        pass.module(&self.path, xs, |pass, xs| {
            let h = self.input_layernorm.forward(pass, &xs)?;
            let h = self.self_attn.forward(pass, &h, rope, mask)?;
            let xs = add(xs, scale(h, self.residual_multiplier)?)?;
            let h = self.post_attention_layernorm.forward(pass, &xs)?;
            let h = self.mlp.forward(pass, &h)?;
            add(xs, scale(h, self.residual_multiplier)?)
        })
    }
}

struct Granite {
    embedding_multiplier: f64,
    logits_scaling: f64,
    path: String,
    embed_tokens: Embedding,
    layers: Vec<Block>,
    norm: RmsNorm,
    rotary_emb: RotaryEmbedding,
    lm_head: Option<Linear>,
}

pub(crate) fn build(config: &ConfigReader, weights: &Weights, task: Option<Task>) -> Result<Box<dyn Model>> {
    let config = Config::read(config)?;
    let (inner, has_head) = match task.unwrap_or(Task::CausalLm) {
        Task::CausalLm => (weights.pp("model"), true),
        Task::HiddenStates => (weights.clone(), false),
        task => return Err(unknown_head("granite", task)),
    };
    let embed_tokens = Embedding::load(&inner.pp("embed_tokens"), config.vocab_size, config.hidden_size)?;
    let lm_head =
        has_head.then(|| Linear::lm_head(weights, &embed_tokens, config.tie_word_embeddings)).transpose()?;
    let layers = inner.pp("layers");
    Ok(Box::new(Granite {
        embedding_multiplier: config.embedding_multiplier,
        logits_scaling: config.logits_scaling,
        path: inner.path().to_owned(),
        embed_tokens,
        layers: (0..config.num_hidden_layers)
            .map(|layer| Block::load(&config, &layers.pp(layer), layer))
            .collect::<Result<_>>()?,
        norm: RmsNorm::load(&inner.pp("norm"), config.hidden_size, config.rms_norm_eps)?,
        rotary_emb: RotaryEmbedding::new(config.rope, config.head_dim),
        lm_head,
    }))
}

impl Model for Granite {
    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        let ids = Xs::from(pass.input_ids().clone());
        let xs = pass.module(&self.path, ids, |pass, ids| {
            let xs = self.embed_tokens.forward(pass, &ids)?;
            let mut xs = scale(xs, self.embedding_multiplier)?;
            let rope = self.rotary_emb.forward(pass)?;
            let mask = Mask::causal(pass, None)?;
            for layer in &self.layers {
                xs = layer.forward(pass, xs, &rope, &mask)?;
            }
            self.norm.forward(pass, &xs)
        })?;
        match &self.lm_head {
            Some(lm_head) => divide(lm_head.forward(pass, &xs)?, self.logits_scaling),
            None => Ok(xs),
        }
    }
}
