//! The evidence of a verdict: the rule that decided it and the rule's numbers, as data for programs and as one sentence.
//!
//! All evidence sentences are produced in this module.

mod words;

use serde::{Deserialize, Serialize, Serializer};

use super::Dtype;
use super::envelope::Envelope;
use super::metrics::PositionIndex;
use super::repeat::Noise;

/// The evidence of a verdict; its `Display` is the sentence in [`super::verdict::Verdict::evidence`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Basis {
    /// The rule that decided, with its numbers.
    #[serde(flatten)]
    pub evidence: Evidence,
    /// Sides whose repeated runs differ in at least one bit; `None` if neither side's do or no repetition was made.
    pub noise: Option<Unsteady>,
}

/// The rule that decided, with its numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "rule", rename_all = "snake_case")]
pub enum Evidence {
    /// A side has no logits.
    NotRun {
        /// The variant and the reason why it has no logits.
        reason: String,
    },
    /// Both sides have logits, but their shapes or positions do not match.
    Incomparable {
        /// The mismatch, for example `batch sizes differ: 2 and 3`.
        reason: String,
    },
    /// Every compared value is equal.
    Identical {
        /// Number of compared values.
        elements: u64,
    },
    /// The two sides were compared with each other, because there is no float64 result that can be relied on.
    Tolerance {
        /// Outcome of the comparison.
        found: ByTolerance,
        /// The float64 results that are not used; `None` if there are none.
        #[serde(skip_serializing_if = "Option::is_none")]
        distrusted: Option<Distrusted>,
        /// The rounding that was measured to give the limit; `None` if the limit is the fixed one of the dtype.
        #[serde(skip_serializing_if = "Option::is_none")]
        measured: Option<Envelope>,
    },
    /// One side was compared with recorded logits.
    Recorded {
        /// Outcome of the comparison.
        found: ByTolerance,
        /// Rounding errors of both sides; `None` if that of the recorded code is unknown or the pair diverges anyway.
        rounding: Option<RecordedRounding>,
    },
    /// Each side was compared with a float64 result.
    Oracles {
        /// Relative L2 of the two float64 results; `None` if both sides share one float64 result or the pair diverges.
        #[serde(serialize_with = "optional")]
        agreement: Option<f64>,
        /// Sides compared with a float64 result that their own code did not compute.
        compared_with: Vec<Borrowed>,
        /// Sides whose error exceeds their dtype's limit but is known to be rounding.
        large: Vec<Large>,
        /// Outcome of the comparison.
        found: ByOracles,
    },
}

/// Outcome of comparing two sides with each other.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum ByTolerance {
    /// The difference is NaN because a side holds NaN or infinite values.
    NotFinite {
        /// Counts of NaN and infinite values per side.
        sides: [NotFinite; 2],
    },
    /// The difference exceeds the limit of the dtype.
    Beyond(Excess),
    /// The difference exceeds the limit of the dtype, but the same programs agree in float32: it is rounding.
    AgreesWider {
        /// By how much.
        excess: Excess,
        /// The two float32 results.
        wider: [String; 2],
        /// `‖a − b‖ / max(‖a‖, ‖b‖)` of those.
        #[serde(serialize_with = "figure")]
        relative_l2: f64,
        /// The side that differs more from its own float32 result.
        worse: String,
    },
    /// The difference is within the limit of the dtype.
    Within {
        /// `‖a − b‖ / max(‖a‖, ‖b‖)`.
        #[serde(serialize_with = "figure")]
        relative_l2: f64,
        /// The less precise of the two dtypes.
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
    /// RMSE of the variant and of the recorded code against the recorded float64 logits, in units of logits.
    #[serde(serialize_with = "figures")]
    pub rmse: [f64; 2],
    /// Whether the variant's RMSE satisfies dynamo's rule, [`super::oracle::within_dynamo`].
    pub is_within_dynamo: bool,
}

