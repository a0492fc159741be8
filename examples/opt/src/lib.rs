//! OPT for candle, after `modeling_opt.py` of transformers 5.23.0. docs/port-a-model.md tells how it was written.
//!
//! What only OPT-350m and Galactica switch on is left out: [`Opt::new`] refuses it.

use candle_core::{D, DType, Module, Result, Tensor, bail};
use candle_nn::{Activation, Embedding, Linear, VarBuilder, embedding, linear, ops};
use serde::Deserialize;
use tfcheck_port::{Inputs, probe};

/// Rows of the table of positions that no position uses.
const OFFSET: u32 = 2;

/// What the port reads of `config.json`.
#[derive(Debug, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the keys of the config")]
pub struct Config {
    vocab_size: usize,
    hidden_size: usize,
    ffn_dim: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    word_embed_proj_dim: usize,
    activation_function: Activation,
    do_layer_norm_before: bool,
    #[serde(default, rename = "_remove_final_layer_norm")]
    remove_final_layer_norm: bool,
    #[serde(default = "yes")]
    enable_bias: bool,
    #[serde(default = "yes")]
    layer_norm_elementwise_affine: bool,
    /// transformers does not save what is its default.
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
}

fn yes() -> bool {
    true
}

/// An OPT for causal language modelling.
pub struct Opt {
    embed_tokens: Embedding,
    embed_positions: Embedding,
    layers: Vec<Layer>,
    final_layer_norm: Norm,
    lm_head: Linear,
}

struct Layer {
    path: String,
    self_attn_layer_norm: Norm,
    self_attn: Attention,
    final_layer_norm: Norm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

struct Attention {
    heads: usize,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
}

/// Layer norm in at least f32. candle's own has a fused kernel, which lacks f64.
struct Norm {
    weight: Tensor,
    bias: Tensor,
}

impl Norm {
    fn new(width: usize, weights: &VarBuilder) -> Result<Self> {
        Ok(Self { weight: weights.get(width, "weight")?, bias: weights.get(width, "bias")? })
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let dtype = xs.dtype();
        let xs = if dtype == DType::F64 { xs.clone() } else { xs.to_dtype(DType::F32)? };
        let xs = xs.broadcast_sub(&xs.mean_keepdim(D::Minus1)?)?;
        let variance = xs.sqr()?.mean_keepdim(D::Minus1)?;
        let xs = xs.broadcast_div(&(variance + 1e-5)?.sqrt()?)?.to_dtype(dtype)?;
        xs.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)
    }
}

impl Opt {
    /// Takes the weights from `weights`.
    ///
    /// # Errors
    /// When the config asks for what is left out, or a tensor is absent or has another shape.
    pub fn new(config: &Config, weights: &VarBuilder) -> Result<Self> {
        let is_ported = config.do_layer_norm_before
            && !config.remove_final_layer_norm
            && config.enable_bias
            && config.layer_norm_elementwise_affine
            && config.word_embed_proj_dim == config.hidden_size;
        if !is_ported {
            bail!("only pre-norm OPT with biases and without projections of the embedding is ported");
        }
        let hidden = config.hidden_size;
        let decoder = weights.pp("model.decoder");
        let embed_tokens = embedding(config.vocab_size, hidden, decoder.pp("embed_tokens"))?;
        let rows = config.max_position_embeddings + OFFSET as usize;
        let lm_head = if config.tie_word_embeddings {
            Linear::new(embed_tokens.embeddings().clone(), None)
        } else {
            candle_nn::linear_no_bias(hidden, config.vocab_size, weights.pp("lm_head"))?
        };
        Ok(Self {
            embed_positions: embedding(rows, hidden, decoder.pp("embed_positions"))?,
            layers: (0..config.num_hidden_layers)
                .map(|i| Layer::new(config, i, &decoder.pp(format!("layers.{i}"))))
                .collect::<Result<_>>()?,
            final_layer_norm: Norm::new(hidden, &decoder.pp("final_layer_norm"))?,
            embed_tokens,
            lm_head,
        })
    }

