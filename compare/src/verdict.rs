//! One decision per pair, with its evidence in one sentence.
//!
//! With float64 results of both sides the question "same mathematics?" is answered where rounding does not reach: two
//! float64 results that differ by more than 1e-10 are two computations, and where they agree, what remains of a variant
//! whose own code ran in float64 is rounding, however large. A variant whose code has no float64 (a fused kernel,
//! `torch.compile`, another attention) must stay near the float64 result, by as much as its dtype explains or as
//! a variant of known rounding departs, at every position and every token: otherwise it computes something else. On
//! what remains dynamo's rule says whose rounding is worse. Without float64 results the dtype's tolerances decide alone.

use super::Dtype;
use serde::Serialize;

use super::matrix::{Incomparable, Matrix, PairOutcome};
use super::metrics::PairMetrics;
use super::oracle::{Oracles, multiplier, relative_to, within_dynamo};
pub use super::tolerances::{Overrides, PartialPerDtype, PerDtype, Tolerances};

/// What a pair is.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Decision {
    /// Every value is equal.
    Identical,
    /// They differ by no more than rounding explains.
    SameMathematics,
    /// The same mathematics, but one side's rounding error is larger than the rule allows.
    WorseRounding {
        /// The variant whose error is larger.
        worse: String,
    },
    /// They compute different things.
    Diverged,
    /// Both have logits that are not about the same thing.
    Incomparable {
        /// What differs.
        reason: String,
    },
    /// A side has no logits.
    NotRun {
        /// Whose, and why.
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

    /// Whether both sides compute the same as well as rounding allows: *identical* or *same mathematics*.
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
    /// What the pair is.
    #[serde(flatten)]
    pub decision: Decision,
    /// One sentence that says on what the decision rests.
    pub evidence: String,
}

/// Decides on every pair `a < b` of the matrix.
pub fn verdicts(matrix: &Matrix, oracles: &Oracles, tolerances: &Tolerances) -> Vec<Verdict> {
    let judge = Judge { matrix, oracles, tolerances };
    let pairs = (0..matrix.len()).flat_map(|a| (a + 1..matrix.len()).map(move |b| (a, b)));
    pairs
        .map(|(a, b)| {
            let (decision, evidence) = judge.decide(a, b);
            Verdict { a: matrix.names[a].clone(), b: matrix.names[b].clone(), decision, evidence }
        })
        .collect()
}

