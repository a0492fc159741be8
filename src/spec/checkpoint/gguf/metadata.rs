//! Typed look-ups in a GGUF file's metadata.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;

use super::{Problem, damaged};

/// A GGUF file's key-value section.
pub(super) struct Metadata<'a>(&'a HashMap<String, Value>);

impl<'a> Metadata<'a> {
    pub(super) fn new(values: &'a HashMap<String, Value>) -> Self {
        Self(values)
    }

    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        match self.0.get(key) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    pub(super) fn integer(&self, key: &str) -> Option<u64> {
        self.0.get(key).and_then(integer)
    }

    pub(super) fn float(&self, key: &str) -> Option<f64> {
        match self.0.get(key) {
            Some(Value::F32(value)) => Some(f64::from(*value)),
            Some(Value::F64(value)) => Some(*value),
            _ => None,
        }
    }

    pub(super) fn boolean(&self, key: &str) -> Option<bool> {
        match self.0.get(key) {
            Some(Value::Bool(value)) => Some(*value),
            _ => None,
        }
    }

    /// An array of strings; `None` when the key is absent or of another type.
    pub(super) fn texts(&self, key: &str) -> Option<Vec<&'a str>> {
        self.array(key)?
            .iter()
            .map(|value| if let Value::String(text) = value { Some(text.as_str()) } else { None })
            .collect()
    }

    pub(super) fn integers(&self, key: &str) -> Option<Vec<u64>> {
        self.array(key)?.iter().map(integer).collect()
    }

    pub(super) fn floats(&self, key: &str) -> Option<Vec<f32>> {
        self.array(key)?
            .iter()
            .map(|value| if let Value::F32(value) = value { Some(*value) } else { None })
            .collect()
    }

    pub(super) fn need_integer(&self, key: &str) -> Result<u64, Problem> {
        match self.0.get(key) {
            Some(Value::Array(_)) => Err((
                format!("`{key}` differs from layer to layer"),
                "tfcheck imports models whose layers are alike; take the checkpoint's safetensors instead"
                    .to_owned(),
            )),
            _ => self.integer(key).ok_or_else(|| damaged(format!("its metadata lacks `{key}`"))),
        }
    }

    /// As [`Metadata::need_integer`], within the limits of the config's key that it becomes.
    pub(super) fn need_whole(&self, key: &str, config_key: &str) -> Result<u64, Problem> {
        let number = self.need_integer(key)?;
        bounds::config::whole(config_key, number)
            .map_err(|refused| damaged(format!("`{key}` is {number} where {} is needed", refused.needed)))?;
        Ok(number)
    }

    pub(super) fn need_float(&self, key: &str) -> Result<f64, Problem> {
        self.float(key).ok_or_else(|| damaged(format!("its metadata lacks `{key}`")))
    }

    fn array(&self, key: &str) -> Option<&'a [Value]> {
        match self.0.get(key) {
            Some(Value::Array(values)) => Some(values),
            _ => None,
        }
    }
}

fn integer(value: &Value) -> Option<u64> {
    match *value {
        Value::I8(value) => value.try_into().ok(),
        Value::I16(value) => value.try_into().ok(),
        Value::I32(value) => value.try_into().ok(),
        Value::I64(value) => value.try_into().ok(),
        Value::Bool(_) => None,
        ref value => value.to_u64().ok(),
    }
}