/// Outcome of comparing each side with a float64 result.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum ByOracles {
    /// The difference of the float64 results is NaN: one of them holds NaN or infinite values.
    OraclesNotFinite {
        /// Counts of NaN and infinite values per float64 result.
        sides: [NotFinite; 2],
    },
    /// The float64 results differ by more than the limit: the two sides compute different functions.
    OraclesDiffer {
        /// Names of the two float64 variants.
        oracles: [String; 2],
        /// Relative L2 over all positions.
        #[serde(serialize_with = "figure")]
        relative_l2: f64,
        /// Its limit.
        limit: f64,
        /// The largest relative L2 of a single position.
        #[serde(serialize_with = "figure")]
        worst: f64,
        /// That position.
        at: PositionIndex,
    },
    /// A side and its float64 result differ by NaN or infinite values, and its own code has no finite float64 result.
    SideNotFinite {
        /// Counts of NaN and infinite values of the side and of its float64 result.
        sides: [NotFinite; 2],
    },
    /// A side differs from float64 by more than rounding, and its own code has not run in float64.
    Unexplained {
        /// The side.
        variant: String,
        /// The float64 result.
        oracle: String,
        /// Whether the float64 result belongs to the side's own family.
        is_own: bool,
        /// By how much.
        excess: Excess,
    },
    /// The side's own code is finite in float64, but overflows or gives NaN in the side's dtype.
    LeavesRange {
        /// The side.
        variant: String,
        /// Counts of NaN and infinite values of the side and of its float64 result.
        sides: [NotFinite; 2],
    },
    /// The side computes the same function as its float64 result, but its rounding error is larger than a peer's.
    RoundsWorse {
        /// The side.
        variant: String,
        /// The float64 result of its own code.
        oracle: String,
        /// The limit that its error exceeds.
        excess: Excess,
        /// A variant of the same dtype whose error is known to be rounding.
        peer: String,
        /// Relative L2 of the peer against its float64 result.
        #[serde(serialize_with = "figure")]
        peer_relative_l2: f64,
    },
    /// A side differs from float64 by more than its dtype's limit, but by no more than another variant of the same function
    /// rounds on these inputs.
    NoWorseThan {
        /// The side.
        variant: String,
        /// By how much.
        excess: Excess,
        /// The variant that rounds as much.
        peer: String,
        /// Relative L2 of that one against its float64 result.
        #[serde(serialize_with = "figure")]
        peer_relative_l2: f64,
    },
    /// A side differs from float64 by more than its dtype's limit, but the same program agrees in float32: it is rounding.
    AgreesWider {
        /// The side.
        variant: String,
        /// The float64 result.
        oracle: String,
        /// By how much.
        excess: Excess,
        /// The side's own program in float32.
        wider: String,
        /// Relative L2 of that one against the float64 result.
        #[serde(serialize_with = "figure")]
        relative_l2: f64,
    },
    /// A side differs because its routers choose other experts at near-ties, see [`NearTies`].
    Routed {
        /// By how much.
        excess: Excess,
        /// The replay that shows it.
        routing: Routing,
    },
    /// Both errors are within their limits or known to be rounding; their sizes decide.
    Rounding {
        /// The sides.
        sides: [String; 2],
        /// Their RMSE against float64.
        #[serde(serialize_with = "figures")]
        rmse: [f64; 2],
        /// Result of comparing the two RMSEs.
        comparison: Comparison,
    },
}

/// How two rounding errors compare.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "rule", rename_all = "snake_case")]
pub enum Comparison {
    /// The dtypes differ, so each error is judged by the limit of its own dtype only.
    EachWithinItsDtype,
    /// The larger RMSE satisfies dynamo's rule, [`super::oracle::within_dynamo`].
    WithinDynamo,
    /// The larger RMSE violates dynamo's rule.
    BeyondDynamo {
        /// The side with the larger error.
        worse: String,
    },
}

/// The measure by which a pair exceeds the rounding of a dtype.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "where", rename_all = "snake_case")]
pub enum Excess {
    /// Over all positions.
    Overall {
        /// `‖a − b‖ / max(‖a‖, ‖b‖)`.
        #[serde(serialize_with = "figure")]
        relative_l2: f64,
        /// The dtype whose limit applies.
        dtype: Dtype,
        /// The limit.
        limit: f64,
    },
    /// At one position.
    Position {
        /// The largest relative L2 of a single position.
        #[serde(serialize_with = "figure")]
        relative_l2: f64,
        /// That position.
        at: PositionIndex,
        /// The dtype whose limit applies.
        dtype: Dtype,
        /// The limit.
        limit: f64,
    },
    /// At one token.
    Token {
        /// Largest difference over the RMS of the larger side's logits at the position.
        #[serde(serialize_with = "figure")]
        relative: f64,
        /// Largest difference over the RMS of the differences at the position.
        #[serde(serialize_with = "figure")]
        prominence: f64,
        /// The position.
        at: PositionIndex,
    },
}

