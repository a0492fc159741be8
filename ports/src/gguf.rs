//! A checkpoint as a GGUF file in f32, for the ports that read such files: as llama.cpp's converter writes it, or as candle's
//! `tensor-tools quantize` does, which keeps transformers' names and writes no metadata.
//!
//! The file has the checkpoint's values unrounded, so that a port differs from transformers by its arithmetic alone. Names and
//! changes follow `convert_hf_to_gguf.py` and gguf-py's `tensor_mapping.py`; importing the file gives the checkpoint back.

use std::io::Cursor;

use candle_core::quantized::gguf_file::{self, Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::quantized_var_builder::VarBuilder as Quantised;

use super::checkpoint::Checkpoint;
use super::renamed::Name;

/// An architecture of llama.cpp.
struct Architecture {
    model_type: &'static str,
    /// `general.architecture`, which also begins the keys.
    name: &'static str,
    /// Modules of a layer: llama.cpp's name, then transformers'.
    modules: &'static [&'static [(&'static str, &'static str)]],
    change: Change,
}

/// What the converter changes in the values.
#[derive(Clone, Copy, PartialEq)]
enum Change {
    None,
    /// Each head's rows of queries and keys are interleaved (`LlamaModel.permute`).
    Interleaved,
    /// Norms that compute `x · (1 + w)` are stored as `1 + w`.
    PlusOne,
    /// The kernel of a depthwise convolution loses its axis of one channel.
    Squeezed,
}

const COMMON: &[(&str, &str)] =
    &[("attn_norm", "input_layernorm"), ("attn_output", "self_attn.o_proj"), ("ffn_down", "mlp.down_proj")];
const SPLIT: &[(&str, &str)] = &[
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
];
const FUSED: &[(&str, &str)] = &[("attn_qkv", "self_attn.qkv_proj"), ("ffn_up", "mlp.gate_up_proj")];
const HALF_FUSED: &[(&str, &str)] = &[
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("ffn_up", "mlp.gate_up_proj"),
];
/// A release of phi-2 had fused projections, and its published files have them.
const PHI: &[(&str, &str)] = &[
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_output", "self_attn.dense"),
    ("ffn_up", "mlp.fc1"),
    ("ffn_down", "mlp.fc2"),
];
const PHI_FUSED: &[Name] = &[(
    "model.layers.{}.self_attn.qkv_proj.{}",
    "model.layers.{}.self_attn.q_proj.{} + model.layers.{}.self_attn.k_proj.{} + model.layers.{}.self_attn.v_proj.{}",
)];
const LFM2: &[(&str, &str)] = &[
    ("attn_norm", "operator_norm"),
    ("attn_output", "self_attn.out_proj"),
    ("attn_q_norm", "self_attn.q_layernorm"),
    ("attn_k_norm", "self_attn.k_layernorm"),
    ("ffn_norm", "ffn_norm"),
    ("ffn_gate", "feed_forward.w1"),
    ("ffn_down", "feed_forward.w2"),
    ("ffn_up", "feed_forward.w3"),
    ("shortconv.conv", "conv.conv"),
    ("shortconv.in_proj", "conv.in_proj"),
    ("shortconv.out_proj", "conv.out_proj"),
];
/// Modules outside of the layers; a model has those of its names.
const ENDS: &[(&str, &str)] = &[
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output_norm", "model.final_layernorm"),
    ("token_embd_norm", "model.embedding_norm"),
    ("output", "lm_head"),
];
const NORM: &[(&str, &str)] = &[("ffn_norm", "post_attention_layernorm")];
const HEAD_NORMS: &[(&str, &str)] =
    &[("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm")];
