//! Phi: attention and MLP in parallel after one layer norm, biases in every layer, rope on a part of each head
//! (transformers 5.23.0, `models/phi/modeling_phi.py` and `configuration_phi.py`).

use crate::config::ConfigReader;
use crate::error::Result;
use crate::layers::{
    Activation, Attention, DecoderBody, DecoderEnds, Embedding, Joined, LayerNorm, Linear, Mask, Rope,
    RopeParameters, RotaryEmbedding, add,
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
    qk_layernorm: bool,
    tie_word_embeddings: bool,
}

impl Config {
    fn read(config: &ConfigReader) -> Result<Self> {
        let hidden_size = config.usize_or("hidden_size", 2048)?;
        let num_attention_heads = config.usize_or("num_attention_heads", 32)?;
        let max_position_embeddings = config.usize_or("max_position_embeddings", 2048)?;
        Ok(Self {
            vocab_size: config.usize_or("vocab_size", 51200)?,
            hidden_size,
            intermediate_size: config.usize_or("intermediate_size", 8192)?,
            num_hidden_layers: config.usize_or("num_hidden_layers", 24)?,
            num_attention_heads,
            num_key_value_heads: config.usize_or("num_key_value_heads", num_attention_heads)?,
            head_dim: config.usize_or("head_dim", hidden_size / num_attention_heads)?,
            hidden_act: Activation::read(config, "hidden_act", "gelu_new")?,
            layer_norm_eps: config.f64_or("layer_norm_eps", 1e-5)?,
            rope: RopeParameters::read_partial(config, 10_000.0, max_position_embeddings, 0.5)?,
            qk_layernorm: config.bool_or("qk_layernorm", false)?,
            tie_word_embeddings: config.bool_or("tie_word_embeddings", false)?,
        })
    }
}

struct SelfAttention {
    path: String,
    qkv: Joined<3>,
    /// Normalises each head over `head_dim`.
    q_layernorm: Option<LayerNorm>,
    /// Normalises each head over `head_dim`.
    k_layernorm: Option<LayerNorm>,
    attention: Attention,
    dense: Linear,
}

impl SelfAttention {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        let q_size = config.num_attention_heads * config.head_dim;
        let kv_size = config.num_key_value_heads * config.head_dim;
        let norm = |name: &str| {
            let load = || LayerNorm::load(&weights.pp(name), config.head_dim, config.layer_norm_eps, true);
            config.qk_layernorm.then(load).transpose()
        };
        Ok(Self {
            path: weights.path().to_owned(),
            qkv: Joined::load(
                weights,
                config.hidden_size,
                [("q_proj", q_size), ("k_proj", kv_size), ("v_proj", kv_size)],
                true,
            )?,
            q_layernorm: norm("q_layernorm")?,
            k_layernorm: norm("k_layernorm")?,
            attention: Attention {
                layer,
                num_heads: config.num_attention_heads,
                num_kv_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
                scale: (config.head_dim as f64).powf(-0.5),
                soft_cap: None,
            },
            dense: Linear::load(&weights.pp("dense"), q_size, config.hidden_size, true)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs, rope: &Rope, mask: &Mask) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let [mut q, mut k, v] = self.qkv.forward(pass, &xs)?;
            if let (Some(q_layernorm), Some(k_layernorm)) = (&self.q_layernorm, &self.k_layernorm) {
                q = q_layernorm.forward(pass, &q)?;
                k = k_layernorm.forward(pass, &k)?;
            }
            let mixed = self.attention.forward(pass, [q, k, v], Some(rope), mask)?;
            self.dense.forward(pass, &mixed)
        })
    }
}

struct Mlp {
    path: String,
    fc1: Linear,
    activation_fn: Activation,
    act_path: String,
    fc2: Linear,
}

impl Mlp {
    fn load(config: &Config, weights: &Weights) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            path: weights.path().to_owned(),
            fc1: Linear::load(&weights.pp("fc1"), hidden, inner, true)?,
            activation_fn: config.hidden_act,
            act_path: weights.pp("activation_fn").path().to_owned(),
            fc2: Linear::load(&weights.pp("fc2"), inner, hidden, true)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let h = self.fc1.forward(pass, &xs)?;
            let h = self.activation_fn.forward(pass, &self.act_path, &h)?;
            self.fc2.forward(pass, &h)
        })
    }
}

struct Block {
    path: String,
    input_layernorm: LayerNorm,
    self_attn: SelfAttention,
    mlp: Mlp,
}

impl Block {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        Ok(Self {
            path: weights.path().to_owned(),
            input_layernorm: LayerNorm::load(
                &weights.pp("input_layernorm"),
                config.hidden_size,
                config.layer_norm_eps,
                true,
            )?,
            self_attn: SelfAttention::load(config, &weights.pp("self_attn"), layer)?,
            mlp: Mlp::load(config, &weights.pp("mlp"))?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: Xs, rope: &Rope, mask: &Mask) -> Result<Xs> {
        pass.module(&self.path, xs, |pass, xs| {
            let h = self.input_layernorm.forward(pass, &xs)?;
            let attended = self.self_attn.forward(pass, &h, rope, mask)?;
            let h = self.mlp.forward(pass, &h)?;
            add(add(attended, h)?, xs)
        })
    }
}

struct Phi {
    ends: DecoderEnds,
    layers: Vec<Block>,
    rotary_emb: RotaryEmbedding,
}

pub(crate) fn build(config: &ConfigReader, weights: &Weights, task: Option<Task>) -> Result<Box<dyn Model>> {
    let config = Config::read(config)?;
    let body = DecoderBody::new("phi", "model", weights, task)?;
    let embed_tokens = Embedding::load(&body.pp("embed_tokens"), config.vocab_size, config.hidden_size)?;
    let final_layernorm =
        LayerNorm::load(&body.pp("final_layernorm"), config.hidden_size, config.layer_norm_eps, true)?;
    // Only the weight may be tied; the head always has its own bias.
    let lm_head = body
        .head_or("lm_head")
        .map(|weights| Linear::lm_head(&weights, &embed_tokens, config.tie_word_embeddings, true))
        .transpose()?;
    Ok(Box::new(Phi {
        ends: DecoderEnds::new(&body, embed_tokens, final_layernorm, lm_head),
        layers: body.layers("layers", config.num_hidden_layers, |weights, layer| {
            Block::load(&config, weights, layer)
        })?,
        rotary_emb: RotaryEmbedding::new(config.rope, config.head_dim),
    }))
}

impl Model for Phi {
    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        self.ends.forward(pass, |pass, xs| {
            let rope = self.rotary_emb.forward(pass)?;
            let mask = Mask::causal(pass, None)?;
            self.layers.iter().try_fold(xs, |xs, layer| layer.forward(pass, xs, &rope, &mask))
        })
    }
}
