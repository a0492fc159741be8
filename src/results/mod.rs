//! A run folder: the only code that reads or writes one.
//!
//! A run holds *cases* (a checkpoint with one batch of inputs); each case holds *cells* (that case in
//! one variant). With one case its files lie in the run folder itself, with several in a folder per case.

pub mod environment;
mod folder;
pub mod localized;
pub mod relations;
pub mod torch_zip;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::execute::cell::SCHEMA_VERSION;
pub use folder::{ResultsError, RunFolder, write_file};

use crate::spec::config::{Config, Padding};
use crate::spec::plan::Plan;
use crate::spec::variant::Variant;
use compare::verdict::Overrides;

/// `run.json`: what the run set out to do, written before the first cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// UTC time stamp of the run, `20260801_150000`; part of its files' names.
    pub stamp: String,
    /// What was asked for, defaults filled in.
    pub config: Config,
    /// Where the config's programs are started.
    #[serde(default, skip_serializing_if = "path_is_empty")]
    pub folder: PathBuf,
    /// Name of the variant that speed-ups are measured against.
    pub baseline: Option<String>,
    /// The cells with the axes, the checkpoint and the environment of each; `None` in runs of a tfcheck that did not
    /// keep them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// The cases, in order.
    pub cases: Vec<Case>,
    /// What a person must know about the run as a whole.
    #[serde(default)]
    pub notes: Vec<String>,
}

#[expect(clippy::ptr_arg, reason = "serde passes the field itself")]
fn path_is_empty(path: &PathBuf) -> bool {
    path.as_os_str().is_empty()
}

/// A checkpoint with one batch of inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// Short name, also its folder's when the run has several cases.
    pub name: String,
    /// The checkpoint as a person knows it.
    pub checkpoint: String,
    /// Digest of the checkpoint's files.
    pub checkpoint_digest: String,
    /// The inputs in words: `batch 1, 128 tokens`.
    pub inputs: String,
    /// Digest of the inputs.
    pub inputs_digest: String,
    /// Answer tokens whose probability the summary shows.
    #[serde(default)]
    pub choices: Vec<AnswerToken>,
    /// Where the case stands in a sweep; `None` for prompts, and in runs of a tfcheck that did not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub axes: Option<Axes>,
    /// What the config's checkpoint says of its own tolerances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerances: Option<Overrides>,
    /// Every variant that the case should be run in, in order.
    pub variants: Vec<Variant>,
    /// What a person must know to read the case's numbers.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// A case's values on the axes of a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Axes {
    /// Tokens of the longest row.
    pub length: usize,
    /// Rows.
    pub batch: usize,
    /// Side on which shorter rows are filled up; `None` where there is only one row.
    pub padding: Option<Padding>,
    /// Tokens of the prefill, where the rest was decoded through the KV cache; `None` for one pass.
    #[serde(default)]
    pub prefill: Option<usize>,
}

/// An answer token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerToken {
    /// As the user wrote it.
    pub text: String,
    /// Its token id.
    pub id: u32,
}
