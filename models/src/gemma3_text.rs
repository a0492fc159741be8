//! Gemma 3, text: norms before and after both halves of a block and over each head of q and k, windowed and full
//! layers that each have their own rope base, scaled embeddings (transformers 5.23.0,
//! `models/gemma3/modeling_gemma3.py` and `configuration_gemma3.py`).

use crate::config::ConfigReader;
use crate::error::Result;
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
    ropes: PerLayerType<RopeParameters>,
    attention_bias: bool,
    query_pre_attn_scalar: f64,
    sliding_window: Option<usize>,
    layer_types: Vec<LayerType>,
    final_logit_softcapping: Option<f64>,
    tie_word_embeddings: bool,
}

impl Config {
    fn read(config: &ConfigReader) -> Result<Self> {
        config.refuse_unless("use_bidirectional_attention", &false.into())?;
        let num_hidden_layers = config.usize_or("num_hidden_layers", 26)?;
        // Older configs give the period of full-attention layers instead of `layer_types`.
        let pattern = config.usize_or("sliding_window_pattern", 6)?;
        let layer_types = LayerType::read(config, num_hidden_layers, |layer| {
            if (layer + 1) % pattern == 0 { LayerType::Full } else { LayerType::Sliding }
        })?;
        let sliding_window =
            if config.has("sliding_window") { config.optional_usize("sliding_window")? } else { Some(4096) };
        Ok(Self {
            vocab_size: config.usize_or("vocab_size", 262_208)?,
            hidden_size: config.usize_or("hidden_size", 2304)?,
            intermediate_size: config.usize_or("intermediate_size", 9216)?,
            num_hidden_layers,
            num_attention_heads: config.usize_or("num_attention_heads", 8)?,
            num_key_value_heads: config.usize_or("num_key_value_heads", 4)?,
            head_dim: config.usize_or("head_dim", 256)?,
            hidden_activation: Activation::read(config, "hidden_activation", "gelu_pytorch_tanh")?,
            rms_norm_eps: config.f64_or("rms_norm_eps", 1e-6)?,
            ropes: ropes(config)?,
            attention_bias: config.bool_or("attention_bias", false)?,
            query_pre_attn_scalar: config.f64_or("query_pre_attn_scalar", 256.0)?,
            sliding_window,
            layer_types,
            final_logit_softcapping: config.optional_f64("final_logit_softcapping")?,
            tie_word_embeddings: config.bool_or("tie_word_embeddings", true)?,
        })
    }
}

/// transformers 5 has one object per layer type. transformers 4 has `rope_theta` and `rope_scaling` for full
/// attention and `rope_local_base_freq` for windowed attention (`Gemma3TextConfig.convert_rope_params_to_dict`).
fn ropes(config: &ConfigReader) -> Result<PerLayerType<RopeParameters>> {
    let max = config.usize_or("max_position_embeddings", 131_072)?;
    let full_theta = config.f64_or("rope_theta", 1_000_000.0)?;
    let sliding_theta = config.f64_or("rope_local_base_freq", 10_000.0)?;
    let none = ConfigReader::new(serde_json::Map::new());
    let nested = config.optional_object("rope_parameters")?.unwrap_or(none);
    let sliding = nested.optional_object("sliding_attention")?;
    Ok(PerLayerType {
        full: RopeParameters::read_either(config, &nested, "full_attention", full_theta, max)?,
        sliding: RopeParameters::read_object(config, sliding.as_ref(), sliding_theta, max)?,
    })
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
        let norm = |name: &str| RmsNorm::load_offset(&weights.pp(name), config.head_dim, config.rms_norm_eps);
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
                scale: config.query_pre_attn_scalar.powf(-0.5),
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

    fn forward(
        &self,
        pass: &mut Pass,
        xs: Xs,
        ropes: &PerLayerType<Rope>,
        masks: &PerLayerType<Mask>,
    ) -> Result<Xs> {
        let (rope, mask) = (ropes.get(self.layer_type), masks.get(self.layer_type));
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

struct Gemma3 {
    ends: DecoderEnds,
    layers: Vec<Block>,
    rotary_emb: PerLayerType<RotaryEmbedding>,
    sliding_window: Option<usize>,
}

pub(crate) fn build(config: &ConfigReader, weights: &Weights, task: Option<Task>) -> Result<Box<dyn Model>> {
    let config = Config::read(config)?;
    let body = DecoderBody::new("gemma3_text", "model", weights, task)?;
    let embed_tokens = Embedding::load(&body.pp("embed_tokens"), config.vocab_size, config.hidden_size)?
        .scaled_by((config.hidden_size as f64).sqrt())?;
    let norm = RmsNorm::load_offset(&body.pp("norm"), config.hidden_size, config.rms_norm_eps)?;
    let lm_head = body.lm_head(&embed_tokens, config.tie_word_embeddings)?;
    Ok(Box::new(Gemma3 {
        ends: DecoderEnds::new(&body, embed_tokens, norm, lm_head)
            .final_logit_softcapping(config.final_logit_softcapping),
        layers: body.layers("layers", config.num_hidden_layers, |weights, layer| {
            Block::load(&config, weights, layer)
        })?,
        rotary_emb: PerLayerType {
            full: RotaryEmbedding::new(config.ropes.full, config.head_dim),
            sliding: RotaryEmbedding::new(config.ropes.sliding, config.head_dim),
        },
        sliding_window: config.sliding_window,
    }))
}

impl Model for Gemma3 {
    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        self.ends.forward(pass, |pass, xs| {
            let ropes = PerLayerType {
                full: self.rotary_emb.full.forward(pass)?,
                sliding: self.rotary_emb.sliding.forward(pass)?,
            };
            let masks = PerLayerType::causal(pass, self.sliding_window)?;
            self.layers.iter().try_fold(xs, |xs, layer| layer.forward(pass, xs, &ropes, &masks))
        })
    }
}
