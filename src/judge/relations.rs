//! The outcome of a measured relation: bitwise, rounding, broken or unproven.

use compare::mapped::Mapped;
use compare::verdict::Tolerances;
use reference::protocol::Dtype;

use crate::results::relations::Outcome;
use crate::spec::relations::Bound;
use crate::spec::variant::{dtype_name, measured_dtype};

/// Without a float64 result, a difference above `CERTAIN × bound` breaks a relation of a model without routers. In f32 that
/// is 1e-2: the native models' largest error over 74 synthetic checkpoints is 3.6e-6 (README.md, Native models), and a
/// window off by one key of eight moves logits by 0.3 (`Tolerances::default`).
const CERTAIN: f64 = 1e3;

/// The measurements of one relation.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The result in the variant's own dtype.
    pub own: &'a Mapped,
    /// The variant's own dtype.
    pub dtype: Dtype,
    /// The result in float64; `None` if it was not measured.
    pub proof: Option<&'a Mapped>,
    /// Whether the model has routers, which may choose other experts because of rounding.
    pub has_routers: bool,
    /// The quantity that was measured.
    pub bound: Bound,
}

/// The largest relative L2 over all positions that counts as rounding in a dtype.
pub fn bound(tolerances: &Tolerances, dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F64 => tolerances.f64_agreement,
        dtype => tolerances.relative_l2.of(measured_dtype(dtype)),
    }
}

/// Whether a result is above what rounding explains in its dtype.
pub fn is_above(found: &Mapped, dtype: Dtype, tolerances: &Tolerances) -> bool {
    found.is_above(bound(tolerances, dtype), tolerances.local_factor)
}

/// The outcome of a relation. A difference above the bound of the own dtype breaks the relation if the float64 difference
/// is above `f64_agreement` as well; float64 rounding is about 1e-15 and does not explain that. Without a float64 result,
/// only a difference above 1000 bounds (`CERTAIN`) in a model without routers breaks it.
pub fn outcome(known: Known<'_>, tolerances: &Tolerances) -> Outcome {
    let Known { own, dtype, proof, has_routers, .. } = known;
    let is_certain = || own.relative_l2 > CERTAIN * bound(tolerances, dtype) && !has_routers;
    if own.is_bitwise() {
        Outcome::Bitwise
    } else if !is_above(own, dtype, tolerances) {
        Outcome::Rounding
    } else if dtype == Dtype::F64 {
        Outcome::Broken
    } else {
        match proof {
            Some(proof) if is_above(proof, Dtype::F64, tolerances) => Outcome::Broken,
            Some(_) => Outcome::Rounding,
            None if is_certain() => Outcome::Broken,
            None => Outcome::Unproven,
        }
    }
}

/// The numbers behind the outcome, in one sentence; `what` is the variation: `when token 7 changes`.
pub fn evidence(known: Known<'_>, what: &str, tolerances: &Tolerances) -> String {
    let Known { own, dtype, proof, has_routers, bound: kind } = known;
    if own.is_bitwise() && kind == Bound::Tokens {
        return format!("each of {} generated tokens has the largest logit", own.positions);
    }
    if own.is_bitwise() {
        return format!("all values of {} positions have the same bits", own.positions);
    }
    let dtype_words = dtype_name(dtype);
    let place = own.worst.map_or_else(
        || "the logits".to_owned(),
        |worst| {
            let row = if worst.a.0 == 0 { String::new() } else { format!(" of row {}", worst.a.0) };
            format!("the logits of position {}{row}", worst.a.1)
        },
    );
    let most = own.worst.map_or(own.relative_l2, |worst| worst.relative_l2);
    let change = match kind {
        Bound::Logits => format!("{place} change by {most:.1e} {what}"),
        Bound::Tokens => {
            let position = own.worst.map_or(0, |worst| worst.a.1);
            format!(
                "the token generated after position {position} is {most:.1e} below the largest logit there, in units of the logits' RMS,"
            )
        }
    };
    if !is_above(own, dtype, tolerances) {
        let bound = bound(tolerances, dtype);
        return format!(
            "{change}; rounding in {dtype_words} explains {bound:.1e} over all positions ({:.1e})",
            own.relative_l2
        );
    }
    let proof = match proof {
        _ if dtype == Dtype::F64 => String::new(),
        Some(proof) if is_above(proof, Dtype::F64, tolerances) => {
            format!(", {:.1e} in float64", proof.worst.map_or(proof.relative_l2, |worst| worst.relative_l2))
        }
        Some(proof) => format!(", but by {:.1e} in float64: rounding", proof.relative_l2),
        None if has_routers => {
            ": there is no float64 result, and routers may choose other experts by rounding".to_owned()
        }
        None => {
            let bounds = own.relative_l2 / bound(tolerances, dtype);
            format!(": {bounds:.0} times what rounding explains; there is no float64 result")
        }
    };
    format!("{change} in {dtype_words}{proof}")
}

#[cfg(test)]
mod tests {
    use compare::mapped::Worst;

    use super::*;

    fn found(relative_l2: f64) -> Mapped {
        let worst = (relative_l2 > 0.0).then_some(Worst { a: (0, 3), b: (0, 3), relative_l2 });
        Mapped { differing: u64::from(relative_l2 > 0.0), positions: 7, relative_l2, worst }
    }

    fn of(own: f64, proof: Option<f64>, has_routers: bool) -> Outcome {
        let (own, proof) = (found(own), proof.map(found));
        let known =
            Known { own: &own, dtype: Dtype::F32, proof: proof.as_ref(), has_routers, bound: Bound::Logits };
        outcome(known, &Tolerances::default())
    }

    #[test]
    fn a_relation_is_broken_if_float64_differs_too_or_the_difference_exceeds_1000_bounds() {
        assert_eq!(of(0.0, None, false), Outcome::Bitwise);
        assert_eq!(of(1e-6, None, false), Outcome::Rounding);
        // 1e-4 is above the bound of f32, 1.04e-5.
        assert_eq!(of(1e-4, Some(1e-13), false), Outcome::Rounding);
        assert_eq!(of(1e-4, Some(1e-4), false), Outcome::Broken);
        assert_eq!(of(1e-4, None, false), Outcome::Unproven);
        assert_eq!(of(0.3, None, false), Outcome::Broken);
        assert_eq!(of(0.3, None, true), Outcome::Unproven);
        assert_eq!(of(f64::INFINITY, Some(f64::INFINITY), false), Outcome::Broken);
    }

    #[test]
    fn evidence_reads_as_a_sentence() {
        let (own, proof) = (found(0.12), found(0.13));
        let known = Known {
            own: &own,
            dtype: Dtype::F32,
            proof: Some(&proof),
            has_routers: false,
            bound: Bound::Logits,
        };
        assert_eq!(
            evidence(known, "when token 7 changes", &Tolerances::default()),
            "the logits of position 3 change by 1.2e-1 when token 7 changes in f32, 1.3e-1 in float64"
        );
    }
}
