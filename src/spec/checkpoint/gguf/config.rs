//! `config.json` from a GGUF file's metadata, in the flat layout that transformers 4 and 5 both read.
//!
//! The keys follow transformers 5.23 (`integrations/ggml.py`, `GGUF_CONFIG_MAPPING`). Where that leaves a value to a
//! class default that fits only one model, the value is taken from the file or from llama.cpp instead.

use std::path::Path;

use candle_core::Device;
use candle_core::quantized::gguf_file::Content;
use serde_json::{Map, Value, json};

use super::metadata::Metadata;
use super::names::Architecture;
use super::{Problem, damaged};

pub(super) fn build(
    architecture: Architecture,
    content: &Content,
    metadata: &Metadata<'_>,
    path: &Path,
    notes: &mut Vec<String>,
) -> Result<Map<String, Value>, Problem> {
    let key = |name: &str| format!("{}.{name}", architecture.name());
    let integer = |name: &str| metadata.need_integer(&key(name));
    let has = |tensor: &str| content.tensor_infos.contains_key(tensor);
    let heads = metadata.need_whole(&key("attention.head_count"), "num_attention_heads")?;
    let hidden_size = metadata.need_whole(&key("embedding_length"), "hidden_size")?;
    let layers = metadata.need_whole(&key("block_count"), "num_hidden_layers")?;
    let head_dim = metadata.integer(&key("attention.key_length")).unwrap_or(hidden_size / heads);
    let rope_theta = metadata.float(&key("rope.freq_base")).unwrap_or(10_000.0);
    let (model_type, class) = match architecture {
        Architecture::Llama => ("llama", "LlamaForCausalLM"),
        Architecture::Qwen2 => ("qwen2", "Qwen2ForCausalLM"),
        Architecture::Qwen3 => ("qwen3", "Qwen3ForCausalLM"),
        Architecture::Gemma2 => ("gemma2", "Gemma2ForCausalLM"),
        Architecture::Gemma3 => ("gemma3_text", "Gemma3ForCausalLM"),
    };
    // The number of tokens comes from the embedding matrix; metadata of padded vocabularies is often wrong.
    let vocab_size =
        content.tensor_infos["token_embd.weight"].shape.dims().first().copied().unwrap_or_default();
    if let Some(tokens) = metadata.texts("tokenizer.ggml.tokens").map(|tokens| tokens.len())
        && tokens != vocab_size
    {
        notes.push(format!("the embedding has {vocab_size} rows for {tokens} tokens"));
    }

    let mut config = Map::new();
    let mut set = |name: &str, value: Value| config.insert(name.to_owned(), value);
    set("architectures", json!([class]));
    set("model_type", json!(model_type));
    set("torch_dtype", json!("float32"));
    set("vocab_size", json!(vocab_size));
    set("hidden_size", json!(hidden_size));
    set("intermediate_size", json!(integer("feed_forward_length")?));
    set("num_hidden_layers", json!(layers));
    set("num_attention_heads", json!(heads));
    set("num_key_value_heads", json!(metadata.integer(&key("attention.head_count_kv")).unwrap_or(heads)));
    set("max_position_embeddings", json!(integer("context_length")?));
    set("rms_norm_eps", json!(metadata.need_float(&key("attention.layer_norm_rms_epsilon"))?));
    set("rope_theta", json!(rope_theta));
    set("tie_word_embeddings", json!(!has("output.weight")));
    for (name, theirs) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
        // Absent keys are left to the config class, as in transformers.
        if let Some(id) = metadata.integer(&format!("tokenizer.ggml.{theirs}_token_id")) {
            set(name, json!(id));
        }
    }
    match architecture {
        Architecture::Llama => {
            set("hidden_act", json!("silu"));
            set("head_dim", json!(metadata.integer(&key("rope.dimension_count")).unwrap_or(head_dim)));
            set("attention_bias", json!(has("blk.0.attn_q.bias")));
            set("mlp_bias", json!(has("blk.0.ffn_gate.bias")));
        }
        Architecture::Qwen2 => {
            set("hidden_act", json!("silu"));
            set("use_sliding_window", json!(false));
        }
        Architecture::Qwen3 => {
            set("hidden_act", json!("silu"));
            set("head_dim", json!(head_dim));
            set("attention_bias", json!(has("blk.0.attn_q.bias")));
            set("use_sliding_window", json!(false));
        }
        Architecture::Gemma2 | Architecture::Gemma3 => {
            set("hidden_activation", json!("gelu_pytorch_tanh"));
            set("head_dim", json!(head_dim));
            set("sliding_window", json!(integer("attention.sliding_window")?));
            // llama.cpp scales queries by 1/√head_dim, in the 27B models by 1/√(hidden_size/heads)
            // (llama-model.cpp, LLM_ARCH_GEMMA2 and LLM_ARCH_GEMMA3, `f_attention_scale`).
            let is_27b =
                matches!((architecture, layers), (Architecture::Gemma2, 46) | (Architecture::Gemma3, 62));
            set("query_pre_attn_scalar", json!(if is_27b { hidden_size / heads } else { head_dim }));
        }
    }
    if architecture == Architecture::Gemma2 {
        let cap = |name: &str, default: f64| metadata.float(&key(name)).unwrap_or(default);
        // Defaults: llama.cpp `llama_hparams`, which are the values of the published models.
        set("attn_logit_softcapping", json!(cap("attn_logit_softcapping", 50.0)));
        set("final_logit_softcapping", json!(cap("final_logit_softcapping", 30.0)));
    }
    if architecture == Architecture::Gemma3 {
        let pattern = metadata.integer(&key("attention.sliding_window_pattern")).unwrap_or(6);
        let layer_types: Vec<_> = (1..=layers)
            .map(|layer| if layer % pattern.max(1) == 0 { "full_attention" } else { "sliding_attention" })
            .collect();
        set("rope_local_base_freq", json!(metadata.float(&key("rope.freq_base_swa")).unwrap_or(10_000.0)));
        // transformers up to 4.52 reads the pattern, from 4.53 on the list; later versions keep the pattern under the
        // name with an underscore.
        set("sliding_window_pattern", json!(pattern));
        set("_sliding_window_pattern", json!(pattern));
        set("layer_types", json!(layer_types));
        set("attn_logit_softcapping", Value::Null);
        set("final_logit_softcapping", Value::Null);
    }
    let scaling = rope_scaling(architecture, content, metadata, path, head_dim, rope_theta)?;
    if !scaling.is_null() {
        set("rope_scaling", scaling);
    }
    Ok(config)
}

