//! Edits of JSON that the fuzzer's bytes describe, so that they change values and not the syntax.

use arbitrary::{Result, Unstructured};
use serde_json::{Map, Value, json};

/// Values that readers of JSON tend to get wrong, and words that configs use.
const WORDS: [&str; 48] = [
    "0",
    "1",
    "2",
    "-1",
    "7",
    "64",
    "0.0",
    "-0.0",
    "0.5",
    "1e-5",
    "1e308",
    "-1e308",
    "1e-320",
    "65535",
    "65536",
    "2147483648",
    "4294967295",
    "4294967296",
    "1099511627776",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "null",
    "true",
    "false",
    "[]",
    "{}",
    "\"\"",
    "[0]",
    "[[]]",
    "[1,2]",
    "[null]",
    "\"../../x\"",
    "\"/\"",
    "\"..\"",
    "\"a\\u0000b\"",
    "\"\\u001b[2J\"",
    "\"é€𝄞\"",
    "\"nan\"",
    "\"inf\"",
    "\"f32\"",
    "\"f64\"",
    "\"linear\"",
    "\"yarn\"",
    "\"full_attention\"",
    "\"sliding_attention\"",
    "\"gelu\"",
];
/// Most edits of one input.
const MOST: usize = 12;

/// The JSON text itself if it is some, else `base` with the edits that the bytes describe.
pub(super) fn json(base: &Value, data: &[u8]) -> Vec<u8> {
    if data.first().is_some_and(|first| b"{[\"".contains(first)) {
        return data.to_vec();
    }
    let mut value = base.clone();
    // The bytes may end anywhere: the edits before count.
    let _ = edit(&mut value, &mut Unstructured::new(data));
    value.to_string().into_bytes()
}

/// Applies edits until the bytes end.
pub(super) fn edit(value: &mut Value, data: &mut Unstructured<'_>) -> Result<()> {
    let base = value.clone();
    for _ in 0..MOST {
        if data.is_empty() {
            break;
        }
        change(value, &base, data)?;
    }
    Ok(())
}

/// Changes one value below `at`.
fn change(at: &mut Value, base: &Value, data: &mut Unstructured<'_>) -> Result<()> {
    let goes_on = data.ratio(7_u8, 8_u8)?;
    match at {
        Value::Object(map) if goes_on && !map.is_empty() => {
            let index = data.choose_index(map.len())?;
            let key = map.keys().nth(index).cloned().unwrap_or_default();
            match data.int_in_range(0_u8..=9)? {
                0 => drop(map.shift_remove(&key)),
                1 => {
                    let name = name(map, data)?;
                    let value = other(base, data)?;
                    map.insert(name, value);
                }
                _ => {
                    if let Some(inner) = map.get_mut(&key) {
                        change(inner, base, data)?;
                    }
                }
            }
        }
        Value::Array(list) if goes_on && !list.is_empty() => {
            let index = data.choose_index(list.len())?;
            match data.int_in_range(0_u8..=9)? {
                0 => drop(list.remove(index)),
                1 => {
                    let times = data.int_in_range(1_u8..=40)?;
                    let copy = list[index].clone();
                    list.extend((0..times).map(|_| copy.clone()));
                }
                2 => list.reverse(),
                _ => change(&mut list[index], base, data)?,
            }
        }
        _ => *at = other(base, data)?,
    }
    Ok(())
}

/// A key that the object has not, or another's with a letter more.
fn name(map: &Map<String, Value>, data: &mut Unstructured<'_>) -> Result<String> {
    if data.ratio(1_u8, 4_u8)? {
        let index = data.choose_index(map.len().max(1))?;
        return Ok(map.keys().nth(index).map(|key| format!("{key}_")).unwrap_or_default());
    }
    let keys = [
        "",
        "head_dim",
        "rope_scaling",
        "rope_parameters",
        "rope_theta",
        "sliding_window",
        "layer_types",
        "text_config",
        "quantization_config",
        "tie_word_embeddings",
        "num_key_value_heads",
        "vocab_size",
        "pad_token_id",
        "factor",
        "rope_type",
        "original_max_position_embeddings",
        "long_factor",
        "short_factor",
        "attention_factor",
        "partial_rotary_factor",
        "outcome",
        "reason",
        "notes",
        "prefill",
        "axes",
        "pooling",
        "tolerances",
        "choices",
        "near_ties",
        "outputs",
    ];
    Ok((*data.choose(&keys)?).to_owned())
}

/// A value in place of another.
fn other(base: &Value, data: &mut Unstructured<'_>) -> Result<Value> {
    Ok(match data.int_in_range(0_u8..=7)? {
        0 => json!(data.arbitrary::<i64>()?),
        1 => json!(data.arbitrary::<u64>()?),
        2 => json!(data.arbitrary::<f64>()?),
        3 => json!(data.arbitrary::<&str>()?),
        // A value from elsewhere.
        4 => {
            let mut at = base;
            for _ in 0..data.int_in_range(1_u8..=4)? {
                at = match at {
                    Value::Object(map) if !map.is_empty() => {
                        let index = data.choose_index(map.len())?;
                        map.values().nth(index).unwrap_or(at)
                    }
                    Value::Array(list) if !list.is_empty() => data.choose(list)?,
                    _ => break,
                };
            }
            at.clone()
        }
        _ => serde_json::from_str(data.choose(&WORDS)?).unwrap_or_default(),
    })
}