/// Relative L2 of a pair by itself, against its larger side, where that is no more than its dtype's rounding explains, at
/// every position and every token.
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
    fn decide(&self, a: usize, b: usize) -> (Decision, String) {
        let pair = match self.matrix.pair(a, b) {
            PairOutcome::Compared(pair) => pair,
            PairOutcome::Incomparable(reason) => return incomparable(reason),
            PairOutcome::NotRun(reason) => {
                return (Decision::NotRun { reason: reason.clone() }, format!("no logits of {reason}"));
            }
        };
        if pair.identical {
            return (Decision::Identical, format!("all {} compared values are equal", pair.elements));
        }
        match (self.oracles.of(a), self.oracles.of(b)) {
            (Some(oracle_a), Some(oracle_b)) => self.with_oracles((a, oracle_a), (b, oracle_b), pair),
            _ => self.by_tolerance((a, b), pair),
        }
    }

    pub(super) fn non_finite(&self, a: usize, b: usize, pair: &PairMetrics) -> String {
        let (count_a, count_b) = pair.distribution.as_ref().map_or_else(Default::default, |distribution| {
            (distribution.non_finite_a, distribution.non_finite_b)
        });
        let names = &self.matrix.names;
        format!(
            "logits are not finite: {} has {} NaN and {} infinite, {} has {} and {}",
            names[a], count_a.nan, count_a.infinite, names[b], count_b.nan, count_b.infinite
        )
    }

    /// Whether all compared logits of a variant are numbers: ∞ − ∞ is none.
    fn is_finite(&self, variant: usize) -> bool {
        self.matrix.compared(variant, variant).is_some_and(|itself| !itself.l2.is_nan())
    }

    fn with_oracles(&self, a: (usize, usize), b: (usize, usize), pair: &PairMetrics) -> (Decision, String) {
        let names = &self.matrix.names;
        let ((a, oracle_a), (b, oracle_b)) = (a, b);
        let mut evidence = String::new();
        if oracle_a != oracle_b {
            let Some(agreement) = self.matrix.compared(oracle_a, oracle_b) else {
                return self.by_tolerance((a, b), pair);
            };
            let limit = self.tolerances.f64_agreement;
            let (worst, at) = agreement.worst_position;
            let (difference, worst) = if agreement.identical {
                (0.0, 0.0)
            } else {
                (relative_to(agreement, oracle_b, oracle_a), worst)
            };
            if !at_most(difference, limit) || !at_most(worst, limit * self.tolerances.local_factor) {
                let text = if agreement.l2.is_nan() {
                    format!("in float64, {}", self.non_finite(oracle_a, oracle_b, agreement))
                } else {
                    format!(
                        "the float64 results {} and {} differ by relative L2 {difference:.2e} (limit {limit:.0e}), at most {worst:.2e} in row {}, position {}, so they compute different functions",
                        names[oracle_a], names[oracle_b], at.row, at.position
                    )
                };
                return (Decision::Diverged, text);
            }
            evidence = format!("the float64 results agree to {difference:.1e}; ");
        }
        let mut sides = Vec::new();
        for (variant, other, oracle) in [(a, b, oracle_a), (b, a, oracle_b)] {
            if variant == oracle {
                continue;
            }
            match self.departure(variant, other, oracle) {
                None => return self.by_tolerance((a, b), pair),
                Some(Departure::Unexplained(text)) => return (Decision::Diverged, text),
                Some(departure) => sides.push((variant, departure)),
            }
            let lacking = if self.oracles.own(variant).is_none() {
                "has no own float64 result"
            } else if self.oracles.ran(variant) {
                continue;
            } else {
                "has not run in float64 itself"
            };
            evidence =
                format!("{evidence}{} {lacking} and is compared with {}; ", names[variant], names[oracle]);
        }
        for (variant, departure) in &sides {
            if let Departure::Worse(text) = departure {
                let worse = names[*variant].clone();
                return (Decision::WorseRounding { worse }, format!("{evidence}{text}"));
            }
        }
        for (_, departure) in &sides {
            if let Departure::Large(text) = departure {
                evidence.push_str(text);
            }
        }
        for (_, departure) in sides {
            if let Departure::Routed(text) = departure {
                // What a token's other experts give says nothing of how well either side rounds.
                return (Decision::SameMathematics, format!("{evidence}{text}"));
            }
        }
        self.rounding((a, oracle_a), (b, oracle_b), &evidence)
    }

    /// How a variant departs from the float64 result that it is measured against; `None` where they cannot be compared.
    fn departure(&self, variant: usize, other: usize, oracle: usize) -> Option<Departure> {
        let (names, dtype) = (&self.matrix.names, self.matrix.dtypes[variant]);
        let own = self.matrix.compared(variant, oracle)?;
        let ran = self.oracles.ran(variant);
        let whose =
            if self.oracles.own(variant).is_some() { "its float64 result" } else { "the float64 result" };
        if !own.l2.is_finite() {
            let text = self.non_finite(variant.min(oracle), variant.max(oracle), own);
            return Some(if ran && self.is_finite(oracle) {
                Departure::Worse(format!("{} leaves the range of its dtype: {text}", names[variant]))
            } else {
                Departure::Unexplained(text)
            });
        }
        let Some(excess) = self.excess(own, dtype, None) else { return Some(Departure::Within) };
        // Of the variants whose error is known to be rounding the best.
        let reference = (self.oracles.references(self.matrix, variant, other).into_iter())
            .filter_map(|index| Some((index, self.matrix.compared(index, self.oracles.own(index)?)?)))
            .min_by(|(_, a), (_, b)| share(a).total_cmp(&share(b)));
        let (from, oracle) = (&names[variant], &names[oracle]);
        Some(match reference {
            Some((index, known)) if self.excess(own, dtype, Some(known)).is_none() => {
                Departure::Large(format!(
                    "rounding is large here: {excess}; {} differs from its own float64 result by {:.2e}; ",
                    names[index],
                    share(known)
                ))
            }
            Some((index, known)) if ran => Departure::Worse(format!(
                "{from} rounds worse: {excess}, while {} differs by {:.2e}; the mathematics is right, because its own code computed {oracle}",
                names[index],
                share(known)
            )),
            None if ran => Departure::Large(format!(
                "rounding is large here, as the code of {from} itself computed {oracle}: {excess}; "
            )),
            Some(_) | None => match self.oracles.near_ties(variant) {
                Some(evidence) => {
                    Departure::Routed(format!("{excess}, caused by the choice of experts: {evidence}"))
                }
                None => Departure::Unexplained(format!(
                    "{from} differs from {whose} {oracle} by more than rounding, and has not run in float64 itself: {excess}"
                )),
            },
        })
    }

    /// Both sides are within their dtypes of the oracle: whose rounding is worse.
    fn rounding(&self, a: (usize, usize), b: (usize, usize), evidence: &str) -> (Decision, String) {
        let names = &self.matrix.names;
        let rmse = |(variant, oracle): (usize, usize)| {
            self.matrix.compared(variant, oracle).map_or(f64::NAN, PairMetrics::rmse)
        };
        let (rmse_a, rmse_b) = (rmse(a), rmse(b));
        let dtype = self.matrix.dtypes[a.0];
        let errors = format!(
            "{evidence}RMSE against float64 is {rmse_a:.2e} for {} and {rmse_b:.2e} for {}",
            names[a.0], names[b.0]
        );
        if dtype != self.matrix.dtypes[b.0] {
            return (Decision::SameMathematics, format!("{errors}, each within its dtype"));
        }
        let (worse, larger, smaller) =
            if rmse_a > rmse_b { (a.0, rmse_a, rmse_b) } else { (b.0, rmse_b, rmse_a) };
        let elements = self.matrix.compared(a.0, b.0).map_or(0, |pair| pair.elements);
        if within_dynamo(larger, smaller, dtype, elements, self.tolerances.dynamo.of(dtype)) {
            return (Decision::SameMathematics, format!("{errors}, within dynamo's rule"));
        }
        let worse = names[worse].clone();
        let text = format!("{errors}: {worse} exceeds dynamo's rule");
        (Decision::WorseRounding { worse }, text)
    }

    fn by_tolerance(&self, (a, b): (usize, usize), pair: &PairMetrics) -> (Decision, String) {
        if pair.l2.is_nan() {
            return (Decision::Diverged, self.non_finite(a, b, pair));
        }
        let dtype = pair.lower_dtype;
        let limit = self.tolerances.relative_l2.of(dtype);
        if let Some(excess) = self.excess(pair, dtype, None) {
            return (Decision::Diverged, format!("{excess}; no float64 oracle was run"));
        }
        let (overall, name) = (share(pair), dtype.name());
        let text = format!(
            "relative L2 {overall:.2e} is within {name}'s {limit:.1e}, and so is every position; no float64 oracle was run"
        );
        (Decision::SameMathematics, text)
    }

    /// By what a pair exceeds the rounding of `dtype`, overall, at one position or at one token: an
    /// average over millions of logits would hide a single wrong one. With `known`, an error of the same dtype that is
    /// rounding, up to dynamo's multiple of each of its measures is rounding too.
    pub(super) fn excess(
        &self,
        pair: &PairMetrics,
        dtype: Dtype,
        known: Option<&PairMetrics>,
    ) -> Option<String> {
        let raised = |limit: f64, measure: fn(&PairMetrics) -> f64| {
            known.map_or(limit, |known| limit.max(multiplier(dtype, pair.elements) * measure(known)))
        };
        let limit = self.tolerances.relative_l2.of(dtype);
        let local = limit * self.tolerances.local_factor;
        let name = dtype.name();
        let overall = share(pair);
        let limit = raised(limit, share);
        if !at_most(overall, limit) {
            return Some(format!("relative L2 {overall:.2e} exceeds {name}'s {limit:.1e}"));
        }
        let (worst, at) = pair.worst_position;
        let limit = raised(local, |known| known.worst_position.0);
        if !at_most(worst, limit) {
            return Some(format!(
                "relative L2 {worst:.2e} in row {}, position {} exceeds {name}'s {limit:.1e} for one position",
                at.row, at.position
            ));
        }
        let spike = pair.spike;
        (spike.relative > raised(local, |known| known.spike.relative)).then(|| {
            format!(
                "one logit in row {}, position {} differs by {:.2e} of the row's RMS, {:.0} times the RMS of its neighbours' differences",
                spike.at.row, spike.at.position, spike.relative, spike.prominence
            )
        })
    }
}

/// How a variant departs from float64.
enum Departure {
    /// By what its dtype explains.
    Within,
    /// By more, as rounding does here; says so.
    Large(String),
    /// By more than rounding does here, though its mathematics is right.
    Worse(String),
    /// By what tokens depart that a router's near-ties send to other experts; says how that is known.
    Routed(String),
    /// By more than rounding, and nothing says that its mathematics is right.
    Unexplained(String),
}

/// Relative L2 against the larger side: neither is the reference.
pub(super) fn share(pair: &PairMetrics) -> f64 {
    super::metrics::relative(pair.l2, pair.norm_a.max(pair.norm_b))
}

/// False for NaN.
fn at_most(value: f64, limit: f64) -> bool {
    value <= limit
}

fn incomparable(reason: &Incomparable) -> (Decision, String) {
    (Decision::Incomparable { reason: reason.to_string() }, reason.to_string())
}
