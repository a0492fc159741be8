//! Decides on a variant that can be compared with recorded logits only.

use super::evidence::{ByTolerance, Evidence, RecordedRounding};
use super::matrix::{Matrix, PairOutcome};
use super::oracle::{Oracles, within_dynamo};
use super::verdict::{Decision, Judge, Tolerances, Verdict, share};

/// Decides on the first variant of `matrix`, compared with the second one, the recorded logits.
///
/// The rule is that of [`super::verdict::verdicts`] for a variant without a float64 result of its own: the difference must
/// be within the rounding of the less precise dtype of the two, overall, at every position and at every token.
/// `recorded_rmse` is the error of the recorded side's own code in the variant's dtype, in units of logits; if it is
/// given, dynamo's rule decides whether the variant rounds worse.
///
/// # Panics
/// If the matrix has fewer than two variants.
pub fn against_recorded(matrix: &Matrix, recorded_rmse: Option<f64>, tolerances: &Tolerances) -> Verdict {
    Verdict::new([&matrix.names[0], &matrix.names[1]], decide(matrix, recorded_rmse, tolerances))
}

fn decide(matrix: &Matrix, recorded_rmse: Option<f64>, tolerances: &Tolerances) -> (Decision, Evidence) {
    let pair = match matrix.pair(0, 1) {
        PairOutcome::Compared(pair) => pair,
        PairOutcome::Incomparable(reason) => {
            let reason = reason.to_string();
            return (Decision::Incomparable { reason: reason.clone() }, Evidence::Incomparable { reason });
        }
        PairOutcome::NotRun(reason) => {
            let reason = reason.clone();
            return (Decision::NotRun { reason: reason.clone() }, Evidence::NotRun { reason });
        }
    };
    if pair.identical {
        return (Decision::Identical, Evidence::Identical { elements: pair.elements });
    }
    let judge = Judge { matrix, oracles: &Oracles::default(), tolerances };
    let diverged = |found| (Decision::Diverged, Evidence::Recorded { found, rounding: None });
    if pair.l2.is_nan() {
        return diverged(ByTolerance::NotFinite { sides: judge.not_finite(0, 1, pair) });
    }
    // Logits recorded in a lower precision contain that precision's rounding error.
    let dtype = pair.lower_dtype;
    if let Some(excess) = judge.excess(pair, dtype, None) {
        return diverged(ByTolerance::Beyond(excess));
    }
    let own = matrix.dtypes[0];
    let rounding = recorded_rmse.map(|recorded_rmse| RecordedRounding {
        variant: matrix.names[0].clone(),
        dtype: own,
        rmse: [pair.rmse(), recorded_rmse],
        is_within_dynamo: within_dynamo(
            pair.rmse(),
            recorded_rmse,
            own,
            pair.elements,
            tolerances.dynamo.of(own),
        ),
    });
    let decision = match &rounding {
        Some(rounding) if !rounding.is_within_dynamo => {
            Decision::WorseRounding { worse: matrix.names[0].clone() }
        }
        _ => Decision::SameMathematics,
    };
    let limit = tolerances.relative_l2.of(dtype);
    let found = ByTolerance::Within { relative_l2: share(pair), dtype, limit };
    (decision, Evidence::Recorded { found, rounding })
}