/// Two float64 results that differ as float32 rounding does, while the same code is bitwise equal in float32: a part of
/// one of them was computed in float32.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Distrusted {
    /// Names of the two float64 variants.
    pub oracles: [String; 2],
    /// Relative L2 of the two.
    #[serde(serialize_with = "figure")]
    pub relative_l2: f64,
    /// Names of the two float32 variants that are bitwise equal.
    pub identical: [String; 2],
}

/// Counts of one side's NaN and infinite values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotFinite {
    /// The side.
    pub variant: String,
    /// NaN.
    pub nan: u64,
    /// +∞ and −∞.
    pub infinite: u64,
}

/// A side that is compared with a float64 result that its own code did not compute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Borrowed {
    /// The side.
    pub variant: String,
    /// The float64 result.
    pub oracle: String,
    /// Whether the float64 result belongs to the side's own family.
    pub is_own: bool,
}

/// An error that exceeds the limit of its dtype but is known to be rounding.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "because", rename_all = "snake_case")]
pub enum Large {
    /// A peer whose error is known to be rounding has an error of similar size (within dynamo's multiple).
    Peer {
        /// By how much.
        excess: Excess,
        /// A variant of the same dtype whose error is known to be rounding.
        peer: String,
        /// Relative L2 of the peer against its own float64 result.
        #[serde(serialize_with = "figure")]
        peer_relative_l2: f64,
    },
    /// The side's own code computed the float64 result, so that the difference is rounding.
    OwnCode {
        /// By how much.
        excess: Excess,
        /// The side.
        variant: String,
        /// The float64 result.
        oracle: String,
    },
}

/// Near-ties (two router scores closer than rounding explains) that send tokens to different experts in two variants, whose
/// modules otherwise give the same output on the same input at every position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NearTies {
    /// The first router whose chosen experts differ.
    pub router: String,
    /// Number of real (unpadded) tokens for which at least one router's chosen experts differ.
    pub tokens: usize,
    /// Number of real tokens.
    pub of: usize,
    /// Largest relative L2 of the first router's scores over the tokens whose chosen experts differ there; the scores were
    /// tied to within this difference.
    pub scores: f64,
    /// Largest relative L2 at one position of a module replayed with the other side's input.
    pub worst: f64,
}

/// Near-ties that a localisation found by replaying every module with one side's input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Replayed {
    /// The side whose inputs were used.
    pub source: String,
    /// Outcome of the comparison.
    #[serde(flatten)]
    pub near_ties: NearTies,
}

/// Evidence that a variant differs from float64 only by near-ties of routers.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "shown", rename_all = "snake_case")]
pub enum Routing {
    /// Every module was replayed.
    Replayed(Replayed),
    /// Every module was replayed through the KV cache and in the full-sequence forward pass.
    InBoth {
        /// Replay through the KV cache.
        cached: Replayed,
        /// Replay of the full-sequence forward pass.
        full: Replayed,
    },
    /// The logits through the KV cache match those of the full-sequence forward pass, whose modules were replayed.
    LikeFull {
        /// Relative L2 between the two; 0 if they are bitwise equal.
        #[serde(serialize_with = "figure")]
        relative_l2: f64,
        /// Replay of the full-sequence forward pass.
        full: Replayed,
    },
}

/// Sides whose repeated runs differ in at least one bit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Unsteady {
    /// Name of each such side and how its repetitions differ.
    pub variants: Vec<(String, Noise)>,
    /// The pair's L2 over the larger self L2 of its sides; `None` if that is 0 or unknown, or the L2 is NaN.
    #[serde(serialize_with = "optional")]
    pub multiple: Option<f64>,
}

impl From<Evidence> for Basis {
    fn from(evidence: Evidence) -> Self {
        Self { evidence, noise: None }
    }
}

/// JSON has no NaN and no infinity: summary.json holds the strings `NaN`, `inf` and `-inf` instead.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes the field by reference")]
fn figure<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if number.is_finite() { serializer.serialize_f64(*number) } else { serializer.collect_str(number) }
}

/// Serialises a number that may be absent; NaN and the infinities as text, because JSON has no numbers for them.
///
/// # Errors
/// Those of the serializer.
pub fn optional<S: Serializer>(number: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
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
