//! One decision per pair, with its evidence in one sentence.
//!
//! If both sides have float64 results, these are compared first: results that differ by more than
//! [`Tolerances::f64_agreement`] come from different functions. If they agree, the error of a variant whose own code ran
//! in float64 is rounding, however large. A variant whose code has no float64 mode (a fused kernel, `torch.compile`, another
//! attention) must stay as close to the float64 result as its dtype, or a variant whose error is known to be rounding,
//! explains, at every position and every token; otherwise it diverges. Dynamo's rule then decides whether one side's
//! rounding is worse. Without float64 results only the dtype's tolerances decide.

mod departure;

use serde::Serialize;

use super::Dtype;
use super::envelope::Envelope;
use super::evidence::{
    Basis, Borrowed, ByOracles, ByTolerance, Comparison, Distrusted, Evidence, Excess, NotFinite, Unsteady,
};
use super::matrix::{Matrix, PairOutcome};
use super::metrics::PairMetrics;
use super::oracle::{Oracles, multiplier, relative_to, within_dynamo};
use super::repeat::{Noise, multiple};
pub use super::tolerances::{Overrides, PartialPerDtype, PerDtype, Tolerances};
use departure::Departure;

/// The verdict on a pair.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Decision {
    /// Every compared value is equal.
    Identical,
    /// They differ by no more than rounding explains.
    SameMathematics,
    /// Both compute the same function, but one side's rounding error is larger than its limit.
    WorseRounding {
        /// The variant whose error is larger.
        worse: String,
    },
    /// They compute different functions.
    Diverged,
    /// Both sides have logits, but their shapes or positions do not match.
    Incomparable {
        /// The mismatch, for example `batch sizes differ: 2 and 3`.
        reason: String,
    },
    /// A side has no logits.
    NotRun {
        /// The variant and the reason why it has no logits.
        reason: String,
    },
}

impl Decision {
    /// The word that tables show.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Identical => "identical",
            Self::SameMathematics => "same mathematics",
            Self::WorseRounding { .. } => "worse rounding",
            Self::Diverged => "diverged",
            Self::Incomparable { .. } => "incomparable",
            Self::NotRun { .. } => "not run",
        }
    }

    /// Whether the verdict is *identical* or *same mathematics*.
    pub fn agrees(&self) -> bool {
        matches!(self, Self::Identical | Self::SameMathematics)
    }
}

/// The decision on one pair of variants.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// First variant.
    pub a: String,
    /// Second variant.
    pub b: String,
    /// The verdict.
    #[serde(flatten)]
    pub decision: Decision,
    /// [`Verdict::basis`] as one sentence.
    pub evidence: String,
    /// The rule that decided and its numbers.
    pub basis: Basis,
}

impl Verdict {
    pub(super) fn new([a, b]: [&str; 2], (decision, evidence): (Decision, Evidence)) -> Self {
        let basis = Basis::from(evidence);
        Self { a: a.to_owned(), b: b.to_owned(), decision, evidence: basis.to_string(), basis }
    }
}

/// Decides on every pair `a < b` of the matrix.
pub fn verdicts(matrix: &Matrix, oracles: &Oracles, tolerances: &Tolerances) -> Vec<Verdict> {
    let judge = Judge { matrix, oracles, tolerances };
    let pairs = (0..matrix.len()).flat_map(|a| (a + 1..matrix.len()).map(move |b| (a, b)));
    pairs.map(|(a, b)| Verdict::new([&matrix.names[a], &matrix.names[b]], judge.decide(a, b))).collect()
}

