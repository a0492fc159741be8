//! Phi-3: llama with joined projections, a sliding window and long-context rope
//! (transformers 5.23.0, `models/phi3/modeling_phi3.py` and `configuration_phi3.py`).

use bounds::config::Refused;

use crate::config::ConfigReader;
use crate::error::{Error, Result};
use crate::layers::{
    Activation, Attention, DecoderBody, DecoderEnds, Embedding, Linear, Mask, RmsNorm, Rope, RopeParameters,
    RopeScaling, RotaryEmbedding, described, multiply, read_longrope, residual, split,
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
    /// The window of every layer; `None` means full attention.
    sliding_window: Option<usize>,
    tie_word_embeddings: bool,
}

impl Config {
    fn read(config: &ConfigReader) -> Result<Self> {
        let hidden_size = config.usize_or("hidden_size", 3072)?;
        let num_attention_heads = config.usize_or("num_attention_heads", 32)?;
        let head_dim = config.usize_or("head_dim", hidden_size / num_attention_heads)?;
        config.refuse_unless("attention_bias", &false.into())?;
        Ok(Self {
            vocab_size: config.usize_or("vocab_size", 32064)?,
            hidden_size,
            intermediate_size: config.usize_or("intermediate_size", 8192)?,
            num_hidden_layers: config.usize_or("num_hidden_layers", 32)?,
            num_attention_heads,
            num_key_value_heads: config.usize_or("num_key_value_heads", num_attention_heads)?,
            head_dim,
            hidden_act: Activation::read(config, "hidden_act", "silu")?,
            rms_norm_eps: config.f64_or("rms_norm_eps", 1e-5)?,
            rope: rope(config, head_dim)?,
            sliding_window: config.optional_usize("sliding_window")?,
            tie_word_embeddings: config.bool_or("tie_word_embeddings", false)?,
        })
    }
}

/// Reads `default` rope, or long-context factors under any of their past names (`Phi3Config`). The pretraining
/// context length is the top-level key; its default takes precedence over a nested key.
fn rope(config: &ConfigReader, head_dim: usize) -> Result<RopeParameters> {
    let max = config.usize_or("max_position_embeddings", 4096)?;
    let original = config.usize_or("original_max_position_embeddings", 4096)?;
    let Some(described) = described(config)? else {
        return RopeParameters::read_partial(config, 10_000.0, max, 1.0);
    };
    let key = if described.has("rope_type") { "rope_type" } else { "type" };
    let rope_type = described.str_or(key, "default")?;
    if rope_type == "default" {
        return RopeParameters::read_partial(config, 10_000.0, max, 1.0);
    }
    if !["longrope", "su", "yarn"].contains(&rope_type) {
        return Err(described.unknown(key, &rope_type.into()));
    }
    described.refuse_unless("original_max_position_embeddings", &original.into())?;
    let theta = config.f64_or("rope_theta", 10_000.0)?;
    let factor = config.f64_or("partial_rotary_factor", 1.0)?;
    let rope = RopeParameters {
        theta: described.f64_or("rope_theta", theta)?,
        scaling: read_longrope(&described, original, max)?,
        partial_rotary_factor: described.f64_or("partial_rotary_factor", factor)?,
        max_position_embeddings: max,
    };
    let pairs = (head_dim as f64 * rope.partial_rotary_factor) as usize / 2;
    if let RopeScaling::Longrope { short, long, .. } = &rope.scaling
        && (short.len() != pairs || long.len() != pairs)
    {
        let found = format!("{} and {} factors", short.len(), long.len());
        let needed = format!("a factor for each of {pairs} frequencies");
        return Err(Error::BadValue(Refused::described("rope_scaling", &found, needed)));
    }
    Ok(rope)
}

struct SelfAttention {
    path: String,
    qkv_proj: Linear,
    /// Number of features of q, k and v.
    sizes: [usize; 3],
    attention: Attention,
    o_proj: Linear,
}

impl SelfAttention {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        let q_size = config.num_attention_heads * config.head_dim;
        let kv_size = config.num_key_value_heads * config.head_dim;
        Ok(Self {
            path: weights.path().to_owned(),
            qkv_proj: Linear::load(&weights.pp("qkv_proj"), config.hidden_size, q_size + 2 * kv_size, false)?,
            sizes: [q_size, kv_size, kv_size],
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
            let qkv = self.qkv_proj.forward(pass, &xs)?;
            let qkv = split(&qkv, self.sizes)?;
            let mixed = self.attention.forward(pass, qkv, Some(rope), mask)?;
            self.o_proj.forward(pass, &mixed)
        })
    }
}

