//! A run folder: the only code that reads or writes one.
//!
//! A run holds *cases* (a checkpoint with one batch of inputs); each case holds *cells* (that case in
//! one variant). With one case its files lie in the run folder itself, with several in a folder per case.

pub mod diagnosed;
pub mod environment;
mod error;
mod folder;
mod frozen;
pub mod localized;
pub mod relations;
pub mod torch_zip;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::execute::cell::SCHEMA_VERSION;
pub use error::ResultsError;
pub(crate) use folder::check_links;
pub use folder::{RunFolder, write_file};
pub use frozen::{Built, Frozen, Locked, Share, plan_schema};

use crate::spec::checkpoint::Pooling;
use crate::spec::config::{Config, Padding};
use crate::spec::plan::Plan;
use crate::spec::variant::Variant;
use compare::envelope::Envelope;
use compare::verdict::Overrides;

/// `run.json`: the plan of the run, written before the first cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`SCHEMA_VERSION`] of the tfcheck that wrote it.
    pub schema_version: u32,
    /// UTC time stamp of the run, `20260801_150000`; part of its files' names.
    pub stamp: String,
    /// The config, with defaults filled in.
    pub config: Config,
    /// Working directory of the config's commands.
    #[serde(default, skip_serializing_if = "path_is_empty")]
    pub folder: PathBuf,
    /// Name of the variant that speed-ups are measured against.
    pub baseline: Option<String>,
    /// The planned cells with axes, checkpoint and environment of each; `None` in runs of older tfcheck versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// The part of a frozen plan that the run computes; `None` for a whole run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<Share>,
    /// The cases, in order.
    pub cases: Vec<Case>,
    /// Notes about the run as a whole.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// What rounding was measured to do in a case, stored in `envelopes.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaseEnvelope {
    /// The case's name.
    pub case: String,
    /// The measurement.
    pub envelope: Envelope,
}

#[expect(clippy::ptr_arg, reason = "serde passes the field itself")]
fn path_is_empty(path: &PathBuf) -> bool {
    path.as_os_str().is_empty()
}

/// A checkpoint with one batch of inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// Short name; also the name of its folder if the run has several cases.
    pub name: String,
    /// The checkpoint's source, as shown to the user.
    pub checkpoint: String,
    /// Digest of the checkpoint's files.
    pub checkpoint_digest: String,
    /// The inputs as text: `batch 1, 128 tokens`.
    pub inputs: String,
    /// Digest of the inputs.
    pub inputs_digest: String,
    /// Answer tokens whose probability the summary shows.
    #[serde(default)]
    pub choices: Vec<AnswerToken>,
    /// How the checkpoint makes one vector of a text's hidden states; `None` for most checkpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooling: Option<Pooling>,
    /// The number of questions of the built-in retrieval set, which the first rows are; `None` for other inputs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub questions: Option<usize>,
    /// The case's place in a sweep; `None` for prompts and in runs of older tfcheck versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub axes: Option<Axes>,
    /// The tolerances that the config sets for the checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerances: Option<Overrides>,
    /// Every variant planned for the case, in order.
    pub variants: Vec<Variant>,
    /// Notes that a reader needs to interpret the case's numbers.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// A case's values on the axes of a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Axes {
    /// Sequence length in tokens; of the longest sequence if there is padding.
    pub length: usize,
    /// Batch size.
    pub batch: usize,
    /// Side on which shorter sequences are padded; `None` for batch size 1.
    pub padding: Option<Padding>,
    /// Tokens of the prefill before decoding through the KV cache; `None` for one full-sequence forward pass.
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
