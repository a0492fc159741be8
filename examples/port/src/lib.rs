//! A small port of Llama to candle, as an example of how to test a port.
//!
//! `main.rs` makes it a variant of tfcheck (`tfcheck.toml`), and `probe!` shows its modules. `tests/upstream.rs` is the test
//! against transformers without Python; `tests/recording` holds its data.

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::{
    Embedding, Linear, Module, RmsNorm, VarBuilder, embedding, linear_no_bias, ops, rms_norm, rotary_emb,
};
use serde::Deserialize;
use tfcheck_port::probe;

/// A mistake that real ports of Llama have made; the tests plant one and expect a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Rotary embeddings rotate neighbouring elements instead of the two halves of a head.
    InterleavedRope,
    /// `rms_norm_eps` is not read from the config.
    FixedEpsilon,
    /// A query attends to the key after its own.
    MaskOffByOne,
    /// The MLP's activation is the tanh form of GELU, whatever the config says.
    Gelu,
}

impl Bug {
    /// Every mistake, with its name on the command line.
    pub const ALL: [(&str, Self); 4] = [
        ("interleaved-rope", Self::InterleavedRope),
        ("fixed-epsilon", Self::FixedEpsilon),
        ("mask-off-by-one", Self::MaskOffByOne),
        ("gelu", Self::Gelu),
    ];

    /// The mistake of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|&(_, bug)| bug)
    }
}

/// The keys of `config.json` that this port reads.
#[derive(Debug, Deserialize)]
pub struct Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    rms_norm_eps: f64,
    rope_theta: f64,
}

struct Block {
    input_layernorm: RmsNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    post_attention_layernorm: RmsNorm,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

/// A Llama for causal language modelling, in any dtype.
pub struct Llama {
    config: Config,
    bug: Option<Bug>,
    embed_tokens: Embedding,
    layers: Vec<Block>,
    norm: RmsNorm,
    lm_head: Linear,
}

impl Llama {
    /// Takes the weights from `weights`, with a planted mistake or without one.
    ///
    /// # Errors
    /// When a tensor is absent or has another shape.
    pub fn new(mut config: Config, weights: &VarBuilder, bug: Option<Bug>) -> Result<Self> {
        if bug == Some(Bug::FixedEpsilon) {
            config.rms_norm_eps = 1e-5;
        }
        let model = weights.pp("model");
        let layers = model.pp("layers");
        Ok(Self {
            bug,
            embed_tokens: embedding(config.vocab_size, config.hidden_size, model.pp("embed_tokens"))?,
            layers: (0..config.num_hidden_layers)
                .map(|layer| Block::load(&config, &layers.pp(layer)))
                .collect::<Result<_>>()?,
            norm: rms_norm(config.hidden_size, config.rms_norm_eps, model.pp("norm"))?,
            lm_head: linear_no_bias(config.hidden_size, config.vocab_size, weights.pp("lm_head"))?,
            config,
        })
    }

    /// Logits of every position: `input_ids` u32 `[batch, seq]` to `[batch, seq, vocab_size]`. Inputs must
    /// not be padded.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(&self, input_ids: &Tensor) -> Result<Tensor> {
        let (_, seq) = input_ids.dims2()?;
        let mut xs = probe!("model.embed_tokens", input_ids, |ids| self.embed_tokens.forward(ids))?;
        let (cos, sin) = self.rope(seq, xs.dtype())?;
        let mask = self.mask(seq, xs.dtype())?;
        for (i, block) in self.layers.iter().enumerate() {
            xs = probe!("model.layers.{i}", xs, |xs| {
                let h = norm(&block.input_layernorm, format_args!("model.layers.{i}.input_layernorm"), xs)?;
                let h = probe!("model.layers.{i}.self_attn", h, |h| self.attend(i, h, (&cos, &sin), &mask))?;
                let xs = (xs + h)?;
                let name = format_args!("model.layers.{i}.post_attention_layernorm");
                let h = norm(&block.post_attention_layernorm, name, &xs)?;
                let h = probe!("model.layers.{i}.mlp", h, |h| self.mlp(i, h))?;
                xs + h
            })?;
        }
        let xs = norm(&self.norm, format_args!("model.norm"), &xs)?;
        probe!("lm_head", xs, |xs| self.lm_head.forward(xs))
    }

    fn mlp(&self, i: usize, xs: &Tensor) -> Result<Tensor> {
        let block = &self.layers[i];
        let gate = probe!("model.layers.{i}.mlp.gate_proj", xs, |xs| block.gate_proj.forward(xs))?;
        let up = probe!("model.layers.{i}.mlp.up_proj", xs, |xs| block.up_proj.forward(xs))?;
        let gate = probe!("model.layers.{i}.mlp.act_fn", gate, |gate| match self.bug {
            Some(Bug::Gelu) => gate.gelu(),
            _ => gate.silu(),
        })?;
        probe!("model.layers.{i}.mlp.down_proj", (gate * up)?, |xs| block.down_proj.forward(xs))
    }

