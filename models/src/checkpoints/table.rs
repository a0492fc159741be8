//! The syntax of an architecture's table of tensors.
//!
//! ```text
//! model.layers.{num_hidden_layers}.self_attn.q_proj.bias | num_attention_heads*head_dim | normal 0 0.5 | attention_bias
//! name                                                   | shape                        | fill         | condition
//! ```
//! - `{key}` in a name counts from 0 to the config's `key`. A key of a nested object is `object.key`.
//! - A shape is a list of sums of products (and quotients) of config keys and integers, or `scalar`.
//! - A fill is `normal MEAN STD`, `linear GAIN` (standard deviation `GAIN / sqrt(last dimension)`), or
//!   `conv1d GAIN` (`GAIN / sqrt(first dimension)`, for weights stored as `[in, out]`).
//! - A condition, which may be left out, is a key that must be present and not false, `!key` (false, null or absent),
//!   `key is VALUE`, `key not VALUE`, `layer in key` or `layer not in key`, where that key is a list of layer indices.
//!   `layer`, the value of the name's first counter, is a key as well.

use serde_json::{Map, Value};

/// One tensor of a checkpoint: normally distributed values, `mean + std·x`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) mean: f64,
    pub(crate) std: f64,
}

impl Tensor {
    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }
}

type Config = Map<String, Value>;

/// Appends the tensors that a line describes.
pub(super) fn expand(line: &str, config: &Config, tensors: &mut Vec<Tensor>) -> Result<(), String> {
    let fields: Vec<&str> = line.split('|').map(str::trim).collect();
    let (name, shape, fill, condition) = match fields[..] {
        [name, shape, fill] => (name, shape, fill, ""),
        [name, shape, fill, condition] => (name, shape, fill, condition),
        _ => return Err(format!("{} fields instead of 3 or 4", fields.len())),
    };
    let sums = shape.split(',').filter(|_| shape != "scalar");
    let shape = sums.map(|sum| size(sum, config)).collect::<Result<Vec<_>, _>>()?;
    let (mean, std) = distribution(fill, &shape)?;
    for (name, layer) in names(name, config)? {
        if holds(condition, layer, config)? {
            tensors.push(Tensor { name, shape: shape.clone(), mean, std });
        }
    }
    Ok(())
}

/// The names that a pattern expands to, each with the value of its first counter.
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
    let mut path = text.split('.');
    let value = path.next().and_then(|key| config.get(key));
    let value = path.try_fold(value, |value, key| Some(value?.get(key))).flatten().and_then(Value::as_u64);
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
    let literal =
        |text: &str| serde_json::from_str::<Value>(text).map_err(|_| format!("`{text}` is not a JSON value"));
    match condition.split_whitespace().collect::<Vec<_>>()[..] {
        [] => Ok(true),
        ["layer", "in", key] => listed(key),
        ["layer", "not", "in", key] => Ok(!listed(key)?),
        [key, "is", wanted] => Ok(value(key) == literal(wanted)?),
        [key, "not", wanted] => Ok(value(key) != literal(wanted)?),
        [key] => Ok(key.strip_prefix('!').map_or_else(|| truth(key), |key| !truth(key))),
        _ => Err(format!("an unknown condition `{condition}`")),
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    /// Name, shape, mean and standard deviation of a tensor.
    type Row<'a> = (&'a str, &'a [usize], f64, f64);

    /// The tensors of a line, or its error.
    fn check(line: &str, expected: Result<&[Row<'_>], &str>) {
        let config = r#"{"layers": 3, "hidden": 16, "heads": 4, "on": true, "off": false, "none": null, "dense": [1], "part": {"heads": 2}}"#;
        let mut tensors = Vec::new();
        let result = expand(line, &serde_json::from_str(config).unwrap(), &mut tensors);
        let expected = expected.map(|tensors| {
            let tensors = tensors.iter();
            let tensor = |&(name, shape, mean, std): &Row<'_>| Tensor {
                name: name.to_owned(),
                shape: shape.to_vec(),
                mean,
                std,
            };
            tensors.map(tensor).collect::<Vec<_>>()
        });
        assert_eq!(result.map(|()| tensors), expected.map_err(ToOwned::to_owned), "{line}");
    }

    #[test]
    fn a_line_expands_to_its_tensors() {
        check("a | hidden | normal 1 0.5", Ok(&[("a", &[16], 1.0, 0.5)]));
        check("a | 3, hidden | linear 2", Ok(&[("a", &[3, 16], 0.0, 0.5)]));
        check("a | hidden, 3 | conv1d 2", Ok(&[("a", &[16, 3], 0.0, 0.5)]));
        check("a | hidden+2*hidden/heads | normal 0 1", Ok(&[("a", &[24], 0.0, 1.0)]));
        check("a | hidden*part.heads | normal 0 1", Ok(&[("a", &[32], 0.0, 1.0)]));
        check("a | scalar | normal 2 0.5", Ok(&[("a", &[], 2.0, 0.5)]));
        let pair: &[_] = &[("a.0.b.0", &[1][..], 0.0, 1.0), ("a.0.b.1", &[1], 0.0, 1.0)];
        check("a.0.b.{2} | 1 | normal 0 1", Ok(pair));
    }

    #[test]
    fn conditions_choose_tensors_and_layers() {
        let one: &[_] = &[("a", &[1][..], 0.0, 1.0)];
        for (condition, holds) in [
            ("on", true),
            ("off", false),
            ("none", false),
            ("absent", false),
            ("!on", false),
            ("!none", true),
            ("heads is 4", true),
            ("heads not 4", false),
        ] {
            check(&format!("a | 1 | normal 0 1 | {condition}"), Ok(if holds { one } else { &[] }));
        }
        let middle: &[_] = &[("a.1", &[1][..], 0.0, 1.0)];
        let others: &[_] = &[("a.0", &[1][..], 0.0, 1.0), ("a.2", &[1], 0.0, 1.0)];
        check("a.{layers} | 1 | normal 0 1 | layer in dense", Ok(middle));
        check("a.{layers} | 1 | normal 0 1 | layer not in dense", Ok(others));
        check("a.{layers} | 1 | normal 0 1 | layer is 1", Ok(middle));
    }

    #[test]
    fn an_invalid_line_reports_its_error() {
        check("a | 1", Err("2 fields instead of 3 or 4"));
        check("a | width | normal 0 1", Err("no integer `width` in the config"));
        check("a | 1 | uniform 1", Err("an unknown fill `uniform 1`"));
        check("a | 1 | normal 0 x", Err("`x` is not a number"));
        check("a.{layers | 1 | normal 0 1", Err("an unclosed brace"));
        check("a | 1 | normal 0 1 | layer in hidden", Err("no list `hidden` in the config"));
        check("a | 1 | normal 0 1 | a b c d", Err("an unknown condition `a b c d`"));
    }
}
