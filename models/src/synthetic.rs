//! Seeded checkpoints for every architecture in a format that transformers reads: `config.json` and an f32
//! `model.safetensors`, without tokenizer or download.
//!
//! The values are random but not degenerate: activations stay near one, attention is concentrated on few keys, and
//! biases and norm weights vary, so that a wrong mask, window, rope table, scale or epsilon changes the logits
//! measurably; `tests/features.py` tests this for each feature. `synthetic/versions.md` lists the transformers
//! versions that read the checkpoints and whether they compute the same; `tests/truth.py` writes the float64
//! references.

mod file;
mod fill;

use std::path::Path;
use std::sync::LazyLock;

use serde_json::Value;

pub use crate::checkpoints::Error;
use crate::checkpoints::{Tensor, Variant};
use crate::registry::{ARCHITECTURES, Architecture, Kind};

/// One checkpoint that [`write()`] can make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// `model_type` in its config.
    pub model_type: &'static str,
    /// Name within the model type; empty for the default.
    pub variant: &'static str,
    /// Which sequences its model takes.
    pub kind: Kind,
    /// The features that it switches on.
    pub shows: &'static str,
    /// Whether the checkpoint has the shape of a real model, for timing; it is too large for tests.
    pub bench: bool,
}

impl Entry {
    /// Whether the model is a whole model of one text: it takes token ids and nothing else but their mask and positions.
    pub fn is_one_text(&self) -> bool {
        self.kind.is_one_text()
    }
}

/// All checkpoints that [`write()`] can make, grouped by model type, the default variant first.
pub fn catalogue() -> &'static [Entry] {
    static CATALOGUE: LazyLock<Vec<Entry>> = LazyLock::new(|| {
        let entries = |architecture: &'static Architecture| {
            architecture.synthetic.variants.iter().map(|variant| Entry {
                model_type: architecture.model_type,
                variant: variant.name,
                kind: architecture.kind,
                shows: variant.shows,
                bench: variant.bench,
            })
        };
        ARCHITECTURES.iter().flat_map(entries).collect()
    });
    &CATALOGUE
}

/// The `config.json` of an entry.
///
/// # Errors
/// If the catalogue has no such entry.
pub fn config(model_type: &str, variant: &str) -> Result<Value, Error> {
    let (architecture, variant) = find(model_type, variant)?;
    architecture.synthetic.config(architecture.model_type, variant).map(Value::Object)
}

/// Writes `config.json` and `model.safetensors` (f32) of an entry into `folder`, which is created if it does not
/// exist.
///
/// The same seed gives the same bytes on every platform. Each file is written under a temporary name, synced and
/// renamed; the config is written last, so a folder with a `config.json` is complete. The weights are streamed, so
/// that memory use does not grow with the model.
///
/// # Errors
/// If the catalogue has no such entry, or if the folder cannot be written.
pub fn write(model_type: &str, variant: &str, seed: u64, folder: &Path) -> Result<(), Error> {
    let (architecture, variant) = find(model_type, variant)?;
    let config = architecture.synthetic.config(architecture.model_type, variant)?;
    let tensors = architecture.synthetic.tensors(architecture.model_type, &config)?;
    std::fs::create_dir_all(folder).map_err(|source| Error::Io { path: folder.into(), source })?;
    file::write_safetensors(&folder.join("model.safetensors"), &tensors, seed)?;
    file::write_text(&folder.join("config.json"), &format!("{:#}\n", Value::Object(config)))
}

/// Fills the values of a tensor of any checkpoint: normally distributed with this mean and standard deviation, determined by
/// the seed, the tensor's name and each value's index.
pub fn draw(name: &str, mean: f64, std: f64, seed: u64, values: &mut [f32]) {
    let tensor = Tensor { name: name.to_owned(), shape: vec![values.len()], mean, std };
    fill::fill(&tensor, seed, 0, values);
}

fn find(model_type: &str, variant: &str) -> Result<(&'static Architecture, &'static Variant), Error> {
    let unknown = |name: String, known: Vec<&str>| Error::Unknown { name, known: known.join(", ") };
    let all = || {
        let variants =
            |row: &'static Architecture| row.synthetic.variants.iter().map(move |variant| (row, variant));
        ARCHITECTURES.iter().filter(|row| row.model_type == model_type).flat_map(variants)
    };
    if all().next().is_none() {
        return Err(unknown(model_type.into(), crate::model_types().collect()));
    }
    all().find(|(_, known)| known.name == variant).ok_or_else(|| {
        let known = all().map(|(_, known)| if known.name.is_empty() { "(none)" } else { known.name });
        unknown(format!("{model_type}:{variant}"), known.collect())
    })
}

#[cfg(test)]
mod tests;
