//! A checkpoint as the GGUF file that llama.cpp's converter writes of it, in f32, for the ports that read such files.
//!
//! The file has the checkpoint's values unrounded, so that a port differs from transformers by its arithmetic alone. Names and
//! changes follow `convert_hf_to_gguf.py` and gguf-py's `tensor_mapping.py`; importing the file gives the checkpoint back.

use std::io::Cursor;

use candle_core::quantized::gguf_file::{self, Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Result, Tensor};

use super::checkpoint::Checkpoint;

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
    Architecture { model_type: "mistral", name: "llama", modules: &[COMMON, SPLIT, NORM], change: Change::Interleaved },
    Architecture { model_type: "qwen2", name: "qwen2", modules: &[COMMON, SPLIT, NORM], change: Change::None },
    Architecture { model_type: "qwen3", name: "qwen3", modules: &[COMMON, SPLIT, NORM, HEAD_NORMS], change: Change::None },
    Architecture { model_type: "phi3", name: "phi3", modules: &[COMMON, FUSED, NORM], change: Change::None },
    Architecture { model_type: "glm4", name: "glm4", modules: &[COMMON, HALF_FUSED, GLM_NORMS], change: Change::None },
    Architecture { model_type: "gemma3_text", name: "gemma3", modules: &[COMMON, SPLIT, FOUR_NORMS, HEAD_NORMS], change: Change::PlusOne },
];

/// Metadata: llama.cpp's key, transformers' key.
const INTEGERS: &[(&str, &str)] = &[
    ("block_count", "num_hidden_layers"),
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("context_length", "max_position_embeddings"),
    ("attention.sliding_window", "sliding_window"),
];
const FLOATS: &[(&str, &str)] =
    &[("attention.layer_norm_rms_epsilon", "rms_norm_eps"), ("rope.freq_base", "rope_theta")];

/// The file's header and content.
pub(crate) fn file(checkpoint: &Checkpoint) -> Result<(Content, Cursor<Vec<u8>>)> {
    let found = ARCHITECTURES.iter().find(|known| known.model_type == checkpoint.model_type());
    let architecture =
        found.ok_or_else(|| candle_core::Error::msg("no GGUF is written of this model_type"))?;
    let metadata = metadata(architecture, checkpoint);
    let tensors = tensors(architecture, checkpoint)?;
    let mut bytes = Cursor::new(Vec::new());
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> =
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut bytes, &metadata, &tensors)?;
    bytes.set_position(0);
    let content = Content::read(&mut bytes)?;
    Ok((content, bytes))
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
        found.extend(checkpoint.float(ours).map(|number| (key(theirs), Value::F32(number as f32))));
    }
    let whole = integer("hidden_size").zip(integer("num_attention_heads")).map(|(size, heads)| size / heads);
    if let Some(head_dim) = integer("head_dim").or(whole) {
        let rotated = checkpoint.float("partial_rotary_factor").unwrap_or(1.0) * f64::from(head_dim);
        found.push((key("rope.dimension_count"), Value::U32(rotated as u32)));
        found.push((key("attention.key_length"), Value::U32(head_dim)));
        found.push((key("attention.value_length"), Value::U32(head_dim)));
    }
    found
}

fn tensors(architecture: &Architecture, checkpoint: &Checkpoint) -> Result<Vec<(String, QTensor)>> {
    let weights = checkpoint.weights();
    let layers = checkpoint.number("num_hidden_layers").unwrap_or(0);
    let ends = [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];
    let mut names: Vec<(String, String)> =
        ends.iter().map(|(theirs, ours)| ((*theirs).to_owned(), (*ours).to_owned())).collect();
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
        (Change::Interleaved, heads) if heads > 0 => {
            let rows = tensor.dim(0)?;
            let rest = tensor.elem_count() / rows;
            let halves = tensor.reshape((heads, 2, rows / heads / 2, rest))?.transpose(1, 2)?;
            halves.contiguous()?.reshape(tensor.shape())
        }
        _ => Ok(tensor),
    }
}
