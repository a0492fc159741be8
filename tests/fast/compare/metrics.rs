//! Tests each metric against numpy, and the laws that it must obey.

use compare::Dtype;
use compare::matrix::{Options, PairOutcome, matrix};
use compare::metrics::{KlSummary, PositionIndex, Side};
use proptest::prelude::*;
use serde_json::Value;

use super::files::{Files, pair};

/// Equal to 1e-12, relative or absolute: the accuracy that f64 sums of at most 10⁴ terms allow.
pub(crate) fn check(what: &str, got: f64, expected: f64) {
    if expected.is_nan() {
        assert!(got.is_nan(), "{what}: {got}, expected NaN");
    } else if expected.is_infinite() {
        assert!(got.is_infinite() && got.is_sign_positive() == expected.is_sign_positive(), "{what}: {got}");
    } else {
        let limit = 1e-12 * expected.abs().max(if what.contains("kl") { 1.0 } else { 0.0 });
        assert!((got - expected).abs() <= limit, "{what}: {got:e}, expected {expected:e}");
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| value.as_str().unwrap().parse().unwrap())
}

#[test]
fn metrics_agree_with_numpy_on_random_and_adversarial_arrays() {
    let fixture: Value = serde_json::from_str(include_str!("../../fixtures/metrics.json")).unwrap();
    let size = |name: &str| fixture[name].as_u64().unwrap() as usize;
    let (rows, vocab, k) = (size("rows"), size("vocab"), size("k"));
    for case in fixture["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let dtypes: [Dtype; 2] = serde_json::from_value(case["dtypes"].clone()).unwrap();
        let mut files = Files::new();
        for (side, dtype) in ["a", "b"].into_iter().zip(dtypes) {
            let value = |bits: &Value| {
                let bits = bits.as_u64().unwrap();
                if dtype == Dtype::F64 {
                    f64::from_bits(bits)
                } else {
                    f64::from(f32::from_bits(bits as u32))
                }
            };
            let values: Vec<f64> = case[side].as_array().unwrap().iter().map(value).collect();
            files.add(side, dtype, [1, rows, vocab], &values);
        }
        let measured = matrix(&files.entries, None, &Options { top_k: k, ..Options::default() }).unwrap();
        let (pair, expected) = (pair(&measured, 0, 1), &case["expected"]);
        let check = |what: &str, got: f64| check(&format!("{name} {what}"), got, number(&expected[what]));
        check("l2", pair.l2);
        check("norm_a", pair.norm_a);
        check("norm_b", pair.norm_b);
        check("cosine", pair.cosine);
        check("rmse", pair.rmse());
        for (index, side) in [Side::A, Side::B].into_iter().enumerate() {
            for (what, got) in [("relative_l2", pair.relative_l2(side)), ("nmse", pair.nmse(side))] {
                super::metrics::check(
                    &format!("{name} {what} {side:?}"),
                    got,
                    number(&expected[what][index]),
                );
            }
        }
        if let Some(worst) = expected["worst_position"].as_array() {
            super::metrics::check(&format!("{name} worst"), pair.worst_position.0, number(&worst[0]));
            let places = worst[1].as_array().unwrap();
            assert!(places.contains(&pair.worst_position.1.position.into()), "{name} worst position");
        }
        check("max_abs", pair.max_abs);
        let at = pair.max_abs_at.map(|at| vec![at.at.position, at.token]);
        assert_eq!(serde_json::to_value(at).unwrap(), expected["max_abs_at"], "{name} max_abs_at");
        assert_eq!(serde_json::to_value(pair.max_ulp).unwrap(), expected["max_ulp"], "{name} max_ulp");
        assert_eq!(pair.rounded.is_some(), dtypes[0] != dtypes[1], "{name} rounded");
        for (what, got) in pair.rounded.iter().flat_map(|pair| [("l2", pair.l2), ("max_abs", pair.max_abs)]) {
            super::metrics::check(&format!("{name} rounded {what}"), got, number(&expected["rounded"][what]));
        }
        let distribution = pair.distribution.as_ref().unwrap();
        for (what, got) in [("kl", distribution.kl), ("kl_reversed", distribution.kl_reversed)] {
            let KlSummary { mean, median, p999, max, undefined } = got;
            for (part, got) in [("mean", mean), ("median", median), ("p999", p999), ("max", max)] {
                super::metrics::check(&format!("{name} {what} {part}"), got, number(&expected[what][part]));
            }
            assert_eq!(undefined as u64, expected[what]["undefined"], "{name} {what} undefined");
        }
        check("top1", distribution.top1_agreement);
        check("top_k", distribution.top_k_agreement);
        let first = distribution.first_greedy_divergence.map(|at| at.position);
        assert_eq!(serde_json::to_value(first).unwrap(), expected["first"], "{name} first");
        for (index, at) in pair.per_position.iter().enumerate() {
            for (what, got) in [("l2", at.l2), ("max_abs", at.max_abs), ("kl", at.kl)] {
                super::metrics::check(
                    &format!("{name} {what} of position {index}"),
                    got,
                    number(&expected[format!("{what}_per_position")][index]),
                );
            }
        }
        let (a, b) = (distribution.non_finite_a, distribution.non_finite_b);
        assert_eq!(serde_json::json!([a.nan, b.nan]), expected["nan"], "{name} nan");
        assert_eq!(serde_json::json!([a.infinite, b.infinite]), expected["infinite"], "{name} infinite");
        assert_eq!(pair.identical, case["a"] == case["b"], "{name} identical");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn metric_laws_hold(
        a in prop::collection::vec(-50.0_f64..50.0, 3 * 21),
        b in prop::collection::vec(-50.0_f64..50.0, 3 * 21),
        c in prop::collection::vec(-50.0_f64..50.0, 3 * 21),
        swap in 0_usize..62,
    ) {
        let mut swapped = a.clone();
        swapped.swap(swap, swap + 1);
        let shape = [1, 3, 21];
        let mut files = Files::new();
        for (name, values) in [("a", &a), ("b", &b), ("c", &c), ("swapped", &swapped)] {
            files.add(name, Dtype::F64, shape, values);
        }
        let m = files.matrix(None);
        let (ab, bc, ac) = (pair(&m, 0, 1), pair(&m, 1, 2), pair(&m, 0, 2));
        // The relative rounding error of a sum of 63 terms is below 1e-14.
        prop_assert!(ac.l2 <= (ab.l2 + bc.l2) * (1.0 + 1e-14), "triangle");
        prop_assert!(pair(&m, 0, 0).l2 == 0.0 && pair(&m, 0, 0).identical, "identity");
        prop_assert!(ab.max_abs <= ab.l2 * (1.0 + 1e-14), "max is a lower bound of L2");
        prop_assert!((-1.0..=1.0).contains(&ab.cosine), "cosine");
        let distribution = ab.distribution.as_ref().unwrap();
        prop_assert!(distribution.kl.mean >= 0.0 && distribution.kl_reversed.mean >= 0.0, "KL");
        prop_assert!((0.0..=1.0).contains(&distribution.top_k_agreement), "top-k");
        let PairOutcome::Compared(ba) = m.oriented(1, 0) else { panic!("not compared") };
        prop_assert_eq!((ba.l2, ba.relative_l2(Side::B)), (ab.l2, ab.relative_l2(Side::A)), "symmetry");
        prop_assert!(ba.distribution.unwrap().kl == distribution.kl_reversed, "KL changes sides");
        prop_assert_eq!(pair(&m, 0, 3).identical, a == swapped, "a permutation is seen");
        let beyond = PositionIndex { row: 1, position: 0 };
        prop_assert!(ab.worst_position.1 < beyond);
    }
}
