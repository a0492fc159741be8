//! Checks a config's keys against each other, before any weight is read: sizes that do not divide, and factors that do not
//! match the frequencies.

use bounds::config::Refused;
use serde_json::{Map, Value};

use crate::registry;

/// Architectures whose `head_dim` does not follow from the hidden size where it is absent.
const OWN_HEAD_DIM: [&str; 4] = ["qwen3", "gemma", "gemma2", "gemma3_text"];

/// Keys with one number for all layers.
const ONE_NUMBER: [&str; 7] = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
];

/// Keys of the hidden size and of the number of heads, in all spellings.
const SIZES: [(&str, &str); 3] =
    [("hidden_size", "num_attention_heads"), ("n_embd", "n_head"), ("dim", "n_heads")];

/// Accepts the config of a native architecture whose sizes fit each other, and every config of another one.
/// [`bounds::config::check`] comes first: it refuses sizes that no architecture has.
///
/// # Errors
/// With the key, its value and what is needed.
pub fn check_config(config: &Map<String, Value>) -> Result<(), Refused> {
    let Some(model_type) = config.get("model_type").and_then(Value::as_str) else { return Ok(()) };
    if registry::kind(model_type).is_none() {
        return Ok(());
    }
    // Other architectures have one number a layer.
    for key in ONE_NUMBER {
        if let Some(list @ Value::Array(_)) = config.get(key) {
            return Err(Refused::new(key, list, format!("one number for all layers of {model_type}")));
        }
    }
    let whole = |key: &str| config.get(key).and_then(Value::as_u64).filter(|number| *number > 0);
    let sizes = SIZES.iter().find_map(|(size, heads)| Some((*size, whole(size)?, *heads, whole(heads)?)));
    let mut head_dim = whole("head_dim");
    if let Some((size_key, size, heads_key, heads)) = sizes {
        if head_dim.is_none() && !OWN_HEAD_DIM.contains(&model_type) {
            if size % heads != 0 {
                let needed = format!("a divisor of {size_key} ({size})");
                return Err(Refused::new(heads_key, &heads.into(), needed));
            }
            head_dim = Some(size / heads);
        }
        if let Some(kv_heads) = whole("num_key_value_heads").filter(|kv_heads| heads % kv_heads != 0) {
            let needed = format!("a divisor of {heads_key} ({heads})");
            return Err(Refused::new("num_key_value_heads", &kv_heads.into(), needed));
        }
    }
    if let (Some(used), Some(experts)) =
        (whole("num_experts_per_tok"), whole("num_experts").or_else(|| whole("num_local_experts")))
        && used > experts
    {
        let needed = format!("a number up to that of the experts ({experts})");
        return Err(Refused::new("num_experts_per_tok", &used.into(), needed));
    }
    head_dim.map_or(Ok(()), |head_dim| check_factors(config, head_dim))
}

/// longrope has one factor for each frequency.
fn check_factors(config: &Map<String, Value>, head_dim: u64) -> Result<(), Refused> {
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(rope) = config.get(key).and_then(Value::as_object) else { continue };
        let share =
            [rope, config].iter().find_map(|map| map.get("partial_rotary_factor")?.as_f64()).unwrap_or(1.0);
        let frequencies = ((head_dim as f64 * share) as u64).div_ceil(2);
        for list in ["short_factor", "long_factor"] {
            let Some(factors) = rope.get(list).and_then(Value::as_array) else { continue };
            if factors.len() as u64 != frequencies {
                let found = format!("a list of {}", factors.len());
                let needed = format!("a factor for each of {frequencies} frequencies");
                return Err(Refused::described(&format!("{key}.{list}"), &found, needed));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sizes_that_do_not_fit_each_other_are_refused() {
        let check = |config: Value, expected: Option<&str>| {
            let found = check_config(config.as_object().unwrap()).err().map(|refused| refused.to_string());
            assert_eq!(found.as_deref(), expected, "{config}");
        };
        let llama = |more: Value| {
            let mut config = json!({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4});
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            config
        };
        check(llama(json!({"num_key_value_heads": 2})), None);
        check(
            llama(json!({"num_attention_heads": 3})),
            Some("`num_attention_heads` is 3 where a divisor of hidden_size (64) is needed"),
        );
        check(llama(json!({"num_attention_heads": 3, "head_dim": 16, "num_key_value_heads": 3})), None);
        check(
            llama(json!({"num_key_value_heads": 8})),
            Some("`num_key_value_heads` is 8 where a divisor of num_attention_heads (4) is needed"),
        );
        check(
            llama(json!({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}})),
            Some(
                "`rope_scaling.short_factor` is a list of 1 where a factor for each of 8 frequencies is needed",
            ),
        );
        check(
            llama(json!({"intermediate_size": [64]})),
            Some("`intermediate_size` is [64] where one number for all layers of llama is needed"),
        );
        check(json!({"model_type": "another", "hidden_size": 64, "num_attention_heads": 3}), None);
    }
}
