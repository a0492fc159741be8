//! Falcon: one projection for queries, keys and values, grouped by key head. Attention and MLP run in parallel after
//! one norm or two, or one after the other; positions enter through rope or linear biases (transformers 5.23.0,
//! `models/falcon/modeling_falcon.py` and `configuration_falcon.py`).

use crate::config::{ConfigReader, head_dim};
use crate::error::Result;
use crate::layers::{
    Activation, Alibi, Attention, DecoderBody, DecoderEnds, Embedding, LayerNorm, Mask, Rope, RopeParameters,
    RotaryEmbedding, UnfusedLinear, add, split_groups,
};
use crate::model::{Model, Task};
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::Xs;

struct Config {
    vocab_size: usize,
    hidden_size: usize,
    ffn_hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_kv_heads: usize,
    activation: Activation,
    layer_norm_epsilon: f64,
    /// `None` with `alibi`.
    rope: Option<RopeParameters>,
    bias: bool,
    order: Order,
    tie_word_embeddings: bool,
}

/// Which norms a block has and which modules read them.
#[derive(Clone, Copy)]
enum Order {
    /// The MLP follows attention; each has its own norm.
    Sequential,
    /// Attention and MLP in parallel, both on the output of one norm.
    OneNorm,
    /// Attention and MLP in parallel, each on the output of its own norm.
    TwoNorms,
}

impl Config {
    fn read(config: &ConfigReader) -> Result<Self> {
        let hidden_size = match config.optional_usize("n_embed")? {
            Some(old) => old,
            None => config.usize_or("hidden_size", 4544)?,
        };
        let num_attention_heads = config.usize_or("num_attention_heads", 71)?;
        let new_decoder = config.bool_or("new_decoder_architecture", false)?;
        let max_position_embeddings = config.usize_or("max_position_embeddings", 2048)?;
        let rope = RopeParameters::read(config, 10_000.0, max_position_embeddings)?;
        let multi_query = config.bool_or("multi_query", true)?;
        let num_kv_heads = config.usize_or("num_kv_heads", num_attention_heads)?;
        head_dim(("hidden_size", hidden_size), ("num_attention_heads", num_attention_heads))?;
        Ok(Self {
            vocab_size: config.usize_or("vocab_size", 65024)?,
            hidden_size,
            ffn_hidden_size: config.usize_or("ffn_hidden_size", 4 * hidden_size)?,
            num_hidden_layers: config.usize_or("num_hidden_layers", 32)?,
            num_attention_heads,
            num_kv_heads: match (new_decoder, multi_query) {
                (true, _) => num_kv_heads,
                (false, true) => 1,
                (false, false) if num_kv_heads == num_attention_heads => num_kv_heads,
                // The projection has as many key heads as query heads, and transformers fails to split it.
                (false, false) => return Err(config.unknown("num_kv_heads", &num_kv_heads.into())),
            },
            activation: Activation::read(config, "activation", "gelu")?,
            layer_norm_epsilon: config.f64_or("layer_norm_epsilon", 1e-5)?,
            rope: (!config.bool_or("alibi", false)?).then_some(rope),
            bias: config.bool_or("bias", false)?,
            order: Order::read(config, new_decoder)?,
            tie_word_embeddings: config.bool_or("tie_word_embeddings", true)?,
        })
    }

    fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }
}

impl Order {
    /// `FalconDecoderLayer.__init__` and `forward`; transformers also fails for the combinations rejected here.
    fn read(config: &ConfigReader, new_decoder: bool) -> Result<Self> {
        let norms = config.optional_usize("num_ln_in_parallel_attn")?;
        let parallel_attn = config.bool_or("parallel_attn", true)?;
        match (parallel_attn, new_decoder, norms) {
            (true, true, None | Some(2)) => Ok(Self::TwoNorms),
            (true, false, None) | (true, _, Some(1)) => Ok(Self::OneNorm),
            (false, false, _) => Ok(Self::Sequential),
            (false, true, _) => Err(config.unknown("parallel_attn", &parallel_attn.into())),
            (true, _, Some(norms)) => Err(config.unknown("num_ln_in_parallel_attn", &norms.into())),
        }
    }
}

/// How a forward pass encodes positions.
enum Positions {
    Rope(Rope),
    Alibi(Alibi),
}

struct SelfAttention {
    path: String,
    /// For each key head: its queries, its key, its value.
    query_key_value: UnfusedLinear,
    attention: Attention,
    dense: UnfusedLinear,
}

impl SelfAttention {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        let (size, head_dim) = (config.hidden_size, config.head_dim());
        let qkv = size + 2 * config.num_kv_heads * head_dim;
        let linear =
            |name: &str, output: usize| UnfusedLinear::load(&weights.pp(name), size, output, config.bias);
        Ok(Self {
            path: weights.path().to_owned(),
            query_key_value: linear("query_key_value", qkv)?,
            attention: Attention {
                layer,
                num_heads: config.num_attention_heads,
                num_kv_heads: config.num_kv_heads,
                head_dim,
                scale: (head_dim as f64).sqrt().recip(),
                soft_cap: None,
            },
            dense: linear("dense", size)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs, positions: &Positions, mask: &Mask) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let Attention { num_heads, num_kv_heads, head_dim, .. } = self.attention;
            let sizes = [num_heads / num_kv_heads * head_dim, head_dim, head_dim];
            let qkv = split_groups(&self.query_key_value.forward(pass, &xs)?, num_kv_heads, sizes)?;
            let mixed = match positions {
                Positions::Rope(rope) => self.attention.forward(pass, qkv, Some(rope), mask)?,
                Positions::Alibi(alibi) => self.attention.forward_alibi(pass, qkv, alibi)?,
            };
            self.dense.forward(pass, &mixed)
        })
    }
}

