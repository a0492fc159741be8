//! Whisper: two convolutions over the features of speech, an encoder, and a decoder that attends to it; both of pre-norm
//! blocks with positions from tables (transformers 5.23.0, `models/whisper/modeling_whisper.py` and
//! `configuration_whisper.py`).

use crate::config::{ConfigReader, head_dim};
use crate::error::{Error, Result};
use crate::inputs::PassInputs;
use crate::layers::{
    Activation, Attention, Convolution, Embedding, Joined, LayerNorm, Linear, Mask, Memory, add, limit_f16,
    position_ids,
};
use crate::model::{Model, Task, unknown_head};
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::Xs;

struct Config {
    vocab_size: usize,
    num_mel_bins: usize,
    d_model: usize,
    activation_function: Activation,
    max_source_positions: usize,
    max_target_positions: usize,
    tie_word_embeddings: bool,
    encoder: StackConfig,
    decoder: StackConfig,
}

/// Sizes of the encoder or of the decoder.
struct StackConfig {
    layers: usize,
    attention_heads: usize,
    ffn_dim: usize,
}

impl Config {
    fn read(config: &ConfigReader) -> Result<Self> {
        // transformers computes this factor and does not use it.
        config.value("scale_embedding");
        let d_model = config.usize_or("d_model", 384)?;
        let stack = |name: &str| -> Result<StackConfig> {
            let heads_key = format!("{name}_attention_heads");
            let attention_heads = config.usize_or(&heads_key, 6)?;
            head_dim(("d_model", d_model), (&heads_key, attention_heads))?;
            Ok(StackConfig {
                layers: config.usize_or(&format!("{name}_layers"), 4)?,
                attention_heads,
                ffn_dim: config.usize_or(&format!("{name}_ffn_dim"), 1536)?,
            })
        };
        let (encoder, decoder) = (stack("encoder")?, stack("decoder")?);
        // A second name of the encoder's layers.
        config.refuse_unless("num_hidden_layers", &encoder.layers.into())?;
        Ok(Self {
            vocab_size: config.usize_or("vocab_size", 51865)?,
            num_mel_bins: config.usize_or("num_mel_bins", 80)?,
            d_model,
            activation_function: Activation::read(config, "activation_function", "gelu")?,
            max_source_positions: config.usize_or("max_source_positions", 1500)?,
            max_target_positions: config.usize_or("max_target_positions", 448)?,
            tie_word_embeddings: config.bool_or("tie_word_embeddings", true)?,
            encoder,
            decoder,
        })
    }

    fn norm(&self, weights: &Weights) -> Result<LayerNorm> {
        // torch's default epsilon.
        LayerNorm::load(weights, self.d_model, 1e-5, true)
    }

    fn attention(&self, stack: &StackConfig, layer: usize) -> Attention {
        let head_dim = self.d_model / stack.attention_heads;
        Attention {
            layer,
            num_heads: stack.attention_heads,
            num_kv_heads: stack.attention_heads,
            head_dim,
            scale: (head_dim as f64).powf(-0.5),
            soft_cap: None,
        }
    }
}

struct SelfAttention {
    path: String,
    qkv: Joined<3>,
    attention: Attention,
    out_proj: Linear,
}

impl SelfAttention {
    fn load(config: &Config, stack: &StackConfig, weights: &Weights, layer: usize) -> Result<Self> {
        let size = config.d_model;
        let parts = [("q_proj", size, true), ("k_proj", size, false), ("v_proj", size, true)];
        Ok(Self {
            path: weights.path().to_owned(),
            qkv: Joined::load_each(weights, size, parts)?,
            attention: config.attention(stack, layer),
            out_proj: Linear::load(&weights.pp("out_proj"), size, size, true)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs, mask: &Mask) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let qkv = self.qkv.forward(pass, &xs)?;
            let mixed = self.attention.forward(pass, qkv, None, mask)?;
            self.out_proj.forward(pass, &mixed)
        })
    }
}

struct CrossAttention {
    path: String,
    q_proj: Linear,
    kv: Joined<2>,
    attention: Attention,
    out_proj: Linear,
}

impl CrossAttention {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        let size = config.d_model;
        Ok(Self {
            path: weights.path().to_owned(),
            q_proj: Linear::load(&weights.pp("q_proj"), size, size, true)?,
            kv: Joined::load_each(weights, size, [("k_proj", size, false), ("v_proj", size, true)])?,
            attention: config.attention(&config.decoder, layer),
            out_proj: Linear::load(&weights.pp("out_proj"), size, size, true)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs, memory: &Memory) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let q = self.q_proj.forward(pass, &xs)?;
            let kv = memory.states().map(|states| self.kv.forward(pass, states)).transpose()?;
            let mixed = self.attention.forward_cross(pass, &q, kv, memory)?;
            self.out_proj.forward(pass, &mixed)
        })
    }
}

