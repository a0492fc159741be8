//! Checks and notes after loading: what the user must know, and which models must be refused.

use std::collections::BTreeSet;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde_json::{Map, Value};

use super::failure::Stop;
use crate::translation::rope_thetas;
use protocol::Attention;

/// Refuses a model with weights that the checkpoint lacks; the tensors that the model does not read, and notes.
pub(super) fn loading(
    model: &Bound<'_, PyAny>,
    info: &Bound<'_, PyAny>,
) -> Result<(Vec<String>, Vec<String>), Stop> {
    let names = |kind: &str| -> PyResult<BTreeSet<String>> {
        let found = info.call_method1("get", (kind,))?;
        if found.is_none() {
            return Ok(BTreeSet::new());
        }
        // Lists of names up to 4.x, sets in 5.x; shape mismatches are tuples that begin with the name.
        found
            .try_iter()?
            .map(|item| {
                let item = item?;
                item.extract::<String>().or_else(|_| item.get_item(0)?.extract())
            })
            .collect()
    };
    let mismatched = names("mismatched_keys")?;
    if !mismatched.is_empty() {
        return Err(Stop::exception(format!(
            "the checkpoint has another shape for {}",
            listing(&mismatched)
        )));
    }
    let missing = names("missing_keys")?;
    let (absent, computed) = absent(model, &missing)?;
    if !absent.is_empty() {
        return Err(Stop::exception(format!(
            "the checkpoint lacks {}: the model would use random values for it",
            listing(&absent)
        )));
    }
    let mut notes = Vec::new();
    if !computed.is_empty() {
        let list = listing(&computed);
        notes.push(format!("the checkpoint lacks buffers that the model computes: {list}"));
    }
    let unexpected = names("unexpected_keys")?;
    if !unexpected.is_empty() {
        let list = listing(&unexpected);
        notes.push(format!("weights that the model does not read: {list}"));
    }
    Ok((unexpected.into_iter().collect(), notes))
}

/// Those of the `missing` names that are parameters without shared (tied) memory of a loaded one, and those
/// that are buffers.
fn absent(
    model: &Bound<'_, PyAny>,
    missing: &BTreeSet<String>,
) -> PyResult<(BTreeSet<String>, BTreeSet<String>)> {
    if missing.is_empty() {
        return Ok((BTreeSet::new(), BTreeSet::new()));
    }
    let keywords = PyDict::new(model.py());
    keywords.set_item("remove_duplicate", false)?;
    let pointers = |method: &str| -> PyResult<Vec<(String, usize)>> {
        model
            .call_method(method, (), Some(&keywords))?
            .try_iter()?
            .map(|item| {
                let (name, tensor) = item?.extract::<(String, Bound<'_, PyAny>)>()?;
                Ok((name, tensor.call_method0("data_ptr")?.extract()?))
            })
            .collect()
    };
    let parameters = pointers("named_parameters")?;
    let buffers: BTreeSet<String> = pointers("named_buffers")?.into_iter().map(|(name, _)| name).collect();
    let loaded: BTreeSet<usize> =
        parameters.iter().filter(|(name, _)| !missing.contains(name)).map(|(_, pointer)| *pointer).collect();
    let mut rest: BTreeSet<String> = missing
        .iter()
        .filter(|name| !parameters.iter().any(|(known, pointer)| known == *name && loaded.contains(pointer)))
        .cloned()
        .collect();
    let computed: BTreeSet<String> = rest.intersection(&buffers).cloned().collect();
    rest.retain(|name| !computed.contains(name));
    Ok((rest, computed))
}

/// The values of `translated` that the config class would have read otherwise from `config` itself.
pub(super) fn read_otherwise(
    class: &Bound<'_, PyAny>,
    translated: &Bound<'_, PyAny>,
    config: &Map<String, Value>,
) -> Result<Vec<String>, Stop> {
    let py = class.py();
    let json = py.import("json")?;
    let plain = json.call_method1("loads", (Value::Object(config.clone()).to_string(),))?;
    let untranslated = match class.call_method1("from_dict", (plain,)) {
        Ok(object) => object,
        Err(error) => {
            let name = class.getattr("__name__")?;
            return Ok(vec![format!("{name} refuses the config without translation: {}", error.value(py))]);
        }
    };
    let (translated, untranslated) = (dict(translated)?, dict(&untranslated)?);
    let mut otherwise = Vec::new();
    for (key, value) in translated {
        let name: String = key.extract()?;
        if name.starts_with('_') || name == "transformers_version" || DTYPE.contains(&name.as_str()) {
            continue;
        }
        let value = without_dtype(value)?;
        let other = untranslated.get_item(&key)?.map(without_dtype).transpose()?;
        if other.as_ref().is_none_or(|other| !other.eq(&value).unwrap_or(false)) {
            let other = other
                .map_or_else(|| Ok("absent".to_owned()), |other| other.repr().map(|text| text.to_string()))?;
            otherwise.push(format!("{name} {} (untranslated: {other})", value.repr()?));
        }
    }
    Ok(otherwise)
}

/// The keys of the dtype, which is always passed; their names differ between releases.
const DTYPE: [&str; 2] = ["dtype", "torch_dtype"];

/// The config of a part of the model without its dtype; any other value as it is.
fn without_dtype(value: Bound<'_, PyAny>) -> PyResult<Bound<'_, PyAny>> {
    let Ok(part) = value.cast::<PyDict>() else { return Ok(value) };
    let part = part.copy()?;
    for key in DTYPE {
        part.del_item(key).ok();
    }
    Ok(part.into_any())
}

fn dict<'py>(config: &Bound<'py, PyAny>) -> Result<Bound<'py, PyDict>, Stop> {
    Ok(config.call_method0("to_dict")?.cast_into::<PyDict>().map_err(PyErr::from)?)
}

