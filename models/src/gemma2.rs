//! Gemma 2: norms before and after both halves of a block, alternating windowed and full layers, soft-capped scores
//! and logits, scaled embeddings (transformers 5.23.0, `models/gemma2/modeling_gemma2.py` and
//! `configuration_gemma2.py`).

use crate::config::ConfigReader;
use crate::error::{Error, Result};
use crate::layers::{
    Activation, Attention, DecoderBody, DecoderEnds, Embedding, GatedMlp, Joined, LayerType, Linear, Mask,
    PerLayerType, RmsNorm, Rope, RopeParameters, RotaryEmbedding, add,
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
    hidden_activation: Activation,
    rms_norm_eps: f64,
    rope: RopeParameters,
    attention_bias: bool,
    query_pre_attn_scalar: f64,
    sliding_window: Option<usize>,
    layer_types: Vec<LayerType>,
    attn_logit_softcapping: Option<f64>,
    final_logit_softcapping: Option<f64>,
    tie_word_embeddings: bool,
}

impl Config {
    fn read(config: &ConfigReader) -> Result<Self> {
        config.refuse_unless("use_bidirectional_attention", &false.into())?;
        let num_hidden_layers = config.usize_or("num_hidden_layers", 26)?;
        let max_position_embeddings = config.usize_or("max_position_embeddings", 8192)?;
        let layer_types = LayerType::read(config, num_hidden_layers, |layer| {
            if layer % 2 == 0 { LayerType::Sliding } else { LayerType::Full }
        })?;
        let sliding_window = config.nullable_usize("sliding_window", 4096)?;
        if sliding_window.is_none() && layer_types.contains(&LayerType::Sliding) {
            return Err(Error::MissingKey { key: "sliding_window".to_owned() });
        }
        Ok(Self {
            vocab_size: config.usize_or("vocab_size", 256_000)?,
            hidden_size: config.usize_or("hidden_size", 2304)?,
            intermediate_size: config.usize_or("intermediate_size", 9216)?,
            num_hidden_layers,
            num_attention_heads: config.usize_or("num_attention_heads", 8)?,
            num_key_value_heads: config.usize_or("num_key_value_heads", 4)?,
            head_dim: config.usize_or("head_dim", 256)?,
            hidden_activation: hidden_activation(config)?,
            rms_norm_eps: config.f64_or("rms_norm_eps", 1e-6)?,
            rope: RopeParameters::read(config, 10_000.0, max_position_embeddings)?,
            attention_bias: config.bool_or("attention_bias", false)?,
            query_pre_attn_scalar: config.f64_or("query_pre_attn_scalar", 256.0)?,
            sliding_window,
            layer_types,
            attn_logit_softcapping: config.nullable_f64("attn_logit_softcapping", 50.0)?,
            final_logit_softcapping: config.nullable_f64("final_logit_softcapping", 30.0)?,
            tie_word_embeddings: config.bool_or("tie_word_embeddings", true)?,
        })
    }
}

/// The first releases with this architecture read `hidden_act`, which 5.23.0 ignores, so both keys must have the same
/// value.
fn hidden_activation(config: &ConfigReader) -> Result<Activation> {
    let act = Activation::read(config, "hidden_activation", "gelu_pytorch_tanh")?;
    match config.optional_str("hidden_act")? {
        Some(name) if Activation::read(config, "hidden_act", name)? != act => {
            Err(config.unknown("hidden_act", &name.into()))
        }
        _ => Ok(act),
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
                scale: config.query_pre_attn_scalar.powf(-0.5),
                soft_cap: config.attn_logit_softcapping,
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
    layer_type: LayerType,
    input_layernorm: RmsNorm,
    self_attn: SelfAttention,
    post_attention_layernorm: RmsNorm,
    pre_feedforward_layernorm: RmsNorm,
    mlp: GatedMlp,
    post_feedforward_layernorm: RmsNorm,
}

impl Block {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        let norm =
            |name: &str| RmsNorm::load_offset(&weights.pp(name), config.hidden_size, config.rms_norm_eps);
        Ok(Self {
            path: weights.path().to_owned(),
            layer_type: config.layer_types[layer],
            input_layernorm: norm("input_layernorm")?,
            self_attn: SelfAttention::load(config, &weights.pp("self_attn"), layer)?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            pre_feedforward_layernorm: norm("pre_feedforward_layernorm")?,
            mlp: GatedMlp::load(
                &weights.pp("mlp"),
                config.hidden_size,
                config.intermediate_size,
                config.hidden_activation,
                false,
            )?,
            post_feedforward_layernorm: norm("post_feedforward_layernorm")?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: Xs, rope: &Rope, masks: &PerLayerType<Mask>) -> Result<Xs> {
        let mask = masks.get(self.layer_type);
        pass.module(&self.path, xs, |pass, xs| {
            let h = self.input_layernorm.forward(pass, &xs)?;
            let h = self.self_attn.forward(pass, &h, rope, mask)?;
            let h = self.post_attention_layernorm.forward(pass, &h)?;
            let xs = add(xs, h)?;
            let h = self.pre_feedforward_layernorm.forward(pass, &xs)?;
            let h = self.mlp.forward(pass, &h)?;
            let h = self.post_feedforward_layernorm.forward(pass, &h)?;
            add(xs, h)
        })
    }
}

struct Gemma2 {
    ends: DecoderEnds,
    layers: Vec<Block>,
    rotary_emb: RotaryEmbedding,
    sliding_window: Option<usize>,
}

pub(crate) fn build(config: &ConfigReader, weights: &Weights, task: Option<Task>) -> Result<Box<dyn Model>> {
    let config = Config::read(config)?;
    let body = DecoderBody::new("gemma2", "model", weights, task)?;
    let embed_tokens = Embedding::load(&body.pp("embed_tokens"), config.vocab_size, config.hidden_size)?
        .scaled_by((config.hidden_size as f64).sqrt())?;
    let norm = RmsNorm::load_offset(&body.pp("norm"), config.hidden_size, config.rms_norm_eps)?;
    let lm_head = body.lm_head(&embed_tokens, config.tie_word_embeddings)?;
    Ok(Box::new(Gemma2 {
        ends: DecoderEnds::new(&body, embed_tokens, norm, lm_head)
            .final_logit_softcapping(config.final_logit_softcapping),
        layers: body.layers("layers", config.num_hidden_layers, |weights, layer| {
            Block::load(&config, weights, layer)
        })?,
        rotary_emb: RotaryEmbedding::new(config.rope, config.head_dim),
        sliding_window: config.sliding_window,
    }))
}

impl Model for Gemma2 {
    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        self.ends.forward(pass, |pass, xs| {
            let rope = self.rotary_emb.forward(pass)?;
            let masks = PerLayerType::causal(pass, self.sliding_window)?;
            self.layers.iter().try_fold(xs, |xs, layer| layer.forward(pass, xs, &rope, &masks))
        })
    }
}
