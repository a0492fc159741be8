//! What describes an architecture: its config, its table of tensors, its variants.

use serde_json::{Map, Value, json};

use super::table::{self, Tensor};
use super::{Error, encoders, gemma, gpt, llama, mistral, phi, qwen};

/// One `model_type`, described by data.
pub(super) struct Architecture {
    pub(super) model_type: &'static str,
    /// JSON object: the config that the variants start from, `architectures` included.
    pub(super) config: &'static str,
    /// Tables that follow one another, see [`table`].
    pub(super) tensors: &'static [&'static str],
    /// The first is the default; its name is empty.
    pub(super) variants: &'static [Variant],
}

/// A checkpoint of an [`Architecture`].
pub(super) struct Variant {
    pub(super) name: &'static str,
    pub(super) shows: &'static str,
    /// JSON object: the keys that replace the architecture's.
    pub(super) config: &'static str,
    pub(super) bench: bool,
}

impl Variant {
    /// A small checkpoint: seconds for a reference, milliseconds for a port.
    pub(super) const fn small(name: &'static str, shows: &'static str, config: &'static str) -> Self {
        Self { name, shows, config, bench: false }
    }

    /// A shape to time.
    pub(super) const fn bench(name: &'static str, shows: &'static str, config: &'static str) -> Self {
        Self { name, shows, config, bench: true }
    }
}

/// Every architecture, in the order of the catalogue.
pub(super) const ARCHITECTURES: &[&Architecture] = &[
    &llama::LLAMA,
    &mistral::MISTRAL,
    &mistral::MIXTRAL,
    &qwen::QWEN2,
    &qwen::QWEN3,
    &qwen::QWEN3_MOE,
    &gemma::GEMMA,
    &gemma::GEMMA2,
    &gemma::GEMMA3_TEXT,
    &llama::OLMO2,
    &mistral::STARCODER2,
    &llama::GRANITE,
    &llama::SMOLLM3,
    &llama::COHERE,
    &phi::PHI,
    &phi::PHI3,
    &phi::STABLELM,
    &gpt::GPT2,
    &gpt::GPT_NEOX,
    &gpt::FALCON,
    &encoders::BERT,
    &encoders::DISTILBERT,
    &encoders::ROBERTA,
    &encoders::XLM_ROBERTA,
    &encoders::MODERNBERT,
];

impl Architecture {
    /// The complete config of a variant.
    pub(super) fn config(&self, variant: &Variant) -> Result<Map<String, Value>, Error> {
        let mut config = Map::new();
        config.insert("model_type".into(), json!(self.model_type));
        config.insert("torch_dtype".into(), json!("float32"));
        config.append(&mut self.object(self.config)?);
        config.append(&mut self.object(variant.config)?);
        if let Some(rope_parameters) = rope_parameters(&config) {
            config.insert("rope_parameters".into(), rope_parameters);
        }
        Ok(config)
    }

    /// The tensors of a variant, sorted by name.
    pub(super) fn tensors(&self, config: &Map<String, Value>) -> Result<Vec<Tensor>, Error> {
        let mut tensors = Vec::new();
        for line in
            self.tensors.iter().flat_map(|table| table.lines()).map(str::trim).filter(|line| !line.is_empty())
        {
            table::expand(line, config, &mut tensors).map_err(|reason| self.error(line, reason))?;
        }
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(tensors)
    }

    fn object(&self, text: &str) -> Result<Map<String, Value>, Error> {
        serde_json::from_str(text).map_err(|error| self.error(text, error.to_string()))
    }

    fn error(&self, line: &str, reason: String) -> Error {
        Error::Table { model_type: self.model_type, line: line.into(), reason }
    }
}

/// The form of transformers 5 of the keys that transformers 4 spells in several ways.
///
/// Both forms stand in the config: 4.x does not read the new one, and 5.x lets the old keys through to it, so that
/// either version finds what it looks for.
fn rope_parameters(config: &Map<String, Value>) -> Option<Value> {
    let first = |keys: &[&str]| keys.iter().find_map(|key| config.get(*key)).cloned();
    let theta = first(&["rope_theta", "rotary_emb_base", "global_rope_theta"])?;
    let mut parameters =
        Map::from_iter([("rope_theta".into(), theta), ("rope_type".into(), json!("default"))]);
    if let Some(Value::Object(scaling)) = config.get("rope_scaling") {
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
