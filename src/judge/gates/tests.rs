//! Parsing and evaluation of gates.

use super::*;
use compare::Dtype;
use compare::metrics::{PositionIndex, Spike};

fn pair(l2: f64) -> PairMetrics {
    PairMetrics {
        positions: 1,
        last_positions_only: false,
        elements: 4,
        identical: false,
        l2,
        norm_a: 10.0,
        norm_b: 20.0,
        cosine: 0.5,
        max_abs: l2,
        max_abs_at: None,
        max_ulp: Some(7),
        lower_dtype: Dtype::F32,
        rounded: None,
        distribution: None,
        worst_position: (0.25, PositionIndex::default()),
        spike: Spike::default(),
        per_position: Vec::new(),
    }
}

fn on_pair<'a>(pair: &'a PairMetrics, decision: &'a Decision) -> Numbers<'a> {
    Numbers { pair: Ok(pair), verdict: Ok(decision), ..Numbers::default() }
}

fn check(gate: &str, numbers: &Numbers<'_>, expected: &str) {
    let found = match evaluate(&Gate::parse(gate).unwrap(), numbers) {
        Outcome::Passed => "passed".to_owned(),
        Outcome::Failed { evidence } => format!("failed: {evidence}"),
        Outcome::Unknown { reason } => format!("unknown: {reason}"),
    };
    assert_eq!(found, expected, "{gate}");
}

#[test]
fn gates_are_read_with_or_without_spaces() {
    for (text, written) in [
        ("verdict >= diverged", "verdict>=diverged"),
        ("verdict>same mathematics", "verdict>same mathematics"),
        (" p50 > 5 % ", "p50>5 %"),
        ("rel_l2>1e-3", "rel_l2>1e-3"),
        ("relative_l2>0.1%", "relative_l2>0.1%"),
        ("top1<0.99", "top1<0.99"),
        ("peak_bytes>=10%", "peak_bytes>=10%"),
        (" loads ", "loads"),
    ] {
        let gate = Gate::parse(text).unwrap();
        assert_eq!(gate.text(), written);
        assert_eq!(Gate::parse(gate.text()).unwrap(), gate, "{text} reads back");
    }
}

#[test]
fn an_invalid_gate_is_refused_with_a_suggestion() {
    for (text, expected) in [
        ("pp50>5%", "`pp50` is not a metric of gates; did you mean `p50`?"),
        ("verdikt>=diverged", "`verdikt` is not a metric of gates; did you mean `verdict`?"),
        ("p50", "`p50` is not a gate: write a metric, > >= < or <=, and a limit, as in `l2>1e-3`"),
        ("p50>", "`p50>` is not a gate: write a metric, > >= < or <=, and a limit, as in `l2>1e-3`"),
        (">5%", "`>5%` is not a gate: write a metric, > >= < or <=, and a limit, as in `l2>1e-3`"),
        ("l2==1", "`l2==1` is not a gate: write a metric, > >= < or <=, and a limit, as in `l2>1e-3`"),
        ("p50>5", "`5` is not a limit for `p50`: only an increase can be limited: write `p50>5%`"),
        ("p50<5%", "`p50` supports only upper limits: write `p50>5%`"),
        (
            "l2>5%",
            "`5%` is not a limit for `l2`: it is not a share, so its limit is not a percentage: write `l2>1e-3`",
        ),
        ("l2>nan", "`nan` is not a limit for `l2`: write a number, `l2>1e-3`"),
        (
            "verdict>=divergd",
            "`divergd` is not a limit for `verdict`: did you mean `diverged`? the verdicts are identical, same_mathematics, worse_rounding, diverged",
        ),
        (
            "loads>1",
            "`>1` is not a limit for `loads`: `loads` takes no limit; it fails if a variant produces no logits",
        ),
    ] {
        assert_eq!(Gate::parse(text).unwrap_err().to_string(), expected);
    }
}

