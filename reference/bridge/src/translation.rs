//! Translates `config.json` into the spelling that a version of transformers reads.
//!
//! Version 5 writes rotary positions as `rope_parameters` and the dtype as `dtype`; version 4 silently
//! ignores both and computes with `rope_theta` 10000. Every translation is reported in a note.

use serde_json::{Map, Value, json};

use crate::versions::{Dialect, RopeForm, Versions};

/// Ends a note on a conversion that a release makes itself; the loaded model shows whether it kept the values.
pub(crate) const BY_TRANSFORMERS: &str = ", by transformers itself";

/// A config translated for one version.
#[derive(Debug, PartialEq)]
pub(crate) struct Translated {
    pub(crate) config: Map<String, Value>,
    pub(crate) notes: Vec<String>,
    /// The rope bases of the checkpoint, to compare with those of the loaded model.
    pub(crate) rope_thetas: Vec<f64>,
}

/// Translates `config` for `version`.
///
/// # Errors
/// When the version cannot express the config.
pub(crate) fn translate(config: &Map<String, Value>, version: &str) -> Result<Translated, String> {
    let dialect = Versions::known().dialect(version);
    let mut translation = Translation { config: config.clone(), notes: Vec::new(), version, dialect };
    let rope_thetas = rope_thetas(config);
    translation.dtype();
    match dialect.rope {
        RopeForm::RopeParameters => translation.rope_to_version_5(),
        RopeForm::RopeScaling | RopeForm::TypeAndFactor => {
            translation.rope_to_version_4()?;
            translation.sliding_window_pattern()?;
        }
    }
    Ok(Translated { config: translation.config, notes: translation.notes, rope_thetas })
}

/// All rope bases of a config in either spelling, sorted.
pub(crate) fn rope_thetas(config: &Map<String, Value>) -> Vec<f64> {
    let flat =
        ["rope_theta", "rotary_emb_base", "rope_local_base_freq", "global_rope_theta", "local_rope_theta"];
    let parameters = config.get("rope_parameters").and_then(Value::as_object);
    let nested = parameters.into_iter().flat_map(Map::values).filter_map(Value::as_object);
    let mut found: Vec<f64> = parameters
        .into_iter()
        .chain(nested)
        .filter_map(|parameters| parameters.get("rope_theta"))
        .chain(flat.iter().filter_map(|key| config.get(*key)))
        .filter_map(Value::as_f64)
        .collect();
    found.sort_by(f64::total_cmp);
    found.dedup();
    found
}

struct Translation<'a> {
    config: Map<String, Value>,
    notes: Vec<String>,
    version: &'a str,
    dialect: &'a Dialect,
}

