//! Qwen3 with experts: a norm over each head of q and k, and in most layers a mixture of experts instead of the MLP
//! (transformers 5.23.0, `models/qwen3_moe/modeling_qwen3_moe.py` and `configuration_qwen3_moe.py`).

use crate::config::ConfigReader;
use crate::error::Result;
use crate::layers::{
    Activation, Attention, DecoderBody, DecoderEnds, Embedding, ExpertsConfig, GatedMlp, Joined, Linear,
    Mask, RmsNorm, Rope, RopeParameters, RotaryEmbedding, RouterScores, SparseMoe, residual,
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
    rms_norm_eps: f64,
    rope: RopeParameters,
    attention_bias: bool,
    /// The window of every layer; `None` means full attention.
    sliding_window: Option<usize>,
    experts: ExpertsConfig,
    decoder_sparse_step: usize,
    mlp_only_layers: Vec<f64>,
    tie_word_embeddings: bool,
}

impl Config {
    fn read(config: &ConfigReader) -> Result<Self> {
        let hidden_size = config.usize_or("hidden_size", 2048)?;
        let num_attention_heads = config.usize_or("num_attention_heads", 32)?;
        let max_position_embeddings = config.usize_or("max_position_embeddings", 32768)?;
        let hidden_act = Activation::read(config, "hidden_act", "silu")?;
        let sliding_window = config.nullable_usize("sliding_window", 4096)?;
        let windowed = config.bool_or("use_sliding_window", false)?;
        if !windowed {
            // transformers 5.23.0 does not read the key, earlier releases do; without a window it has no effect.
            let _ = config.value("max_window_layers");
        }
        // `attribute_map` of `Qwen3MoeConfig` maps one key name to the other.
        let num_experts = match config.optional_usize("num_local_experts")? {
            Some(num_experts) => num_experts,
            None => config.usize_or("num_experts", 128)?,
        };
        Ok(Self {
            vocab_size: config.usize_or("vocab_size", 151_936)?,
            hidden_size,
            intermediate_size: config.usize_or("intermediate_size", 6144)?,
            num_hidden_layers: config.usize_or("num_hidden_layers", 24)?,
            num_attention_heads,
            num_key_value_heads: config.usize_or("num_key_value_heads", 4)?,
            head_dim: config.usize_or("head_dim", hidden_size / num_attention_heads)?,
            hidden_act,
            rms_norm_eps: config.f64_or("rms_norm_eps", 1e-6)?,
            rope: RopeParameters::read(config, 10_000.0, max_position_embeddings)?,
            attention_bias: config.bool_or("attention_bias", false)?,
            sliding_window: sliding_window.filter(|_| windowed),
            experts: ExpertsConfig {
                num_experts,
                num_experts_per_tok: config.usize_or("num_experts_per_tok", 8)?,
                hidden_size,
                intermediate_size: config.usize_or("moe_intermediate_size", 768)?,
                names: ["gate_proj", "up_proj", "down_proj"],
                act_fn: hidden_act,
                scores: if config.bool_or("norm_topk_prob", false)? {
                    RouterScores::Normalised
                } else {
                    RouterScores::Raw
                },
            },
            decoder_sparse_step: config.usize_or("decoder_sparse_step", 1)?,
            mlp_only_layers: config.optional_f64s("mlp_only_layers")?.unwrap_or_default(),
            tie_word_embeddings: config.bool_or("tie_word_embeddings", false)?,
        })
    }
}

struct SelfAttention {
    path: String,
    qkv: Joined<3>,
    /// Normalises each head over `head_dim`.
    q_norm: RmsNorm,
    /// Normalises each head over `head_dim`.
    k_norm: RmsNorm,
    attention: Attention,
    o_proj: Linear,
}

