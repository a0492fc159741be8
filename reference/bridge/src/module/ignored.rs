//! Config keys that change nothing: found by their effect on the config object and in the model's code, not by name.

use std::collections::BTreeSet;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde_json::{Map, Value};

use super::failure::Stop;

/// Keys that record something about the checkpoint and are read by no model.
const RECORDS: [&str; 3] = ["architectures", "transformers_version", "model_type"];

/// The keys of `config` that the release does not use: its config class has no field for them, the config object is the
/// same with another value and without them, and the model's file does not read them. `None` if that is unknown,
/// because the class requires arguments.
pub(super) fn ignored_keys(
    class: &Bound<'_, PyAny>,
    model: &Bound<'_, PyAny>,
    config: &Map<String, Value>,
) -> Result<Option<Vec<String>>, Stop> {
    let Ok(fresh) = class.call0() else {
        return Ok(None);
    };
    let known: BTreeSet<String> = dict(&fresh)?.keys().extract::<Vec<String>>()?.into_iter().collect();
    let aliases = class.getattr("attribute_map")?;
    let parameters =
        class.py().import("inspect")?.call_method1("signature", (class,))?.getattr("parameters")?;
    let mut ignored = Vec::new();
    for (key, value) in config {
        if value.is_null() || key.starts_with('_') || RECORDS.contains(&key.as_str()) {
            continue;
        }
        let is_field = known.contains(key)
            || aliases.contains(key)?
            || parameters.contains(key)?
            || fresh.hasattr(key.as_str())?;
        if !is_field && !has_effect(class, config, key)? && !is_read(model, key)? {
            ignored.push(key.clone());
        }
    }
    Ok(Some(ignored))
}

/// Whether the config object has other values, apart from `key` itself, without the key or with another value of it. A
/// config class may take a key out of its arguments and store it under another name, as GPT-NeoX of 5.x does with
/// `rotary_pct`.
fn has_effect(class: &Bound<'_, PyAny>, config: &Map<String, Value>, key: &str) -> Result<bool, Stop> {
    let json = class.py().import("json")?;
    let object = |config: &Map<String, Value>| -> Result<Option<Bound<'_, PyDict>>, Stop> {
        let plain = json.call_method1("loads", (Value::Object(config.clone()).to_string(),))?;
        let Ok(object) = class.call_method1("from_dict", (plain,)) else { return Ok(None) };
        let values = dict(&object)?;
        values.del_item(key).ok();
        Ok(Some(values))
    };
    let own = object(config)?;
    let mut others = vec![config.clone()];
    others[0].shift_remove(key);
    others.extend(changed(&config[key]).map(|value| {
        let mut other = config.clone();
        other.insert(key.to_owned(), value);
        other
    }));
    for other in &others {
        match (&own, object(other)?) {
            (Some(own), Some(other)) if own.eq(&other)? => {}
            // Another value that is refused is a value that was read.
            _ => return Ok(true),
        }
    }
    Ok(false)
}

/// Another value of the same type, for numbers and booleans.
fn changed(value: &Value) -> Option<Value> {
    match value {
        Value::Bool(truth) => Some((!truth).into()),
        Value::Number(number) if number.is_f64() => Some((number.as_f64()? / 2.0 + 0.125).into()),
        Value::Number(number) => Some((number.as_i64()? + 1).into()),
        _ => None,
    }
}

/// Whether the file of the model's class reads the key of its config.
fn is_read(model: &Bound<'_, PyAny>, key: &str) -> Result<bool, Stop> {
    let py = model.py();
    let name: String = model.get_type().getattr("__module__")?.extract()?;
    let Ok(source) = py.import("inspect")?.call_method1("getsource", (py.import(name.as_str())?,)) else {
        return Ok(false);
    };
    let source: String = source.extract()?;
    let is_word = |rest: &str| !rest.starts_with(|next: char| next.is_alphanumeric() || next == '_');
    let attribute = format!("config.{key}");
    let is_attribute =
        source.match_indices(&attribute).any(|(at, _)| is_word(&source[at + attribute.len()..]));
    Ok(is_attribute || source.contains(&format!("\"{key}\"")) || source.contains(&format!("'{key}'")))
}

fn dict<'py>(config: &Bound<'py, PyAny>) -> Result<Bound<'py, PyDict>, Stop> {
    Ok(config.call_method0("to_dict")?.cast_into::<PyDict>().map_err(PyErr::from)?)
}
