//! A small port of Llama to candle, as an example of how to test a port.
//!
//! `tests/upstream.rs` is the test against transformers; `tests/recording` holds its data.

use std::path::Path;

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::{
    Embedding, Linear, Module, RmsNorm, VarBuilder, embedding, linear_no_bias, ops, rms_norm, rotary_emb,
};
use serde::Deserialize;

/// A mistake that real ports of Llama have made; the tests plant one and expect a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Rotary embeddings rotate neighbouring elements instead of the two halves of a head.
    InterleavedRope,
    /// `rms_norm_eps` is not read from the config.
    FixedEpsilon,
    /// A query attends to the key after its own.
    MaskOffByOne,
}

/// The keys of `config.json` that this port reads.
#[derive(Debug, Deserialize)]
struct Config {
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

/// A Llama for causal language modelling, in f32 on the CPU.
pub struct Llama {
    config: Config,
    bug: Option<Bug>,
    embed_tokens: Embedding,
    layers: Vec<Block>,
    norm: RmsNorm,
    lm_head: Linear,
}

impl Llama {
    /// Loads the checkpoint in `folder`.
    ///
    /// # Errors
    /// When a file is absent or does not hold a Llama.
    pub fn load(folder: &Path) -> Result<Self> {
        Self::load_with(folder, None)
    }

    /// Loads the checkpoint with a planted mistake.
    ///
    /// # Errors
    /// When a file is absent or does not hold a Llama.
    pub fn load_with(folder: &Path, bug: Option<Bug>) -> Result<Self> {
        let text = std::fs::read(folder.join("config.json"))?;
        let mut config: Config = serde_json::from_slice(&text).map_err(candle_core::Error::wrap)?;
        if bug == Some(Bug::FixedEpsilon) {
            config.rms_norm_eps = 1e-5;
        }
        let tensors = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu)?;
        let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
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

    /// Logits of every position: `input_ids` u32 `[batch, seq]` to f32 `[batch, seq, vocab_size]`. Inputs
    /// must not be padded.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(&self, input_ids: &Tensor) -> Result<Tensor> {
        let (_, seq) = input_ids.dims2()?;
        let mut xs = self.embed_tokens.forward(input_ids)?;
        let (cos, sin) = self.rope(seq)?;
        let mask = self.mask(seq)?;
        for block in &self.layers {
            let attended = self.attend(block, &block.input_layernorm.forward(&xs)?, (&cos, &sin), &mask)?;
            xs = (xs + attended)?;
            let h = block.post_attention_layernorm.forward(&xs)?;
            let h = (block.gate_proj.forward(&h)?.silu()? * block.up_proj.forward(&h)?)?;
            xs = (xs + block.down_proj.forward(&h)?)?;
        }
        self.lm_head.forward(&self.norm.forward(&xs)?)
    }

    /// Attention of the normalised `xs: [batch, seq, hidden_size]`, same shape out.
    fn attend(
        &self,
        block: &Block,
        xs: &Tensor,
        (cos, sin): (&Tensor, &Tensor),
        mask: &Tensor,
    ) -> Result<Tensor> {
        let Config { num_attention_heads, num_key_value_heads, head_dim, .. } = self.config;
        let (batch, seq, _) = xs.dims3()?;
        let heads = |xs: Tensor, count: usize| {
            xs.reshape((batch, seq, count, head_dim))?.transpose(1, 2)?.contiguous()
        };
        let turn = |xs: &Tensor| match self.bug {
            Some(Bug::InterleavedRope) => rotary_emb::rope_i(xs, cos, sin),
            _ => rotary_emb::rope(xs, cos, sin),
        };
        let q = turn(&heads(block.q_proj.forward(xs)?, num_attention_heads)?)?;
        let k = turn(&heads(block.k_proj.forward(xs)?, num_key_value_heads)?)?;
        let v = heads(block.v_proj.forward(xs)?, num_key_value_heads)?;
        let (k, v) = (self.repeat(&k)?, self.repeat(&v)?);
        let scores = (q.matmul(&k.transpose(2, 3)?)? / (head_dim as f64).sqrt())?;
        let weights = ops::softmax(&scores.broadcast_add(mask)?, D::Minus1)?;
        let mixed =
            weights.matmul(&v)?.transpose(1, 2)?.reshape((batch, seq, num_attention_heads * head_dim))?;
        block.o_proj.forward(&mixed)
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
    fn rope(&self, seq: usize) -> Result<(Tensor, Tensor)> {
        let half = self.config.head_dim / 2;
        let frequency = |i: usize| self.config.rope_theta.powf(-(i as f64) / half as f64);
        let angles: Vec<f64> =
            (0..seq).flat_map(|position| (0..half).map(move |i| position as f64 * frequency(i))).collect();
        let table = |of: fn(f64) -> f64| {
            let values: Vec<f32> = angles.iter().map(|&angle| of(angle) as f32).collect();
            Tensor::from_vec(values, (seq, half), &Device::Cpu)
        };
        Ok((table(f64::cos)?, table(f64::sin)?))
    }

    /// The additive mask, `[seq, seq]`: −∞ where a query must not attend to a key.
    fn mask(&self, seq: usize) -> Result<Tensor> {
        let beyond = usize::from(self.bug == Some(Bug::MaskOffByOne));
        let values: Vec<f32> = (0..seq)
            .flat_map(|query| {
                (0..seq).map(move |key| if key > query + beyond { f32::NEG_INFINITY } else { 0.0 })
            })
            .collect();
        Tensor::from_vec(values, (seq, seq), &Device::Cpu)
    }
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