/// Adds to each verdict's evidence the sides whose repeated runs differ, and the pair's L2 as a multiple of that noise.
/// `noises` has an entry per variant of the matrix.
pub fn annotate(verdicts: &mut [Verdict], matrix: &Matrix, noises: &[Option<Noise>]) {
    let index = |name: &String| matrix.names.iter().position(|known| known == name);
    for verdict in verdicts {
        let (Some(a), Some(b)) = (index(&verdict.a), index(&verdict.b)) else { continue };
        let Some(pair) = matrix.compared(a, b) else { continue };
        let noise = |variant: usize| noises.get(variant).and_then(Option::as_ref);
        let unsteady = |variant: usize| noise(variant).filter(|noise| !noise.is_bitwise());
        let variants: Vec<(String, Noise)> = [a, b]
            .into_iter()
            .filter_map(|variant| Some((matrix.names[variant].clone(), unsteady(variant)?.clone())))
            .collect();
        if variants.is_empty() {
            continue;
        }
        let multiple = multiple(pair.l2, noise(a), noise(b));
        verdict.basis.noise = Some(Unsteady { variants, multiple });
        verdict.evidence = verdict.basis.to_string();
    }
}

/// Relative L2 of a pair against its larger side, or `None` if the pair exceeds the rounding of its lower dtype overall,
/// at one position or at one token. Float64 results are not used.
pub fn rounding_apart(matrix: &Matrix, (a, b): (usize, usize), tolerances: &Tolerances) -> Option<f64> {
    let pair = matrix.compared(a, b)?;
    let judge = Judge { matrix, oracles: &Oracles::default(), tolerances };
    judge.excess(pair, pair.lower_dtype, None).is_none().then(|| share(pair))
}

pub(super) struct Judge<'a> {
    pub(super) matrix: &'a Matrix,
    pub(super) oracles: &'a Oracles,
    pub(super) tolerances: &'a Tolerances,
}