    /// Attention of the normalised `xs: [batch, seq, hidden_size]`, same shape out.
    fn attend(&self, i: usize, xs: &Tensor, (cos, sin): (&Tensor, &Tensor), mask: &Tensor) -> Result<Tensor> {
        let Config { num_attention_heads, num_key_value_heads, head_dim, .. } = self.config;
        let block = &self.layers[i];
        let (batch, seq, _) = xs.dims3()?;
        let heads = |xs: Tensor, count: usize| {
            xs.reshape((batch, seq, count, head_dim))?.transpose(1, 2)?.contiguous()
        };
        let turn = |xs: &Tensor| match self.bug {
            Some(Bug::InterleavedRope) => rotary_emb::rope_i(xs, cos, sin),
            _ => rotary_emb::rope(xs, cos, sin),
        };
        let q = probe!("model.layers.{i}.self_attn.q_proj", xs, |xs| block.q_proj.forward(xs))?;
        let k = probe!("model.layers.{i}.self_attn.k_proj", xs, |xs| block.k_proj.forward(xs))?;
        let v = probe!("model.layers.{i}.self_attn.v_proj", xs, |xs| block.v_proj.forward(xs))?;
        let (q, k) = (heads(q, num_attention_heads)?, heads(k, num_key_value_heads)?);
        let q = probe!("model.layers.{i}.self_attn.rope_q", q, turn)?;
        let k = probe!("model.layers.{i}.self_attn.rope_k", k, turn)?;
        let v = heads(v, num_key_value_heads)?;
        let (k, v) = (self.repeat(&k)?, self.repeat(&v)?);
        let scores = (q.matmul(&k.transpose(2, 3)?)? / (head_dim as f64).sqrt())?;
        let scores = scores.broadcast_add(mask)?;
        let weights = probe!("model.layers.{i}.self_attn.softmax", scores, |xs| ops::softmax(xs, D::Minus1))?;
        let mixed =
            weights.matmul(&v)?.transpose(1, 2)?.reshape((batch, seq, num_attention_heads * head_dim))?;
        probe!("model.layers.{i}.self_attn.o_proj", mixed, |xs| block.o_proj.forward(xs))
    }

    /// Repeats each key head for every query head of its group: `[batch, kv_heads, seq, head_dim]` to
    /// `[batch, heads, seq, head_dim]`.
    fn repeat(&self, xs: &Tensor) -> Result<Tensor> {
        let groups = self.config.num_attention_heads / self.config.num_key_value_heads;
        let (batch, heads, seq, head_dim) = xs.dims4()?;
        xs.unsqueeze(2)?.broadcast_as((batch, heads, groups, seq, head_dim))?.reshape((
            batch,
            heads * groups,
            seq,
            head_dim,
        ))
    }

    /// Cosines and sines, each `[seq, head_dim / 2]`.
    fn rope(&self, seq: usize, dtype: DType) -> Result<(Tensor, Tensor)> {
        let half = self.config.head_dim / 2;
        let frequency = |i: usize| self.config.rope_theta.powf(-(i as f64) / half as f64);
        let angles: Vec<f64> =
            (0..seq).flat_map(|position| (0..half).map(move |i| position as f64 * frequency(i))).collect();
        let table = |of: fn(f64) -> f64| {
            let values: Vec<f64> = angles.iter().map(|&angle| of(angle)).collect();
            Tensor::from_vec(values, (seq, half), &Device::Cpu)?.to_dtype(dtype)
        };
        Ok((table(f64::cos)?, table(f64::sin)?))
    }

    /// The additive mask, `[seq, seq]`: −∞ where a query must not attend to a key.
    fn mask(&self, seq: usize, dtype: DType) -> Result<Tensor> {
        let beyond = usize::from(self.bug == Some(Bug::MaskOffByOne));
        let values: Vec<f32> = (0..seq)
            .flat_map(|query| {
                (0..seq).map(move |key| if key > query + beyond { f32::NEG_INFINITY } else { 0.0 })
            })
            .collect();
        Tensor::from_vec(values, (seq, seq), &Device::Cpu)?.to_dtype(dtype)
    }
}

/// The norm under its path. candle's fused kernel lacks f64, `forward_diff` does not.
fn norm(norm: &RmsNorm, path: std::fmt::Arguments, xs: &Tensor) -> Result<Tensor> {
    probe!("{path}", xs, |xs| norm.forward_diff(xs))
}

impl Block {
    fn load(config: &Config, weights: &VarBuilder) -> Result<Self> {
        let Config { hidden_size, intermediate_size, rms_norm_eps, .. } = *config;
        let q_size = config.num_attention_heads * config.head_dim;
        let kv_size = config.num_key_value_heads * config.head_dim;
        let (attention, mlp) = (weights.pp("self_attn"), weights.pp("mlp"));
        let norm = |name: &str| rms_norm(hidden_size, rms_norm_eps, weights.pp(name));
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            q_proj: linear_no_bias(hidden_size, q_size, attention.pp("q_proj"))?,
            k_proj: linear_no_bias(hidden_size, kv_size, attention.pp("k_proj"))?,
            v_proj: linear_no_bias(hidden_size, kv_size, attention.pp("v_proj"))?,
            o_proj: linear_no_bias(q_size, hidden_size, attention.pp("o_proj"))?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            gate_proj: linear_no_bias(hidden_size, intermediate_size, mlp.pp("gate_proj"))?,
            up_proj: linear_no_bias(hidden_size, intermediate_size, mlp.pp("up_proj"))?,
            down_proj: linear_no_bias(intermediate_size, hidden_size, mlp.pp("down_proj"))?,
        })
    }
}
