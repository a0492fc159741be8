//! The data from which the synthetic checkpoints of an architecture are made: a config, a table of tensors, variants.

use serde_json::{Map, Value, json};

mod error;
mod table;

// The tables are aligned by hand.
#[rustfmt::skip]
pub(crate) mod clip;
#[rustfmt::skip]
mod decoder;
#[rustfmt::skip]
pub(crate) mod encoders;
#[rustfmt::skip]
pub(crate) mod gemma;
#[rustfmt::skip]
pub(crate) mod gpt;
#[rustfmt::skip]
pub(crate) mod llama;
#[rustfmt::skip]
pub(crate) mod mistral;
#[rustfmt::skip]
pub(crate) mod phi;
#[rustfmt::skip]
pub(crate) mod qwen;
#[rustfmt::skip]
pub(crate) mod qwen2_vl;
#[rustfmt::skip]
pub(crate) mod t5;
#[rustfmt::skip]
pub(crate) mod whisper;

pub use error::Error;
pub(crate) use table::Tensor;

/// The checkpoints of one `model_type`, described by data.
pub(crate) struct Checkpoints {
    /// JSON object: the config shared by the variants, including `architectures`.
    config: &'static str,
    /// Tables that are read in this order, see [`table`].
    tensors: &'static [&'static str],
    /// The first is the default; its name is empty.
    pub(crate) variants: &'static [Variant],
}

/// One of [`Checkpoints`].
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    pub(crate) shows: &'static str,
    /// JSON object: keys that replace those of the shared config.
    config: &'static str,
    pub(crate) bench: bool,
}

impl Variant {
    /// A small checkpoint, which a reference implementation runs in seconds.
    const fn small(name: &'static str, shows: &'static str, config: &'static str) -> Self {
        Self { name, shows, config, bench: false }
    }

    /// A checkpoint with the shape of a real model, for timing.
    const fn bench(name: &'static str, shows: &'static str, config: &'static str) -> Self {
        Self { name, shows, config, bench: true }
    }
}

impl Checkpoints {
    /// The complete config of a variant.
    pub(crate) fn config(
        &self,
        model_type: &'static str,
        variant: &Variant,
    ) -> Result<Map<String, Value>, Error> {
        let object = |text: &str| {
            serde_json::from_str(text).map_err(|error| unreadable(model_type, text, error.to_string()))
        };
        let mut config = Map::new();
        config.insert("model_type".into(), json!(model_type));
        config.insert("torch_dtype".into(), json!("float32"));
        config.append(&mut object(self.config)?);
        config.append(&mut object(variant.config)?);
        if let Some(rope_parameters) = rope_parameters(&config) {
            config.insert("rope_parameters".into(), rope_parameters);
        }
        Ok(config)
    }

    /// The tensors of a variant, sorted by name.
    pub(crate) fn tensors(
        &self,
        model_type: &'static str,
        config: &Map<String, Value>,
    ) -> Result<Vec<Tensor>, Error> {
        let mut tensors = Vec::new();
        for line in
            self.tensors.iter().flat_map(|table| table.lines()).map(str::trim).filter(|line| !line.is_empty())
        {
            table::expand(line, config, &mut tensors)
                .map_err(|reason| unreadable(model_type, line, reason))?;
        }
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(tensors)
    }
}

fn unreadable(model_type: &'static str, line: &str, reason: String) -> Error {
    Error::Table { model_type, line: line.into(), reason }
}

/// The `rope_parameters` object of transformers 5, from the separate keys of transformers 4.
///
/// The written config has both: transformers 4 does not read `rope_parameters`, and transformers 5 copies the old
/// keys to it.
fn rope_parameters(config: &Map<String, Value>) -> Option<Value> {
    let first = |keys: &[&str]| keys.iter().find_map(|key| config.get(*key)).cloned();
    let theta = first(&["rope_theta", "rotary_emb_base", "global_rope_theta"])?;
    let mut parameters =
        Map::from_iter([("rope_theta".into(), theta), ("rope_type".into(), json!("default"))]);
    if let Some(Value::Object(scaling)) = config.get("rope_scaling") {
        // Every release reads the rope of three parts from the old keys, as the published configs have it.
        if scaling.contains_key("mrope_section") {
            return None;
        }
        parameters.extend(scaling.clone());
        if let Some(kind) = parameters.remove("type") {
            parameters.insert("rope_type".into(), kind);
        }
    }
    if let Some(factor) = first(&["partial_rotary_factor", "rotary_pct"]) {
        parameters.insert("partial_rotary_factor".into(), factor);
    }
    let Some(local) = first(&["rope_local_base_freq", "local_rope_theta"]) else {
        return Some(Value::Object(parameters));
    };
    Some(json!({
        "full_attention": parameters,
        "sliding_attention": { "rope_theta": local, "rope_type": "default" },
    }))
}
