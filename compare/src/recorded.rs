//! The decision on a variant of which only recorded logits are at hand to compare with.

use super::matrix::{Matrix, PairOutcome};
use super::oracle::{Oracles, within_dynamo};
use super::verdict::{Decision, Judge, Tolerances, Verdict, share};

/// Decides on the first variant of `matrix` against its second one, the recorded logits.
///
/// It is the rule of [`super::verdict::verdicts`] for a variant without a float64 result of its own: it must stay as near to
/// the recorded logits as rounding explains in the less precise dtype of the two, overall, at every position and at
/// every token. `recorded_rmse` is the error of the recorded side's own code in the variant's dtype, in units of
/// logits; where it is known, dynamo's rule decides whether the variant rounds worse.
///
/// # Panics
/// When the matrix has not two variants.
pub fn against_recorded(matrix: &Matrix, recorded_rmse: Option<f64>, tolerances: &Tolerances) -> Verdict {
    let (decision, evidence) = decide(matrix, recorded_rmse, tolerances);
    Verdict { a: matrix.names[0].clone(), b: matrix.names[1].clone(), decision, evidence }
}

fn decide(matrix: &Matrix, recorded_rmse: Option<f64>, tolerances: &Tolerances) -> (Decision, String) {
    let pair = match matrix.pair(0, 1) {
        PairOutcome::Compared(pair) => pair,
        PairOutcome::Incomparable(reason) => {
            return (Decision::Incomparable { reason: reason.to_string() }, reason.to_string());
        }
        PairOutcome::NotRun(reason) => {
            return (Decision::NotRun { reason: reason.clone() }, format!("no logits of {reason}"));
        }
    };
    if pair.identical {
        return (Decision::Identical, format!("all {} compared values are equal", pair.elements));
    }
    let judge = Judge { matrix, oracles: &Oracles::default(), tolerances };
    if pair.l2.is_nan() {
        return (Decision::Diverged, judge.non_finite(0, 1, pair));
    }
    // What was recorded in a low precision has that precision's error itself.
    let dtype = pair.lower_dtype;
    if let Some(excess) = judge.excess(pair, dtype, None) {
        return (Decision::Diverged, excess);
    }
    let within = format!(
        "relative L2 {:.2e} is within {}'s {:.1e}, and so is every position",
        share(pair),
        dtype.name(),
        tolerances.relative_l2.of(dtype)
    );
    let Some(recorded_rmse) = recorded_rmse else { return (Decision::SameMathematics, within) };
    let own = matrix.dtypes[0];
    let errors = format!(
        "RMSE is {:.2e} for {} and {recorded_rmse:.2e} for the recorded code in {}",
        pair.rmse(),
        matrix.names[0],
        own.name()
    );
    if within_dynamo(pair.rmse(), recorded_rmse, own, pair.elements, tolerances.dynamo.of(own)) {
        (Decision::SameMathematics, format!("{within}; {errors}, within dynamo's rule"))
    } else {
        let worse = matrix.names[0].clone();
        (Decision::WorseRounding { worse }, format!("{errors}: {} exceeds dynamo's rule", matrix.names[0]))
    }
}
