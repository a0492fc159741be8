//! First divergence: the first module whose output departs though its input agrees.
//!
//! Two workers run the same inputs and write what goes into and comes out of their modules, coarse modules
//! first and then those below the suspect. Modules are paired by path and walked in call order; the suspect
//! is then run on the second side with the first side's input, which tells a fault of its own from one that
//! it was handed. Both sides compute in float64 where they can: there, what differs by more than
//! [`Tolerances::f64_agreement`] is no rounding.

pub(super) mod cached;
mod capture;
mod drive;
mod level;
mod live;
mod pair;
mod routed;
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
    /// What runs it.
    pub runner: &'a dyn Runner,
    /// What a run asks its worker to load; mode, attention and dtype are changed for localising.
    pub load: Load,
    /// Tokens of a prefill after which each further one has a pass of its own, through the KV cache; absent for one pass.
    pub prefill: Option<usize>,
}

/// What is localised, and within which bounds.
pub struct Request<'a> {
    /// The case's name.
    pub case: &'a str,
    /// The pair; what the first computes is what the second is fed, or the other way round where the second goes
    /// through a cache and the first does not.
    pub sides: [Side<'a>; 2],
    /// How.
    pub options: &'a Options,
    /// What rounding explains.
    pub tolerances: &'a Tolerances,
    /// Where workers log; captured tensors lie in a folder of their own in it and are removed.
    pub folder: &'a Path,
    /// Longest wait for any one answer.
    pub timeout: Duration,
    /// Set when the user wants to stop.
    pub stop: &'a AtomicBool,
}

impl Request<'_> {
    /// The side whose modules are fed what the other's got: one that computes all positions in one pass, for a module
    /// that a cache calls token by token has no input of the whole.
    fn fed(&self) -> Option<usize> {
        [1, 0].into_iter().find(|&side| self.sides[side].prefill.is_none())
    }
}

/// Bounds of a localisation.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Globs over module paths; only these are captured.
    pub modules: Vec<String>,
    /// dtype on both sides; float64 otherwise, float32 where a side has none, and the sides' own where float64 shows
    /// nothing.
    pub dtype: Option<Dtype>,
    /// Bytes that the captured tensors of both sides may take on the disk.
    pub max_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { modules: vec!["*".to_owned()], dtype: None, max_bytes: 2 << 30 }
    }
}

/// Why nothing could be localised.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum LocalizeError {
    /// A worker gave no answer.
    #[error("{variant} cannot be captured: {reason}")]
    #[diagnostic(help("see worker.log in {folder}"))]
    Worker {
        /// The variant.
        variant: String,
        /// What became of it.
        reason: String,
        /// Where its log lies.
        folder: String,
    },
    /// The user stopped it.
    #[error("interrupted")]
    Interrupted,
    /// What a worker wrote cannot be read.
    #[error("{path}: {source}")]
    #[diagnostic(help("check the disk, or lower --max-disk"))]
    Io {
        /// The file.
        path: String,
        /// What the system said.
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
