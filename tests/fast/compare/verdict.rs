//! Tests known positives and negatives of every verdict.

use compare::Dtype;
use compare::envelope::Envelope;
use compare::evidence::{NearTies, Replayed, Routing};
use compare::oracle::{Oracles, Origin, accuracies};
use compare::verdict::{Decision, PerDtype, Tolerances, Verdict, verdicts};

use super::files::{Files, added, bf16, noise};

/// Parses names: `family` for the family's plain code, `family/path` for another path.
fn origins(names: &[&str]) -> Vec<Origin> {
    let origin =
        |name: &&str| Origin { family: name.split('/').next().unwrap().to_owned(), path: (*name).to_owned() };
    names.iter().map(origin).collect()
}

fn judged(files: &Files, names: &[&str]) -> Vec<Verdict> {
    let measured = files.matrix(None);
    verdicts(&measured, &Oracles::new(&measured, &origins(names)), &Tolerances::default())
}

fn of<'a>(verdicts: &'a [Verdict], a: &str, b: &str) -> &'a Verdict {
    verdicts.iter().find(|verdict| verdict.a == a && verdict.b == b).unwrap()
}

/// The decision on one pair without an oracle.
fn verdict_of(dtype: Dtype, shape: [usize; 3], a: &[f64], b: &[f64]) -> Decision {
    let mut files = Files::new();
    files.add("a", dtype, shape, a).add("b", dtype, shape, b);
    judged(&files, &["x", "y"]).remove(0).decision
}

const WIDE: [usize; 3] = [1, 4, 49152];
const WIDE_LENGTH: usize = 4 * 49152;

#[test]
fn rounding_is_never_a_divergence() {
    for seed in 0..20 {
        let exact: Vec<f64> = noise(seed + 100, WIDE_LENGTH).iter().map(|x| 12.0 * x * x * x).collect();
        // Two bf16 paths: errors of a few bf16 epsilons (2⁻⁸) relative to the row, then rounding of the logits to bf16.
        let path = |salt: u64| bf16(&added(&exact, &noise(seed + salt, WIDE_LENGTH), 0.05));
        assert_eq!(
            verdict_of(Dtype::Bf16, WIDE, &path(1), &path(2)),
            Decision::SameMathematics,
            "bf16 {seed}"
        );
        let path = |salt: u64| added(&exact, &noise(seed + salt, WIDE_LENGTH), 1e-5);
        assert_eq!(verdict_of(Dtype::F32, WIDE, &path(3), &path(4)), Decision::SameMathematics, "f32 {seed}");
        // One logit differs in its last bit.
        let mut last_bit = exact.clone();
        last_bit[1000] = f64::from((exact[1000] as f32).next_up());
        assert_eq!(
            verdict_of(Dtype::F32, WIDE, &exact, &last_bit),
            Decision::SameMathematics,
            "one ulp {seed}"
        );
    }
}

#[test]
fn a_single_wrong_row_of_a_huge_vocabulary_does_not_pass() {
    let exact: Vec<f64> = noise(7, WIDE_LENGTH).iter().map(|x| 5.0 * x).collect();
    for (dtype, spread, change) in [(Dtype::F32, 1e-5, 0.01), (Dtype::Bf16, 0.02, 3.0)] {
        let round = |values: Vec<f64>| {
            if dtype == Dtype::Bf16 { bf16(&values) } else { values }
        };
        let mut wrong = added(&exact, &noise(8, WIDE_LENGTH), spread);
        for position in 0..4 {
            wrong[position * 49152 + 40000] += change;
        }
        let right = round(added(&exact, &noise(9, WIDE_LENGTH), spread));
        let decision = verdict_of(dtype, WIDE, &right, &round(wrong));
        assert_eq!(decision, Decision::Diverged, "{dtype:?}: one token of 49152");
    }
}

#[test]
fn a_single_wrong_position_among_many_does_not_pass() {
    let shape = [1, 512, 256];
    let exact: Vec<f64> = noise(7, 512 * 256).iter().map(|x| 5.0 * x).collect();
    let mut wrong = added(&exact, &noise(8, 512 * 256), 0.02);
    // Simulates a window that is off by one at the last position only: its logits change by a third.
    for (x, moved) in wrong[511 * 256..].iter_mut().zip(noise(10, 256)) {
        *x += 2.5 * moved;
    }
    assert_eq!(verdict_of(Dtype::Bf16, shape, &bf16(&exact), &bf16(&wrong)), Decision::Diverged);
}

