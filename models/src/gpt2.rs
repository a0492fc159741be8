//! GPT-2: learned positions, pre-norm blocks, weights stored `[in, out]`
//! (transformers 5.23.0, `models/gpt2/modeling_gpt2.py` and `configuration_gpt2.py`).

use crate::config::{ConfigReader, head_dim};
use crate::error::Result;
use crate::layers::{
    Activation, Attention, DecoderBody, DecoderEnds, Embedding, LayerNorm, Linear, Mask, add, position_ids,
    residual, split,
};
use crate::model::{Model, Task};
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::Xs;

struct Config {
    vocab_size: usize,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_inner: usize,
    activation_function: Activation,
    layer_norm_epsilon: f64,
    scale_attn_weights: bool,
    scale_attn_by_inverse_layer_idx: bool,
    tie_word_embeddings: bool,
}

impl Config {
    fn read(config: &ConfigReader) -> Result<Self> {
        // With this key, scores are computed in F32 for every dtype, which gives other results in 16 bits.
        config.refuse_unless("reorder_and_upcast_attn", &false.into())?;
        let (n_embd, n_head) = (config.usize_or("n_embd", 768)?, config.usize_or("n_head", 12)?);
        head_dim(("n_embd", n_embd), ("n_head", n_head))?;
        Ok(Self {
            vocab_size: config.usize_or("vocab_size", 50257)?,
            n_positions: config.usize_or("n_positions", 1024)?,
            n_embd,
            n_layer: config.usize_or("n_layer", 12)?,
            n_head,
            n_inner: config.usize_or("n_inner", 4 * n_embd)?,
            activation_function: Activation::read(config, "activation_function", "gelu_new")?,
            layer_norm_epsilon: config.f64_or("layer_norm_epsilon", 1e-5)?,
            scale_attn_weights: config.bool_or("scale_attn_weights", true)?,
            scale_attn_by_inverse_layer_idx: config.bool_or("scale_attn_by_inverse_layer_idx", false)?,
            tie_word_embeddings: config.bool_or("tie_word_embeddings", true)?,
        })
    }

    /// The factor by which a layer's scores are multiplied.
    fn scale(&self, layer: usize) -> f64 {
        let head_dim = (self.n_embd / self.n_head) as f64;
        let scale = if self.scale_attn_weights { head_dim.powf(-0.5) } else { 1.0 };
        if self.scale_attn_by_inverse_layer_idx { scale / (layer + 1) as f64 } else { scale }
    }
}

struct SelfAttention {
    path: String,
    n_embd: usize,
    /// q, k and v, concatenated along the output dimension.
    c_attn: Linear,
    attention: Attention,
    c_proj: Linear,
}

impl SelfAttention {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        Ok(Self {
            path: weights.path().to_owned(),
            n_embd: config.n_embd,
            c_attn: Linear::load_transposed(&weights.pp("c_attn"), config.n_embd, 3 * config.n_embd)?,
            attention: Attention {
                layer,
                num_heads: config.n_head,
                num_kv_heads: config.n_head,
                head_dim: config.n_embd / config.n_head,
                scale: config.scale(layer),
                soft_cap: None,
            },
            c_proj: Linear::load_transposed(&weights.pp("c_proj"), config.n_embd, config.n_embd)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs, mask: &Mask) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let qkv = split(&self.c_attn.forward(pass, &xs)?, [self.n_embd; 3])?;
            let mixed = self.attention.forward(pass, qkv, None, mask)?;
            self.c_proj.forward(pass, &mixed)
        })
    }
}

struct Mlp {
    path: String,
    act_path: String,
    c_fc: Linear,
    act: Activation,
    c_proj: Linear,
}

impl Mlp {
    fn load(config: &Config, weights: &Weights) -> Result<Self> {
        Ok(Self {
            path: weights.path().to_owned(),
            act_path: weights.pp("act").path().to_owned(),
            c_fc: Linear::load_transposed(&weights.pp("c_fc"), config.n_embd, config.n_inner)?,
            act: config.activation_function,
            c_proj: Linear::load_transposed(&weights.pp("c_proj"), config.n_inner, config.n_embd)?,
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
    ln_1: LayerNorm,
    attn: SelfAttention,
    ln_2: LayerNorm,
    mlp: Mlp,
}

impl Block {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        let norm =
            |name: &str| LayerNorm::load(&weights.pp(name), config.n_embd, config.layer_norm_epsilon, true);
        Ok(Self {
            path: weights.path().to_owned(),
            ln_1: norm("ln_1")?,
            attn: SelfAttention::load(config, &weights.pp("attn"), layer)?,
            ln_2: norm("ln_2")?,
            mlp: Mlp::load(config, &weights.pp("mlp"))?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: Xs, mask: &Mask) -> Result<Xs> {
        pass.module(&self.path, xs, |pass, xs| {
            let h = self.ln_1.forward(pass, &xs)?;
            let h = self.attn.forward(pass, &h, mask)?;
            let xs = residual(pass, xs, h)?;
            let h = self.ln_2.forward(pass, &xs)?;
            let h = self.mlp.forward(pass, &h)?;
            residual(pass, xs, h)
        })
    }
}

struct Gpt2 {
    ends: DecoderEnds,
    h: Vec<Block>,
    /// The position embeddings.
    wpe: Embedding,
}

pub(crate) fn build(config: &ConfigReader, weights: &Weights, task: Option<Task>) -> Result<Box<dyn Model>> {
    let config = Config::read(config)?;
    let body = DecoderBody::new("gpt2", "transformer", weights, task)?;
    let wte = Embedding::load(&body.pp("wte"), config.vocab_size, config.n_embd)?;
    let ln_f = LayerNorm::load(&body.pp("ln_f"), config.n_embd, config.layer_norm_epsilon, true)?;
    let lm_head = body.lm_head(&wte, config.tie_word_embeddings)?;
    Ok(Box::new(Gpt2 {
        ends: DecoderEnds::new(&body, wte, ln_f, lm_head),
        h: body.layers("h", config.n_layer, |weights, layer| Block::load(&config, weights, layer))?,
        wpe: Embedding::load(&body.pp("wpe"), config.n_positions, config.n_embd)?,
    }))
}

impl Model for Gpt2 {
    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        self.ends.forward(pass, |pass, xs| {
            let positions = position_ids(pass)?;
            let positions = self.wpe.forward(pass, &positions)?;
            let xs = add(xs, positions)?;
            let mask = Mask::causal(pass, None)?;
            self.h.iter().try_fold(xs, |xs, layer| layer.forward(pass, xs, &mask))
        })
    }
}
