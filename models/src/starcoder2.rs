//! `StarCoder2`: llama with layer norms, biases, an MLP without gate, and a sliding window (transformers 5.23.0,
//! `models/starcoder2/modeling_starcoder2.py` and `configuration_starcoder2.py`).

use crate::config::ConfigReader;
use crate::error::Result;
use crate::layers::{
    Activation, Attention, DecoderBody, DecoderEnds, Embedding, Joined, LayerNorm, Linear, Mask, Rope,
    RopeParameters, RotaryEmbedding, residual,
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
    norm_epsilon: f64,
    rope: RopeParameters,
    /// The window of every layer; `None` means full attention.
    sliding_window: Option<usize>,
    /// Whether every linear layer except the head has a bias.
    use_bias: bool,
    tie_word_embeddings: bool,
}

impl Config {
    fn read(config: &ConfigReader) -> Result<Self> {
        // The first configs have these keys, which no release reads. Only the values that match this architecture are
        // accepted.
        config.refuse_unless("norm_type", &"layer_norm".into())?;
        config.refuse_unless("mlp_type", &"default".into())?;
        let hidden_size = config.usize_or("hidden_size", 3072)?;
        let num_attention_heads = config.usize_or("num_attention_heads", 24)?;
        let max_position_embeddings = config.usize_or("max_position_embeddings", 4096)?;
        Ok(Self {
            vocab_size: config.usize_or("vocab_size", 49152)?,
            hidden_size,
            intermediate_size: config.usize_or("intermediate_size", 12288)?,
            num_hidden_layers: config.usize_or("num_hidden_layers", 30)?,
            num_attention_heads,
            num_key_value_heads: config.usize_or("num_key_value_heads", 2)?,
            head_dim: config.usize_or("head_dim", hidden_size / num_attention_heads)?,
            hidden_act: Activation::read(config, "hidden_act", "gelu_pytorch_tanh")?,
            norm_epsilon: config.f64_or("norm_epsilon", 1e-5)?,
            rope: RopeParameters::read(config, 10_000.0, max_position_embeddings)?,
            sliding_window: config.optional_usize("sliding_window")?,
            use_bias: config.bool_or("use_bias", true)?,
            tie_word_embeddings: config.bool_or("tie_word_embeddings", true)?,
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
                config.use_bias,
            )?,
            attention: Attention {
                layer,
                num_heads: config.num_attention_heads,
                num_kv_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
                scale: (config.head_dim as f64).powf(-0.5),
                soft_cap: None,
            },
            o_proj: Linear::load(&weights.pp("o_proj"), q_size, config.hidden_size, config.use_bias)?,
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

struct Mlp {
    path: String,
    c_fc: Linear,
    act: Activation,
    act_path: String,
    c_proj: Linear,
}

impl Mlp {
    fn load(config: &Config, weights: &Weights) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            path: weights.path().to_owned(),
            c_fc: Linear::load(&weights.pp("c_fc"), hidden, inner, config.use_bias)?,
            act: config.hidden_act,
            act_path: weights.pp("act").path().to_owned(),
            c_proj: Linear::load(&weights.pp("c_proj"), inner, hidden, config.use_bias)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let h = self.c_fc.forward(pass, &xs)?;
            let h = self.act.forward(pass, &self.act_path, &h)?;
            self.c_proj.forward(pass, &h)
        })
    }
}

struct Block {
    path: String,
    input_layernorm: LayerNorm,
    self_attn: SelfAttention,
    post_attention_layernorm: LayerNorm,
    mlp: Mlp,
}

impl Block {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        let norm =
            |name: &str| LayerNorm::load(&weights.pp(name), config.hidden_size, config.norm_epsilon, true);
        Ok(Self {
            path: weights.path().to_owned(),
            input_layernorm: norm("input_layernorm")?,
            self_attn: SelfAttention::load(config, &weights.pp("self_attn"), layer)?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: Mlp::load(config, &weights.pp("mlp"))?,
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

struct Starcoder2 {
    ends: DecoderEnds,
    layers: Vec<Block>,
    rotary_emb: RotaryEmbedding,
    sliding_window: Option<usize>,
}

pub(crate) fn build(config: &ConfigReader, weights: &Weights, task: Option<Task>) -> Result<Box<dyn Model>> {
    let config = Config::read(config)?;
    let body = DecoderBody::new("starcoder2", "model", weights, task)?;
    let embed_tokens = Embedding::load(&body.pp("embed_tokens"), config.vocab_size, config.hidden_size)?;
    let norm = LayerNorm::load(&body.pp("norm"), config.hidden_size, config.norm_epsilon, true)?;
    let lm_head = body.lm_head(&embed_tokens, config.tie_word_embeddings)?;
    Ok(Box::new(Starcoder2 {
        ends: DecoderEnds::new(&body, embed_tokens, norm, lm_head),
        layers: body.layers("layers", config.num_hidden_layers, |weights, layer| {
            Block::load(&config, weights, layer)
        })?,
        rotary_emb: RotaryEmbedding::new(config.rope, config.head_dim),
        sliding_window: config.sliding_window,
    }))
}

impl Model for Starcoder2 {
    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        self.ends.forward(pass, |pass, xs| {
            let rope = self.rotary_emb.forward(pass)?;
            let mask = Mask::causal(pass, self.sliding_window)?;
            self.layers.iter().try_fold(xs, |xs, layer| layer.forward(pass, xs, &rope, &mask))
        })
    }
}
