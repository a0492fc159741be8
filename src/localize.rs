//! First divergence: the first module whose output departs though its input agrees.
//!
//! Two workers run the same inputs and write what goes into and comes out of their modules, coarse modules
//! first and then those below the suspect. Modules are paired by path and walked in call order; the suspect
//! is then run on the second side with the first side's input, which tells a fault of its own from one that
//! it was handed. Both sides compute in float64 where they can: there, what differs by more than
//! [`Tolerances::f64_agreement`] is no rounding.

mod cached;
mod drive;
mod level;
mod pair;
mod routed;
mod tensor;
mod text;
mod walk;

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use reference::protocol::{Dtype, Load};
use serde::{Deserialize, Deserializer, Serialize};

pub(crate) use drive::described;
pub use drive::localize;

use crate::compare::verdict::Tolerances;
use crate::runner::{Ended, Runner};

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

/// What was found between two variants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Localized {
    /// The case's name.
    pub case: String,
    /// The first variant.
    pub a: String,
    /// The second.
    pub b: String,
    /// dtype that both sides computed in.
    pub dtype: Dtype,
    /// Largest relative L2 that counts as agreement.
    pub threshold: f64,
    /// Relative L2 of the logits in this dtype, where they can be compared.
    pub logits: Option<f64>,
    /// What was found.
    pub finding: Finding,
    /// The finding in one sentence.
    pub sentence: String,
    /// Module calls that were compared.
    pub modules: usize,
    /// Bytes that were written for it, at most [`Options::max_bytes`] of them at a time.
    pub captured_bytes: u64,
    /// What the captured passes took over what plain ones took; absent where nothing was captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overhead: Option<f64>,
    /// Nanoseconds of all of it, loading included.
    pub elapsed_ns: u64,
    /// Whether the logits of every captured pass were bit for bit those of a pass without capture.
    pub capture_changed_nothing: bool,
    /// Whether it is the first side whose modules were fed the second's inputs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_first_fed: bool,
    /// What a person must know to read it.
    pub notes: Vec<String>,
}

impl Localized {
    /// Whether the two compute different things.
    pub fn is_divergence(&self) -> bool {
        !matches!(self.finding, Finding::Nothing | Finding::Spread { near_ties: Some(_), .. })
    }

    /// What it took, in words.
    pub fn effort(&self) -> String {
        let seconds = self.elapsed_ns as f64 / 1e9;
        let bytes = crate::report::bytes(self.captured_bytes);
        let overhead =
            self.overhead.map_or_else(String::new, |times| format!(" in {times:.1} times a plain pass"));
        format!("{} module calls compared, {bytes} captured{overhead}, {seconds:.1} s", self.modules)
    }

    /// Why a choice of other experts is rounding, where that is what was found.
    pub(crate) fn near_ties(&self) -> Option<String> {
        match &self.finding {
            Finding::Spread { near_ties: Some(near_ties), .. } => Some(text::near_ties(near_ties, self)),
            _ => None,
        }
    }

    /// The variants whose inputs were given, and whose modules were fed them.
    fn source_and_fed(&self) -> [&str; 2] {
        if self.is_first_fed { [&self.b, &self.a] } else { [&self.a, &self.b] }
    }

    /// Whether `other` is about the same two variants of the same case.
    pub fn is_of_the_pair(&self, other: &Self) -> bool {
        (&self.case, &self.a, &self.b) == (&other.case, &other.a, &other.b)
    }

    /// The module path that is at fault, where there is one.
    pub fn path(&self) -> Option<&str> {
        match &self.finding {
            Finding::Module(divergence) => Some(&divergence.path),
            _ => None,
        }
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "found", rename_all = "snake_case")]
pub enum Finding {
    /// A module, or a step inside one.
    Module(Divergence),
    /// Not what the modules compute, but how one variant executes them: `torch.compile`, or sdpa attention.
    Execution {
        /// The variant.
        variant: String,
        /// What it does that its eager twin does not.
        what: String,
        /// Relative L2 of its logits against those of its twin.
        #[serde(deserialize_with = "absent_is_infinite")]
        relative_l2: f64,
    },
    /// The logits depart, and a side exposes no modules.
    Logits {
        /// Why nothing finer is known.
        reason: String,
    },
    /// The logits depart, but no module does so by itself: rounding that grows from module to module.
    Spread {
        /// The first module whose output departs.
        first: String,
        /// Where it is routers that make it grow.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        near_ties: Option<NearTies>,
    },
    /// Both sides agree.
    Nothing,
}

