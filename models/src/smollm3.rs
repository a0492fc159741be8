//! `SmolLM3`: llama in which every n-th layer has no rope and may have a sliding window (transformers 5.23.0,
//! `models/smollm3/modeling_smollm3.py` and `configuration_smollm3.py`).

use crate::config::ConfigReader;
use crate::error::{Error, Result};
use crate::layers::{
    Activation, Attention, DecoderBody, DecoderEnds, Embedding, GatedMlp, Joined, LayerType, Linear, Mask,
    PerLayerType, RmsNorm, Rope, RopeParameters, RotaryEmbedding, residual,
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
    /// For each layer, whether it uses rope. transformers' name suggests the opposite.
    no_rope_layers: Vec<bool>,
    sliding_window: Option<usize>,
    layer_types: Vec<LayerType>,
    attention_bias: bool,
    mlp_bias: bool,
    tie_word_embeddings: bool,
}

impl Config {
    fn read(config: &ConfigReader) -> Result<Self> {
        let hidden_size = config.usize_or("hidden_size", 2048)?;
        let num_attention_heads = config.usize_or("num_attention_heads", 16)?;
        let max_position_embeddings = config.usize_or("max_position_embeddings", 32768)?;
        let num_hidden_layers = config.usize_or("num_hidden_layers", 36)?;
        let no_rope_layers = no_rope_layers(config, num_hidden_layers)?;
        let sliding_window = config.optional_usize("sliding_window")?;
        let windowed = config.bool_or("use_sliding_window", false)? && sliding_window.is_some();
        let layer_types = LayerType::read(config, num_hidden_layers, |layer| {
            if windowed && !no_rope_layers[layer] { LayerType::Sliding } else { LayerType::Full }
        })?;
        if sliding_window.is_none() && layer_types.contains(&LayerType::Sliding) {
            return Err(Error::MissingKey { key: "sliding_window".to_owned() });
        }
        Ok(Self {
            vocab_size: config.usize_or("vocab_size", 128_256)?,
            hidden_size,
            intermediate_size: config.usize_or("intermediate_size", 11008)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: config
                .nullable_usize("num_key_value_heads", 4)?
                .unwrap_or(num_attention_heads),
            head_dim: config.usize_or("head_dim", hidden_size / num_attention_heads)?,
            hidden_act: Activation::read(config, "hidden_act", "silu")?,
            rms_norm_eps: config.f64_or("rms_norm_eps", 1e-6)?,
            rope: RopeParameters::read(config, 2_000_000.0, max_position_embeddings)?,
            no_rope_layers,
            sliding_window,
            layer_types,
            attention_bias: config.bool_or("attention_bias", false)?,
            mlp_bias: config.bool_or("mlp_bias", false)?,
            tie_word_embeddings: config.bool_or("tie_word_embeddings", true)?,
        })
    }
}

/// For each layer, whether it uses rope: `no_rope_layers` (1 with rope, 0 without); if that key is absent, every
/// layer except each `no_rope_layer_interval`-th.
fn no_rope_layers(config: &ConfigReader, num_hidden_layers: usize) -> Result<Vec<bool>> {
    let interval = config.usize_or("no_rope_layer_interval", 4)?;
    let Some(layers) = config.optional_f64s("no_rope_layers")? else {
        return Ok((1..=num_hidden_layers).map(|layer| !layer.is_multiple_of(interval)).collect());
    };
    if layers.len() != num_hidden_layers {
        return Err(Error::UnknownValue {
            key: "no_rope_layers".to_owned(),
            value: format!("{} entries for {num_hidden_layers} layers", layers.len()),
        });
    }
    Ok(layers.into_iter().map(|rotates| rotates.abs() > 0.0).collect())
}

struct SelfAttention {
    path: String,
    use_rope: bool,
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
            use_rope: config.no_rope_layers[layer],
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
                scale: (config.head_dim as f64).powf(-0.5),
                soft_cap: None,
            },
            o_proj: Linear::load(&weights.pp("o_proj"), q_size, config.hidden_size, config.attention_bias)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs, rope: &Rope, mask: &Mask) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let qkv = self.qkv.forward(pass, &xs)?;
            let rope = self.use_rope.then_some(rope);
            let mixed = self.attention.forward(pass, qkv, rope, mask)?;
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
    mlp: GatedMlp,
}

impl Block {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
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
                config.mlp_bias,
            )?,
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

struct SmolLm3 {
    ends: DecoderEnds,
    layers: Vec<Block>,
    rotary_emb: RotaryEmbedding,
    sliding_window: Option<usize>,
}

pub(crate) fn build(config: &ConfigReader, weights: &Weights, task: Option<Task>) -> Result<Box<dyn Model>> {
    let config = Config::read(config)?;
    let body = DecoderBody::new("smollm3", "model", weights, task)?;
    let embed_tokens = Embedding::load(&body.pp("embed_tokens"), config.vocab_size, config.hidden_size)?;
    let norm = RmsNorm::load(&body.pp("norm"), config.hidden_size, config.rms_norm_eps)?;
    let lm_head = body.lm_head(&embed_tokens, config.tie_word_embeddings)?;
    Ok(Box::new(SmolLm3 {
        ends: DecoderEnds::new(&body, embed_tokens, norm, lm_head),
        layers: body.layers("layers", config.num_hidden_layers, |weights, layer| {
            Block::load(&config, weights, layer)
        })?,
        rotary_emb: RotaryEmbedding::new(config.rope, config.head_dim),
        sliding_window: config.sliding_window,
    }))
}

impl Model for SmolLm3 {
    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        self.ends.forward(pass, |pass, xs| {
            let rope = self.rotary_emb.forward(pass)?;
            let masks = PerLayerType::causal(pass, self.sliding_window)?;
            self.layers
                .iter()
                .try_fold(xs, |xs, layer| layer.forward(pass, xs, &rope, masks.get(layer.layer_type)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fourth_layer_has_no_rope_unless_no_rope_layers_is_set() {
        let read = |json: &str| {
            let config = ConfigReader::new(serde_json::from_str(json).unwrap());
            no_rope_layers(&config, 5)
        };
        assert_eq!(read("{}").unwrap(), [true, true, true, false, true]);
        assert_eq!(read(r#"{"no_rope_layers": [0, 1, 0, 1, 1]}"#).unwrap(), [false, true, false, true, true]);
        assert!(read(r#"{"no_rope_layers": [0, 1]}"#).is_err());
    }
}
