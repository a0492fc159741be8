//! On what a verdict rests: the rule that decided and its numbers, as data for programs and in one sentence for people.
//!
//! The sentences are written here and nowhere else.

mod words;

use serde::{Deserialize, Serialize, Serializer};

use super::Dtype;
use super::metrics::PositionIndex;
use super::repeat::Noise;

/// On what a decision rests; its `Display` is the verdict's evidence.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Basis {
    /// The rule that decided, with its numbers.
    #[serde(flatten)]
    pub evidence: Evidence,
    /// Sides that do not repeat themselves bit for bit; `None` where both do or nothing is known.
    pub noise: Option<Unsteady>,
}

/// The rule that decided, with its numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "rule", rename_all = "snake_case")]
pub enum Evidence {
    /// A side has no logits.
    NotRun {
        /// Whose, and why.
        reason: String,
    },
    /// Both have logits that are not about the same thing.
    Incomparable {
        /// What differs.
        reason: String,
    },
    /// Every value is equal.
    Identical {
        /// Values that were compared.
        elements: u64,
    },
    /// The two sides were compared with each other, because there is no float64 result.
    Tolerance {
        /// What was found.
        found: ByTolerance,
    },
    /// One side was compared with recorded logits.
    Recorded {
        /// What was found.
        found: ByTolerance,
        /// The rounding of both codes; `None` where that of the recorded code is not known or does not matter.
        rounding: Option<RecordedRounding>,
    },
    /// Each side was compared with a float64 result.
    Oracles {
        /// Relative L2 of the two float64 results; `None` where both sides have the same one, or where they diverge.
        #[serde(serialize_with = "optional")]
        agreement: Option<f64>,
        /// Sides whose own code has not run in float64.
        compared_with: Vec<Borrowed>,
        /// Sides whose error is beyond their dtype's limit, and is rounding all the same.
        large: Vec<Large>,
        /// What was found.
        found: ByOracles,
    },
}

/// What the comparison of two sides with each other found.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum ByTolerance {
    /// Values that are no numbers.
    NotFinite {
        /// Both sides' counts.
        sides: [NotFinite; 2],
    },
    /// More than rounding explains.
    Beyond(Excess),
    /// No more than rounding explains.
    Within {
        /// Against the larger side.
        #[serde(serialize_with = "figure")]
        relative_l2: f64,
        /// The lower dtype of the two.
        dtype: Dtype,
        /// Its limit.
        limit: f64,
    },
}

/// The rounding errors of a variant and of recorded code in the same dtype.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RecordedRounding {
    /// The variant.
    pub variant: String,
    /// Its dtype.
    pub dtype: Dtype,
    /// RMSE of the variant and of the recorded code against the recorded float64 logits.
    #[serde(serialize_with = "figures")]
    pub rmse: [f64; 2],
    /// Whether the variant's is within dynamo's rule.
    pub is_within_dynamo: bool,
}

/// What the comparison with float64 found.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum ByOracles {
    /// The float64 results hold values that are no numbers.
    OraclesNotFinite {
        /// Their counts.
        sides: [NotFinite; 2],
    },
    /// The float64 results differ: two functions.
    OraclesDiffer {
        /// The float64 results.
        oracles: [String; 2],
        /// Relative L2 over all positions.
        #[serde(serialize_with = "figure")]
        relative_l2: f64,
        /// Its limit.
        limit: f64,
        /// The largest of one position.
        #[serde(serialize_with = "figure")]
        worst: f64,
        /// That position.
        at: PositionIndex,
    },
    /// A side and its float64 result differ by values that are no numbers, and nothing shows that its function is right.
    SideNotFinite {
        /// The counts.
        sides: [NotFinite; 2],
    },
    /// A side differs from float64 by more than rounding, and its own code has not run in float64.
    Unexplained {
        /// The side.
        variant: String,
        /// The float64 result.
        oracle: String,
        /// Whether that is of the side's own family.
        is_own: bool,
        /// By how much.
        excess: Excess,
    },
    /// The function is right and the values leave the range of the dtype.
    LeavesRange {
        /// The side.
        variant: String,
        /// The counts.
        sides: [NotFinite; 2],
    },
    /// The function is right and the rounding worse than a peer's.
    RoundsWorse {
        /// The side.
        variant: String,
        /// The float64 result that its own code gave.
        oracle: String,
        /// By how much it differs.
        excess: Excess,
        /// The peer.
        peer: String,
        /// Relative L2 of the peer against its float64 result.
        #[serde(serialize_with = "figure")]
        peer_relative_l2: f64,
    },
    /// A side differs by tokens that near-ties of routers send to other experts.
    Routed {
        /// By how much.
        excess: Excess,
        /// How it is known.
        routing: Routing,
    },
    /// Both errors are within their limits: their sizes decide.
    Rounding {
        /// The sides.
        sides: [String; 2],
        /// Their RMSE against float64.
        #[serde(serialize_with = "figures")]
        rmse: [f64; 2],
        /// What follows from it.
        comparison: Comparison,
    },
}