    /// Logits of every position, `[batch, seq, vocab_size]`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(&self, inputs: &Inputs) -> Result<Tensor> {
        let embedded =
            probe!("model.decoder.embed_tokens", inputs.input_ids, |ids| self.embed_tokens.forward(ids))?;
        let positions = (&inputs.position_ids + f64::from(OFFSET))?;
        let positions = self.embed_positions.forward(&positions)?;
        let mask = mask(&inputs.attention_mask, embedded.dtype())?;
        let mut xs = (embedded + positions)?;
        for layer in &self.layers {
            xs = layer.forward(&xs, &mask)?;
        }
        let xs = probe!("model.decoder.final_layer_norm", xs, |xs| self.final_layer_norm.forward(xs))?;
        probe!("lm_head", xs, |xs| self.lm_head.forward(xs))
    }
}

impl Layer {
    fn new(config: &Config, i: usize, weights: &VarBuilder) -> Result<Self> {
        let Config { hidden_size, ffn_dim, num_attention_heads, .. } = *config;
        let projection = |name: &str| linear(hidden_size, hidden_size, weights.pp("self_attn").pp(name));
        Ok(Self {
            path: format!("model.decoder.layers.{i}"),
            self_attn_layer_norm: Norm::new(hidden_size, &weights.pp("self_attn_layer_norm"))?,
            self_attn: Attention {
                heads: num_attention_heads,
                q_proj: projection("q_proj")?,
                k_proj: projection("k_proj")?,
                v_proj: projection("v_proj")?,
                out_proj: projection("out_proj")?,
            },
            final_layer_norm: Norm::new(hidden_size, &weights.pp("final_layer_norm"))?,
            fc1: linear(hidden_size, ffn_dim, weights.pp("fc1"))?,
            fc2: linear(ffn_dim, hidden_size, weights.pp("fc2"))?,
            activation: config.activation_function,
        })
    }

    fn forward(&self, xs: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let path = &self.path;
        probe!("{path}", xs, |xs| {
            let h = probe!("{path}.self_attn_layer_norm", xs, |xs| self.self_attn_layer_norm.forward(xs))?;
            let h = probe!("{path}.self_attn", h, |h| self.self_attn.forward(path, h, mask))?;
            let xs = (xs + h)?;
            let h = probe!("{path}.final_layer_norm", xs, |xs| self.final_layer_norm.forward(xs))?;
            let h = probe!("{path}.fc1", h, |h| self.fc1.forward(h))?;
            let h = probe!("{path}.activation_fn", h, |h| self.activation.forward(h))?;
            let h = probe!("{path}.fc2", h, |h| self.fc2.forward(h))?;
            xs + h
        })
    }
}

impl Attention {
    /// `xs` is `[batch, seq, hidden]`, `mask` is added to the scores.
    fn forward(&self, path: &str, xs: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let (batch, seq, hidden) = xs.dims3()?;
        let width = hidden / self.heads;
        let heads = |xs: Tensor| xs.reshape((batch, seq, self.heads, width))?.transpose(1, 2)?.contiguous();
        let q = probe!("{path}.self_attn.q_proj", xs, |xs| self.q_proj.forward(xs))?;
        let k = probe!("{path}.self_attn.k_proj", xs, |xs| self.k_proj.forward(xs))?;
        let v = probe!("{path}.self_attn.v_proj", xs, |xs| self.v_proj.forward(xs))?;
        let q = (heads(q)? / (width as f64).sqrt())?;
        let scores = q.matmul(&heads(k)?.transpose(2, 3)?)?.broadcast_add(mask)?;
        let shares = probe!("{path}.self_attn.softmax", scores, |scores| ops::softmax(scores, D::Minus1))?;
        let mixed = shares.matmul(&heads(v)?)?.transpose(1, 2)?.reshape((batch, seq, hidden))?;
        probe!("{path}.self_attn.out_proj", mixed, |xs| self.out_proj.forward(xs))
    }
}

/// What is added to the scores, `[batch, 1, seq, seq]`: 0 where a query sees a key, otherwise a number so low that its share is
/// 0. It is finite, because a row of padding that sees no key must not become NaN.
fn mask(attention_mask: &Tensor, dtype: DType) -> Result<Tensor> {
    let (batch, seq) = attention_mask.dims2()?;
    let device = attention_mask.device();
    let causal = Tensor::tril2(seq, DType::F32, device)?.reshape((1, 1, seq, seq))?;
    let real = attention_mask.to_dtype(DType::F32)?.reshape((batch, 1, 1, seq))?;
    let seen = causal.broadcast_mul(&real)?;
    // Representable in every dtype but f16, whose largest number is 65504.
    let lowest = if dtype == DType::F16 { -6e4 } else { -1e30 };
    seen.affine(-lowest, lowest)?.to_dtype(dtype)
}