impl Judge<'_> {
    fn decide(&self, a: usize, b: usize) -> (Decision, Evidence) {
        let pair = match self.matrix.pair(a, b) {
            PairOutcome::Compared(pair) => pair,
            PairOutcome::Incomparable(reason) => {
                let reason = reason.to_string();
                return (
                    Decision::Incomparable { reason: reason.clone() },
                    Evidence::Incomparable { reason },
                );
            }
            PairOutcome::NotRun(reason) => {
                let reason = reason.clone();
                return (Decision::NotRun { reason: reason.clone() }, Evidence::NotRun { reason });
            }
        };
        if let Some(reason) = no_finite_value(pair) {
            return (Decision::Incomparable { reason: reason.clone() }, Evidence::Incomparable { reason });
        }
        if pair.identical {
            return (Decision::Identical, Evidence::Identical { elements: pair.elements });
        }
        match (self.oracles.of(a), self.oracles.of(b)) {
            (Some(oracle_a), Some(oracle_b)) => self.with_oracles((a, oracle_a), (b, oracle_b), pair),
            _ => self.by_tolerance((a, b), pair, None),
        }
    }

    fn name(&self, variant: usize) -> String {
        self.matrix.names[variant].clone()
    }

    /// The counts of `a` and `b`, the sides of `pair`.
    pub(super) fn not_finite(&self, a: usize, b: usize, pair: &PairMetrics) -> [NotFinite; 2] {
        let (count_a, count_b) = pair.distribution.as_ref().map_or_else(Default::default, |distribution| {
            (distribution.non_finite_a, distribution.non_finite_b)
        });
        [(a, count_a), (b, count_b)].map(|(variant, count)| NotFinite {
            variant: self.name(variant),
            nan: count.nan,
            infinite: count.infinite,
        })
    }

    /// Whether all compared logits of a variant are finite: the diagonal's L2 is NaN otherwise.
    fn is_finite(&self, variant: usize) -> bool {
        self.matrix.compared(variant, variant).is_some_and(|itself| !itself.l2.is_nan())
    }

    fn with_oracles(&self, a: (usize, usize), b: (usize, usize), pair: &PairMetrics) -> (Decision, Evidence) {
        let ((a, oracle_a), (b, oracle_b)) = (a, b);
        let mut agreement = None;
        if oracle_a != oracle_b {
            let Some(between) = self.matrix.compared(oracle_a, oracle_b) else {
                return self.by_tolerance((a, b), pair, None);
            };
            if let Some(distrusted) = self.distrusted(oracle_a, oracle_b, between) {
                return self.by_tolerance((a, b), pair, Some(distrusted));
            }
            let limit = self.tolerances.f64_agreement;
            let (worst, at) = between.worst_position;
            let (relative_l2, worst) = if between.identical {
                (0.0, 0.0)
            } else {
                (relative_to(between, oracle_b, oracle_a), worst)
            };
            if !at_most(relative_l2, limit) || !at_most(worst, limit * self.tolerances.local_factor) {
                return diverged(if between.l2.is_nan() {
                    ByOracles::OraclesNotFinite { sides: self.not_finite(oracle_a, oracle_b, between) }
                } else {
                    let oracles = [oracle_a, oracle_b].map(|oracle| self.name(oracle));
                    ByOracles::OraclesDiffer { oracles, relative_l2, limit, worst, at }
                });
            }
            agreement = Some(relative_l2);
        }
        let (mut sides, mut compared_with) = (Vec::new(), Vec::new());
        for (variant, other, oracle) in [(a, b, oracle_a), (b, a, oracle_b)] {
            if variant == oracle {
                continue;
            }
            match self.departure(variant, other, oracle) {
                None => return self.by_tolerance((a, b), pair, None),
                Some(Departure::Unexplained(found)) => return diverged(found),
                Some(departure) => sides.push((variant, departure)),
            }
            let is_own = self.oracles.own(variant).is_some();
            if !(is_own && self.oracles.ran(variant)) {
                compared_with.push(Borrowed {
                    variant: self.name(variant),
                    oracle: self.name(oracle),
                    is_own,
                });
            }
        }
        let evidence = |large, found| Evidence::Oracles { agreement, compared_with, large, found };
        let (mut large, mut routed) = (Vec::new(), None);
        for (variant, departure) in sides {
            match departure {
                Departure::Worse(found) => {
                    let worse = self.name(variant);
                    return (Decision::WorseRounding { worse }, evidence(Vec::new(), found));
                }
                Departure::Large(found) => large.push(found),
                Departure::Routed(found) => routed = routed.or(Some(found)),
                Departure::Within | Departure::Unexplained(_) => {}
            }
        }
        if let Some(found) = routed {
            // The outputs of other experts are no measure of rounding, so dynamo's rule is not applied.
            return (Decision::SameMathematics, evidence(large, found));
        }
        let (decision, found) = self.rounding((a, oracle_a), (b, oracle_b));
        (decision, evidence(large, found))
    }

    /// Whether two float64 results differ by no more than rounding in float32 explains while the same code is bitwise equal in
    /// float32: then a part of one was computed in float32, and their difference shows nothing.
    fn distrusted(&self, a: usize, b: usize, between: &PairMetrics) -> Option<Distrusted> {
        if between.identical || self.excess(between, Dtype::F32, None).is_some() {
            return None;
        }
        let relative_l2 = share(between);
        if at_most(relative_l2, self.tolerances.f64_agreement) {
            return None;
        }
        let identical = self.oracles.identical_in_f32(self.matrix, a, b)?.map(|index| self.name(index));
        Some(Distrusted { oracles: [a, b].map(|index| self.name(index)), relative_l2, identical })
    }

    /// Whether two variants of which no float64 result exists agree in float32, so that their difference in a lower dtype is
    /// rounding.
    fn agree_wider(&self, a: usize, b: usize, excess: &Excess) -> Option<(Decision, ByTolerance)> {
        let [wide_a, wide_b] = self.wider(a, b)?;
        let pair = self.matrix.compared(wide_a, wide_b)?;
        let own = |side, wide| self.matrix.compared(side, wide).map_or(0.0, share);
        let worse = self.name(if own(a, wide_a) > own(b, wide_b) { a } else { b });
        let found = ByTolerance::AgreesWider {
            excess: excess.clone(),
            wider: [wide_a, wide_b].map(|index| self.name(index)),
            relative_l2: share(pair),
            worse: worse.clone(),
        };
        self.excess(pair, Dtype::F32, None).is_none().then_some((Decision::WorseRounding { worse }, found))
    }

    /// The float32 results of both sides' code, if both have one.
    fn wider(&self, a: usize, b: usize) -> Option<[usize; 2]> {
        let [wide_a, wide_b] = [a, b].map(|side| {
            let wider = self.oracles.wider(self.matrix, side).next();
            if self.matrix.dtypes[side] == Dtype::F32 { Some(side) } else { wider }
        });
        Some([wide_a?, wide_b?])
    }

    /// Decides whether one side rounds worse, when both differ from the oracle by rounding only.
    fn rounding(&self, a: (usize, usize), b: (usize, usize)) -> (Decision, ByOracles) {
        let rmse = |(variant, oracle): (usize, usize)| {
            self.matrix.compared(variant, oracle).map_or(f64::NAN, PairMetrics::rmse)
        };
        let (rmse_a, rmse_b) = (rmse(a), rmse(b));
        let found = |comparison| {
            let sides = [a.0, b.0].map(|variant| self.name(variant));
            ByOracles::Rounding { sides, rmse: [rmse_a, rmse_b], comparison }
        };
        let dtype = self.matrix.dtypes[a.0];
        if dtype != self.matrix.dtypes[b.0] {
            return (Decision::SameMathematics, found(Comparison::EachWithinItsDtype));
        }
        let (worse, larger, smaller) =
            if rmse_a > rmse_b { (a.0, rmse_a, rmse_b) } else { (b.0, rmse_b, rmse_a) };
        let elements = self.matrix.compared(a.0, b.0).map_or(0, |pair| pair.elements);
        if within_dynamo(larger, smaller, dtype, elements, self.tolerances.dynamo.of(dtype)) {
            return (Decision::SameMathematics, found(Comparison::WithinDynamo));
        }
        let worse = self.name(worse);
        (Decision::WorseRounding { worse: worse.clone() }, found(Comparison::BeyondDynamo { worse }))
    }

    fn by_tolerance(
        &self,
        (a, b): (usize, usize),
        pair: &PairMetrics,
        distrusted: Option<Distrusted>,
    ) -> (Decision, Evidence) {
        // Two float64 results that are not used differ as float32 does.
        let dtype = match pair.lower_dtype {
            Dtype::F64 if distrusted.is_some() => Dtype::F32,
            dtype => dtype,
        };
        let is_narrow = matches!(dtype, Dtype::Bf16 | Dtype::F16);
        // A limit that a config states is kept.
        let is_ours = self.tolerances.are_default_for(dtype);
        let measured = if is_narrow && is_ours && distrusted.is_none() && self.wider(a, b).is_none() {
            self.oracles.envelope(dtype).cloned()
        } else {
            None
        };
        let (decision, found) = if pair.l2.is_nan() {
            (Decision::Diverged, ByTolerance::NotFinite { sides: self.not_finite(a, b, pair) })
        } else if let Some(envelope) = &measured {
            let (limits, relative_l2) = (measured_limits(pair, envelope), share(pair));
            let within = ByTolerance::Within { relative_l2, dtype, limit: limits[0] };
            above(pair, dtype, limits).map_or((Decision::SameMathematics, within), |excess| {
                (Decision::Diverged, ByTolerance::Beyond(excess))
            })
        } else if let Some(excess) = self.excess(pair, dtype, None) {
            let beyond = || (Decision::Diverged, ByTolerance::Beyond(excess.clone()));
            self.agree_wider(a, b, &excess).unwrap_or_else(beyond)
        } else {
            let limit = self.tolerances.relative_l2.of(dtype);
            (Decision::SameMathematics, ByTolerance::Within { relative_l2: share(pair), dtype, limit })
        };
        (decision, Evidence::Tolerance { found, distrusted, measured })
    }

    /// The first measure by which a pair exceeds the rounding of `dtype`: overall, at one position or at one token (an
    /// average over millions of logits would hide a single wrong one). `known` is an error of the same dtype that is known
    /// to be rounding; it raises each limit to dynamo's multiple of its own measure.
    pub(super) fn excess(
        &self,
        pair: &PairMetrics,
        dtype: Dtype,
        known: Option<&PairMetrics>,
    ) -> Option<Excess> {
        self.excess_above(pair, dtype, known.map(|known| (known, multiplier(dtype, pair.elements))))
    }

    /// As [`Self::excess`], with each limit raised to the given multiple of the known error's measure.
    fn excess_above(
        &self,
        pair: &PairMetrics,
        dtype: Dtype,
        known: Option<(&PairMetrics, f64)>,
    ) -> Option<Excess> {
        let raised = |limit: f64, measure: fn(&PairMetrics) -> f64| {
            known.map_or(limit, |(known, multiple)| limit.max(multiple * measure(known)))
        };
        let limit = self.tolerances.relative_l2.of(dtype);
        let local = limit * self.tolerances.local_factor;
        let overall = raised(limit, share);
        let position = raised(local, |known| known.worst_position.0);
        above(pair, dtype, [overall, position, raised(local, |known| known.spike.relative)])
    }
}

