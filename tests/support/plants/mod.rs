//! Bugs that tests plant, with what must be found of each: one table for the tests and for results/diagnosis.md.

// Each test binary uses a part of this module.
#![allow(dead_code, reason = "shared by two test binaries and an example")]

pub(crate) mod findings;
pub(crate) mod fork;
pub(crate) mod known;
pub(crate) mod public;
pub(crate) mod sequences;
pub(crate) mod text;

use std::path::Path;

use candle_core::{Device, Tensor};
use reference::protocol::Load;
use serde_json::Value;

use crate::setting::Tensors;

/// The submodules between which a module's own code is wrong.
pub(crate) type Between = Option<[Option<&'static str>; 2]>;

/// What plants a bug into one side.
pub(crate) enum Edit {
    /// Sets a key of the config. `rope_parameters`, which holds the same settings in the newer spelling and would take
    /// precedence, is removed.
    Key(&'static str, Value),
    /// Edits the config.
    Config(fn(&mut Value)),
    /// Edits the weights; a tensor that surgery took away is left alone.
    Weights(fn(&mut Tensors)),
    /// Edits one tensor.
    Tensor(String, fn(&Tensor) -> Tensor),
    /// Edits the inputs.
    Inputs(fn(&mut Tensors)),
}

/// One bug.
pub(crate) struct Plant {
    /// Name of the synthetic checkpoint.
    pub(crate) checkpoint: &'static str,
    /// What plants it.
    pub(crate) edit: Edit,
    /// The first diverging module.
    pub(crate) module: String,
    /// The neighbouring submodules if the bug is in the module's own code.
    pub(crate) between: Between,
    /// The rows of the diagnosis's table that make this mistake; empty if none does.
    pub(crate) hypotheses: &'static [&'static str],
    /// The parts of the network that surgery reports, without their layers, if they do not follow from the module.
    pub(crate) parts: &'static [&'static str],
}

impl Plant {
    pub(crate) fn new(checkpoint: &'static str, edit: Edit, module: &str) -> Self {
        Self { checkpoint, edit, module: module.to_owned(), between: None, hypotheses: &[], parts: &[] }
    }

    pub(crate) fn between(self, after: Option<&'static str>, before: Option<&'static str>) -> Self {
        Self { between: Some([after, before]), ..self }
    }

