//! Which values of a checkpoint's `config.json` can be a transformer's at all, as a table of keys.
//!
//! A value outside of these is wrong for every runner: no heads, a hidden size that wraps, a factor that divides by 0.
//! A value within them may still be one that a runner does not know.

use serde_json::{Map, Value};

use crate::limits::{EXPERTS, FEATURES, HEAD_DIM, HEADS, LABELS, LAYERS, LINE, Limit, POSITIONS, VOCAB_SIZE};
use crate::shown;

/// A value that no checkpoint can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The key; nested keys are joined with a dot.
    pub key: String,
    /// The value as JSON.
    pub value: String,
    /// What is needed instead.
    pub needed: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { key, value, needed } = self;
        write!(f, "`{key}` is {value} where {needed} is needed")
    }
}

impl std::error::Error for Refused {}

impl Refused {
    /// The refusal of a value.
    pub fn new(key: &str, value: &Value, needed: impl Into<String>) -> Self {
        Self::described(key, &value.to_string(), needed)
    }

    /// The refusal of a value that is described instead of quoted: `a list of 3`.
    pub fn described(key: &str, value: &str, needed: impl Into<String>) -> Self {
        Self {
            key: shown(key, LINE.most).into_owned(),
            value: shown(value, 200).into_owned(),
            needed: needed.into(),
        }
    }
}

/// Whole numbers, each with the smallest and the largest accepted one.
const WHOLE: &[(&str, u64, Limit)] = &[
    ("vocab_size", 1, VOCAB_SIZE),
    ("type_vocab_size", 0, VOCAB_SIZE),
    ("hidden_size", 1, FEATURES),
    ("n_embd", 1, FEATURES),
    ("dim", 1, FEATURES),
    ("intermediate_size", 1, FEATURES),
    ("moe_intermediate_size", 1, FEATURES),
    ("hidden_dim", 1, FEATURES),
    ("n_inner", 1, FEATURES),
    ("ffn_hidden_size", 1, FEATURES),
    ("num_attention_heads", 1, HEADS),
    ("num_key_value_heads", 1, HEADS),
    ("num_kv_heads", 1, HEADS),
    ("n_head", 1, HEADS),
    ("n_heads", 1, HEADS),
    ("head_dim", 1, HEAD_DIM),
    ("num_hidden_layers", 0, LAYERS),
    ("n_layer", 0, LAYERS),
    ("n_layers", 0, LAYERS),
    ("projection_dim", 1, FEATURES),
    ("embed_dim", 1, FEATURES),
    ("d_model", 1, FEATURES),
    ("d_ff", 1, FEATURES),
    ("d_kv", 1, HEAD_DIM),
    ("num_heads", 1, HEADS),
    ("num_layers", 0, LAYERS),
    ("num_decoder_layers", 0, LAYERS),
    ("encoder_layers", 0, LAYERS),
    ("decoder_layers", 0, LAYERS),
    ("encoder_attention_heads", 1, HEADS),
    ("decoder_attention_heads", 1, HEADS),
    ("encoder_ffn_dim", 1, FEATURES),
    ("decoder_ffn_dim", 1, FEATURES),
    ("num_mel_bins", 1, FEATURES),
    ("max_source_positions", 1, POSITIONS),
    ("max_target_positions", 1, POSITIONS),
    ("relative_attention_num_buckets", 1, POSITIONS),
    ("relative_attention_max_distance", 1, POSITIONS),
    ("decoder_start_token_id", 0, VOCAB_SIZE),
    ("num_local_experts", 0, EXPERTS),
    ("num_experts", 0, EXPERTS),
    ("num_experts_per_tok", 0, EXPERTS),
    ("max_position_embeddings", 1, POSITIONS),
    ("original_max_position_embeddings", 1, POSITIONS),
    ("n_positions", 1, POSITIONS),
    ("sliding_window", 0, POSITIONS),
    ("local_attention", 0, POSITIONS),
    ("num_labels", 1, LABELS),
    ("decoder_sparse_step", 1, LAYERS),
    ("no_rope_layer_interval", 1, LAYERS),
    ("global_attn_every_n_layers", 1, LAYERS),
    ("sliding_window_pattern", 1, LAYERS),
    ("_sliding_window_pattern", 1, LAYERS),
];

/// The largest accepted whole number of any other key: beyond it JSON's numbers are not exact in every reader.
const ANY_MOST: u64 = 1 << 53;

/// Numbers above 0.
const POSITIVE: [&str; 4] = ["rope_theta", "rope_local_base_freq", "global_rope_theta", "local_rope_theta"];

/// Numbers above 0 and up to 1.
const SHARES: [&str; 2] = ["partial_rotary_factor", "rotary_pct"];