#[test]
fn evidence_without_an_oracle_states_that_none_was_run() {
    let mut files = Files::new();
    files.add("a", Dtype::F32, [1, 2, 8], &[1.0; 16]).add("b", Dtype::F32, [1, 2, 8], &[1.000_001; 16]);
    let verdict = judged(&files, &["x", "y"]).remove(0);
    assert_eq!(verdict.decision, Decision::SameMathematics);
    assert!(verdict.evidence.contains("no float64 oracle was run"), "{}", verdict.evidence);
}

#[test]
fn float64_detects_a_bug_that_bfloat16_rounding_hides() {
    let shape = [1, 4, 2000];
    let exact: Vec<f64> = noise(1, 8000).iter().map(|x| 5.0 * x).collect();
    let mut files = Files::new();
    // Simulates a wrong epsilon in the norm: a change of 1e-4, well below bf16's rounding (2⁻⁸).
    let wrong: Vec<f64> = exact.iter().map(|x| x * (1.0 + 1e-4)).collect();
    files
        .add("a_bf16", Dtype::Bf16, shape, &bf16(&added(&exact, &noise(2, 8000), 0.02)))
        .add("b_bf16", Dtype::Bf16, shape, &bf16(&added(&wrong, &noise(3, 8000), 0.02)))
        .add("a_f64", Dtype::F64, shape, &exact);
    let found = judged(&files, &["a", "b", "a"]);
    assert_eq!(found[0].decision, Decision::SameMathematics);
    assert!(found[0].evidence.contains("has no own float64 result"), "{}", found[0].evidence);
    files.add("b_f64", Dtype::F64, shape, &wrong);
    let found = judged(&files, &["a", "b", "a", "b"]);
    assert_eq!(found[0].decision, Decision::Diverged, "{}", found[0].evidence);
}

#[test]
fn with_agreeing_oracles_worse_rounding_is_reported_and_a_broken_fast_path_diverges() {
    let shape = [1, 4, 2000];
    let exact: Vec<f64> = noise(1, 8000).iter().map(|x| 5.0 * x).collect();
    let mut files = Files::new();
    files
        .add("a_f64", Dtype::F64, shape, &exact)
        .add("b_f64", Dtype::F64, shape, &added(&exact, &noise(5, 8000), 1e-13))
        .add("a", Dtype::Bf16, shape, &bf16(&added(&exact, &noise(2, 8000), 0.01)))
        .add("b", Dtype::Bf16, shape, &bf16(&added(&exact, &noise(3, 8000), 0.01)))
        .add("b_sloppy", Dtype::Bf16, shape, &bf16(&added(&exact, &noise(4, 8000), 0.2)))
        .add("b_broken", Dtype::Bf16, shape, &bf16(&added(&exact, &noise(6, 8000), 1.0)))
        .add("b_f32", Dtype::F32, shape, &added(&exact, &noise(8, 8000), 1e-5));
    let names = ["a", "b", "a", "b", "b/fast", "b/fast", "b"];
    let found = judged(&files, &names);
    let decision = |a: &str, b: &str| of(&found, a, b);
    assert_eq!(decision("a_f64", "b_f64").decision, Decision::SameMathematics);
    assert_eq!(decision("a", "b").decision, Decision::SameMathematics);
    let sloppy = Decision::WorseRounding { worse: "b_sloppy".to_owned() };
    assert_eq!(decision("a", "b_sloppy").decision, sloppy);
    let broken = decision("a", "b_broken");
    assert_eq!(broken.decision, Decision::Diverged);
    assert!(broken.evidence.contains("has not run in float64 itself"), "{}", broken.evidence);
    assert_eq!(
        decision("b", "b_f32").decision,
        Decision::SameMathematics,
        "another dtype is not a worse one"
    );

    let measured = files.matrix(None);
    let oracles = Oracles::new(&measured, &origins(&names));
    let errors = accuracies(&measured, &oracles);
    let error = |variant: usize| errors.iter().find(|accuracy| accuracy.variant == variant).unwrap();
    assert_eq!(error(3).oracle, 1);
    // Uniform noise of ±0.2 has an RMS of 0.2/√3; bf16's own rounding adds a little.
    assert!((error(4).rmse - 0.2 / 3.0_f64.sqrt()).abs() < 5e-3, "{}", error(4).rmse);
}

