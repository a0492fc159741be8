//! Qwen2: llama with biases on q, k and v, and a sliding window in the layers from `max_window_layers` on
//! (transformers 5.23.0, `models/qwen2/modeling_qwen2.py` and `configuration_qwen2.py`).

use crate::config::ConfigReader;
use crate::error::Result;
use crate::layers::{
    Activation, Attention, DecoderBody, DecoderEnds, Embedding, GatedMlp, Joined, LayerType, Linear, Mask,
    PerLayerType, RmsNorm, Rope, RopeParameters, RotaryEmbedding, residual,
};
use crate::model::{Model, Task};
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::Xs;

/// Of this decoder, also inside of [Qwen2-VL](crate::qwen2_vl).
pub(crate) struct Config {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) num_key_value_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) hidden_act: Activation,
    pub(crate) rms_norm_eps: f64,
    pub(crate) rope: RopeParameters,
    pub(crate) sliding_window: Option<usize>,
    pub(crate) layer_types: Vec<LayerType>,
    pub(crate) tie_word_embeddings: bool,
}

impl Config {
    fn read(config: &ConfigReader) -> Result<Self> {
        let hidden_size = config.usize_or("hidden_size", 4096)?;
        let num_attention_heads = config.usize_or("num_attention_heads", 32)?;
        let num_hidden_layers = config.usize_or("num_hidden_layers", 32)?;
        let max_position_embeddings = config.usize_or("max_position_embeddings", 32768)?;
        let (sliding_window, layer_types) = LayerType::read_last_layers(config, num_hidden_layers, 28)?;
        Ok(Self {
            vocab_size: config.usize_or("vocab_size", 151_936)?,
            hidden_size,
            intermediate_size: config.usize_or("intermediate_size", 22016)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: config.usize_or("num_key_value_heads", 32)?,
            head_dim: config.usize_or("head_dim", hidden_size / num_attention_heads)?,
            hidden_act: Activation::read(config, "hidden_act", "silu")?,
            rms_norm_eps: config.f64_or("rms_norm_eps", 1e-6)?,
            rope: RopeParameters::read(config, 10_000.0, max_position_embeddings)?,
            sliding_window,
            layer_types,
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
                true,
            )?,
            attention: Attention {
                layer,
                num_heads: config.num_attention_heads,
                num_kv_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
                scale: (config.head_dim as f64).powf(-0.5),
                soft_cap: None,
            },
            o_proj: Linear::load(&weights.pp("o_proj"), q_size, config.hidden_size, false)?,
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

pub(crate) struct Block {
    path: String,
    layer_type: LayerType,
    input_layernorm: RmsNorm,
    self_attn: SelfAttention,
    post_attention_layernorm: RmsNorm,
    mlp: GatedMlp,
}

impl Block {
    pub(crate) fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        let norm = |name: &str| RmsNorm::load(&weights.pp(name), config.hidden_size, config.rms_norm_eps);
        Ok(Self {
            path: weights.path().to_owned(),
            layer_type: config.layer_types[layer],
            input_layernorm: norm("input_layernorm")?,
            self_attn: SelfAttention::load(config, &weights.pp("self_attn"), layer)?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: GatedMlp::load(
                &weights.pp("mlp"),
                config.hidden_size,
                config.intermediate_size,
                config.hidden_act,
                false,
            )?,
        })
    }

    pub(crate) fn forward(
        &self,
        pass: &mut Pass,
        xs: Xs,
        rope: &Rope,
        masks: &PerLayerType<Mask>,
    ) -> Result<Xs> {
        let mask = masks.get(self.layer_type);
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

struct Qwen2 {
    ends: DecoderEnds,
    layers: Vec<Block>,
    rotary_emb: RotaryEmbedding,
    sliding_window: Option<usize>,
}

pub(crate) fn build(config: &ConfigReader, weights: &Weights, task: Option<Task>) -> Result<Box<dyn Model>> {
    let config = Config::read(config)?;
    let body = DecoderBody::new("qwen2", "model", weights, task)?;
    let embed_tokens = Embedding::load(&body.pp("embed_tokens"), config.vocab_size, config.hidden_size)?;
    let norm = RmsNorm::load(&body.pp("norm"), config.hidden_size, config.rms_norm_eps)?;
    let lm_head = body.lm_head(&embed_tokens, config.tie_word_embeddings)?;
    Ok(Box::new(Qwen2 {
        ends: DecoderEnds::new(&body, embed_tokens, norm, lm_head),
        layers: body.layers("layers", config.num_hidden_layers, |weights, layer| {
            Block::load(&config, weights, layer)
        })?,
        rotary_emb: RotaryEmbedding::new(config.rope, config.head_dim),
        sliding_window: config.sliding_window,
    }))
}

impl Model for Qwen2 {
    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        self.ends.forward(pass, |pass, xs| {
            let rope = self.rotary_emb.forward(pass)?;
            let masks = PerLayerType::causal(pass, self.sliding_window)?;
            self.layers.iter().try_fold(xs, |xs, layer| layer.forward(pass, xs, &rope, &masks))
        })
    }
}