struct Mlp {
    path: String,
    gate_up_proj: Linear,
    activation_fn: Activation,
    activation_path: String,
    intermediate_size: usize,
    down_proj: Linear,
}

impl Mlp {
    fn load(config: &Config, weights: &Weights) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            path: weights.path().to_owned(),
            gate_up_proj: Linear::load(&weights.pp("gate_up_proj"), hidden, 2 * inner, false)?,
            activation_fn: config.hidden_act,
            activation_path: weights.pp("activation_fn").path().to_owned(),
            intermediate_size: inner,
            down_proj: Linear::load(&weights.pp("down_proj"), inner, hidden, false)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let gate_up = self.gate_up_proj.forward(pass, &xs)?;
            let [gate, up] = split(&gate_up, [self.intermediate_size; 2])?;
            let gate = self.activation_fn.forward(pass, &self.activation_path, &gate)?;
            self.down_proj.forward(pass, &multiply(up, gate)?)
        })
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

struct Phi3 {
    ends: DecoderEnds,
    layers: Vec<Block>,
    rotary_emb: RotaryEmbedding,
    sliding_window: Option<usize>,
}

pub(crate) fn build(config: &ConfigReader, weights: &Weights, task: Option<Task>) -> Result<Box<dyn Model>> {
    let config = Config::read(config)?;
    let body = DecoderBody::new("phi3", "model", weights, task)?;
    let embed_tokens = Embedding::load(&body.pp("embed_tokens"), config.vocab_size, config.hidden_size)?;
    let norm = RmsNorm::load(&body.pp("norm"), config.hidden_size, config.rms_norm_eps)?;
    let lm_head = body.lm_head(&embed_tokens, config.tie_word_embeddings)?;
    Ok(Box::new(Phi3 {
        ends: DecoderEnds::new(&body, embed_tokens, norm, lm_head),
        layers: body.layers("layers", config.num_hidden_layers, |weights, layer| {
            Block::load(&config, weights, layer)
        })?,
        rotary_emb: RotaryEmbedding::new(config.rope, config.head_dim),
        sliding_window: config.sliding_window,
    }))
}

impl Model for Phi3 {
    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        self.ends.forward(pass, |pass, xs| {
            let rope = self.rotary_emb.forward(pass)?;
            let mask = Mask::causal(pass, self.sliding_window)?;
            self.layers.iter().try_fold(xs, |xs, layer| layer.forward(pass, xs, &rope, &mask))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(rope_scaling: &str) -> Result<RopeParameters> {
        let config = format!(
            r#"{{"max_position_embeddings": 64, "original_max_position_embeddings": 16, "rope_scaling": {rope_scaling}}}"#
        );
        rope(&ConfigReader::new(serde_json::from_str(&config).unwrap()), 8)
    }

    #[test]
    fn su_and_yarn_are_older_names_of_longrope_and_others_are_refused() {
        let factors = r#""short_factor": [1, 1, 1, 1], "long_factor": [1, 2, 3, 4]"#;
        let longrope = read(&format!(r#"{{"rope_type": "longrope", {factors}}}"#)).unwrap();
        assert!(matches!(&longrope.scaling, RopeScaling::Longrope { original: 16, .. }));
        for name in ["su", "yarn"] {
            assert_eq!(read(&format!(r#"{{"type": "{name}", {factors}}}"#)).unwrap(), longrope);
        }
        let error = read(&format!(r#"{{"type": "dynamic", {factors}}}"#)).unwrap_err();
        assert_eq!(error.to_string(), r#"config key rope_scaling.type has the unknown value "dynamic""#);
    }

    #[test]
    fn factors_that_are_not_one_a_frequency_are_refused() {
        let error =
            read(r#"{"type": "su", "short_factor": [1, 1, 1], "long_factor": [1, 2, 3]}"#).unwrap_err();
        assert_eq!(
            error.to_string(),
            "config.json: `rope_scaling` is 3 and 3 factors where a factor for each of 4 frequencies is needed"
        );
    }
}