const FOUR_NORMS: &[(&str, &str)] = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];
const GLM_NORMS: &[(&str, &str)] = &[
    ("post_attention_norm", "post_self_attn_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("post_ffw_norm", "post_mlp_layernorm"),
];

#[rustfmt::skip]
const ARCHITECTURES: &[Architecture] = &[
    Architecture { model_type: "llama", name: "llama", modules: &[COMMON, SPLIT, NORM], change: Change::Interleaved },
    Architecture { model_type: "qwen2", name: "qwen2", modules: &[COMMON, SPLIT, NORM], change: Change::None },
    Architecture { model_type: "qwen3", name: "qwen3", modules: &[COMMON, SPLIT, NORM, HEAD_NORMS], change: Change::None },
    Architecture { model_type: "phi3", name: "phi3", modules: &[COMMON, FUSED, NORM], change: Change::None },
    Architecture { model_type: "glm4", name: "glm4", modules: &[COMMON, HALF_FUSED, GLM_NORMS], change: Change::None },
    Architecture { model_type: "gemma3_text", name: "gemma3", modules: &[COMMON, SPLIT, FOUR_NORMS, HEAD_NORMS], change: Change::PlusOne },
    Architecture { model_type: "phi", name: "phi2", modules: &[COMMON, PHI], change: Change::None },
    Architecture { model_type: "lfm2", name: "lfm2", modules: &[SPLIT, LFM2], change: Change::Squeezed },
];

/// Metadata: llama.cpp's key, transformers' key.
const INTEGERS: &[(&str, &str)] = &[
    ("vocab_size", "vocab_size"),
    ("block_count", "num_hidden_layers"),
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("context_length", "max_position_embeddings"),
    ("attention.sliding_window", "sliding_window"),
    ("shortconv.l_cache", "conv_L_cache"),
];
const FLOATS: &[(&str, &str)] = &[
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("attention.layer_norm_rms_epsilon", "norm_eps"),
    ("attention.layer_norm_epsilon", "layer_norm_eps"),
    ("rope.freq_base", "rope_theta"),
];

/// The weights of the file that candle's `tensor-tools quantize` writes, which has transformers' names, with `more` that
/// published checkpoints have and transformers does not save.
pub(crate) fn named(
    checkpoint: &Checkpoint,
    weights: &VarBuilder<'static>,
    more: Option<&str>,
) -> Result<Quantised> {
    let mut tensors = Vec::new();
    // None is read yet.
    for name in checkpoint.files.unread_tensors().into_iter().chain(more.map(str::to_owned)) {
        let tensor = QTensor::quantize(&weights.get_unchecked(&name)?, GgmlDType::F32)?;
        tensors.push((name, tensor));
    }
    Quantised::from_gguf_buffer(&written(&[], &tensors)?.into_inner(), &Device::Cpu)
}

/// The header and content of the file that llama.cpp's converter writes.
pub(crate) fn file(checkpoint: &Checkpoint) -> Result<(Content, Cursor<Vec<u8>>)> {
    let found = ARCHITECTURES.iter().find(|known| known.model_type == checkpoint.model_type());
    let architecture =
        found.ok_or_else(|| candle_core::Error::msg("no GGUF is written of this model_type"))?;
    let metadata = metadata(architecture, checkpoint);
    let tensors = tensors(architecture, checkpoint)?;
    let mut bytes = written(&metadata, &tensors)?;
    let content = Content::read(&mut bytes)?;
    Ok((content, bytes))
}

fn written(metadata: &[(String, Value)], tensors: &[(String, QTensor)]) -> Result<Cursor<Vec<u8>>> {
    let mut bytes = Cursor::new(Vec::new());
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> =
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut bytes, &metadata, &tensors)?;
    bytes.set_position(0);
    Ok(bytes)
}

fn metadata(architecture: &Architecture, checkpoint: &Checkpoint) -> Vec<(String, Value)> {
    let key = |name: &str| format!("{}.{name}", architecture.name);
    let integer = |name: &str| checkpoint.number(name).ok();
    // 0 is f32 (`GGMLFileType`).
    let mut found = vec![
        ("general.architecture".to_owned(), Value::String(architecture.name.to_owned())),
        ("general.file_type".to_owned(), Value::U32(0)),
    ];
    for (theirs, ours) in INTEGERS {
        found.extend(integer(ours).map(|number| (key(theirs), Value::U32(number))));
    }
    for (theirs, ours) in FLOATS {
        found.extend(number(checkpoint, ours).map(|number| (key(theirs), Value::F32(number as f32))));
    }
    found.extend(head_counts(checkpoint).map(|counts| (key("attention.head_count_kv"), counts)));
    found.extend(scaling(checkpoint).map(|(name, value)| (key(name), value)));
    let whole = integer("hidden_size").zip(integer("num_attention_heads")).map(|(size, heads)| size / heads);
    if let Some(head_dim) = integer("head_dim").or(whole) {
        let rotated = number(checkpoint, "partial_rotary_factor").unwrap_or(1.0) * f64::from(head_dim);
        found.push((key("rope.dimension_count"), Value::U32(rotated as u32)));
        found.push((key("attention.key_length"), Value::U32(head_dim)));
        found.push((key("attention.value_length"), Value::U32(head_dim)));
    }
    found
}

