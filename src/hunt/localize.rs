//! First divergence: the first module whose output differs although its input agrees.
//!
//! Two workers run the same inputs and capture the inputs and outputs of their modules: coarse modules first, then
//! those inside the suspect. Modules are paired by path and walked in call order. The suspect is then replayed on the
//! second side with the first side's input, which distinguishes its own error from one in its input. Both sides
//! compute in float64 if they can; a difference above [`Tolerances::f64_agreement`] is then more than rounding.

mod arguments;
pub(super) mod cached;
mod capture;
mod drive;
mod execution;
mod level;
mod live;
mod pair;
mod replay;
mod routed;
mod sequences;
pub(super) mod tensor;
mod walk;

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

pub(crate) use drive::described;
pub use drive::localize;
use reference::protocol::{Dtype, Load};

use crate::execute::runner::{NoResult, Runner};
pub use crate::results::localized::{Between, Divergence, Finding, Localized, NearTies, Worst};
use compare::verdict::Tolerances;

/// One of the two variants.
pub struct Side<'a> {
    /// The variant's name.
    pub name: String,
    /// The runner of its worker.
    pub runner: &'a dyn Runner,
    /// The load request of a run; localisation changes mode, attention and dtype.
    pub load: Load,
    /// Number of prefill tokens; each further token has a forward pass of its own through the KV cache. `None` for
    /// one full-sequence forward pass.
    pub prefill: Option<usize>,
}

/// The pair to localise, and the bounds.
pub struct Request<'a> {
    /// The case's name.
    pub case: &'a str,
    /// The pair. The second side is replayed with the first side's inputs, or the other way round if only the second
    /// side uses a KV cache.
    pub sides: [Side<'a>; 2],
    /// Bounds of the localisation.
    pub options: &'a Options,
    /// Differences that rounding explains.
    pub tolerances: &'a Tolerances,
    /// Folder of the workers' log; captured tensors go to a temporary folder in it, which is removed.
    pub folder: &'a Path,
    /// Timeout of each request to a worker.
    pub timeout: Duration,
    /// Set when the user interrupts.
    pub stop: &'a AtomicBool,
}

impl Request<'_> {
    /// The side whose modules are replayed with the other side's input: one with a full-sequence forward pass,
    /// because a module that is called token by token has no input for the whole sequence.
    fn fed(&self) -> Option<usize> {
        [1, 0].into_iter().find(|&side| self.sides[side].prefill.is_none())
    }
}

/// Bounds of a localisation.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Globs over module paths; only matching modules are captured.
    pub modules: Vec<String>,
    /// dtype of both sides. `None` selects float64, float32 if a side does not support float64, and the sides' own
    /// dtype if they agree in that one.
    pub dtype: Option<Dtype>,
    /// Maximum bytes of the captured tensors of both sides on disk.
    pub max_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { modules: vec!["*".to_owned()], dtype: None, max_bytes: 2 << 30 }
    }
}

/// Why a localisation failed.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum LocalizeError {
    /// A worker failed or did not answer.
    #[error("{variant} cannot be captured: {reason}")]
    #[diagnostic(help("see worker.log in {folder}"))]
    Worker {
        /// The variant.
        variant: String,
        /// How it failed.
        reason: String,
        /// Folder of its log.
        folder: String,
    },
    /// The user interrupted it.
    #[error("interrupted")]
    Interrupted,
    /// A file of a worker cannot be read or written.
    #[error("{path}: {source}")]
    #[diagnostic(help("check the disk, or lower --max-disk"))]
    Io {
        /// The file.
        path: String,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The two sides have no module in common.
    #[error("{a} and {b} have no module path in common")]
    #[diagnostic(help("localise two variants of one architecture"))]
    NothingInCommon {
        /// The first variant.
        a: String,
        /// The second.
        b: String,
    },
}

impl LocalizeError {
    fn worker(side: &Side, folder: &Path, ended: NoResult) -> Self {
        Self::ended(&side.name, folder, ended)
    }

    pub(crate) fn ended(variant: &str, folder: &Path, ended: NoResult) -> Self {
        let reason = match ended {
            NoResult::Interrupted => return Self::Interrupted,
            NoResult::Unsupported(reason) => reason,
            NoResult::Failed(failure) => failure.reason,
        };
        Self::Worker { variant: variant.to_owned(), reason, folder: folder.display().to_string() }
    }

    fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.display().to_string(), source }
    }
}
