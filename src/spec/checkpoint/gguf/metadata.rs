//! Typed look-ups in a GGUF file's metadata.

use std::cell::OnceCell;
use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;

use super::{Problem, damaged};

/// A GGUF file's key-value section. A key whose value has another type than it should is as good as absent to a look-up, and
/// [`Metadata::mistyped`] reports it, so that no default replaces what the file holds.
pub(super) struct Metadata<'a> {
    values: &'a HashMap<String, Value>,
    mistyped: OnceCell<Problem>,
}

impl<'a> Metadata<'a> {
    pub(super) fn new(values: &'a HashMap<String, Value>) -> Self {
        Self { values, mistyped: OnceCell::new() }
    }

    /// The first value of another type that a look-up met.
    pub(super) fn mistyped(&self) -> Option<Problem> {
        self.mistyped.get().cloned()
    }

    /// The value of `key` as `read` understands it.
    fn get<T>(&self, key: &str, needed: &str, read: impl Fn(&'a Value) -> Option<T>) -> Option<T> {
        let value = self.values.get(key)?;
        let found = read(value);
        if found.is_none() {
            let held = match value {
                Value::String(_) => "a text".to_owned(),
                Value::Array(_) => "a list".to_owned(),
                Value::Bool(value) => value.to_string(),
                Value::F32(value) => value.to_string(),
                Value::F64(value) => value.to_string(),
                Value::I8(value) => value.to_string(),
                Value::I16(value) => value.to_string(),
                Value::I32(value) => value.to_string(),
                Value::I64(value) => value.to_string(),
                other => other.to_u64().map_or_else(|_| "a value".to_owned(), |value| value.to_string()),
            };
            let _ = self.mistyped.set(damaged(format!("`{key}` is {held} where {needed} is needed")));
        }
        found
    }

    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        self.get(key, "a text", text)
    }

    pub(super) fn integer(&self, key: &str) -> Option<u64> {
        self.get(key, "a whole number from 0", integer)
    }

    pub(super) fn float(&self, key: &str) -> Option<f64> {
        self.get(key, "a float", |value| match value {
            Value::F32(value) => Some(f64::from(*value)),
            Value::F64(value) => Some(*value),
            _ => None,
        })
    }

    pub(super) fn boolean(&self, key: &str) -> Option<bool> {
        self.get(
            key,
            "true or false",
            |value| if let Value::Bool(value) = value { Some(*value) } else { None },
        )
    }

    /// An array of strings; `None` when the key is absent or of another type.
    pub(super) fn texts(&self, key: &str) -> Option<Vec<&'a str>> {
        self.get(key, "a list of texts", |value| elements(value)?.iter().map(text).collect())
    }

    pub(super) fn integers(&self, key: &str) -> Option<Vec<u64>> {
        self.get(key, "a list of whole numbers from 0", |value| {
            elements(value)?.iter().map(integer).collect()
        })
    }

    pub(super) fn floats(&self, key: &str) -> Option<Vec<f32>> {
        self.get(key, "a list of f32 numbers", |value| {
            let number = |value: &Value| if let Value::F32(value) = value { Some(*value) } else { None };
            elements(value)?.iter().map(number).collect()
        })
    }

    pub(super) fn need_integer(&self, key: &str) -> Result<u64, Problem> {
        match self.values.get(key) {
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
}

fn text(value: &Value) -> Option<&str> {
    if let Value::String(text) = value { Some(text) } else { None }
}

fn elements(value: &Value) -> Option<&[Value]> {
    if let Value::Array(values) = value { Some(values) } else { None }
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