/// Tokens that rounding sends to other experts, in two variants of which every module gives the same on the same input, at
/// every position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NearTies {
    /// The first router that chooses other experts.
    pub router: String,
    /// Real tokens for which some router does.
    pub tokens: usize,
    /// Real tokens.
    pub of: usize,
    /// Largest relative L2 of the first router's scores over the tokens for which it does: a choice that so small a
    /// difference turns was a tie to within it.
    pub scores: f64,
    /// Largest relative L2 that a module on the other side's input reaches at one position.
    pub worst: f64,
}

/// The first module whose output departs though its input agrees.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// Its path on the first side; below an attention module also the steps `rope_q`, `rope_k`, `scores`, `mask` and
    /// `softmax`, which are no modules.
    pub path: String,
    /// Its path on the second side.
    pub path_b: String,
    /// Its class on the first side.
    pub class_a: String,
    /// Its class on the second side.
    pub class_b: String,
    /// Where the module's children all agree: the children after and before which its own code departs.
    pub between: Option<Between>,
    /// Relative L2 of what goes in; `None` where it cannot be compared.
    pub input: Option<f64>,
    /// Relative L2 of what comes out; infinite where one side alone has a NaN or an infinity.
    #[serde(deserialize_with = "absent_is_infinite")]
    pub output: f64,
    /// Relative L2 of what comes out of the second side when it is fed the first side's input; `None` where it
    /// cannot be fed.
    pub replayed: Option<f64>,
    /// Position that departs most.
    pub worst: Option<Worst>,
}

/// Part of a module's own code.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Between {
    /// The last child that agrees; `None` at the module's beginning.
    pub after: Option<String>,
    /// The first child whose input departs; `None` at the module's end.
    pub before: Option<String>,
}

/// A position.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Worst {
    /// Row of the batch.
    pub row: usize,
    /// Position in the row, padding counted.
    pub position: usize,
    /// Relative L2 of this position.
    #[serde(deserialize_with = "absent_is_infinite")]
    pub relative_l2: f64,
}

/// JSON has no infinity and is given `null` in its place.
fn absent_is_infinite<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::INFINITY))
}

/// Why nothing could be localised.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum LocalizeError {
    /// A worker gave no answer.
    #[error("{variant} cannot be captured: {reason}")]
    #[diagnostic(help("worker.log in {folder} has what the worker said"))]
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
    fn worker(side: &Side, folder: &Path, ended: Ended) -> Self {
        Self::ended(&side.name, folder, ended)
    }

    pub(crate) fn ended(variant: &str, folder: &Path, ended: Ended) -> Self {
        let reason = match ended {
            Ended::Interrupted => return Self::Interrupted,
            Ended::Unsupported(reason) => reason,
            Ended::Failed(failure) => failure.reason,
        };
        Self::Worker { variant: variant.to_owned(), reason, folder: folder.display().to_string() }
    }

    fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.display().to_string(), source }
    }
}

impl std::fmt::Display for Localized {
    /// What `tfcheck localize` prints.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(formatter, "{}: {} / {}", self.case, self.a, self.b)?;
        writeln!(formatter, "  {}", self.sentence)?;
        writeln!(formatter, "  {}", self.effort())?;
        self.notes.iter().try_for_each(|note| writeln!(formatter, "  note: {note}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_divergence_to_infinity_is_read_back_as_it_was_written() {
        let worst = Some(Worst { row: 0, position: 3, relative_l2: f64::INFINITY });
        let found = Finding::Module(Divergence { output: f64::INFINITY, worst, ..Divergence::default() });
        let text = serde_json::to_string(&found).unwrap();
        assert_eq!(serde_json::from_str::<Finding>(&text).unwrap(), found, "{text}");
    }
}