#[test]
fn numbers_of_a_pair_are_compared_with_the_limit() {
    let (pair, decision) = (pair(2.0), Decision::SameMathematics);
    let numbers = on_pair(&pair, &decision);
    check("l2>2", &numbers, "passed");
    check("l2>=2", &numbers, "failed: l2 is 2.000e0");
    // Relative to the larger side, whose norm is 20.
    check("rel_l2>=10%", &numbers, "failed: relative_l2 is 1.000e-1");
    check("rel_l2>0.1", &numbers, "passed");
    check("cosine<0.9", &numbers, "failed: cosine is 0.500000000");
    check("max_ulp>6", &numbers, "failed: max_ulp is 7");
    check("kl_max>1", &numbers, "unknown: kl_max was not measured");
    check("verdict>=diverged", &numbers, "passed");
    check("verdict>=same_mathematics", &numbers, "failed: the verdict is same mathematics");
    check("verdict<diverged", &numbers, "failed: the verdict is same mathematics");
}

#[test]
fn a_nan_passes_no_gate() {
    let (pair, decision) = (pair(f64::NAN), Decision::Diverged);
    let numbers = on_pair(&pair, &decision);
    for gate in ["l2>1e9", "l2<1e9", "rel_l2>1e9", "rmse>1e9"] {
        assert!(matches!(evaluate(&Gate::parse(gate).unwrap(), &numbers), Outcome::Failed { .. }), "{gate}");
    }
    // Equal NaN on both sides count as no difference.
    let same = PairMetrics { identical: true, ..pair.clone() };
    check("l2>0", &on_pair(&same, &Decision::Identical), "passed");
    check("cosine<1", &on_pair(&same, &Decision::Identical), "passed");
}

#[test]
fn a_pair_that_was_not_compared_is_unknown() {
    let reason = "one has no logits".to_owned();
    let decision = Decision::NotRun { reason: reason.clone() };
    let numbers = Numbers {
        verdict: Ok(&decision),
        pair: Err(reason.clone()),
        loads: Err("failed (crashed): signal 11".into()),
        ..Numbers::default()
    };
    check("verdict>=diverged", &numbers, "unknown: one has no logits");
    check("l2>1", &numbers, "unknown: one has no logits");
    check("p50>5%", &numbers, "unknown: not measured");
    check("loads", &numbers, "failed: failed (crashed): signal 11");
}

#[test]
fn a_slow_down_fails_only_if_size_and_interval_exceed() {
    let rounds = |ms: [u64; 5]| ms.map(|ms| vec![ms * 100_000; 5]).to_vec();
    let baseline = rounds([100, 101, 100, 99, 100]);
    let numbers = |variant| Numbers {
        times: Ok(Times { baseline: &baseline, variant, paired: true }),
        ..Numbers::default()
    };
    let slower = rounds([110, 111, 110, 109, 110]);
    let found = evaluate(&Gate::parse("p50>5%").unwrap(), &numbers(&slower));
    assert!(
        matches!(&found, Outcome::Failed { evidence } if evidence.starts_with("p50 rose by 10.0 %")),
        "{found:?}"
    );
    check("p50>15%", &numbers(&slower), "passed");
    check("mean>5%", &numbers(&baseline), "passed");
    let noisy = rounds([90, 160, 110, 80, 140]);
    let found = evaluate(&Gate::parse("p50>5%").unwrap(), &numbers(&noisy));
    assert!(
        matches!(&found, Outcome::Unknown { reason } if reason.contains("time more rounds")),
        "{found:?}"
    );
}

#[test]
fn peak_memory_fails_by_its_relative_increase() {
    let numbers = Numbers { peak_bytes: Ok([100, 111]), ..Numbers::default() };
    check("peak_bytes>10%", &numbers, "failed: peak memory changed by +11.0 %");
    check("peak_bytes>11.1%", &numbers, "passed");
}