impl Translation<'_> {
    fn model_type(&self) -> &str {
        self.config.get("model_type").and_then(Value::as_str).unwrap_or_default()
    }

    fn note(&mut self, what: &str) {
        let note = format!("config translated for transformers {}: {what}", self.version);
        self.notes.push(note);
    }

    /// `dtype` <-> `torch_dtype`. A cell always passes its dtype, so this key affects no result.
    fn dtype(&mut self) {
        let wanted = self.dialect.config_dtype.as_str();
        let other = if wanted == "dtype" { "torch_dtype" } else { "dtype" };
        if let Some(value) = self.config.shift_remove(other) {
            self.config.entry(wanted).or_insert(value);
            self.note(&format!("{other} -> {wanted}"));
        }
    }

    /// Version 5 reads version 4's keys; the loaded config is checked afterwards.
    fn rope_to_version_5(&mut self) {
        if self.config.contains_key("rope_parameters") {
            return;
        }
        if let Some(theta) = self.config.get("rope_theta").and_then(Value::as_f64) {
            let scaling = match self.config.get("rope_scaling") {
                None | Some(Value::Null) => "",
                Some(_) => " and rope_scaling",
            };
            self.note(&format!("rope_theta {theta}{scaling} -> rope_parameters{BY_TRANSFORMERS}"));
        }
    }

    fn rope_to_version_4(&mut self) -> Result<(), String> {
        if let Some(Value::Object(parameters)) = self.config.shift_remove("rope_parameters") {
            let nested = parameters.values().any(Value::is_object);
            let flat = if nested { self.nested(&parameters)? } else { parameters };
            self.flat(flat);
        }
        if self.dialect.rope == RopeForm::TypeAndFactor {
            self.type_and_factor()?;
        }
        Ok(())
    }

    /// Converts one rope per layer type to version 4's keys; the remaining parameters are those of full
    /// attention.
    fn nested(&mut self, parameters: &Map<String, Value>) -> Result<Map<String, Value>, String> {
        let of = |kind: &str| parameters.get(kind).and_then(Value::as_object).cloned();
        let (full, sliding) = (of("full_attention"), of("sliding_attention"));
        let (Some(mut full), Some(sliding)) = (full.clone().or(sliding.clone()), sliding.or(full)) else {
            return Err(self.refusal("rope_parameters for other layer types than full and sliding"));
        };
        if full == sliding {
            return Ok(full);
        }
        if !is_default(&sliding) {
            return Err(self.refusal("a scaled rope in sliding layers"));
        }
        let local = sliding.get("rope_theta").cloned().unwrap_or_default();
        match self.model_type() {
            "gemma3_text" | "gemma3n_text" => {
                self.note(&format!("rope_parameters.sliding_attention -> rope_local_base_freq {local}"));
                self.config.insert("rope_local_base_freq".into(), local);
                Ok(full)
            }
            "modernbert" | "modernbert-decoder" => {
                if !is_default(&full) {
                    return Err(self.refusal("a scaled rope"));
                }
                let global = full.shift_remove("rope_theta").unwrap_or_default();
                self.note(&format!(
                    "rope_parameters -> global_rope_theta {global}, local_rope_theta {local}"
                ));
                self.config.insert("global_rope_theta".into(), global);
                self.config.insert("local_rope_theta".into(), local);
                Ok(full)
            }
            _ => Err(self.refusal("a rope of its own for each layer type")),
        }
    }

    /// `rope_parameters` -> `rope_theta`, `partial_rotary_factor` and `rope_scaling`.
    fn flat(&mut self, mut parameters: Map<String, Value>) {
        // GPT-NeoX used its own names until 5.0 (`configuration_gpt_neox.py`).
        let neox = self.model_type().starts_with("gpt_neox");
        let (theta, partial) =
            if neox { ("rotary_emb_base", "rotary_pct") } else { ("rope_theta", "partial_rotary_factor") };
        for (from, to) in [("rope_theta", theta), ("partial_rotary_factor", partial)] {
            if let Some(value) = parameters.shift_remove(from) {
                self.note(&format!("rope_parameters.{from} -> {to} {value}"));
                self.config.insert(to.into(), value);
            }
        }
        if !is_default(&parameters) {
            let kind = rope_type(&parameters).to_owned();
            if self.model_type() == "phi3" {
                self.phi3_rope_scaling(&mut parameters);
            }
            self.note(&format!("rope_parameters ({kind}) -> rope_scaling"));
            self.config.insert("rope_scaling".into(), Value::Object(parameters));
        }
    }

    /// Phi-3 accepts exactly `type` and its two lists of factors in `rope_scaling`, and the original length
    /// as a separate key (`_rope_scaling_validation` of transformers 4.57 `configuration_phi3.py`).
    fn phi3_rope_scaling(&mut self, parameters: &mut Map<String, Value>) {
        const LENGTH: &str = "original_max_position_embeddings";
        if let Some(kind) = parameters.shift_remove("rope_type") {
            parameters.entry("type").or_insert(kind);
        }
        if let Some(length) = parameters.shift_remove(LENGTH) {
            self.note(&format!("rope_parameters.{LENGTH} -> {LENGTH} {length}"));
            self.config.insert(LENGTH.into(), length);
        }
    }

    /// Before 4.43 `rope_scaling` has exactly `type` and `factor`, for `linear` and `dynamic` only.
    fn type_and_factor(&mut self) -> Result<(), String> {
        let Some(Value::Object(scaling)) = self.config.get("rope_scaling").cloned() else {
            return Ok(());
        };
        let kind = rope_type(&scaling);
        match kind {
            "default" => {
                self.config.shift_remove("rope_scaling");
                Ok(())
            }
            "linear" | "dynamic" => {
                let factor = scaling.get("factor").cloned().unwrap_or_default();
                let expected = json!({ "type": kind, "factor": factor });
                if Value::Object(scaling.clone()) != expected {
                    self.note(&format!("rope_scaling -> {expected}"));
                    self.config.insert("rope_scaling".into(), expected);
                }
                Ok(())
            }
            // Types of single model families (Phi-3's `su`) are checked by the model.
            _ if scaling.contains_key("type") && !scaling.contains_key("rope_type") => Ok(()),
            kind => Err(self.refusal(&format!("rope_type {kind}"))),
        }
    }

    /// Before `layer_types`, Gemma 3 and Cohere 2 gave the sliding-window layers by their period.
    fn sliding_window_pattern(&mut self) -> Result<(), String> {
        const KEY: &str = "sliding_window_pattern";
        if !["gemma3_text", "cohere2"].contains(&self.model_type()) || self.config.contains_key(KEY) {
            return Ok(());
        }
        let Some(layers) = self.config.get("layer_types").and_then(Value::as_array) else {
            return Ok(());
        };
        let is_full = |layer: &Value| layer == "full_attention";
        // If all layers slide, the period is larger than the number of layers.
        let period = layers.iter().position(is_full).unwrap_or(layers.len()) + 1;
        let periodic =
            layers.iter().enumerate().all(|(index, layer)| is_full(layer) == ((index + 1) % period == 0));
        if !periodic {
            return Err(self.refusal("layer_types without a period"));
        }
        self.note(&format!("layer_types -> {KEY} {period}"));
        self.config.insert(KEY.into(), period.into());
        Ok(())
    }

    fn refusal(&self, what: &str) -> String {
        format!("transformers {} cannot express {what} for {}", self.version, self.model_type())
    }
}

fn rope_type(parameters: &Map<String, Value>) -> &str {
    ["rope_type", "type"].iter().find_map(|key| parameters.get(*key)?.as_str()).unwrap_or("default")
}

fn is_default(parameters: &Map<String, Value>) -> bool {
    rope_type(parameters) == "default"
}

#[cfg(test)]
mod tests;
