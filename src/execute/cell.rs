//! The record of one cell: its variant, its outcome and its output files.

use std::collections::BTreeMap;
use std::path::PathBuf;

use compare::repeat::Noise;
use reference::protocol::{Graphs, Output, Positions, Prepared};
use serde::{Deserialize, Serialize};

use crate::spec::variant::Variant;
use compare::units::count;

/// Version of the format of run folders; a reader refuses a newer one.
pub const SCHEMA_VERSION: u32 = 1;

/// One cell's record, `timing_<stamp>_<variant>.json`. It is written last, so its presence means that the cell is
/// finished.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// [`SCHEMA_VERSION`] of the tfcheck that wrote it.
    pub schema_version: u32,
    /// The variant's name, [`Variant::name`].
    pub name: String,
    /// The variant that ran.
    pub variant: Variant,
    /// Digest of everything that the cell's numbers depend on.
    pub key: String,
    /// How the cell ended.
    pub outcome: Outcome,
}

impl Cell {
    /// The record of `variant`.
    pub fn new(variant: &Variant, key: &str, outcome: Outcome) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            name: variant.name(),
            variant: variant.clone(),
            key: key.to_owned(),
            outcome,
        }
    }

    /// The results of a completed cell.
    pub fn completed(&self) -> Option<&Completed> {
        match &self.outcome {
            Outcome::Completed(completed) => Some(completed),
            _ => None,
        }
    }

    /// Whether the run ended before the cell was started: such a cell has no key.
    pub fn is_not_started(&self) -> bool {
        let is_interrupted =
            matches!(&self.outcome, Outcome::Failed(Failure { kind: FailureKind::Interrupted, .. }));
        is_interrupted && self.key.is_empty()
    }
}

/// How a cell ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "nearly every cell is the large one")]
pub enum Outcome {
    /// Logits and timings exist.
    Completed(Completed),
    /// The runner does not support the cell.
    Unsupported {
        /// What is missing.
        reason: String,
    },
    /// The cell was started and did not finish.
    Failed(Failure),
}

impl Outcome {
    /// `failed (timed out): no answer in 300 s`; empty for a completed cell.
    pub fn reason(&self) -> String {
        match self {
            Self::Completed(_) => String::new(),
            Self::Unsupported { reason } => format!("unsupported: {reason}"),
            Self::Failed(failure) => format!("failed ({}): {}", failure.kind.words(), failure.reason),
        }
    }
}

/// The results of a completed cell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Completed {
    /// Logits file, relative to the case's folder.
    pub logits: PathBuf,
    /// `[batch, seq, vocab_size]` of the logits file.
    pub shape: Vec<usize>,
    /// Which positions the logits file holds.
    pub positions: Positions,
    /// What the logits file holds, the main output first; empty for logits alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<Output>,
    /// The logits file when the worker replied; `None` in runs of a tfcheck that did not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<Written>,
    /// Chrome trace, relative to the case's folder.
    pub trace: Option<PathBuf>,
    /// Versions of the libraries that computed.
    pub libraries: BTreeMap<String, String>,
    /// Notes that a reader needs to interpret the numbers.
    pub notes: Vec<String>,
    /// Nanoseconds to load the model.
    pub load_ns: u64,
    /// Nanoseconds of the first forward pass, including compilation.
    pub first_call_ns: u64,
    /// Nanoseconds of each timed forward pass, one list per interleaved round.
    pub rounds_ns: Vec<Vec<u64>>,
    /// Nanoseconds of each decode step of one token, one list per round of `rounds_ns`; a list is empty if none was
    /// timed.
    #[serde(default)]
    pub decode_rounds_ns: Vec<Vec<u64>>,
    /// The run-wide number of each round of `rounds_ns`; variants with equal numbers were timed in the same round.
    #[serde(default)]
    pub round_numbers: Vec<u32>,
    /// Calibration-loop reading next to each round of `rounds_ns`, in nanoseconds; empty if it was not measured.
    #[serde(default)]
    pub yardstick_ns: Vec<u64>,
    /// Peak resident set or device memory in bytes.
    pub peak_bytes: Option<u64>,
    /// Why timing did not finish although the logits are valid; the cell then counts as failed, and a resumed run redoes
    /// it.
    #[serde(default)]
    pub unfinished: Option<Failure>,
    /// Difference between repeated forward passes of this variant; `None` if the pass was not repeated.
    #[serde(default)]
    pub noise: Option<Noise>,
    /// Keys of `config.json` that the variant ignores; `None` if it cannot tell.
    #[serde(default)]
    pub ignored_keys: Option<Vec<String>>,
    /// Values that the release would have read otherwise from config.json without translation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub translated: Vec<String>,
    /// Tensors of the checkpoint that the variant does not read; `None` where it cannot tell.
    #[serde(default)]
    pub unread_tensors: Option<Vec<String>>,
    /// What `torch.compile` made of the model, for compiled variants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graphs: Option<Graphs>,
    /// The runner's own tokenizer against the ids that the run was fed; of one variant a version.
    #[serde(default)]
    pub tokenizer: Option<TokenizerParity>,
    /// The runner's own processor against the inputs that the run was fed; of one variant a version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processor: Option<Prepared>,
}

