//! A checkpoint folder as input of an adapter: the worker kit's checkpoint with the keys that a port's `Config` requires
//! beyond transformers'.

use std::path::Path;

use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use protocol::Failed;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tfcheck_port::worker::{self, failure, unsupported};

use super::renamed::{Name, renamed};

/// The value of an absent key.
pub(crate) enum Fill {
    /// A JSON value that does not affect the forward pass.
    Inert(&'static str),
    /// The value of another key, from which transformers reads it.
    Copy(&'static str),
}

/// A checkpoint that a port loads from.
pub(crate) struct Checkpoint {
    config: Value,
    pub(crate) files: worker::Checkpoint,
}

impl Checkpoint {
    /// Reads `config.json` and the weights.
    pub(crate) fn open(folder: &Path, dtype: DType, device: &Device) -> std::result::Result<Self, Failed> {
        // tfcheck has already checked that the files are safe to load.
        let files = worker::Checkpoint::open(folder, dtype, device).map_err(failure)?;
        Ok(Self { config: files.json().clone(), files })
    }

    /// Adds keys that the config lacks; returns a note that lists them.
    pub(crate) fn fill(&mut self, fill: &[(&str, Fill)]) -> Option<String> {
        let absent = fill.iter().filter(|(key, _)| self.config.get(key).is_none());
        let added: Vec<(String, Value)> = absent
            .map(|(key, fill)| {
                let value = match fill {
                    Fill::Inert(json) => serde_json::from_str(json).unwrap_or_default(),
                    Fill::Copy(other) => self.config[*other].clone(),
                };
                ((*key).to_owned(), value)
            })
            .collect();
        let names: Vec<String> = added.iter().map(|(key, value)| format!("{key} = {value}")).collect();
        for (key, value) in added {
            self.config[key] = value;
        }
        (!names.is_empty())
            .then(|| format!("config keys added because the port requires them: {}", names.join(", ")))
    }

    /// The port's own `Config`, read through its `Deserialize`.
    pub(crate) fn config<T: DeserializeOwned>(&self) -> std::result::Result<T, Failed> {
        self.config_with(&[])
    }

    /// As [`Self::config()`], after setting keys that the adapter needs.
    pub(crate) fn config_with<T: DeserializeOwned>(
        &self,
        keys: &[(&str, Value)],
    ) -> std::result::Result<T, Failed> {
        let mut config = self.config.clone();
        for (key, value) in keys {
            config[*key] = value.clone();
        }
        self.files
            .config_from(&config)
            .map_err(|error| unsupported(format!("the port's Config does not read this checkpoint: {error}")))
    }

    /// The model's head according to `architectures` in the config: `ForCausalLM`, `ForMaskedLM`, …; empty without a
    /// head.
    pub(crate) fn head(&self) -> &str {
        let name = self.architecture();
        name.find("For").map_or("", |at| &name[at..])
    }

    /// The architecture's name in transformers; empty without one.
    pub(crate) fn model_type(&self) -> &str {
        self.text_at("/model_type")
    }

    /// The class of the model in transformers.
    pub(crate) fn architecture(&self) -> &str {
        self.text_at("/architectures/0")
    }

    /// The value at a JSON pointer of the config.
    pub(crate) fn at(&self, pointer: &str) -> Option<&Value> {
        self.config.pointer(pointer)
    }

    /// The text at a JSON pointer of the config; empty if there is none.
    pub(crate) fn text_at(&self, pointer: &str) -> &str {
        self.at(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// A number of the config, such as the id of a token.
    pub(crate) fn number(&self, key: &str) -> std::result::Result<u32, Failed> {
        let number = self.config[key].as_u64().and_then(|number| u32::try_from(number).ok());
        number.ok_or_else(|| unsupported(format!("config.json has no `{key}`")))
    }

    /// A number of the config; nothing if it has none of this name.
    pub(crate) fn float(&self, key: &str) -> Option<f64> {
        self.config[key].as_f64()
    }

    /// Number of classes in `id2label`; 2 if the config has none.
    pub(crate) fn labels(&self) -> usize {
        self.config["id2label"].as_object().map_or(2, serde_json::Map::len)
    }

    /// The weights, in the model's dtype.
    pub(crate) fn weights(&self) -> VarBuilder<'static> {
        self.files.var_builder()
    }

    /// The weights under the names that the port reads, by tables of [`Name`]s with `body` for `$`.
    pub(crate) fn renamed(&self, body: &'static str, tables: &[&'static [Name]]) -> VarBuilder<'static> {
        renamed(self.weights(), body, tables)
    }
}