/// What a pair may differ by where rounding was measured, overall, at one position and at one token: dynamo's multiple of the
/// envelope, because another implementation rounds at other places.
fn measured_limits(pair: &PairMetrics, envelope: &Envelope) -> [f64; 3] {
    let multiple = multiplier(envelope.dtype, pair.elements);
    // Among results of one program no token may stand out at all.
    let token = envelope.token.max(envelope.position);
    [envelope.relative_l2, envelope.position, token].map(|measure| multiple * measure)
}

/// The first measure of a pair that is above its limit: overall, at one position or at one token.
fn above(pair: &PairMetrics, dtype: Dtype, [overall, position, token]: [f64; 3]) -> Option<Excess> {
    let relative_l2 = share(pair);
    if !at_most(relative_l2, overall) {
        return Some(Excess::Overall { relative_l2, dtype, limit: overall });
    }
    let (relative_l2, at) = pair.worst_position;
    if !at_most(relative_l2, position) {
        return Some(Excess::Position { relative_l2, at, dtype, limit: position });
    }
    let spike = pair.spike;
    (spike.relative > token).then_some(Excess::Token {
        relative: spike.relative,
        prominence: spike.prominence,
        at: spike.at,
    })
}

/// Why a pair says nothing: neither side has a finite logit among those compared.
fn no_finite_value(pair: &PairMetrics) -> Option<String> {
    let distribution = pair.distribution.as_ref()?;
    let sides = [distribution.non_finite_a, distribution.non_finite_b];
    let is_empty = sides.iter().all(|count| count.nan + count.infinite >= pair.elements);
    is_empty.then(|| "neither side has a finite logit".to_owned())
}

/// The verdict *diverged*; the evidence omits everything but `found`.
fn diverged(found: ByOracles) -> (Decision, Evidence) {
    let (agreement, compared_with, large) = (None, Vec::new(), Vec::new());
    (Decision::Diverged, Evidence::Oracles { agreement, compared_with, large, found })
}

/// `‖a − b‖ / max(‖a‖, ‖b‖)`: neither side is the reference.
pub(super) fn share(pair: &PairMetrics) -> f64 {
    super::metrics::relative(pair.l2, pair.norm_a.max(pair.norm_b))
}

/// `value <= limit`; false if either is NaN.
fn at_most(value: f64, limit: f64) -> bool {
    value <= limit
}