/// Replaces a `pad_token_id` outside the vocabulary by 0: torch refuses to make such an embedding, and padding is masked.
pub(super) fn settle_padding(config: &Bound<'_, PyAny>) -> Result<Option<String>, Stop> {
    let number = |key: &str| -> PyResult<Option<i64>> {
        Ok(config.getattr_opt(key)?.and_then(|value| value.extract().ok()))
    };
    let (Some(id), Some(vocab_size)) = (number("pad_token_id")?, number("vocab_size")?) else {
        return Ok(None);
    };
    if id < vocab_size {
        return Ok(None);
    }
    config.setattr("pad_token_id", 0)?;
    Ok(Some(format!(
        "pad_token_id {id} is outside the vocabulary of {vocab_size} tokens and was replaced by 0"
    )))
}

/// A note if the model was loaded in another dtype than the `expected` one, as torch spells it.
pub(super) fn dtype(model: &Bound<'_, PyAny>, expected: &str) -> Result<Option<String>, Stop> {
    let taken = model.getattr("dtype")?.str()?.to_string();
    let taken = taken.strip_prefix("torch.").unwrap_or(&taken);
    Ok((taken != expected)
        .then(|| format!("dtype \"auto\" loaded {taken}, where the checkpoint has {expected}")))
}

/// The rotary bases of the loaded model's config, compared with those that config.json asks for.
#[derive(Default)]
pub(super) struct Ropes {
    /// What is lost if a base that config.json asks for was not taken.
    pub(super) lost: Option<String>,
    /// The note on rotary bases that config.json does not set: a release may give some layer types a default of its own.
    pub(super) added: Option<String>,
}

impl Ropes {
    pub(super) fn of(model: &Bound<'_, PyAny>, asked: &[f64], version: &str) -> Result<Self, Stop> {
        if asked.is_empty() {
            return Ok(Self::default());
        }
        let json = PyDict::new(model.py());
        json.set_item("use_diff", false)?;
        let text: String =
            model.getattr("config")?.call_method("to_json_string", (), Some(&json))?.extract()?;
        let config: Map<String, Value> = serde_json::from_str(&text)
            .map_err(|error| Stop::exception(format!("the loaded config is not JSON: {error}")))?;
        let mut taken = rope_thetas(&config);
        // A model of images in texts moves the keys of a flat config to that of its texts (Qwen2-VL).
        if let (true, Some(Value::Object(text))) = (taken.is_empty(), config.get("text_config")) {
            taken = rope_thetas(text);
        }
        // Both values are parsed from the same decimal text, so the comparison is exact.
        let without = |these: &[f64], those: &[f64]| -> String {
            let is_in = |theta: &f64| those.iter().any(|other| other.total_cmp(theta).is_eq());
            let rest = these.iter().filter(|theta| !is_in(theta)).map(f64::to_string);
            rest.collect::<Vec<_>>().join(", ")
        };
        let (lost, added) = (without(asked, &taken), without(&taken, asked));
        let asked = asked.iter().map(f64::to_string).collect::<Vec<_>>().join(", ");
        Ok(Self {
            lost: (!lost.is_empty()).then(|| {
                format!("transformers {version} took rope_theta {taken:?}, and config.json says {lost}")
            }),
            added: (!added.is_empty()).then(|| {
                format!(
                    "transformers {version} gives some layers rope_theta {added}, which config.json does not have: it says {asked}"
                )
            }),
        })
    }
}

/// Fails if the attention implementation differs from the requested one; without a request, returns a note on
/// the one used.
pub(super) fn attention(model: &Bound<'_, PyAny>, asked: Option<Attention>) -> Result<Option<String>, Stop> {
    let config = model.getattr("config")?;
    let taken: Option<String> = match config.getattr_opt("_attn_implementation")? {
        Some(name) => name.extract()?,
        None => None,
    };
    match (asked.map(attention_name), taken) {
        (Some(asked), Some(taken)) if asked != taken => Err(Stop::unsupported(format!(
            "{} takes attention {taken} and not {asked}",
            model.get_type().name()?
        ))),
        (None, Some(taken)) => Ok(Some(format!("attention {taken}, the model's default"))),
        _ => Ok(None),
    }
}

/// The implementation's name in transformers.
pub(super) fn attention_name(attention: Attention) -> &'static str {
    match attention {
        Attention::Eager => "eager",
        Attention::Sdpa => "sdpa",
        Attention::Default => "default",
    }
}

/// The first names, at most six, and the number of the others.
pub(super) fn listing(names: &BTreeSet<String>) -> String {
    const SHOWN: usize = 6;
    let shown: Vec<&str> = names.iter().take(SHOWN).map(String::as_str).collect();
    let more = match names.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more}", shown.join(", "))
}