/// How two rounding errors compare.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "rule", rename_all = "snake_case")]
pub enum Comparison {
    /// The dtypes differ, so that each is within its own.
    EachWithinItsDtype,
    /// Within dynamo's rule.
    WithinDynamo,
    /// Beyond it.
    BeyondDynamo {
        /// The side with the larger error.
        worse: String,
    },
}

/// By what a pair exceeds the rounding of a dtype.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "where", rename_all = "snake_case")]
pub enum Excess {
    /// Over all positions.
    Overall {
        /// Against the larger side.
        #[serde(serialize_with = "figure")]
        relative_l2: f64,
        /// Whose limit it is.
        dtype: Dtype,
        /// The limit.
        limit: f64,
    },
    /// At one position.
    Position {
        /// The largest of one position.
        #[serde(serialize_with = "figure")]
        relative_l2: f64,
        /// That position.
        at: PositionIndex,
        /// Whose limit it is.
        dtype: Dtype,
        /// The limit.
        limit: f64,
    },
    /// At one token.
    Token {
        /// Over the RMS of the larger side's logits at the position.
        #[serde(serialize_with = "figure")]
        relative: f64,
        /// Over the RMS of the differences there.
        #[serde(serialize_with = "figure")]
        prominence: f64,
        /// The position.
        at: PositionIndex,
    },
}

/// Counts of one side's values that are no numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotFinite {
    /// The side.
    pub variant: String,
    /// NaN.
    pub nan: u64,
    /// +∞ and −∞.
    pub infinite: u64,
}

/// A side that is compared with a float64 result which its own code did not give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Borrowed {
    /// The side.
    pub variant: String,
    /// The float64 result.
    pub oracle: String,
    /// Whether that is of its own family.
    pub is_own: bool,
}

/// An error beyond the limit of its dtype that is rounding.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "because", rename_all = "snake_case")]
pub enum Large {
    /// A peer of known rounding reaches it too.
    Peer {
        /// By how much.
        excess: Excess,
        /// The peer.
        peer: String,
        /// Relative L2 of the peer against its own float64 result.
        #[serde(serialize_with = "figure")]
        peer_relative_l2: f64,
    },
    /// The side's own code gave the float64 result.
    OwnCode {
        /// By how much.
        excess: Excess,
        /// The side.
        variant: String,
        /// The float64 result.
        oracle: String,
    },
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

/// Near-ties that a localisation found by replaying every module with one side's input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Replayed {
    /// The side whose input it was.
    pub source: String,
    /// What was found.
    #[serde(flatten)]
    pub near_ties: NearTies,
}

/// How it is known that a variant differs from float64 by near-ties of routers alone.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "shown", rename_all = "snake_case")]
pub enum Routing {
    /// Module by module.
    Replayed(Replayed),
    /// Module by module through its KV cache, and in its full-sequence pass.
    InBoth {
        /// Through the cache.
        cached: Replayed,
        /// In the full-sequence pass.
        full: Replayed,
    },
    /// Through its cache it gives what its full-sequence pass gives, where it is known module by module.
    LikeFull {
        /// Relative L2 between the two; 0 where they are equal bit for bit.
        #[serde(serialize_with = "figure")]
        relative_l2: f64,
        /// In the full-sequence pass.
        full: Replayed,
    },
}

/// Sides that do not repeat themselves bit for bit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Unsteady {
    /// Which, with their repetitions.
    pub variants: Vec<(String, Noise)>,
    /// The pair's L2 over the larger self L2; `None` where that is 0 or not known.
    #[serde(serialize_with = "optional")]
    pub multiple: Option<f64>,
}

impl From<Evidence> for Basis {
    fn from(evidence: Evidence) -> Self {
        Self { evidence, noise: None }
    }
}

/// JSON has no NaN and no infinity: they are the strings `NaN`, `inf` and `-inf`, as everywhere in summary.json.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes the field by reference")]
fn figure<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if number.is_finite() { serializer.serialize_f64(*number) } else { serializer.collect_str(number) }
}

#[expect(clippy::ref_option, reason = "serde passes the field by reference")]
fn optional<S: Serializer>(number: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    match number {
        Some(number) => figure(number, serializer),
        None => serializer.serialize_none(),
    }
}

fn figures<S: Serializer>(numbers: &[f64; 2], serializer: S) -> Result<S::Ok, S::Error> {
    struct Figure(f64);
    impl Serialize for Figure {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            figure(&self.0, serializer)
        }
    }
    numbers.map(Figure).serialize(serializer)
}
