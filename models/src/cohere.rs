//! Cohere (Command R): attention and MLP in parallel after one layer norm without bias, rope on neighbouring
//! dimensions, scaled logits (transformers 5.23.0, `models/cohere/modeling_cohere.py` and `configuration_cohere.py`).

use crate::config::ConfigReader;
use crate::error::Result;
use crate::layers::{
    Activation, Attention, DecoderBody, DecoderEnds, Embedding, GatedMlp, Joined, LayerNorm, Linear, Mask,
    Rope, RopeParameters, RotaryEmbedding, Rotation, add,
};
use crate::model::{Model, Task};
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::Xs;

struct Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    hidden_act: Activation,
    layer_norm_eps: f64,
    rope: RopeParameters,
    attention_bias: bool,
    use_qk_norm: bool,
    logit_scale: f64,
    tie_word_embeddings: bool,
}

impl Config {
    fn read(config: &ConfigReader) -> Result<Self> {
        let hidden_size = config.usize_or("hidden_size", 8192)?;
        let num_attention_heads = config.usize_or("num_attention_heads", 64)?;
        let max_position_embeddings = config.usize_or("max_position_embeddings", 8192)?;
        Ok(Self {
            vocab_size: config.usize_or("vocab_size", 256_000)?,
            hidden_size,
            intermediate_size: config.usize_or("intermediate_size", 22528)?,
            num_hidden_layers: config.usize_or("num_hidden_layers", 40)?,
            num_attention_heads,
            num_key_value_heads: config.usize_or("num_key_value_heads", num_attention_heads)?,
            head_dim: config.usize_or("head_dim", hidden_size / num_attention_heads)?,
            hidden_act: Activation::read(config, "hidden_act", "silu")?,
            layer_norm_eps: config.f64_or("layer_norm_eps", 1e-5)?,
            rope: RopeParameters::read(config, 500_000.0, max_position_embeddings)?,
            attention_bias: config.bool_or("attention_bias", false)?,
            use_qk_norm: config.bool_or("use_qk_norm", false)?,
            logit_scale: config.f64_or("logit_scale", 0.0625)?,
            tie_word_embeddings: config.bool_or("tie_word_embeddings", true)?,
        })
    }
}

struct SelfAttention {
    path: String,
    qkv: Joined<3>,
    /// One norm per query head.
    q_norm: Option<LayerNorm>,
    /// One norm per key head.
    k_norm: Option<LayerNorm>,
    attention: Attention,
    o_proj: Linear,
}

impl SelfAttention {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        let q_size = config.num_attention_heads * config.head_dim;
        let kv_size = config.num_key_value_heads * config.head_dim;
        let norm = |name: &str, heads| {
            let load =
                || LayerNorm::load_heads(&weights.pp(name), heads, config.head_dim, config.layer_norm_eps);
            config.use_qk_norm.then(load).transpose()
        };
        Ok(Self {
            path: weights.path().to_owned(),
            qkv: Joined::load(
                weights,
                config.hidden_size,
                [("q_proj", q_size), ("k_proj", kv_size), ("v_proj", kv_size)],
                config.attention_bias,
            )?,
            q_norm: norm("q_norm", config.num_attention_heads)?,
            k_norm: norm("k_norm", config.num_key_value_heads)?,
            attention: Attention {
                layer,
                num_heads: config.num_attention_heads,
                num_kv_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
                scale: (config.head_dim as f64).powf(-0.5),
                soft_cap: None,
            },
            o_proj: Linear::load(&weights.pp("o_proj"), q_size, config.hidden_size, config.attention_bias)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs, rope: &Rope, mask: &Mask) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let [mut q, mut k, v] = self.qkv.forward(pass, &xs)?;
            if let (Some(q_norm), Some(k_norm)) = (&self.q_norm, &self.k_norm) {
                q = q_norm.forward(pass, &q)?;
                k = k_norm.forward(pass, &k)?;
            }
            let mixed = self.attention.forward(pass, [q, k, v], Some(rope), mask)?;
            self.o_proj.forward(pass, &mixed)
        })
    }
}

struct Block {
    path: String,
    input_layernorm: LayerNorm,
    self_attn: SelfAttention,
    mlp: GatedMlp,
}

impl Block {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        Ok(Self {
            path: weights.path().to_owned(),
            input_layernorm: LayerNorm::load(
                &weights.pp("input_layernorm"),
                config.hidden_size,
                config.layer_norm_eps,
                false,
            )?,
            self_attn: SelfAttention::load(config, &weights.pp("self_attn"), layer)?,
            mlp: GatedMlp::load(
                &weights.pp("mlp"),
                config.hidden_size,
                config.intermediate_size,
                config.hidden_act,
                false,
            )?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: Xs, rope: &Rope, mask: &Mask) -> Result<Xs> {
        pass.module(&self.path, xs, |pass, xs| {
            let h = self.input_layernorm.forward(pass, &xs)?;
            let attended = self.self_attn.forward(pass, &h, rope, mask)?;
            let h = self.mlp.forward(pass, &h)?;
            add(add(xs, attended)?, h)
        })
    }
}

struct Cohere {
    ends: DecoderEnds,
    layers: Vec<Block>,
    rotary_emb: RotaryEmbedding,
}

pub(crate) fn build(config: &ConfigReader, weights: &Weights, task: Option<Task>) -> Result<Box<dyn Model>> {
    let config = Config::read(config)?;
    let body = DecoderBody::new("cohere", "model", weights, task)?;
    let embed_tokens = Embedding::load(&body.pp("embed_tokens"), config.vocab_size, config.hidden_size)?;
    let norm = LayerNorm::load(&body.pp("norm"), config.hidden_size, config.layer_norm_eps, false)?;
    let lm_head = body.lm_head(&embed_tokens, config.tie_word_embeddings)?;
    Ok(Box::new(Cohere {
        ends: DecoderEnds::new(&body, embed_tokens, norm, lm_head).logit_scale(config.logit_scale),
        layers: body.layers("layers", config.num_hidden_layers, |weights, layer| {
            Block::load(&config, weights, layer)
        })?,
        rotary_emb: RotaryEmbedding::new(config.rope, config.head_dim)
            .interleaved()
            .rotating(Rotation::RoundedTables),
    }))
}

impl Model for Cohere {
    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        self.ends.forward(pass, |pass, xs| {
            let rope = self.rotary_emb.forward(pass)?;
            let mask = Mask::causal(pass, None)?;
            self.layers.iter().try_fold(xs, |xs, layer| layer.forward(pass, xs, &rope, &mask))
        })
    }
}