impl SelfAttention {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        let q_size = config.num_attention_heads * config.head_dim;
        let kv_size = config.num_key_value_heads * config.head_dim;
        let norm = |name: &str| RmsNorm::load(&weights.pp(name), config.head_dim, config.rms_norm_eps);
        Ok(Self {
            path: weights.path().to_owned(),
            qkv: Joined::load(
                weights,
                config.hidden_size,
                [("q_proj", q_size), ("k_proj", kv_size), ("v_proj", kv_size)],
                config.attention_bias,
            )?,
            q_norm: norm("q_norm")?,
            k_norm: norm("k_norm")?,
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
            let [q, k, v] = self.qkv.forward(pass, &xs)?;
            let q = self.q_norm.forward(pass, &q)?;
            let k = self.k_norm.forward(pass, &k)?;
            let mixed = self.attention.forward(pass, [q, k, v], Some(rope), mask)?;
            self.o_proj.forward(pass, &mixed)
        })
    }
}

enum Mlp {
    Dense(GatedMlp),
    Sparse(SparseMoe),
}

impl Mlp {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        let listed = config.mlp_only_layers.iter().any(|dense| (dense - layer as f64).abs() < 0.5);
        if listed
            || config.experts.num_experts == 0
            || !(layer + 1).is_multiple_of(config.decoder_sparse_step)
        {
            let (hidden, inner) = (config.hidden_size, config.intermediate_size);
            return Ok(Self::Dense(GatedMlp::load(weights, hidden, inner, config.hidden_act, false)?));
        }
        Ok(Self::Sparse(SparseMoe::load(weights, weights.path(), &config.experts)?))
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        match self {
            Self::Dense(mlp) => mlp.forward(pass, xs),
            Self::Sparse(moe) => moe.forward(pass, xs),
        }
    }
}

struct Block {
    path: String,
    input_layernorm: RmsNorm,
    self_attn: SelfAttention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

impl Block {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        let norm = |name: &str| RmsNorm::load(&weights.pp(name), config.hidden_size, config.rms_norm_eps);
        Ok(Self {
            path: weights.path().to_owned(),
            input_layernorm: norm("input_layernorm")?,
            self_attn: SelfAttention::load(config, &weights.pp("self_attn"), layer)?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: Mlp::load(config, &weights.pp("mlp"), layer)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: Xs, rope: &Rope, mask: &Mask) -> Result<Xs> {
        pass.module(&self.path, xs, |pass, xs| {
            let h = self.input_layernorm.forward(pass, &xs)?;
            let h = self.self_attn.forward(pass, &h, rope, mask)?;
            let xs = residual(pass, xs, h)?;
            let h = self.post_attention_layernorm.forward(pass, &xs)?;
            let h = self.mlp.forward(pass, &h)?;
            residual(pass, xs, h)
        })
    }
}

struct Qwen3Moe {
    ends: DecoderEnds,
    layers: Vec<Block>,
    rotary_emb: RotaryEmbedding,
    sliding_window: Option<usize>,
}

pub(crate) fn build(config: &ConfigReader, weights: &Weights, task: Option<Task>) -> Result<Box<dyn Model>> {
    let config = Config::read(config)?;
    let body = DecoderBody::new("qwen3_moe", "model", weights, task)?;
    let embed_tokens = Embedding::load(&body.pp("embed_tokens"), config.vocab_size, config.hidden_size)?;
    let norm = RmsNorm::load(&body.pp("norm"), config.hidden_size, config.rms_norm_eps)?;
    let lm_head = body.lm_head(&embed_tokens, config.tie_word_embeddings)?;
    Ok(Box::new(Qwen3Moe {
        ends: DecoderEnds::new(&body, embed_tokens, norm, lm_head),
        layers: body.layers("layers", config.num_hidden_layers, |weights, layer| {
            Block::load(&config, weights, layer)
        })?,
        rotary_emb: RotaryEmbedding::new(config.rope, config.head_dim),
        sliding_window: config.sliding_window,
    }))
}

impl Model for Qwen3Moe {
    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        self.ends.forward(pass, |pass, xs| {
            let rope = self.rotary_emb.forward(pass)?;
            let mask = Mask::causal(pass, self.sliding_window)?;
            self.layers.iter().try_fold(xs, |xs, layer| layer.forward(pass, xs, &rope, &mask))
        })
    }
}
