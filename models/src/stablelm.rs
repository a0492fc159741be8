//! `StableLM`: llama with layer norms, rope on a part of each head, and attention and MLP optionally in parallel
//! (transformers 5.23.0, `models/stablelm/modeling_stablelm.py` and `configuration_stablelm.py`).

use crate::config::{ConfigReader, head_dim};
use crate::error::Result;
use crate::layers::{
    Activation, Attention, DecoderBody, DecoderEnds, Embedding, GatedMlp, Joined, LayerNorm, Linear, Mask,
    Rope, RopeParameters, RotaryEmbedding, add,
};
use crate::model::{Model, Task};
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::Xs;

#[expect(clippy::struct_excessive_bools, reason = "the switches of the config by their names")]
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
    use_qkv_bias: bool,
    qk_layernorm: bool,
    use_parallel_residual: bool,
    tie_word_embeddings: bool,
}

impl Config {
    fn read(config: &ConfigReader) -> Result<Self> {
        let hidden_size = config.usize_or("hidden_size", 2560)?;
        let num_attention_heads = config.usize_or("num_attention_heads", 32)?;
        let max_position_embeddings = config.usize_or("max_position_embeddings", 4096)?;
        // In 5.23.0 attention ignores the key, but rope would use it.
        let head_dim = head_dim(("hidden_size", hidden_size), ("num_attention_heads", num_attention_heads))?;
        config.refuse_unless("head_dim", &head_dim.into())?;
        Ok(Self {
            vocab_size: config.usize_or("vocab_size", 50304)?,
            hidden_size,
            intermediate_size: config.usize_or("intermediate_size", 6912)?,
            num_hidden_layers: config.usize_or("num_hidden_layers", 32)?,
            num_attention_heads,
            num_key_value_heads: config.usize_or("num_key_value_heads", 32)?,
            head_dim,
            hidden_act: Activation::read(config, "hidden_act", "silu")?,
            layer_norm_eps: config.f64_or("layer_norm_eps", 1e-5)?,
            rope: RopeParameters::read_partial(config, 10_000.0, max_position_embeddings, 0.25)?,
            use_qkv_bias: config.bool_or("use_qkv_bias", false)?,
            qk_layernorm: config.bool_or("qk_layernorm", false)?,
            use_parallel_residual: config.bool_or("use_parallel_residual", false)?,
            tie_word_embeddings: config.bool_or("tie_word_embeddings", false)?,
        })
    }
}

struct SelfAttention {
    path: String,
    qkv: Joined<3>,
    /// One norm per query head.
    q_layernorm: Option<LayerNorm>,
    /// One norm per key head.
    k_layernorm: Option<LayerNorm>,
    attention: Attention,
    o_proj: Linear,
}

impl SelfAttention {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        let q_size = config.num_attention_heads * config.head_dim;
        let kv_size = config.num_key_value_heads * config.head_dim;
        let norm = |name: &str, heads| {
            let load = || {
                LayerNorm::load_each_head(&weights.pp(name), heads, config.head_dim, config.layer_norm_eps)
            };
            config.qk_layernorm.then(load).transpose()
        };
        Ok(Self {
            path: weights.path().to_owned(),
            qkv: Joined::load(
                weights,
                config.hidden_size,
                [("q_proj", q_size), ("k_proj", kv_size), ("v_proj", kv_size)],
                config.use_qkv_bias,
            )?,
            q_layernorm: norm("q_layernorm", config.num_attention_heads)?,
            k_layernorm: norm("k_layernorm", config.num_key_value_heads)?,
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
            let [mut q, mut k, v] = self.qkv.forward(pass, &xs)?;
            if let (Some(q_layernorm), Some(k_layernorm)) = (&self.q_layernorm, &self.k_layernorm) {
                q = q_layernorm.forward(pass, &q)?;
                k = k_layernorm.forward(pass, &k)?;
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
    /// `None` if attention and MLP run in parallel.
    post_attention_layernorm: Option<LayerNorm>,
    mlp: GatedMlp,
}

impl Block {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        let norm =
            |name: &str| LayerNorm::load(&weights.pp(name), config.hidden_size, config.layer_norm_eps, true);
        Ok(Self {
            path: weights.path().to_owned(),
            input_layernorm: norm("input_layernorm")?,
            self_attn: SelfAttention::load(config, &weights.pp("self_attn"), layer)?,
            post_attention_layernorm: (!config.use_parallel_residual)
                .then(|| norm("post_attention_layernorm"))
                .transpose()?,
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
            let xs = add(xs, attended)?;
            let h = match &self.post_attention_layernorm {
                Some(norm) => norm.forward(pass, &xs)?,
                None => h,
            };
            let h = self.mlp.forward(pass, &h)?;
            add(xs, h)
        })
    }
}

struct StableLm {
    ends: DecoderEnds,
    layers: Vec<Block>,
    rotary_emb: RotaryEmbedding,
}

pub(crate) fn build(config: &ConfigReader, weights: &Weights, task: Option<Task>) -> Result<Box<dyn Model>> {
    let config = Config::read(config)?;
    let body = DecoderBody::new("stablelm", "model", weights, task)?;
    let embed_tokens = Embedding::load(&body.pp("embed_tokens"), config.vocab_size, config.hidden_size)?;
    let norm = LayerNorm::load(&body.pp("norm"), config.hidden_size, config.layer_norm_eps, true)?;
    let lm_head = body.lm_head(&embed_tokens, config.tie_word_embeddings)?;
    Ok(Box::new(StableLm {
        ends: DecoderEnds::new(&body, embed_tokens, norm, lm_head),
        layers: body.layers("layers", config.num_hidden_layers, |weights, layer| {
            Block::load(&config, weights, layer)
        })?,
        rotary_emb: RotaryEmbedding::new(config.rope, config.head_dim),
    }))
}

impl Model for StableLm {
    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        self.ends.forward(pass, |pass, xs| {
            let rope = self.rotary_emb.forward(pass)?;
            let mask = Mask::causal(pass, None)?;
            self.layers.iter().try_fold(xs, |xs, layer| layer.forward(pass, xs, &rope, &mask))
        })
    }
}
