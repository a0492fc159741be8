//! A checkpoint that transformers itself constructs from a config.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Requests a checkpoint of the model that a class constructs from a config; answered by
/// [`Reply::Made`](crate::Reply::Made).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Make {
    /// The class in `transformers`, `OlmoForCausalLM`; `None` for a small model of the config's `model_type`, of the first head
    /// that the release has for it.
    pub class: Option<String>,
    /// JSON object: the values of its config, including nested configs; `model_type` and the values to set beside the release's
    /// defaults if there is no class.
    pub config: String,
    /// Seed of every random generator that the worker has.
    pub seed: u64,
    /// Folder that gets `config.json` and the weights as safetensors, and `inputs.safetensors` if there is no class and tokens
    /// alone do not do.
    pub folder: PathBuf,
}