    pub(crate) fn named(self, hypotheses: &'static [&'static str]) -> Self {
        Self { hypotheses, ..self }
    }

    pub(crate) fn parts(self, parts: &'static [&'static str]) -> Self {
        Self { parts, ..self }
    }

    /// The bug in words.
    pub(crate) fn name(&self) -> String {
        let edit = match &self.edit {
            Edit::Key(key, value) => format!("{key} {value}"),
            Edit::Tensor(name, _) => name.clone(),
            Edit::Config(_) => "config".to_owned(),
            Edit::Weights(_) => "weights".to_owned(),
            Edit::Inputs(_) => "inputs".to_owned(),
        };
        format!("{}: {edit} ({})", self.checkpoint, self.module)
    }

    /// The layer in which alone the bug is planted; `None` if it is in every layer or outside of them.
    pub(crate) fn layer(&self) -> Option<usize> {
        let Edit::Tensor(name, _) = &self.edit else { return None };
        layer(name)
    }

    /// What the side that has the bug does where it is asked to load `load`; edited files go to `folder`.
    pub(crate) fn committed(&self, load: &Load, folder: &Path) -> Load {
        let mut planted = load.clone();
        std::fs::create_dir_all(folder).unwrap();
        if let Edit::Inputs(edit) = &self.edit {
            let mut tensors = candle_core::safetensors::load(&load.inputs, &Device::Cpu).unwrap();
            edit(&mut tensors);
            planted.inputs = folder.join("planted-inputs.safetensors");
            candle_core::safetensors::save(&tensors, &planted.inputs).unwrap();
        } else {
            folder.clone_into(&mut planted.checkpoint);
            self.edit_checkpoint(&load.checkpoint, folder);
        }
        planted
    }

    /// Writes the checkpoint in `from` with the bug into `to`, which may be the same folder.
    pub(crate) fn edit_checkpoint(&self, from: &Path, to: &Path) {
        let text = std::fs::read_to_string(from.join("config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        let weights = from.join("model.safetensors");
        let mut tensors = candle_core::safetensors::load(weights, &Device::Cpu).unwrap();
        match &self.edit {
            Edit::Key(key, value) => {
                config[*key] = value.clone();
                config.as_object_mut().unwrap().remove("rope_parameters");
            }
            Edit::Config(edit) => edit(&mut config),
            Edit::Weights(edit) => edit(&mut tensors),
            Edit::Tensor(name, edit) => {
                let name = saved(name, &tensors);
                if let Some(name) = name {
                    let edited = edit(&tensors[&name]).contiguous().unwrap();
                    tensors.insert(name, edited);
                }
            }
            Edit::Inputs(_) => {}
        }
        std::fs::write(to.join("config.json"), config.to_string()).unwrap();
        candle_core::safetensors::save(&tensors, to.join("model.safetensors")).unwrap();
    }
}

/// The name under which a file keeps a tensor: Qwen2-VL's files have the names of its first releases, and those of CLIP's
/// towers those of the whole model.
fn saved(name: &str, tensors: &Tensors) -> Option<String> {
    let own = name.replace("model.visual", "visual").replace("model.language_model", "model");
    let names = ["", "text_model.", "vision_model."].map(|part| format!("{part}{own}"));
    names.into_iter().find(|name| tensors.contains_key(name))
}

/// The index of the layer that a path lies in.
pub(crate) fn layer(path: &str) -> Option<usize> {
    let mut words = path.split('.');
    words.by_ref().find(|word| ["layers", "h", "layer"].contains(word))?;
    words.next()?.parse().ok()
}

/// What surgery may call the part of a layer that this module belongs to; several where it does not tell them apart, or where
/// the module feeds all of them.
pub(crate) fn parts(module: &str) -> &'static [&'static str] {
    const MLP: &[&str] = &["MLP", "router or experts"];
    const ROTATION: &[&str] = &["rotation", "scores or rotation", "scores, or the factor of cos and sin"];
    const SCORES: &[&str] = &[
        "scores",
        "scores or rotation",
        "scores, or the factor of cos and sin",
        "bias of keys",
        "attention",
    ];
    const MASK: &[&str] = &["mask or softmax", "mask or values"];
    const VALUES: &[&str] = &["values or output projection", "mask or values", "attention"];
    const ATTENTION: &[&str] = &[
        "mask or softmax",
        "mask or values",
        "values or output projection",
        "scores",
        "rotation",
        "scores or rotation",
        "attention",
    ];
    const ENDS: &[&str] = &["embedding, norms and head"];
    const BLOCK: &[&str] = &[
        "MLP",
        "router or experts",
        "mask or softmax",
        "values or output projection",
        "scores",
        "rotation",
        "attention",
        "embedding, norms and head",
    ];
    if layer(module).is_none() {
        return if module.contains("rotary_emb") { ROTATION } else { ENDS };
    }
    let ends = |names: &[&str]| names.iter().any(|name| module.ends_with(name));
    let holds = |names: &[&str]| names.iter().any(|name| module.contains(name));
    if ends(&[".mask"]) {
        MASK
    } else if ends(&[".rope_q", ".rope_k"]) {
        ROTATION
    } else if ends(&[".scores", ".softmax", "q_proj", "k_proj", "q_norm", "k_norm"]) {
        SCORES
    } else if ends(&["v_proj", "o_proj"]) {
        VALUES
    } else if holds(&[".mlp", "fc1", "fc2", "post_attention_layernorm", ".ln_2"]) {
        MLP
    } else if holds(&["attn", "attention", "input_layernorm", "ln_1"]) {
        ATTENTION
    } else {
        BLOCK
    }
}
