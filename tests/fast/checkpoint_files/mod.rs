//! Writes small checkpoint files for tests.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::path::Path;

use serde_json::{Map, json};
use tfcheck::spec::checkpoint::{Settings, hub::Environment};

/// A valid config.
pub(crate) fn config() -> String {
    json!({"model_type": "llama", "vocab_size": 32, "max_position_embeddings": 64, "eos_token_id": 2})
        .to_string()
}

/// A safetensors file of one-dimensional f32 tensors with the given lengths, values counting up.
pub(crate) fn safetensors(tensors: &[(&str, usize)]) -> Vec<u8> {
    let mut header = Map::new();
    let mut data = Vec::new();
    for (name, length) in tensors {
        let begin = data.len();
        data.extend((0..*length).flat_map(|i| (i as f32).to_le_bytes()));
        header.insert(
            (*name).to_owned(),
            json!({"dtype": "F32", "shape": [length], "data_offsets": [begin, data.len()]}),
        );
    }
    let header = json!(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

pub(crate) fn write(path: &Path, content: impl AsRef<[u8]>) {
    std::fs::write(path, content).unwrap();
}

/// Settings whose cache is in `root` and whose hub is unreachable.
pub(crate) fn settings(root: &Path) -> Settings {
    let hub = Environment {
        cache: root.join("hub"),
        endpoint: "http://127.0.0.1:9".to_owned(),
        token: None,
        offline: true,
    };
    Settings { hub, ..Settings::new(root.join("cache")) }
}