/// Numbers from 0.
const FROM_ZERO: [&str; 5] =
    ["rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "norm_eps"];

/// Flags of what a model computes.
const FLAGS: [&str; 21] = [
    "alibi",
    "attention_bias",
    "bias",
    "classifier_bias",
    "decoder_bias",
    "is_gated_act",
    "mlp_bias",
    "multi_query",
    "new_decoder_architecture",
    "norm_bias",
    "norm_topk_prob",
    "parallel_attn",
    "qk_layernorm",
    "scale_attn_by_inverse_layer_idx",
    "scale_attn_weights",
    "scale_decoder_outputs",
    "tie_word_embeddings",
    "use_bias",
    "use_parallel_residual",
    "use_qkv_bias",
    "use_sliding_window",
];

/// Keys for which transformers has no meaning of `null`: a model of such a config cannot be made. Others can be null in published
/// configs, as Cohere's `rms_norm_eps` beside its `layer_norm_eps`.
const NEVER_NULL: [&str; 4] = ["hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act"];

/// Keys of an object that describes rotary embeddings.
const ROPE: [&str; 2] = ["rope_scaling", "rope_parameters"];

/// Numbers above 0 in such an object.
const ROPE_POSITIVE: [&str; 4] = ["factor", "rope_theta", "low_freq_factor", "high_freq_factor"];

/// Numbers from 0 in such an object; transformers takes 0 for "not given".
const ROPE_FROM_ZERO: [&str; 5] = ["attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"];

/// Lists of numbers above 0 in such an object.
const ROPE_LISTS: [&str; 2] = ["short_factor", "long_factor"];

/// Accepts a config, or returns the first value that no checkpoint can have. Nested configs are checked too.
///
/// # Errors
/// With the key, its value and what is needed.
pub fn check(config: &Map<String, Value>) -> Result<(), Refused> {
    check_object(config, "")
}

/// Accepts a whole number between the table's limits for this key; any other key accepts numbers up to 2^53.
///
/// # Errors
/// If the number is outside the limits.
pub fn whole(key: &str, value: u64) -> Result<(), Refused> {
    let leaf = key.rsplit('.').next().unwrap_or(key);
    match WHOLE.iter().find(|(known, ..)| *known == leaf) {
        Some((_, least, limit)) if value < *least || value > limit.most => {
            Err(Refused::new(key, &value.into(), range(*least, *limit)))
        }
        None if value > ANY_MOST => {
            Err(Refused::new(key, &value.into(), format!("a whole number from 0 to {ANY_MOST}")))
        }
        _ => Ok(()),
    }
}

fn check_object(config: &Map<String, Value>, prefix: &str) -> Result<(), Refused> {
    if let Some(key) = NEVER_NULL.iter().find(|key| config.get(**key).is_some_and(Value::is_null)) {
        return Err(Refused::new(&format!("{prefix}{key}"), &Value::Null, "a value"));
    }
    for (key, value) in config.iter().filter(|(_, value)| !value.is_null()) {
        let path = format!("{prefix}{key}");
        if let Some((_, least, limit)) = WHOLE.iter().find(|(known, ..)| known == key) {
            // A list holds one number a layer.
            for value in value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice) {
                let fits = value.as_u64().is_some_and(|number| (*least..=limit.most).contains(&number));
                if !fits {
                    return Err(Refused::new(&path, value, range(*least, *limit)));
                }
            }
        } else if FLAGS.contains(&key.as_str()) && !value.is_boolean() {
            return Err(Refused::new(&path, value, "true or false"));
        } else if key == "architectures"
            && !value.as_array().is_some_and(|list| list.iter().all(Value::is_string))
        {
            return Err(Refused::new(&path, value, "a list of class names"));
        } else if ROPE.contains(&key.as_str()) {
            check_rope(value, &path)?;
        } else if let Value::Object(nested) = value {
            check_object(nested, &format!("{path}."))?;
        } else {
            check_number(key, value, &path, &POSITIVE, &FROM_ZERO)?;
        }
    }
    Ok(())
}

fn check_number(
    key: &str,
    value: &Value,
    path: &str,
    positive: &[&str],
    from_zero: &[&str],
) -> Result<(), Refused> {
    let number = value.as_f64();
    if SHARES.contains(&key) && !number.is_some_and(|number| number > 0.0 && number <= 1.0) {
        return Err(Refused::new(path, value, "a number above 0 and at most 1"));
    }
    if positive.contains(&key) && !number.is_some_and(|number| number > 0.0) {
        return Err(Refused::new(path, value, "a number above 0"));
    }
    if from_zero.contains(&key) && !number.is_some_and(|number| number >= 0.0) {
        return Err(Refused::new(path, value, "a number from 0"));
    }
    Ok(())
}