struct Mlp {
    path: String,
    act_path: String,
    dense_h_to_4h: UnfusedLinear,
    act: Activation,
    dense_4h_to_h: UnfusedLinear,
}

impl Mlp {
    fn load(config: &Config, weights: &Weights) -> Result<Self> {
        let (size, inner) = (config.hidden_size, config.ffn_hidden_size);
        Ok(Self {
            path: weights.path().to_owned(),
            act_path: weights.pp("act").path().to_owned(),
            dense_h_to_4h: UnfusedLinear::load(&weights.pp("dense_h_to_4h"), size, inner, config.bias)?,
            act: config.activation,
            dense_4h_to_h: UnfusedLinear::load(&weights.pp("dense_4h_to_h"), inner, size, config.bias)?,
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

/// The norms of a block, by its [`Order`].
enum Norms {
    InTurn { input_layernorm: LayerNorm, post_attention_layernorm: LayerNorm },
    Shared { input_layernorm: LayerNorm },
    Separate { ln_attn: LayerNorm, ln_mlp: LayerNorm },
}

struct Block {
    path: String,
    norms: Norms,
    self_attention: SelfAttention,
    mlp: Mlp,
}

impl Block {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        let norm = |name: &str| {
            LayerNorm::load(&weights.pp(name), config.hidden_size, config.layer_norm_epsilon, true)
        };
        Ok(Self {
            path: weights.path().to_owned(),
            norms: match config.order {
                Order::Sequential => Norms::InTurn {
                    input_layernorm: norm("input_layernorm")?,
                    post_attention_layernorm: norm("post_attention_layernorm")?,
                },
                Order::OneNorm => Norms::Shared { input_layernorm: norm("input_layernorm")? },
                Order::TwoNorms => Norms::Separate { ln_attn: norm("ln_attn")?, ln_mlp: norm("ln_mlp")? },
            },
            self_attention: SelfAttention::load(config, &weights.pp("self_attention"), layer)?,
            mlp: Mlp::load(config, &weights.pp("mlp"))?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: Xs, positions: &Positions, mask: &Mask) -> Result<Xs> {
        pass.module(&self.path, xs, |pass, xs| {
            let (attention_input, mlp_input) = match &self.norms {
                Norms::InTurn { input_layernorm, post_attention_layernorm } => {
                    let h = input_layernorm.forward(pass, &xs)?;
                    let h = self.self_attention.forward(pass, &h, positions, mask)?;
                    let xs = add(xs, h)?;
                    let h = post_attention_layernorm.forward(pass, &xs)?;
                    let h = self.mlp.forward(pass, &h)?;
                    return add(xs, h);
                }
                Norms::Shared { input_layernorm } => {
                    let h = input_layernorm.forward(pass, &xs)?;
                    (h.clone(), h)
                }
                Norms::Separate { ln_attn, ln_mlp } => {
                    (ln_attn.forward(pass, &xs)?, ln_mlp.forward(pass, &xs)?)
                }
            };
            let attended = self.self_attention.forward(pass, &attention_input, positions, mask)?;
            let h = self.mlp.forward(pass, &mlp_input)?;
            add(xs.clone(), add(h, attended)?)
        })
    }
}

struct Falcon {
    ends: DecoderEnds,
    h: Vec<Block>,
    /// `None` with linear biases.
    rotary_emb: Option<RotaryEmbedding>,
    num_heads: usize,
    head_dim: usize,
}

pub(crate) fn build(config: &ConfigReader, weights: &Weights, task: Option<Task>) -> Result<Box<dyn Model>> {
    let config = Config::read(config)?;
    let body = DecoderBody::new("falcon", "transformer", weights, task)?;
    let word_embeddings =
        Embedding::load(&body.pp("word_embeddings"), config.vocab_size, config.hidden_size)?;
    let ln_f = LayerNorm::load(&body.pp("ln_f"), config.hidden_size, config.layer_norm_epsilon, true)?;
    let lm_head = body.lm_head(&word_embeddings, config.tie_word_embeddings)?;
    Ok(Box::new(Falcon {
        ends: DecoderEnds::new(&body, word_embeddings, ln_f, lm_head),
        h: body
            .layers("h", config.num_hidden_layers, |weights, layer| Block::load(&config, weights, layer))?,
        rotary_emb: config.rope.as_ref().map(|rope| RotaryEmbedding::new(rope.clone(), config.head_dim())),
        num_heads: config.num_attention_heads,
        head_dim: config.head_dim(),
    }))
}

impl Model for Falcon {
    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        self.ends.forward(pass, |pass, xs| {
            let positions = match &self.rotary_emb {
                Some(rotary_emb) => Positions::Rope(rotary_emb.forward(pass)?),
                None => Positions::Alibi(Alibi::new(pass, self.num_heads, self.head_dim)?),
            };
            let mask = Mask::causal(pass, None)?;
            self.h.iter().try_fold(xs, |xs, layer| layer.forward(pass, xs, &positions, &mask))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_that_transformers_cannot_run_are_refused() {
        let order = |json: &str, new_decoder| {
            Order::read(&ConfigReader::new(serde_json::from_str(json).unwrap()), new_decoder)
        };
        assert!(matches!(order("{}", true), Ok(Order::TwoNorms)));
        assert!(matches!(order("{}", false), Ok(Order::OneNorm)));
        assert!(matches!(order(r#"{"parallel_attn": false}"#, false), Ok(Order::Sequential)));
        for (json, new_decoder) in [
            (r#"{"num_ln_in_parallel_attn": 2}"#, false),
            (r#"{"num_ln_in_parallel_attn": 3}"#, true),
            (r#"{"parallel_attn": false}"#, true),
        ] {
            assert!(order(json, new_decoder).is_err(), "{json}");
        }
    }
}