/// Simulates a mixture of experts whose router has near-ties: in bf16 both sides differ from float64 by about 10 %.
#[test]
fn large_rounding_is_no_divergence_if_the_float64_results_agree() {
    let shape = [1, 4, 2000];
    let exact: Vec<f64> = noise(1, 8000).iter().map(|x| 5.0 * x).collect();
    let off = |seed: u64, by: f64| bf16(&added(&exact, &noise(seed, 8000), by));
    let mut files = Files::new();
    files
        .add("a_f64", Dtype::F64, shape, &exact)
        .add("b_f64", Dtype::F64, shape, &added(&exact, &noise(5, 8000), 1e-13))
        .add("a", Dtype::Bf16, shape, &off(2, 0.5))
        .add("b", Dtype::Bf16, shape, &off(3, 0.5))
        .add("b_fused", Dtype::Bf16, shape, &off(4, 0.6))
        .add("b_broken", Dtype::Bf16, shape, &off(6, 2.5))
        .add("b_coarse", Dtype::F16, shape, &off(7, 0.5))
        .add("c", Dtype::Bf16, shape, &off(8, 0.5))
        .add("d_f64", Dtype::F64, shape, &exact)
        .add("d", Dtype::Bf16, shape, &off(9, 3.0))
        .add("e_f64", Dtype::F64, shape, &added(&exact, &noise(10, 8000), 1e-7))
        .add("e", Dtype::Bf16, shape, &off(12, 0.5));
    let names = ["a", "b", "a", "b", "b/fused", "b/fused", "b/fused", "c", "d", "d", "e", "e"];
    let found = judged(&files, &names);
    let same = |a: &str, b: &str, evidence: &str| {
        let verdict = of(&found, a, b);
        assert_eq!(verdict.decision, Decision::SameMathematics, "{verdict:?}");
        assert!(verdict.evidence.contains(evidence), "{verdict:?}");
    };
    // No peer's rounding is available for a variant that is compared with its own float64 result.
    same("a_f64", "a", "rounding is large here, as the code of a itself computed a_f64");
    same("a", "b", "b differs from its own float64 result");
    same("b_f64", "a", "the float64 results agree");
    // A variant that cannot run in float64 is compared with a float64 result of other code.
    same("a", "b_fused", "b_fused has not run in float64 itself and is compared with b_f64");
    same("a", "c", "c has no own float64 result and is compared with a_f64");
    let diverged = |a: &str, b: &str, evidence: &str| {
        let verdict = of(&found, a, b);
        assert_eq!(verdict.decision, Decision::Diverged, "{verdict:?}");
        assert!(verdict.evidence.contains(evidence), "{verdict:?}");
    };
    diverged("a", "b_broken", "b_broken differs from its float64 result b_f64 by more than rounding");
    // No variant of its dtype has an error that is known to be rounding.
    diverged("a", "b_coarse", "has not run in float64 itself");
    // The float64 results differ, so it is a bug, however small the difference in bf16.
    diverged("a", "e", "differ by relative L2");
    // The same function with worse rounding than its peers, for example a rope table in bf16.
    let verdict = of(&found, "a", "d");
    assert_eq!(verdict.decision, Decision::WorseRounding { worse: "d".to_owned() }, "{verdict:?}");
    assert!(verdict.evidence.contains("because its own code computed d_f64"), "{verdict:?}");
}

#[test]
fn the_basis_of_a_verdict_is_its_evidence_as_data() {
    let shape = [1, 4, 200];
    let exact: Vec<f64> = noise(1, 800).iter().map(|x| 5.0 * x).collect();
    let mut nan = exact.clone();
    nan[3] = f64::NAN;
    let mut files = Files::new();
    files
        .add("a_f64", Dtype::F64, shape, &exact)
        .add("a", Dtype::Bf16, shape, &bf16(&added(&exact, &noise(2, 800), 0.02)))
        .add("b", Dtype::Bf16, shape, &nan);
    let found = judged(&files, &["a", "a", "b"]);
    for verdict in &found {
        assert_eq!(verdict.evidence, verdict.basis.to_string());
    }
    let json = |a: &str, b: &str| serde_json::to_value(of(&found, a, b)).unwrap();
    let rounding = json("a_f64", "a");
    let basis = &rounding["basis"];
    assert_eq!((&basis["rule"], &basis["found"]["is"]), (&"oracles".into(), &"rounding".into()), "{basis}");
    assert_eq!(basis["found"]["rmse"][0], 0.0, "{basis}");
    assert_eq!(basis["found"]["comparison"]["rule"], "each_within_its_dtype", "{basis}");
    assert!(rounding["evidence"].is_string() && basis["noise"].is_null(), "{rounding}");
    let broken = json("a", "b");
    assert_eq!(broken["basis"]["found"]["is"], "side_not_finite", "{broken}");
    assert_eq!(broken["basis"]["found"]["sides"][1]["nan"], 1, "{broken}");
}

