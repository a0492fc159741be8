//! GPT-NeoX: attention and MLP in parallel or one after the other, one projection for queries, keys and values
//! grouped by head, rope on a part of each head (transformers 5.23.0, `models/gpt_neox/modeling_gpt_neox.py` and
//! `configuration_gpt_neox.py`).

use crate::config::{ConfigReader, head_dim};
use crate::error::Result;
use crate::layers::{
    Activation, Attention, DecoderBody, DecoderEnds, Embedding, LayerNorm, Linear, Mask, Rope,
    RopeParameters, RotaryEmbedding, add, split_groups,
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
    hidden_act: Activation,
    layer_norm_eps: f64,
    rope: RopeParameters,
    attention_bias: bool,
    use_parallel_residual: bool,
    tie_word_embeddings: bool,
}

impl Config {
    fn read(config: &ConfigReader) -> Result<Self> {
        let hidden_size = config.usize_or("hidden_size", 6144)?;
        let num_attention_heads = config.usize_or("num_attention_heads", 64)?;
        head_dim(("hidden_size", hidden_size), ("num_attention_heads", num_attention_heads))?;
        Ok(Self {
            vocab_size: config.usize_or("vocab_size", 50432)?,
            hidden_size,
            intermediate_size: config.usize_or("intermediate_size", 24576)?,
            num_hidden_layers: config.usize_or("num_hidden_layers", 44)?,
            num_attention_heads,
            hidden_act: Activation::read(config, "hidden_act", "gelu")?,
            layer_norm_eps: config.f64_or("layer_norm_eps", 1e-5)?,
            rope: rope(config)?,
            attention_bias: config.bool_or("attention_bias", true)?,
            use_parallel_residual: config.bool_or("use_parallel_residual", true)?,
            tie_word_embeddings: config.bool_or("tie_word_embeddings", false)?,
        })
    }

    fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }
}

/// transformers 4 calls the base `rotary_emb_base` and the rotated share `rotary_pct`. Values in `rope_scaling`, or
/// in the object of transformers 5, take precedence, and the share applies to every `rope_type`
/// (`GPTNeoXConfig.convert_rope_params_to_dict`).
fn rope(config: &ConfigReader) -> Result<RopeParameters> {
    let theta = config.f64_or("rotary_emb_base", 10_000.0)?;
    let rotary_pct = config.f64_or("rotary_pct", 0.25)?;
    let max = config.usize_or("max_position_embeddings", 2048)?;
    let rope = match config.optional_object("rope_scaling")? {
        Some(rope) => Some(rope),
        None => config.optional_object("rope_parameters")?,
    };
    let nested = rope.as_ref().map(|rope| rope.optional_f64("partial_rotary_factor")).transpose()?;
    Ok(RopeParameters {
        partial_rotary_factor: nested.flatten().unwrap_or(rotary_pct),
        ..RopeParameters::read_object(config, rope.as_ref(), theta, max)?
    })
}

struct SelfAttention {
    path: String,
    num_heads: usize,
    head_dim: usize,
    /// For each head: its q, k and v.
    query_key_value: Linear,
    attention: Attention,
    dense: Linear,
}

impl SelfAttention {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        let (size, head_dim) = (config.hidden_size, config.head_dim());
        let linear =
            |name: &str, output: usize| Linear::load(&weights.pp(name), size, output, config.attention_bias);
        Ok(Self {
            path: weights.path().to_owned(),
            num_heads: config.num_attention_heads,
            head_dim,
            query_key_value: linear("query_key_value", 3 * size)?,
            attention: Attention {
                layer,
                num_heads: config.num_attention_heads,
                num_kv_heads: config.num_attention_heads,
                head_dim,
                scale: (head_dim as f64).powf(-0.5),
                soft_cap: None,
            },
            dense: linear("dense", size)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs, rope: &Rope, mask: &Mask) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let qkv = self.query_key_value.forward(pass, &xs)?;
            let qkv = split_groups(&qkv, self.num_heads, [self.head_dim; 3])?;
            let mixed = self.attention.forward(pass, qkv, Some(rope), mask)?;
            self.dense.forward(pass, &mixed)
        })
    }
}