/// A file as a worker left it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Its size.
    pub bytes: u64,
    /// When it was changed, nanoseconds since 1970.
    pub modified_ns: i64,
    /// Its SHA-256, lower-case hex.
    pub sha256: String,
}

/// Comparison of a runner's own tokenizer with the run's token ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizerParity {
    /// The tokenizer's class.
    pub class: String,
    /// Number of tokens compared.
    pub tokens: usize,
    /// The first difference; `None` if all ids are equal.
    pub difference: Option<TokenDifference>,
}

/// A position at which two tokenizers give different ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenDifference {
    /// Index of the text among the run's texts.
    pub text: usize,
    /// Index of the token in that text.
    pub position: usize,
    /// The run's id there; `None` past its last token.
    pub expected: Option<i64>,
    /// The run's token there, as the vocabulary writes it.
    pub token: Option<String>,
    /// The runner's id there; `None` past its last token.
    pub found: Option<i64>,
}

impl TokenizerParity {
    /// The comparison in one sentence.
    pub fn said(&self) -> String {
        let Some(TokenDifference { text, position, expected, token, found }) = &self.difference else {
            return format!("{} gives the run's {}", self.class, count(self.tokens, "token id"));
        };
        let id = |id: &Option<i64>| id.map_or_else(|| "no token".to_owned(), |id| id.to_string());
        let token = token.as_ref().map(|token| format!(" (`{token}`)")).unwrap_or_default();
        format!(
            "{} gives other token ids than the run's inputs: text {text}, position {position}: {} instead of {}{token}",
            self.class,
            id(found),
            id(expected)
        )
    }
}

/// Why a cell did not finish.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// The kind of failure.
    pub kind: FailureKind,
    /// The reason in one line.
    pub reason: String,
    /// Traceback or chain of causes; empty if there is none.
    #[serde(default)]
    pub detail: String,
    /// The end of `worker.log`.
    #[serde(default)]
    pub log_tail: String,
}

impl Failure {
    /// What to do about it; `None` where the reason itself says it.
    pub fn hint(&self) -> Option<&'static str> {
        let is_silent = self.detail.trim().is_empty() && self.log_tail.trim().is_empty();
        match self.kind {
            FailureKind::Environment => None,
            FailureKind::Exception if is_silent => None,
            FailureKind::Crashed if is_silent => Some(
                "the worker wrote nothing before it ended: `tfcheck check-worker` tests a worker's answers",
            ),
            FailureKind::Exception | FailureKind::Crashed => {
                Some("what the worker wrote is in summary.md and in worker.log of the variant's folder")
            }
            FailureKind::OutOfMemory => {
                Some("use fewer tokens or sequences, a smaller dtype, or a machine with more memory")
            }
            FailureKind::TimedOut => Some("raise `timeout_s` under [run], or use fewer tokens"),
            FailureKind::MissingResult => Some(
                "`tfcheck run --resume RUN` computes damaged files again; `tfcheck check-worker` tests a worker's answers",
            ),
            FailureKind::Interrupted => Some("`tfcheck run --resume RUN` completes the run"),
        }
    }
}

/// Kinds of failure; each has its own word in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The environment could not be created.
    Environment,
    /// The worker raised an exception or returned an error.
    Exception,
    /// The worker died of a signal or an unexpected exit.
    Crashed,
    /// The worker ran out of memory: it was killed, or an allocation failed.
    OutOfMemory,
    /// The worker did not reply before the timeout.
    TimedOut,
    /// The worker replied, but its output is missing or unreadable.
    MissingResult,
    /// The run ended before the cell finished.
    Interrupted,
}

impl FailureKind {
    /// `out of memory`, `timed out`.
    pub fn words(self) -> &'static str {
        match self {
            Self::Environment => "environment",
            Self::Exception => "exception",
            Self::Crashed => "crashed",
            Self::OutOfMemory => "out of memory",
            Self::TimedOut => "timed out",
            Self::MissingResult => "missing result",
            Self::Interrupted => "interrupted",
        }
    }
}