#[test]
fn two_sides_without_a_finite_logit_are_incomparable_and_not_identical() {
    let shape = [1, 2, 8];
    let mut files = Files::new();
    files
        .add("a", Dtype::F32, shape, &[f64::NAN; 16])
        .add("b", Dtype::F32, shape, &[f64::NAN; 16])
        .add("c", Dtype::F32, shape, &[f64::INFINITY; 16])
        .add("d", Dtype::F32, shape, &[1.0; 16]);
    let found = judged(&files, &["a", "b", "c", "d"]);
    let reason = "neither side has a finite logit".to_owned();
    for (a, b) in [("a", "b"), ("a", "c")] {
        assert_eq!(of(&found, a, b).decision, Decision::Incomparable { reason: reason.clone() });
    }
    assert_eq!(of(&found, "a", "d").decision, Decision::Diverged);
}

/// The fused variant's modules were replayed with a known variant's inputs, and all of them agreed.
#[test]
fn near_ties_of_routers_alone_are_no_divergence() {
    let shape = [1, 4, 2000];
    let exact: Vec<f64> = noise(1, 8000).iter().map(|x| 5.0 * x).collect();
    let off = |seed: u64, by: f64| bf16(&added(&exact, &noise(seed, 8000), by));
    let mut files = Files::new();
    files
        .add("b_f64", Dtype::F64, shape, &exact)
        .add("b", Dtype::Bf16, shape, &off(2, 0.02))
        .add("b_fused", Dtype::Bf16, shape, &off(3, 0.6))
        .add("b_other", Dtype::Bf16, shape, &off(4, 0.6));
    let names = ["b", "b", "b/fused", "b/other"];
    let measured = files.matrix(None);
    let near_ties = NearTies { router: "mlp.gate".to_owned(), tokens: 1, of: 4, scores: 1e-3, worst: 1e-3 };
    let routing = Routing::Replayed(Replayed { source: "b".to_owned(), near_ties });
    let oracles = Oracles::new(&measured, &origins(&names)).with_near_ties(2, routing);
    let found = verdicts(&measured, &oracles, &Tolerances::default());
    for other in ["b_f64", "b"] {
        let verdict = of(&found, other, "b_fused");
        assert_eq!(verdict.decision, Decision::SameMathematics, "{verdict:?}");
        assert!(
            verdict.evidence.contains("caused by the choice of experts: replayed with b's input"),
            "{verdict:?}"
        );
    }
    // A variant that was not replayed has no evidence of near-ties.
    for a in ["b_f64", "b", "b_fused"] {
        assert_eq!(of(&found, a, "b_other").decision, Decision::Diverged, "{a}");
    }
}

#[test]
fn overflow_is_worse_rounding_only_if_the_same_code_is_finite_in_float64() {
    let shape = [1, 4, 200];
    let exact: Vec<f64> = noise(1, 800).iter().map(|x| 5.0 * x).collect();
    let mut beyond = exact.clone();
    beyond[7] = f64::INFINITY;
    let mut files = Files::new();
    files
        .add("a_f64", Dtype::F64, shape, &exact)
        .add("a", Dtype::F16, shape, &exact)
        .add("b_f64", Dtype::F64, shape, &exact)
        .add("b", Dtype::F16, shape, &beyond)
        .add("b_fused", Dtype::F16, shape, &beyond);
    let found = judged(&files, &["a", "a", "b", "b", "b/fused"]);
    let verdict = of(&found, "a", "b");
    assert_eq!(verdict.decision, Decision::WorseRounding { worse: "b".to_owned() }, "{verdict:?}");
    assert!(verdict.evidence.contains("leaves the range of its dtype"), "{verdict:?}");
    assert_eq!(of(&found, "a", "b_fused").decision, Decision::Diverged);
    // Without float64 results an infinity cannot be distinguished from a bug.
    assert_eq!(verdict_of(Dtype::F16, shape, &exact, &beyond), Decision::Diverged);
}

