//! What the relations of a cell showed, as `relations_<stamp>_<variant>.json` keeps it.

use reference::protocol::Dtype;
use serde::{Deserialize, Serialize};

use super::localized::absent_is_infinite;
use crate::spec::variant::Variant;

/// The relations of one variant of one case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellRelations {
    /// [`super::SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// The case's name.
    pub case: String,
    /// The variant.
    pub variant: Variant,
    /// Digest of everything that the numbers depend on, the selected relations included.
    pub key: String,
    /// Tokens of the base input.
    pub seq: usize,
    /// One per selected relation, in the order of the table.
    pub relations: Vec<Held>,
    /// Nanoseconds of all of it, starts and loads of workers included.
    pub elapsed_ns: u64,
}

/// One relation of one variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// The relation's name.
    pub relation: String,
    /// What was found.
    pub outcome: Outcome,
    /// On what that rests, in one sentence; for a relation that was not measured, why.
    pub evidence: String,
    /// What was measured in the variant's own dtype.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
    /// What was measured in float64, where the own dtype's result is above its bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Measured>,
    /// The first module, in the order of calls, whose output differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_module: Option<FirstModule>,
}

/// What became of a relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It holds bit for bit.
    Bitwise,
    /// It holds up to rounding.
    Rounding,
    /// It does not hold.
    Broken,
    /// The difference is above the bound, but nothing rules out rounding, or that the variant does not repeat itself.
    Unproven,
    /// The model is one that it does not hold for.
    Excluded,
    /// The variant cannot do what it takes.
    Unsupported,
    /// The variant failed.
    Failed,
}

impl Outcome {
    /// Every outcome, in the order in which they are counted.
    pub const ALL: [Self; 7] = [
        Self::Bitwise,
        Self::Rounding,
        Self::Broken,
        Self::Unproven,
        Self::Failed,
        Self::Unsupported,
        Self::Excluded,
    ];

    /// `bitwise`, `rounding`, `broken`, …
    pub fn word(self) -> &'static str {
        match self {
            Self::Bitwise => "bitwise",
            Self::Rounding => "rounding",
            Self::Broken => "broken",
            Self::Unproven => "unproven",
            Self::Excluded => "does not apply",
            Self::Unsupported => "unsupported",
            Self::Failed => "failed",
        }
    }
}

/// The largest difference that a relation's trials showed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// dtype of both results.
    pub dtype: Dtype,
    /// Largest relative L2 that counts as rounding.
    pub bound: f64,
    /// Relative L2 over the mapped positions.
    #[serde(deserialize_with = "absent_is_infinite")]
    pub relative_l2: f64,
    /// Values whose bits differ.
    pub differing: u64,
    /// What was varied: `when token 7 changes`.
    pub what: String,
    /// The position that differs most; `None` where nothing differs.
    pub worst: Option<WorstPosition>,
    /// Trials that were measured.
    pub trials: usize,
}

/// The position that differs most.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorstPosition {
    /// Row of the base.
    pub row: usize,
    /// Position in the base, padding counted.
    pub position: usize,
    /// Relative L2 of this position.
    #[serde(deserialize_with = "absent_is_infinite")]
    pub relative_l2: f64,
}

/// The first module whose output differs between the two runs of a trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FirstModule {
    /// Its path.
    pub path: String,
    /// Its class.
    pub class: String,
    /// Relative L2 of its output over the mapped positions.
    #[serde(deserialize_with = "absent_is_infinite")]
    pub relative_l2: f64,
}

impl CellRelations {
    /// The relation of this name, where it was selected.
    pub fn of(&self, relation: &str) -> Option<&Held> {
        self.relations.iter().find(|held| held.relation == relation)
    }
}