struct Mlp {
    path: String,
    act_path: String,
    dense_h_to_4h: Linear,
    act: Activation,
    dense_4h_to_h: Linear,
}

impl Mlp {
    fn load(config: &Config, weights: &Weights) -> Result<Self> {
        let (size, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            path: weights.path().to_owned(),
            act_path: weights.pp("act").path().to_owned(),
            dense_h_to_4h: Linear::load(&weights.pp("dense_h_to_4h"), size, inner, true)?,
            act: config.hidden_act,
            dense_4h_to_h: Linear::load(&weights.pp("dense_4h_to_h"), inner, size, true)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let h = self.dense_h_to_4h.forward(pass, &xs)?;
            let h = self.act.forward(pass, &self.act_path, &h)?;
            self.dense_4h_to_h.forward(pass, &h)
        })
    }
}

struct Block {
    path: String,
    use_parallel_residual: bool,
    input_layernorm: LayerNorm,
    attention: SelfAttention,
    post_attention_layernorm: LayerNorm,
    mlp: Mlp,
}

impl Block {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        let norm =
            |name: &str| LayerNorm::load(&weights.pp(name), config.hidden_size, config.layer_norm_eps, true);
        Ok(Self {
            path: weights.path().to_owned(),
            use_parallel_residual: config.use_parallel_residual,
            input_layernorm: norm("input_layernorm")?,
            attention: SelfAttention::load(config, &weights.pp("attention"), layer)?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: Mlp::load(config, &weights.pp("mlp"))?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: Xs, rope: &Rope, mask: &Mask) -> Result<Xs> {
        pass.module(&self.path, xs, |pass, xs| {
            let h = self.input_layernorm.forward(pass, &xs)?;
            let attended = self.attention.forward(pass, &h, rope, mask)?;
            if self.use_parallel_residual {
                let h = self.post_attention_layernorm.forward(pass, &xs)?;
                let h = self.mlp.forward(pass, &h)?;
                return add(add(h, attended)?, xs.clone());
            }
            let xs = add(attended, xs.clone())?;
            let h = self.post_attention_layernorm.forward(pass, &xs)?;
            let h = self.mlp.forward(pass, &h)?;
            add(h, xs)
        })
    }
}

struct GptNeoX {
    ends: DecoderEnds,
    layers: Vec<Block>,
    rotary_emb: RotaryEmbedding,
}

pub(crate) fn build(config: &ConfigReader, weights: &Weights, task: Option<Task>) -> Result<Box<dyn Model>> {
    let config = Config::read(config)?;
    let body = DecoderBody::new("gpt_neox", "gpt_neox", weights, task)?;
    let embed_in = Embedding::load(&body.pp("embed_in"), config.vocab_size, config.hidden_size)?;
    let final_layer_norm =
        LayerNorm::load(&body.pp("final_layer_norm"), config.hidden_size, config.layer_norm_eps, true)?;
    // Releases before transformers 5 call the head `embed_out`.
    let lm_head = body
        .head_or("embed_out")
        .map(|weights| Linear::lm_head(&weights, &embed_in, config.tie_word_embeddings, false))
        .transpose()?;
    Ok(Box::new(GptNeoX {
        ends: DecoderEnds::new(&body, embed_in, final_layer_norm, lm_head),
        layers: body.layers("layers", config.num_hidden_layers, |weights, layer| {
            Block::load(&config, weights, layer)
        })?,
        rotary_emb: RotaryEmbedding::new(config.rope.clone(), config.head_dim()),
    }))
}

impl Model for GptNeoX {
    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        self.ends.forward(pass, |pass, xs| {
            let rope = self.rotary_emb.forward(pass)?;
            let mask = Mask::causal(pass, None)?;
            self.layers.iter().try_fold(xs, |xs, layer| layer.forward(pass, xs, &rope, &mask))
        })
    }
}