#[test]
fn a_config_overrides_single_tolerances_and_misspelt_ones_are_refused() {
    let defaults = Tolerances::default();
    let tolerances: Tolerances = toml::from_str("f64_agreement = 1e-9\n[relative_l2]\nf32 = 1e-3").unwrap();
    let mut expected = defaults;
    expected.f64_agreement = 1e-9;
    expected.relative_l2.f32 = 1e-3;
    assert_eq!(tolerances, expected);
    assert_eq!(toml::from_str::<Tolerances>("").unwrap(), defaults);
    assert!(toml::from_str::<Tolerances>("[relative_l2]\nfp32 = 1e-3").is_err());
}

#[test]
fn a_black_box_that_agrees_in_float32_at_most_rounds_worse_in_a_lower_dtype() {
    let shape = [1, 4, 2000];
    let exact: Vec<f64> = noise(1, 8000).iter().map(|x| 5.0 * x).collect();
    let off = |seed: u64| bf16(&added(&exact, &noise(seed, 8000), 1.5));
    let wrong = added(&exact, &noise(9, 8000), 0.5);
    let check = |with_oracle: bool| {
        let mut files = Files::new();
        files
            .add("a", Dtype::Bf16, shape, &bf16(&added(&exact, &noise(2, 8000), 0.01)))
            .add("a_f32", Dtype::F32, shape, &added(&exact, &noise(3, 8000), 1e-6))
            .add("port", Dtype::Bf16, shape, &off(4))
            .add("port_f32", Dtype::F32, shape, &added(&exact, &noise(5, 8000), 1e-5))
            .add("bad", Dtype::Bf16, shape, &off(6))
            .add("bad_f32", Dtype::F32, shape, &wrong)
            .add("alone", Dtype::Bf16, shape, &off(7));
        let mut names = vec!["a", "a", "port", "port", "bad", "bad", "alone"];
        if with_oracle {
            files.add("a_f64", Dtype::F64, shape, &exact);
            names.push("a");
        }
        let measured = files.matrix(None);
        let oracles = Oracles::new(&measured, &origins(&names));
        // A variant whose modules can be seen is judged by them, so its float32 result does not excuse it.
        let seen = verdicts(&measured, &oracles, &Tolerances::default());
        assert_eq!(of(&seen, "a_f32", "port").decision, Decision::Diverged);
        let found = verdicts(&measured, &oracles.with_opaque(2..7), &Tolerances::default());
        // Without a float64 result, the other side's float32 result has to be known as well.
        for a in if with_oracle { &["a", "a_f32"][..] } else { &["a_f32"] } {
            let verdict = of(&found, a, "port");
            assert_eq!(verdict.decision, Decision::WorseRounding { worse: "port".to_owned() }, "{verdict:?}");
            assert!(verdict.evidence.contains("port_f32"), "{verdict:?}");
            for other in ["bad", "bad_f32", "alone"] {
                assert_eq!(of(&found, a, other).decision, Decision::Diverged, "{a} {other}");
            }
        }
    };
    check(true);
    check(false);
}

/// One value that is a sum which nearly cancels, as a cosine near zero: what is lost in bf16 depends on the order of the sum,
/// so that one program's error is no bound for another's.
#[test]
fn an_error_no_larger_than_the_rounding_of_another_variant_is_rounding() {
    let decision = |of_torch: f64, of_fused: f64, oracle_of_torch: f64| {
        let mut files = Files::new();
        let one = [1, 1, 1];
        files
            .add("torch", Dtype::Bf16, one, &[1.0 + of_torch])
            .add("torch_f64", Dtype::F64, one, &[oracle_of_torch])
            .add("eager", Dtype::Bf16, one, &[1.02])
            .add("eager_f64", Dtype::F64, one, &[1.0])
            .add("fused", Dtype::Bf16, one, &[1.0 + of_fused]);
        let found = judged(&files, &["torch", "torch", "candle", "candle", "candle/fused"]);
        let verdict = of(&found, "eager", "fused");
        (verdict.decision.clone(), verdict.evidence.clone())
    };
    let (found, evidence) = decision(0.25, 0.125, 1.0);
    assert_eq!(found, Decision::WorseRounding { worse: "fused".to_owned() });
    let no_more = "but no more than the rounding of torch, 2.00e-1, on the same inputs";
    assert!(evidence.ends_with(no_more), "{evidence}");
    assert_eq!(
        decision(0.0625, 0.125, 1.0).0,
        Decision::Diverged,
        "the fused backend differs by more than torch rounds"
    );
    assert_eq!(decision(0.25, 0.125, 1.5).0, Decision::Diverged, "torch computes another function");
}

