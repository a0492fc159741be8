//! The results of a cell's relations, as stored in `relations_<stamp>_<variant>.json`.

use reference::protocol::Dtype;
use serde::{Deserialize, Serialize};

use super::localized::absent_is_infinite;
use crate::spec::variant::Variant;

/// Results of the relations of one variant in one case.
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
    /// Sequence length of the base input.
    pub seq: usize,
    /// One per selected relation, in the order of the table.
    pub relations: Vec<Held>,
    /// Time of the whole measurement in nanoseconds, including starting workers and loading models.
    pub elapsed_ns: u64,
}

/// Result of one relation of one variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// The relation's name.
    pub relation: String,
    /// The outcome.
    pub outcome: Outcome,
    /// The numbers behind the outcome, or the reason why the relation was not measured, in one sentence.
    pub evidence: String,
    /// The measurement in the variant's own dtype.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
    /// The measurement in float64, if the result in the own dtype is above its bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Measured>,
    /// The first module in call order whose output differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_module: Option<FirstModule>,
}

/// Outcome of a relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The relation holds bit for bit.
    Bitwise,
    /// The relation holds up to rounding.
    Rounding,
    /// The relation does not hold.
    Broken,
    /// The difference is above the bound, but rounding or a variant that does not repeat itself may explain it.
    Unproven,
    /// The relation does not apply to the model.
    Excluded,
    /// The variant cannot run what the relation needs.
    Unsupported,
    /// The variant failed.
    Failed,
}

impl Outcome {
    /// All outcomes, in the order in which reports count them.
    pub const ALL: [Self; 7] = [
        Self::Bitwise,
        Self::Rounding,
        Self::Broken,
        Self::Unproven,
        Self::Failed,
        Self::Unsupported,
        Self::Excluded,
    ];

    /// The outcome's name in reports: `bitwise`, `rounding`, `broken`, …
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

/// The largest difference among a relation's trials.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Dtype of both results.
    pub dtype: Dtype,
    /// Largest relative L2 that counts as rounding.
    pub bound: f64,
    /// Relative L2 over the mapped positions.
    #[serde(deserialize_with = "absent_is_infinite")]
    pub relative_l2: f64,
    /// Number of values whose bits differ.
    pub differing: u64,
    /// The variation: `when token 7 changes`.
    pub what: String,
    /// The position that differs most; `None` if nothing differs.
    pub worst: Option<WorstPosition>,
    /// Number of trials that were measured.
    pub trials: usize,
}

/// The position that differs most.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorstPosition {
    /// Row of the base input.
    pub row: usize,
    /// Position in the base input, including padding.
    pub position: usize,
    /// Relative L2 of this position.
    #[serde(deserialize_with = "absent_is_infinite")]
    pub relative_l2: f64,
}

/// The first module whose output differs between the two runs of a trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FirstModule {
    /// The module's path.
    pub path: String,
    /// The module's class.
    pub class: String,
    /// Relative L2 of the module's output over the mapped positions.
    #[serde(deserialize_with = "absent_is_infinite")]
    pub relative_l2: f64,
}

impl CellRelations {
    /// The result of the relation called `relation`; `None` if it was not selected.
    pub fn of(&self, relation: &str) -> Option<&Held> {
        self.relations.iter().find(|held| held.relation == relation)
    }
}