/// The feed-forward layer, whose parts are modules of the block.
struct Mlp {
    fc1: Linear,
    act_path: String,
    activation_fn: Activation,
    fc2: Linear,
}

impl Mlp {
    fn load(config: &Config, stack: &StackConfig, weights: &Weights) -> Result<Self> {
        let (size, inner) = (config.d_model, stack.ffn_dim);
        Ok(Self {
            fc1: Linear::load(&weights.pp("fc1"), size, inner, true)?,
            act_path: weights.pp("activation_fn").path().to_owned(),
            activation_fn: config.activation_function,
            fc2: Linear::load(&weights.pp("fc2"), inner, size, true)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        let h = self.fc1.forward(pass, xs)?;
        let h = self.activation_fn.forward(pass, &self.act_path, &h)?;
        self.fc2.forward(pass, &h)
    }
}

struct Block {
    path: String,
    self_attn_layer_norm: LayerNorm,
    self_attn: SelfAttention,
    /// The attention to the encoder and its norm; absent in the encoder.
    encoder_attn: Option<(LayerNorm, CrossAttention)>,
    final_layer_norm: LayerNorm,
    mlp: Mlp,
}

impl Block {
    fn load(config: &Config, weights: &Weights, layer: usize, is_decoder: bool) -> Result<Self> {
        let stack = if is_decoder { &config.decoder } else { &config.encoder };
        let cross = || -> Result<(LayerNorm, CrossAttention)> {
            let norm = config.norm(&weights.pp("encoder_attn_layer_norm"))?;
            Ok((norm, CrossAttention::load(config, &weights.pp("encoder_attn"), layer)?))
        };
        Ok(Self {
            path: weights.path().to_owned(),
            self_attn_layer_norm: config.norm(&weights.pp("self_attn_layer_norm"))?,
            self_attn: SelfAttention::load(config, stack, &weights.pp("self_attn"), layer)?,
            encoder_attn: is_decoder.then(cross).transpose()?,
            final_layer_norm: config.norm(&weights.pp("final_layer_norm"))?,
            mlp: Mlp::load(config, stack, weights)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: Xs, mask: &Mask, memory: Option<&Memory>) -> Result<Xs> {
        pass.module(&self.path, xs, |pass, xs| {
            let h = self.self_attn_layer_norm.forward(pass, &xs)?;
            let mut xs = add(xs, self.self_attn.forward(pass, &h, mask)?)?;
            if let (Some((norm, encoder_attn)), Some(memory)) = (&self.encoder_attn, memory) {
                let h = norm.forward(pass, &xs)?;
                xs = add(xs, encoder_attn.forward(pass, &h, memory)?)?;
            }
            let h = self.final_layer_norm.forward(pass, &xs)?;
            let xs = add(xs, self.mlp.forward(pass, &h)?)?;
            if memory.is_some() { Ok(xs) } else { limit_f16(xs) }
        })
    }
}

fn blocks(config: &Config, weights: &Weights, is_decoder: bool) -> Result<Vec<Block>> {
    let count = if is_decoder { config.decoder.layers } else { config.encoder.layers };
    let layers = weights.pp("layers");
    (0..count).map(|layer| Block::load(config, &layers.pp(layer), layer, is_decoder)).collect()
}

struct Encoder {
    path: String,
    conv1: Convolution,
    conv2: Convolution,
    /// Sinusoids, stored in the checkpoint.
    embed_positions: Embedding,
    layers: Vec<Block>,
    layer_norm: LayerNorm,
}

impl Encoder {
    fn load(config: &Config, weights: &Weights) -> Result<Self> {
        let size = config.d_model;
        let positions = weights.pp("embed_positions");
        Ok(Self {
            path: weights.path().to_owned(),
            conv1: Convolution::load(&weights.pp("conv1"), config.num_mel_bins, size, 1)?,
            conv2: Convolution::load(&weights.pp("conv2"), size, size, 2)?,
            embed_positions: Embedding::load(&positions, config.max_source_positions, size)?,
            layers: blocks(config, weights, false)?,
            layer_norm: config.norm(&weights.pp("layer_norm"))?,
        })
    }

    /// `features: [batch, num_mel_bins, 2 * max_source_positions]` to `[batch, max_source_positions, d_model]`.
    fn forward(&self, pass: &mut Pass, features: Xs) -> Result<Xs> {
        pass.module(&self.path, features, |pass, features| {
            let xs = features.tensor()?.transpose(1, 2)?.contiguous()?.into();
            let xs = Activation::Gelu.inline(&self.conv1.forward(pass, &xs)?)?;
            let xs = Activation::Gelu.inline(&self.conv2.forward(pass, &xs)?)?;
            let positions = position_ids(pass)?;
            let xs = add(xs, self.embed_positions.forward(pass, &positions)?)?;
            let mask = Mask::bidirectional(pass, None)?;
            let xs = self.layers.iter().try_fold(xs, |xs, layer| layer.forward(pass, xs, &mask, None))?;
            self.layer_norm.forward(pass, &xs)
        })
    }
}

struct Decoder {
    path: String,
    embed_tokens: Embedding,
    embed_positions: Embedding,
    layers: Vec<Block>,
    layer_norm: LayerNorm,
}

impl Decoder {
    fn load(config: &Config, weights: &Weights) -> Result<Self> {
        let table = |name: &str, rows: usize| Embedding::load(&weights.pp(name), rows, config.d_model);
        Ok(Self {
            path: weights.path().to_owned(),
            embed_tokens: table("embed_tokens", config.vocab_size)?,
            embed_positions: table("embed_positions", config.max_target_positions)?,
            layers: blocks(config, weights, true)?,
            layer_norm: config.norm(&weights.pp("layer_norm"))?,
        })
    }

    fn forward(&self, pass: &mut Pass, memory: &Memory) -> Result<Xs> {
        let ids = Xs::from(pass.input_ids().clone());
        pass.module(&self.path, ids, |pass, ids| {
            let words = self.embed_tokens.forward(pass, &ids)?;
            let positions = position_ids(pass)?;
            let xs = add(words, self.embed_positions.forward(pass, &positions)?)?;
            let mask = Mask::causal(pass, None)?;
            let xs =
                self.layers.iter().try_fold(xs, |xs, layer| layer.forward(pass, xs, &mask, Some(memory)))?;
            self.layer_norm.forward(pass, &xs)
        })
    }
}

struct Whisper {
    path: String,
    /// `[num_mel_bins, 2 * max_source_positions]`.
    features: [usize; 2],
    encoder: Encoder,
    decoder: Decoder,
    /// Absent if the output is hidden states.
    proj_out: Option<Linear>,
}

pub(crate) fn build(config: &ConfigReader, weights: &Weights, task: Option<Task>) -> Result<Box<dyn Model>> {
    let config = Config::read(config)?;
    let has_head = match task.unwrap_or(Task::Seq2SeqLm) {
        Task::Seq2SeqLm => true,
        Task::HiddenStates => false,
        task => return Err(unknown_head("whisper", task)),
    };
    let body = weights.body("model", has_head);
    let decoder = Decoder::load(&config, &body.pp("decoder"))?;
    let proj_out = has_head.then(|| {
        let head = weights.pp("proj_out");
        Linear::lm_head(&head, &decoder.embed_tokens, config.tie_word_embeddings, false)
    });
    Ok(Box::new(Whisper {
        path: body.path().to_owned(),
        features: [config.num_mel_bins, 2 * config.max_source_positions],
        encoder: Encoder::load(&config, &body.pp("encoder"))?,
        decoder,
        proj_out: proj_out.transpose()?,
    }))
}

impl Whisper {
    /// The encoder's states over `input_features`, and its positions.
    fn encode(&self, pass: &mut Pass) -> Result<(Xs, PassInputs)> {
        let features = pass.named("input_features")?;
        let [bins, length] = self.features;
        if features.dims() != [pass.batch(), bins, length] {
            let needed = format!("[{}, {bins}, {length}] is needed", pass.batch());
            let found = features.dims();
            return Err(Error::Inputs(format!("input_features has shape {found:?} where {needed}")));
        }
        let features = features.to_dtype(pass.dtype())?;
        let sequences = PassInputs::without_tokens(pass.batch(), length / 2, pass.dtype(), pass.device());
        pass.over(sequences, |pass| self.encoder.forward(pass, features.into()))
    }
}

impl Model for Whisper {
    fn inputs(&self) -> &'static [&'static str] {
        &["input_features", "decoder_input_ids", "decoder_attention_mask"]
    }

    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        let ids = Xs::from(pass.input_ids().clone());
        let xs = pass.module(&self.path, ids, |pass, _| {
            let memory = Memory::new(pass, |pass| self.encode(pass))?;
            self.decoder.forward(pass, &memory)
        })?;
        match &self.proj_out {
            Some(proj_out) => proj_out.forward(pass, &xs),
            None => Ok(xs),
        }
    }
}