#[test]
fn float64_results_that_differ_like_float32_are_not_trusted_where_float32_is_identical() {
    let shape = [1, 4, 2000];
    let exact: Vec<f64> = noise(1, 8000).iter().map(|x| 5.0 * x).collect();
    let f32_result = added(&exact, &noise(3, 8000), 1e-6);
    let check = |apart: f64, other: &[f64]| {
        let mut files = Files::new();
        files
            .add("a_f64", Dtype::F64, shape, &exact)
            .add("a", Dtype::F32, shape, &f32_result)
            .add("b_f64", Dtype::F64, shape, &added(&exact, &noise(2, 8000), apart))
            .add("b", Dtype::F32, shape, other)
            .add("b_sdpa", Dtype::F32, shape, &added(&exact, &noise(4, 8000), 1e-6));
        judged(&files, &["a", "a", "b", "b", "b/sdpa"])
    };
    let found = check(1e-6, &f32_result);
    for (a, b) in [("a", "b_sdpa"), ("a_f64", "b_f64")] {
        let verdict = of(&found, a, b);
        assert_eq!(verdict.decision, Decision::SameMathematics, "{verdict:?}");
        assert!(verdict.evidence.contains("a and b are identical"), "{verdict:?}");
    }
    // Float64 decides where float32 is not identical, and where it differs by more than float32 rounds.
    for found in [check(1e-6, &added(&exact, &noise(5, 8000), 1e-6)), check(1e-3, &f32_result)] {
        let verdict = of(&found, "a", "b_sdpa");
        assert_eq!(verdict.decision, Decision::Diverged, "{verdict:?}");
    }
}

#[test]
fn a_measured_envelope_replaces_the_fixed_limit_of_bf16() {
    let shape = [1, 4, 2000];
    let exact: Vec<f64> = noise(1, 8000).iter().map(|x| 5.0 * x).collect();
    let decided = |spread: f64, of_envelope: f64, tolerances: &Tolerances| {
        let result = |seed: u64, spread: f64| bf16(&added(&exact, &noise(seed, 8000), spread));
        let mut files = Files::new();
        files.add("a", Dtype::Bf16, shape, &result(2, 0.01)).add("b", Dtype::Bf16, shape, &result(3, spread));
        let mut repeated = Files::new();
        for seed in 10..15 {
            repeated.add(&format!("a{seed}"), Dtype::Bf16, shape, &result(seed, of_envelope));
        }
        let envelope = Envelope::of(&repeated.entries, None).unwrap();
        assert_eq!((envelope.results, envelope.dtype), (5, Dtype::Bf16));
        let measured = files.matrix(None);
        let oracles = Oracles::new(&measured, &origins(&["x", "y"])).with_envelopes([envelope]);
        verdicts(&measured, &oracles, tolerances).remove(0)
    };
    let ours = Tolerances::default();
    // About 0.03 apart: within the fixed 0.064, but beyond 3 times what this program's own rounding does.
    let tight = decided(0.15, 0.01, &ours);
    assert_eq!(tight.decision, Decision::Diverged, "{}", tight.evidence);
    assert!(tight.evidence.contains("the limit was measured: 5 results of a10"), "{}", tight.evidence);
    assert_eq!(decided(0.02, 0.01, &ours).decision, Decision::SameMathematics);
    // About 0.1 apart: beyond the fixed limit, but within what the program's own rounding does.
    assert_eq!(decided(0.5, 0.5, &ours).decision, Decision::SameMathematics);
    let stated = Tolerances { relative_l2: PerDtype { bf16: 0.065, ..ours.relative_l2 }, ..ours };
    let kept = decided(0.15, 0.01, &stated);
    assert_eq!(kept.decision, Decision::SameMathematics, "a config's limit is kept: {}", kept.evidence);
    assert!(kept.evidence.contains("the limit is a fixed one"), "{}", kept.evidence);
}