/// `rope_scaling`, or null.
fn rope_scaling(
    architecture: Architecture,
    content: &Content,
    metadata: &Metadata<'_>,
    path: &Path,
    head_dim: u64,
    rope_theta: f64,
) -> Result<Value, Problem> {
    let unknown = |what: &str| {
        (
            format!("its rope scaling ({what}) is not known"),
            "use the checkpoint's safetensors, whose config has the full scaling parameters".to_owned(),
        )
    };
    if content.tensor_infos.contains_key("rope_freqs.weight") {
        let read = || -> candle_core::Result<Vec<f32>> {
            let tensor = content.tensor(&mut bounds::file::open(path)?, "rope_freqs.weight", &Device::Cpu)?;
            tensor.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()
        };
        let factors = read().map_err(|error| damaged(format!("tensor `rope_freqs.weight`: {error}")))?;
        return llama3_scaling(&factors, head_dim, rope_theta).ok_or_else(|| unknown("rope_freqs.weight"));
    }
    let key = |name: &str| format!("{}.rope.scaling.{name}", architecture.name());
    match metadata.text(&key("type")) {
        None | Some("none") => Ok(Value::Null),
        Some("linear") => {
            let factor = metadata.need_float(&key("factor"))?;
            // Up to 4.42 the key is `type`, later `rope_type`; each version ignores the other key.
            Ok(json!({"type": "linear", "rope_type": "linear", "factor": factor}))
        }
        Some(other) => Err(unknown(other)),
    }
}

/// llama.cpp stores Llama 3's scaling as one divisor per frequency and drops the four numbers behind it. The published
/// models share three of them and differ in the factor, which is the last divisor. The result is used only if it
/// reproduces every divisor.
fn llama3_scaling(factors: &[f32], head_dim: u64, rope_theta: f64) -> Option<Value> {
    let factor = f64::from(*factors.last()?);
    let (low, high, original) = (1.0, 4.0, 8192.0);
    if factors.len() as u64 != head_dim / 2 {
        return None;
    }
    let fits = factors.iter().enumerate().all(|(i, found)| {
        let wavelength = std::f64::consts::TAU * rope_theta.powf(2.0 * i as f64 / head_dim as f64);
        // modeling_rope_utils.py, `_compute_llama3_parameters`.
        let expected = if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        };
        // The converter computes in f32, so its divisors have a relative error of about 1e-6.
        (f64::from(*found) - expected).abs() <= 1e-4 * expected
    });
    fits.then(|| {
        json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original as u64,
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::llama3_scaling;

    /// Divisors of Llama-3.2-1B (factor 32, head_dim 64, theta 500000) by llama.cpp's `generate_extra_tensors`.
    fn llama32_factors() -> Vec<f32> {
        (0..32)
            .map(|i| {
                let wavelength = std::f32::consts::TAU * 500_000f32.powf(i as f32 / 32.0);
                if wavelength < 2048.0 {
                    1.0
                } else if wavelength > 8192.0 {
                    32.0
                } else {
                    let smooth = (8192.0 / wavelength - 1.0) / 3.0;
                    1.0 / ((1.0 - smooth) / 32.0 + smooth)
                }
            })
            .collect()
    }

    #[test]
    fn llama_3_scaling_is_recovered_from_its_divisors() {
        let scaling = llama3_scaling(&llama32_factors(), 64, 500_000.0).unwrap();
        assert_eq!(scaling["factor"], json!(32.0));
        assert_eq!(scaling["original_max_position_embeddings"], json!(8192));
    }

    #[test]
    fn divisors_of_another_scaling_are_not_taken_for_llama_3() {
        let mut factors = llama32_factors();
        factors[16] *= 1.01;
        assert_eq!(llama3_scaling(&factors, 64, 500_000.0), None);
        assert_eq!(llama3_scaling(&llama32_factors(), 64, 10_000.0), None);
    }
}