fn check_rope(value: &Value, path: &str) -> Result<(), Refused> {
    let Value::Object(rope) = value else {
        return Err(Refused::new(path, value, "an object or null"));
    };
    for (key, value) in rope.iter().filter(|(_, value)| !value.is_null()) {
        let path = format!("{path}.{key}");
        if key == "original_max_position_embeddings" {
            // transformers and its checkpoints write it as a float too.
            if !value.as_f64().is_some_and(|number| (1.0..=POSITIONS.most as f64).contains(&number)) {
                return Err(Refused::new(&path, value, range(1, POSITIONS)));
            }
        } else if ROPE_LISTS.contains(&key.as_str()) {
            let is_list = value.as_array().is_some_and(|list| {
                let fits = |value: &Value| value.as_f64().is_some_and(|number| number > 0.0);
                (1..=HEAD_DIM.most_usize()).contains(&list.len()) && list.iter().all(fits)
            });
            if !is_list {
                return Err(Refused::new(&path, value, "a list of numbers above 0, one a frequency"));
            }
        } else if value.is_object() {
            // One embedding a layer type.
            check_rope(value, &path)?;
        } else {
            check_number(key, value, &path, &ROPE_POSITIVE, &ROPE_FROM_ZERO)?;
        }
    }
    let number = |key: &str| rope.get(key).and_then(Value::as_f64);
    if let (Some(low), Some(high)) = (number("low_freq_factor"), number("high_freq_factor"))
        && low >= high
    {
        let needed = format!("a number below high_freq_factor ({high})");
        return Err(Refused::new(&format!("{path}.low_freq_factor"), &low.into(), needed));
    }
    Ok(())
}

fn range(least: u64, limit: Limit) -> String {
    format!("a whole number from {least} to {}", limit.most)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(config: &Value) -> Option<String> {
        check(config.as_object().unwrap()).err().map(|refused| refused.to_string())
    }

    #[test]
    fn sizes_that_no_model_has_are_refused_with_key_value_and_range() {
        let refused = |config: Value, expected: &str| {
            let found = refusal(&config).unwrap_or_else(|| panic!("{config} is accepted"));
            assert!(found.starts_with(expected), "{found}");
        };
        refused(json!({"num_attention_heads": 0}), "`num_attention_heads` is 0 where a whole number from 1");
        refused(json!({"vocab_size": 1_u64 << 62}), "`vocab_size` is 4611686018427387904 where");
        refused(json!({"hidden_size": -64}), "`hidden_size` is -64");
        refused(json!({"hidden_size": 64.5}), "`hidden_size` is 64.5");
        refused(json!({"hidden_size": "64"}), "`hidden_size` is \"64\"");
        refused(json!({"text_config": {"head_dim": 0}}), "`text_config.head_dim` is 0");
        assert_eq!(refusal(&json!({"rms_norm_eps": null, "layer_norm_eps": 1e-5})), None, "as Cohere's");
        refused(json!({"hidden_act": null}), "`hidden_act` is null where a value is needed");
        refused(json!({"text_config": {"hidden_size": null}}), "`text_config.hidden_size` is null");
        refused(json!({"rope_theta": 0}), "`rope_theta` is 0 where a number above 0");
        refused(json!({"rms_norm_eps": "1e-5"}), "`rms_norm_eps` is \"1e-5\"");
        refused(
            json!({"tie_word_embeddings": "yes"}),
            "`tie_word_embeddings` is \"yes\" where true or false",
        );
        refused(
            json!({"architectures": "LlamaForCausalLM"}),
            "`architectures` is \"LlamaForCausalLM\" where a list",
        );
        refused(json!({"architectures": [1]}), "`architectures` is [1] where a list");
        refused(json!({"rope_scaling": "x"}), "`rope_scaling` is \"x\" where an object");
        refused(json!({"rope_scaling": {"factor": 0.0}}), "`rope_scaling.factor` is 0.0");
        refused(
            json!({"rope_parameters": {"full_attention": {"factor": -2}}}),
            "`rope_parameters.full_attention.factor` is -2",
        );
        refused(json!({"rope_scaling": {"short_factor": []}}), "`rope_scaling.short_factor` is []");
        refused(
            json!({"rope_scaling": {"low_freq_factor": 4, "high_freq_factor": 4}}),
            "`rope_scaling.low_freq_factor` is 4.0 where a number below high_freq_factor (4)",
        );
        let long = refusal(&json!({"hidden_size": "x".repeat(100_000)})).unwrap();
        assert!(long.len() < 400, "{} bytes", long.len());
    }

    #[test]
    fn what_real_checkpoints_have_is_accepted() {
        for config in [
            json!({"hidden_size": 576, "num_key_value_heads": null, "sliding_window": 0, "num_hidden_layers": 0}),
            json!({"intermediate_size": [1024, 2048], "max_position_embeddings": 10_485_760}),
            json!({"architectures": ["LlamaForCausalLM"], "attention_bias": false, "tie_word_embeddings": null}),
            json!({"rope_scaling": null, "rope_theta": 1e6, "layer_norm_eps": 0}),
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}),
            json!({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 0, "mscale": 0,
                "original_max_position_embeddings": 32768.0, "rope_theta": 10000}}),
        ] {
            assert_eq!(refusal(&config), None, "{config}");
        }
    }
}
