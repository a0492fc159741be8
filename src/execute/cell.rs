//! The record of one cell: what ran, how it ended, and what it left.

use std::collections::BTreeMap;
use std::path::PathBuf;

use compare::repeat::Noise;
use reference::protocol::{Graphs, Positions};
use serde::{Deserialize, Serialize};

use crate::spec::variant::Variant;
use compare::units::count;

/// Version of everything that a run folder holds; a reader refuses a newer one.
pub const SCHEMA_VERSION: u32 = 1;

/// One cell's record, `timing_<stamp>_<variant>.json`; written last, so its presence means that the cell is finished.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// [`SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// The variant's name, [`Variant::name`].
    pub name: String,
    /// What ran.
    pub variant: Variant,
    /// Digest of everything that the cell's numbers depend on.
    pub key: String,
    /// How it ended.
    pub outcome: Outcome,
}

impl Cell {
    /// The record of `variant` under its own name.
    pub fn new(variant: &Variant, key: &str, outcome: Outcome) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            name: variant.name(),
            variant: variant.clone(),
            key: key.to_owned(),
            outcome,
        }
    }

    /// Whether the run ended before the cell was begun: such a cell has no key.
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
    /// The runner does not have what was asked.
    Unsupported {
        /// What is missing.
        reason: String,
    },
    /// The cell was tried and did not finish.
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

/// What a finished cell left.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Completed {
    /// Logits file, relative to the case's folder.
    pub logits: PathBuf,
    /// `[batch, seq, vocab_size]` of the logits file.
    pub shape: Vec<usize>,
    /// Which positions the logits file holds.
    pub positions: Positions,
    /// Chrome trace, relative to the case's folder.
    pub trace: Option<PathBuf>,
    /// Versions of what computed.
    pub libraries: BTreeMap<String, String>,
    /// What a person must know to read the numbers.
    pub notes: Vec<String>,
    /// Nanoseconds to load the model.
    pub load_ns: u64,
    /// Nanoseconds of the first pass, compilation included.
    pub first_call_ns: u64,
    /// Nanoseconds of each steady pass, one list per interleaved round.
    pub rounds_ns: Vec<Vec<u64>>,
    /// Nanoseconds of each token decoded alone, one list per round of `rounds_ns`; empty ones where none was.
    #[serde(default)]
    pub decode_rounds_ns: Vec<Vec<u64>>,
    /// The run-wide number of each round of `rounds_ns`; variants that share a number were timed side by side.
    #[serde(default)]
    pub round_numbers: Vec<u32>,
    /// What the yardstick read beside rounds of `rounds_ns`, nanoseconds, one a round; empty where it was not read.
    #[serde(default)]
    pub yardstick_ns: Vec<u64>,
    /// Largest resident set or device memory, bytes.
    pub peak_bytes: Option<u64>,
    /// Why timing did not finish, though the logits are good; the cell then counts as failed and a resumed run redoes it.
    #[serde(default)]
    pub unfinished: Option<Failure>,
    /// How far the variant is from itself; `None` where it was not asked to repeat itself.
    #[serde(default)]
    pub noise: Option<Noise>,
    /// Keys of config.json that the variant has no use for; `None` where it cannot tell.
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
}

/// A runner's own tokenizer against the ids of the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizerParity {
    /// The tokenizer's class.
    pub class: String,
    /// Tokens that were compared.
    pub tokens: usize,
    /// The first place where they part.
    pub difference: Option<TokenDifference>,
}

/// Where two tokenizers part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenDifference {
    /// Which of the run's texts, from 0.
    pub text: usize,
    /// Which of its tokens, from 0.
    pub position: usize,
    /// The run's id there; `None` past its end.
    pub expected: Option<i64>,
    /// The run's token there, as its vocabulary spells it.
    pub token: Option<String>,
    /// The runner's id there; `None` past its end.
    pub found: Option<i64>,
}

impl TokenizerParity {
    /// In words.
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
    /// What sort of failure it is.
    pub kind: FailureKind,
    /// One line that says what went wrong.
    pub reason: String,
    /// Traceback or cause chain, where there is one.
    #[serde(default)]
    pub detail: String,
    /// The end of `worker.log`.
    #[serde(default)]
    pub log_tail: String,
}

/// Sorts of failure, each its own word in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The environment could not be made.
    Environment,
    /// The worker raised an exception or returned an error.
    Exception,
    /// The worker died of a signal or an unexpected exit.
    Crashed,
    /// The worker was killed, or refused an allocation, for want of memory.
    OutOfMemory,
    /// The worker did not answer in time.
    TimedOut,
    /// The worker answered, but what it should have left is absent or unreadable.
    MissingResult,
    /// The run ended first.
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
