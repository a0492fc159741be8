//! Capture and replay of modules.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Requests a forward pass that writes the inputs and outputs of modules, each as soon as it is known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Capture {
    /// An empty folder for the tensors.
    pub folder: PathBuf,
    /// Globs over module paths (`*` any text, `?` one character); a module is captured if one matches.
    pub modules: Vec<String>,
    /// Limit of the bytes written; a tensor that would exceed it is listed without a file.
    pub max_bytes: u64,
    /// As in [`super::Forward::prefill`]: a module is then called once for the prefill and once for each later
    /// token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill: Option<usize>,
    /// As in [`super::Forward::chunks`]: a module is then called once for each of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chunks: Vec<usize>,
}

/// Requests one forward pass in which one call of a module gets stored tensors instead of the tensors among its
/// arguments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Replay {
    /// The module's path, as captured.
    pub module: String,
    /// Index of the call to this module, from 0.
    pub call: usize,
    /// The file of the tensor that replaces the first one, in the format of [`CapturedTensor::file`].
    pub input: PathBuf,
    /// That tensor's shape.
    pub shape: Vec<usize>,
    /// Tensors that replace further ones; a worker that captures none gets none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further: Vec<StoredArgument>,
    /// The file for the module's output, in the same format.
    pub output: PathBuf,
}

/// One finished capture.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Captured {
    /// Calls of the matching modules, in the order in which they begin.
    pub modules: Vec<CapturedModule>,
    /// Whether the logits are bitwise equal to those of a forward pass without capture.
    pub unchanged: bool,
    /// Bytes written.
    pub bytes: u64,
    /// Nanoseconds of the captured forward pass.
    pub elapsed_ns: u64,
    /// Nanoseconds of a forward pass without capture.
    pub plain_ns: u64,
}

/// One call of a module, or of a step inside an attention module: `rope_q` and `rope_k` (rotary embedding)
/// and `softmax` (its input is the masked scores).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CapturedModule {
    /// Path, `model.layers.0.self_attn.q_proj`; for a step, its module's path and the step's name.
    pub path: String,
    /// Index of the call to this module, from 0.
    pub call: usize,
    /// Its class.
    pub class: String,
    /// The first tensor among the arguments.
    pub input: Option<CapturedTensor>,
    /// The other tensors among the arguments: masks, tables, indices, weights.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further: Vec<Argument>,
    /// The first tensor of the output.
    pub output: Option<CapturedTensor>,
    /// The other tensors of the output, if there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more: Vec<CapturedTensor>,
}

/// One captured tensor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CapturedTensor {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its dtype as the runner spells it.
    pub dtype: String,
    /// Its file in [`Capture::folder`]: elements in C order, little-endian f64 for a model in f64 and f32
    /// otherwise; `None` if [`Capture::max_bytes`] did not allow it.
    pub file: Option<String>,
}

/// One finished replay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Replayed {
    /// Shape of the module's output.
    pub shape: Vec<usize>,
}

/// A captured argument of a module.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Argument {
    /// The parameter's name, `attention_mask`; with the part's name for a tensor of a tuple,
    /// `position_embeddings.cos`.
    pub name: String,
    /// Its value. Equal values of several modules may share a file.
    pub tensor: CapturedTensor,
}

/// A stored tensor that replaces an argument of a module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredArgument {
    /// The parameter's name on this side, as captured.
    pub name: String,
    /// The tensor's file, in the format of [`CapturedTensor::file`].
    pub input: PathBuf,
    /// The tensor's shape; the argument's number of elements.
    pub shape: Vec<usize>,
}