/// A number of the config, which version 5 of transformers may have saved in `rope_parameters`.
fn number(checkpoint: &Checkpoint, key: &str) -> Option<f64> {
    let of_rope = || checkpoint.at("/rope_parameters")?.get(key)?.as_f64();
    checkpoint.float(key).or_else(of_rope)
}

/// Key and value heads of each layer, which are none in a layer without attention.
fn head_counts(checkpoint: &Checkpoint) -> Option<Value> {
    let count = checkpoint.number("num_key_value_heads").ok()?;
    let layers = checkpoint.at("/layer_types")?.as_array()?;
    let of = |layer: &serde_json::Value| if layer == "conv" { 0 } else { count };
    let is_mixed = layers.iter().any(|layer| of(layer) == 0);
    is_mixed.then(|| Value::Array(layers.iter().map(|layer| Value::U32(of(layer))).collect()))
}

/// Rope scaling. Those that the converter writes as a tensor of factors (`llama3`, `longrope`) are left out; no port reads it.
fn scaling(checkpoint: &Checkpoint) -> impl Iterator<Item = (&'static str, Value)> {
    let of = |pointer: &str| checkpoint.at(pointer).filter(|scaling| scaling.is_object());
    let scaling = of("/rope_scaling").or_else(|| of("/rope_parameters"));
    let named = |key: &str| scaling?.get(key)?.as_str();
    let name = named("rope_type").or_else(|| named("type")).filter(|name| ["linear", "yarn"].contains(name));
    let number = |key: &str| scaling.filter(|_| name.is_some())?.get(key)?.as_f64();
    let name = name.map(|name| ("rope.scaling.type", Value::String(name.to_owned())));
    let factor = number("factor").map(|factor| ("rope.scaling.factor", Value::F32(factor as f32)));
    let original = number("original_max_position_embeddings")
        .map(|length| ("rope.scaling.original_context_length", Value::U32(length as u32)));
    [name, factor, original].into_iter().flatten()
}

fn tensors(architecture: &Architecture, checkpoint: &Checkpoint) -> Result<Vec<(String, QTensor)>> {
    let weights = checkpoint.renamed("", if architecture.name == "phi2" { &[PHI_FUSED] } else { &[] });
    let layers = checkpoint.number("num_hidden_layers").unwrap_or(0);
    let mut names: Vec<(String, String)> =
        ENDS.iter().map(|(theirs, ours)| ((*theirs).to_owned(), (*ours).to_owned())).collect();
    for layer in 0..layers {
        for (theirs, ours) in architecture.modules.iter().copied().flatten() {
            names.push((format!("blk.{layer}.{theirs}"), format!("model.layers.{layer}.{ours}")));
        }
    }
    let mut found = Vec::new();
    for (theirs, ours) in names {
        for parameter in ["weight", "bias"] {
            let name = format!("{ours}.{parameter}");
            if weights.contains_tensor(&name) {
                let tensor =
                    changed(architecture.change, &theirs, weights.get_unchecked(&name)?, checkpoint)?;
                found.push((format!("{theirs}.{parameter}"), QTensor::quantize(&tensor, GgmlDType::F32)?));
            }
        }
    }
    Ok(found)
}

fn changed(change: Change, theirs: &str, tensor: Tensor, checkpoint: &Checkpoint) -> Result<Tensor> {
    let heads = match theirs.rsplit('.').next() {
        Some("attn_q") => checkpoint.number("num_attention_heads"),
        Some("attn_k") => checkpoint.number("num_key_value_heads"),
        _ => Ok(0),
    };
    match (change, heads.unwrap_or(0) as usize) {
        (Change::PlusOne, 0) if theirs.ends_with("norm") => tensor + 1.0,
        (Change::Squeezed, 0) if theirs.ends_with("shortconv.conv") => tensor.squeeze(1),
        (Change::Interleaved, heads) if heads > 0 => {
            let rows = tensor.dim(0)?;
            let rest = tensor.elem_count() / rows;
            let halves = tensor.reshape((heads, 2, rows / heads / 2, rest))?.transpose(1, 2)?;
            halves.contiguous()?.reshape(tensor.shape())
        }
        _ => Ok(tensor),
    }
}
