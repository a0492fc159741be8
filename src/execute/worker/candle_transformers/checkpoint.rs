//! A checkpoint folder as input of a port: serde reads the port's `Config`, a `VarBuilder` its weights.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Error, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use reference::protocol::Failed;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::failure;
use crate::execute::worker::exception;
use crate::execute::worker::failure::unsupported;

/// The value of an absent key.
pub(super) enum Fill {
    /// A JSON value that does not affect the forward pass.
    Inert(&'static str),
    /// The value of another key, from which transformers reads it.
    Copy(&'static str),
}

/// A checkpoint that a port loads from.
pub(super) struct Checkpoint {
    pub(super) model_type: String,
    config: Value,
    tensors: Arc<Tensors>,
    dtype: DType,
    device: Device,
}

impl Checkpoint {
    /// Reads `config.json` and the weights, which keep the dtype of the files until a port requests them.
    pub(super) fn open(folder: &Path, dtype: DType, device: &Device) -> std::result::Result<Self, Failed> {
        // `spec::checkpoint` has already checked that the files are safe to load.
        let checked = crate::spec::checkpoint::preflight::check(folder, true)
            .map_err(|error| exception(error.to_string()))?;
        let mut tensors = HashMap::new();
        for path in &checked.weights {
            tensors.extend(candle_core::safetensors::load(path, device).map_err(failure)?);
        }
        Ok(Self {
            model_type: checked.model_type,
            config: checked.config,
            tensors: Arc::new(Tensors { tensors, read: Mutex::default() }),
            dtype,
            device: device.clone(),
        })
    }

    /// Adds keys that the config lacks; returns a note that lists them.
    pub(super) fn fill(&mut self, fill: &[(&str, Fill)]) -> Option<String> {
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
    pub(super) fn config<T: DeserializeOwned>(&self) -> std::result::Result<T, Failed> {
        self.config_with(&[])
    }

    /// As [`Self::config()`], after setting keys that the adapter needs.
    pub(super) fn config_with<T: DeserializeOwned>(
        &self,
        keys: &[(&str, Value)],
    ) -> std::result::Result<T, Failed> {
        let mut config = self.config.clone();
        for (key, value) in keys {
            config[*key] = value.clone();
        }
        serde_json::from_value(config).map_err(|error| {
            unsupported(format!("the port's Config does not read this config.json: {error}"))
        })
    }

    /// The model's head according to `architectures` in the config: `ForCausalLM`, `ForMaskedLM`, …; empty without a
    /// head.
    pub(super) fn head(&self) -> &str {
        let name = self.config["architectures"][0].as_str().unwrap_or_default();
        name.find("For").map_or("", |at| &name[at..])
    }

    /// Number of classes in `id2label`; 2 if the config has none.
    pub(super) fn labels(&self) -> usize {
        self.config["id2label"].as_object().map_or(2, serde_json::Map::len)
    }

    /// The weights, in the model's dtype.
    pub(super) fn weights(&self) -> VarBuilder<'static> {
        let backend = Box::new(Reads(Arc::clone(&self.tensors)));
        VarBuilder::from_backend(backend, self.dtype, self.device.clone())
    }

    /// Names of the checkpoint's tensors that the port did not request.
    pub(super) fn unread(&self) -> Vec<String> {
        let read = self.tensors.read.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unread: Vec<String> =
            self.tensors.tensors.keys().filter(|name| !read.contains(*name)).cloned().collect();
        unread.sort();
        unread
    }
}

struct Tensors {
    tensors: HashMap<String, Tensor>,
    read: Mutex<BTreeSet<String>>,
}

/// Returns tensors and records which ones were requested.
struct Reads(Arc<Tensors>);

impl SimpleBackend for Reads {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        if tensor.shape() == &shape {
            return Ok(tensor);
        }
        let msg = format!("shape mismatch for {name}");
        Err(Error::UnexpectedShape { msg, expected: shape, got: tensor.shape().clone() })
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor =
            self.0.tensors.get(name).ok_or_else(|| Error::CannotFindTensor { path: name.to_owned() })?;
        self.0.read.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        tensor.to_device(device)?.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.tensors.contains_key(name)
    }
}
