//! The lines of an architecture's table of tensors, and what they mean.
//!
//! ```text
//! model.layers.{num_hidden_layers}.self_attn.q_proj.bias | num_attention_heads*head_dim | normal 0 0.5 | attention_bias
//! name                                                   | shape                        | fill         | condition
//! ```
//! - `{key}` in a name counts from 0 to the config's `key`.
//! - A shape is a list of sums of products (and quotients) of config keys and integers.
//! - A fill is `normal MEAN STD`, `linear GAIN` (standard deviation `GAIN / sqrt(last dimension)`), or
//!   `conv1d GAIN` (`GAIN / sqrt(first dimension)`, for weights stored as `[in, out]`).
//! - A condition, which may be left out, is a key that must be present and not false, `!key` (false, null or absent),
//!   `key is VALUE`, `key not VALUE`, `layer in key` or `layer not in key`, where that key is a list of layer indices.
//!   `layer`, the value of the name's first counter, is a key as well.

use serde_json::{Map, Value};

/// One tensor of a checkpoint: normally distributed values, `mean + std·x`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) mean: f64,
    pub(super) std: f64,
}

impl Tensor {
    /// Number of values.
    pub(super) fn len(&self) -> usize {
        self.shape.iter().product()
    }
}

type Config = Map<String, Value>;

/// Appends the tensors that a line stands for.
pub(super) fn expand(line: &str, config: &Config, tensors: &mut Vec<Tensor>) -> Result<(), String> {
    let fields: Vec<&str> = line.split('|').map(str::trim).collect();
    let (name, shape, fill, condition) = match fields[..] {
        [name, shape, fill] => (name, shape, fill, ""),
        [name, shape, fill, condition] => (name, shape, fill, condition),
        _ => return Err(format!("{} fields instead of 3 or 4", fields.len())),
    };
    let shape = shape.split(',').map(|sum| size(sum, config)).collect::<Result<Vec<_>, _>>()?;
    let (mean, std) = distribution(fill, &shape)?;
    for (name, layer) in names(name, config)? {
        if holds(condition, layer, config)? {
            tensors.push(Tensor { name, shape: shape.clone(), mean, std });
        }
    }
    Ok(())
}

/// The names that a pattern stands for, each with the value of its first counter.
fn names(pattern: &str, config: &Config) -> Result<Vec<(String, usize)>, String> {
    let Some((before, rest)) = pattern.split_once('{') else {
        return Ok(vec![(pattern.to_owned(), 0)]);
    };
    let (key, after) = rest.split_once('}').ok_or("an unclosed brace")?;
    let mut all = Vec::new();
    for index in 0..integer(key, config)? {
        all.extend(
            names(after, config)?.into_iter().map(|(tail, _)| (format!("{before}{index}{tail}"), index)),
        );
    }
    Ok(all)
}

fn size(sum: &str, config: &Config) -> Result<usize, String> {
    let factor = |text: &str| {
        let mut parts = text.split('/').map(|part| integer(part.trim(), config));
        let first = parts.next().unwrap_or(Ok(1))?;
        parts.try_fold(first, |quotient, divisor| Ok::<_, String>(quotient / divisor?))
    };
    sum.split('+').map(|product| product.split('*').map(factor).product::<Result<usize, _>>()).sum()
}

fn integer(text: &str, config: &Config) -> Result<usize, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let value = config.get(text).and_then(Value::as_u64);
    value.map(|value| value as usize).ok_or_else(|| format!("no integer `{text}` in the config"))
}

fn distribution(fill: &str, shape: &[usize]) -> Result<(f64, f64), String> {
    let words: Vec<&str> = fill.split_whitespace().collect();
    let number = |text: &str| text.parse::<f64>().map_err(|_| format!("`{text}` is not a number"));
    let scaled = |gain: &str, inputs: Option<&usize>| {
        let inputs = inputs.ok_or("a scalar has no inputs")?;
        Ok((0.0, number(gain)? / (*inputs as f64).sqrt()))
    };
    match words[..] {
        ["normal", mean, std] => Ok((number(mean)?, number(std)?)),
        ["linear", gain] => scaled(gain, shape.last()),
        ["conv1d", gain] => scaled(gain, shape.first()),
        _ => Err(format!("an unknown fill `{fill}`")),
    }
}

fn holds(condition: &str, layer: usize, config: &Config) -> Result<bool, String> {
    let value = |key: &str| match key {
        "layer" => Value::from(layer),
        _ => config.get(key).cloned().unwrap_or(Value::Null),
    };
    let truth = |key: &str| !matches!(value(key), Value::Null | Value::Bool(false));
    let listed = |key: &str| match value(key) {
        Value::Array(list) => Ok(list.contains(&Value::from(layer))),
        _ => Err(format!("no list `{key}` in the config")),
    };
    match condition.split_whitespace().collect::<Vec<_>>()[..] {
        [] => Ok(true),
        ["layer", "in", key] => listed(key),
        ["layer", "not", "in", key] => Ok(!listed(key)?),
        [key, "is", wanted] => Ok(value(key).to_string() == wanted),
        [key, "not", wanted] => Ok(value(key).to_string() != wanted),
        [key] => Ok(key.strip_prefix('!').map_or_else(|| truth(key), |key| !truth(key))),
        _ => Err(format!("an unknown condition `{condition}`")),
    }
}
