//! Metrics, matrix and verdicts over logits files that the tests write.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use proptest::prelude::*;
use reference::protocol::{Dtype, LOGITS, Positions};
use safetensors::tensor::TensorView;
use serde_json::Value;
use tempfile::TempDir;
use tfcheck::compare::choices;
use tfcheck::compare::logits::{Logits, LogitsError, Mask};
use tfcheck::compare::matrix::{
    Entry, Incomparable, Matrix, MetricSet, Options, PairOutcome, matrix,
};
use tfcheck::compare::metrics::{KlSummary, PairMetrics, PositionIndex, Side};
use tfcheck::compare::oracle::{Oracles, accuracies};
use tfcheck::compare::verdict::{Decision, Tolerances, Verdict, verdicts};

/// Files of a test, and the entries over them.
struct Files {
    folder: TempDir,
    entries: Vec<Entry>,
}

impl Files {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            entries: Vec::new(),
        }
    }

    fn add(&mut self, name: &str, dtype: Dtype, shape: [usize; 3], values: &[f64]) -> &mut Self {
        let positions = if shape[1] == 1 {
            Positions::Last
        } else {
            Positions::All
        };
        let path = self.folder.path().join(format!("{name}.safetensors"));
        write(&path, dtype, shape, values);
        let logits = Logits::open(&path, positions).map_err(|error| error.to_string());
        self.entries.push(Entry {
            name: name.to_owned(),
            dtype,
            logits,
        });
        self
    }

    fn matrix(&self, mask: Option<&Mask>) -> Matrix {
        matrix(&self.entries, mask, &Options::default()).unwrap()
    }
}

/// Logits as a worker writes them: f64 for f64, f32 for all else.
fn write(path: &Path, dtype: Dtype, shape: [usize; 3], values: &[f64]) {
    let (stored, bytes): (_, Vec<u8>) = match dtype {
        Dtype::F64 => (
            safetensors::Dtype::F64,
            values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ),
        _ => (
            safetensors::Dtype::F32,
            values
                .iter()
                .flat_map(|&x| (x as f32).to_le_bytes())
                .collect(),
        ),
    };
    let view = TensorView::new(stored, shape.to_vec(), &bytes).unwrap();
    safetensors::serialize_to_file([(LOGITS, view)], None, path).unwrap();
}

fn pair(matrix: &Matrix, a: usize, b: usize) -> &PairMetrics {
    matrix
        .compared(a, b)
        .unwrap_or_else(|| panic!("pair ({a}, {b}): {:?}", matrix.pair(a, b)))
}

/// A reproducible sequence in [−1, 1).
fn noise(seed: u64, n: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
        })
        .collect()
}

fn added(a: &[f64], b: &[f64], factor: f64) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + factor * b).collect()
}

fn bf16(values: &[f64]) -> Vec<f64> {
    values
        .iter()
        .map(|&x| half::bf16::from_f64(x).to_f64())
        .collect()
}

/// Equal to 1e-12, relative or absolute: the bar of the issue for sums in f64 of at most 10⁴ terms.
fn check(what: &str, got: f64, expected: f64) {
    if expected.is_nan() {
        assert!(got.is_nan(), "{what}: {got}, expected NaN");
    } else if expected.is_infinite() {
        assert!(
            got.is_infinite() && got.is_sign_positive() == expected.is_sign_positive(),
            "{what}: {got}"
        );
    } else {
        let limit = 1e-12
            * expected
                .abs()
                .max(if what.contains("kl") { 1.0 } else { 0.0 });
        assert!(
            (got - expected).abs() <= limit,
            "{what}: {got:e}, expected {expected:e}"
        );
    }
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| value.as_str().unwrap().parse().unwrap())
}

#[test]
fn metrics_agree_with_numpy_on_random_and_adversarial_arrays() {
    let fixture: Value = serde_json::from_str(include_str!("fixtures/metrics.json")).unwrap();
    let size = |name: &str| fixture[name].as_u64().unwrap() as usize;
    let (rows, vocab, k) = (size("rows"), size("vocab"), size("k"));
    for case in fixture["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let values = |side: &str| -> Vec<f64> {
            let bits = case[side].as_array().unwrap().iter();
            bits.map(|bits| f64::from(f32::from_bits(bits.as_u64().unwrap() as u32)))
                .collect()
        };
        let mut files = Files::new();
        files
            .add("a", Dtype::F32, [1, rows, vocab], &values("a"))
            .add("b", Dtype::F32, [1, rows, vocab], &values("b"));
        let measured = matrix(
            &files.entries,
            None,
            &Options {
                top_k: k,
                ..Options::default()
            },
        )
        .unwrap();
        let (pair, expected) = (pair(&measured, 0, 1), &case["expected"]);
        let check =
            |what: &str, got: f64| check(&format!("{name} {what}"), got, number(&expected[what]));
        check("l2", pair.l2);
        check("norm_a", pair.norm_a);
        check("norm_b", pair.norm_b);
        check("cosine", pair.cosine);
        check("max_abs", pair.max_abs);
        let at = pair.max_abs_at.map(|at| vec![at.at.position, at.token]);
        assert_eq!(
            serde_json::to_value(at).unwrap(),
            expected["max_abs_at"],
            "{name} max_abs_at"
        );
        assert_eq!(
            serde_json::to_value(pair.max_ulp).unwrap(),
            expected["max_ulp"],
            "{name} max_ulp"
        );
        let distribution = pair.distribution.as_ref().unwrap();
        for (what, got) in [
            ("kl", distribution.kl),
            ("kl_reversed", distribution.kl_reversed),
        ] {
            let KlSummary {
                mean,
                median,
                p999,
                max,
                undefined,
            } = got;
            for (part, got) in [
                ("mean", mean),
                ("median", median),
                ("p999", p999),
                ("max", max),
            ] {
                self::check(
                    &format!("{name} {what} {part}"),
                    got,
                    number(&expected[what][part]),
                );
            }
            assert_eq!(
                undefined as u64, expected[what]["undefined"],
                "{name} {what} undefined"
            );
        }
        check("top1", distribution.top1_agreement);
        check("top_k", distribution.top_k_agreement);
        let first = distribution.first_greedy_divergence.map(|at| at.position);
        assert_eq!(
            serde_json::to_value(first).unwrap(),
            expected["first"],
            "{name} first"
        );
        for (index, at) in pair.per_position.iter().enumerate() {
            self::check(
                &format!("{name} position {index}"),
                at.l2,
                number(&expected["l2_per_position"][index]),
            );
        }
        let (a, b) = (distribution.non_finite_a, distribution.non_finite_b);
        assert_eq!(
            serde_json::json!([a.nan, b.nan]),
            expected["nan"],
            "{name} nan"
        );
        assert_eq!(
            serde_json::json!([a.infinite, b.infinite]),
            expected["infinite"],
            "{name} infinite"
        );
        assert_eq!(pair.identical, case["a"] == case["b"], "{name} identical");
    }
}

/// The plain loop that the blocked pass has to equal.
fn brute_l2(a: &[f64], b: &[f64]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| (f64::from(*a as f32) - f64::from(*b as f32)).powi(2))
        .sum::<f64>()
        .sqrt()
}

#[test]
fn matrix_equals_the_pairwise_brute_force_and_does_not_depend_on_the_block() {
    let shape = [2, 3, 1003];
    let n = shape.iter().product();
    let mut files = Files::new();
    let values: Vec<Vec<f64>> = (0..5).map(|seed| noise(seed + 1, n)).collect();
    for (index, values) in values.iter().enumerate() {
        let dtype = if index == 4 { Dtype::Bf16 } else { Dtype::F32 };
        files.add(&index.to_string(), dtype, shape, values);
    }
    let whole = files.matrix(None);
    for a in 0..5 {
        for b in 0..5 {
            check(
                &format!("({a}, {b})"),
                pair(&whole, a, b).l2,
                brute_l2(&values[a], &values[b]),
            );
        }
    }
    for block in [16, 48, 1008, 4096] {
        let options = Options {
            block: Some(block),
            ..Options::default()
        };
        // Bit for bit: the lanes' partial sums do not know where a block ends.
        assert_eq!(
            matrix(&files.entries, None, &options).unwrap(),
            whole,
            "block {block}"
        );
    }
    let family = matrix(
        &files.entries,
        None,
        &Options {
            metrics: MetricSet::L2Family,
            ..Options::default()
        },
    )
    .unwrap();
    for (a, b) in [(0, 1), (2, 4), (3, 3)] {
        let (fast, full) = (pair(&family, a, b), pair(&whole, a, b));
        assert_eq!(
            (fast.l2, fast.cosine, fast.max_abs),
            (full.l2, full.cosine, full.max_abs)
        );
        assert_eq!(fast.distribution, None);
    }
}

#[test]
fn padding_is_not_compared() {
    let shape = [2, 4, 8];
    let base = noise(1, 64);
    let mut other = base.clone();
    // Row 0 is padded on the left, row 1 on the right; only padding differs.
    other[..16].fill(f64::NAN);
    other[(4 + 3) * 8..].fill(1e6);
    let real = vec![false, false, true, true, true, true, true, false];
    let mask = Mask::new(2, 4, real).unwrap();
    let mut files = Files::new();
    files
        .add("a", Dtype::F32, shape, &base)
        .add("b", Dtype::F32, shape, &other);
    let measured = files.matrix(Some(&mask));
    assert!(pair(&measured, 0, 1).identical);
    assert_eq!(pair(&measured, 0, 1).positions, 5);
    assert!(!pair(&files.matrix(None), 0, 1).identical);
}

#[test]
fn a_file_of_last_positions_is_compared_where_the_last_column_is_real() {
    let base = noise(3, 2 * 3 * 8);
    let last: Vec<f64> = [&base[16..24], &base[40..48]].concat();
    let mut files = Files::new();
    files
        .add("all", Dtype::F32, [2, 3, 8], &base)
        .add("last", Dtype::F32, [2, 1, 8], &last);
    let measured = files.matrix(None);
    let whole = pair(&measured, 0, 1);
    assert!(whole.identical && whole.last_positions_only);
    assert_eq!(whole.positions, 2);

    // The second row ends in padding, of which the file of last positions holds the logits.
    let mask = Mask::new(2, 3, vec![true, true, true, true, true, false]).unwrap();
    let measured = files.matrix(Some(&mask));
    assert_eq!(pair(&measured, 0, 1).positions, 1);

    let mask = Mask::new(2, 3, vec![true, false, false, true, true, false]).unwrap();
    let outcome = PairOutcome::Incomparable(Incomparable::NoCommonPosition);
    assert_eq!(files.matrix(Some(&mask)).pair(0, 1), &outcome);
}

#[test]
fn mismatched_files_are_incomparable_and_the_others_still_compare() {
    let mut files = Files::new();
    files
        .add("base", Dtype::F32, [1, 3, 8], &noise(1, 24))
        .add("same", Dtype::F32, [1, 3, 8], &noise(2, 24))
        .add("vocabulary", Dtype::F32, [1, 3, 7], &noise(3, 21))
        .add("longer", Dtype::F32, [1, 4, 8], &noise(4, 32))
        .add("batch", Dtype::F32, [2, 3, 8], &noise(5, 48));
    files.entries.push(Entry {
        name: "dead".to_owned(),
        dtype: Dtype::F32,
        logits: Err("crashed".to_owned()),
    });
    let measured = files.matrix(None);
    let check = |b: usize, reason: Incomparable| {
        assert_eq!(measured.pair(0, b), &PairOutcome::Incomparable(reason))
    };
    pair(&measured, 0, 1);
    check(2, Incomparable::Vocabulary(8, 7));
    check(3, Incomparable::Positions(3, 4));
    check(4, Incomparable::Batch(1, 2));
    assert_eq!(
        measured.pair(0, 5),
        &PairOutcome::NotRun("dead: crashed".to_owned())
    );
    assert_eq!(
        measured.pair(5, 5),
        &PairOutcome::NotRun("dead: crashed".to_owned())
    );
}

#[test]
fn pairs_of_two_dtypes_are_also_compared_after_rounding() {
    let exact = noise(9, 3 * 300);
    let mut files = Files::new();
    files.add("f32", Dtype::F32, [1, 3, 300], &exact).add(
        "bf16",
        Dtype::Bf16,
        [1, 3, 300],
        &bf16(&exact),
    );
    let measured = files.matrix(None);
    let mixed = pair(&measured, 0, 1);
    assert!(mixed.l2 > 0.0);
    assert_eq!(mixed.lower_dtype, Dtype::Bf16);
    let rounded = mixed.rounded.unwrap();
    // Rounding f32's value instead of f64's may meet a tie once in 2¹⁵; this sequence has none.
    assert_eq!(
        (rounded.l2, rounded.max_abs, mixed.max_ulp),
        (0.0, 0.0, Some(0))
    );
}

#[test]
fn ulps_are_counted_in_the_dtype_of_the_variants() {
    for (dtype, next) in [
        (Dtype::F64, 1.0 + f64::EPSILON),
        (Dtype::F32, 1.0 + f64::from(f32::EPSILON)),
        (
            Dtype::Bf16,
            half::bf16::from_bits(half::bf16::ONE.to_bits() + 1).to_f64(),
        ),
        (
            Dtype::F16,
            half::f16::from_bits(half::f16::ONE.to_bits() + 1).to_f64(),
        ),
    ] {
        let mut files = Files::new();
        files.add("a", dtype, [1, 2, 3], &[1.0; 6]).add(
            "b",
            dtype,
            [1, 2, 3],
            &[1.0, 1.0, next, 1.0, -0.0, 1.0],
        );
        let one_and_zero = files.matrix(None);
        assert!(
            pair(&one_and_zero, 0, 1).max_ulp.unwrap() > 1,
            "{dtype:?}: 1 and −0 are far apart"
        );
        files.add("c", dtype, [1, 2, 3], &[1.0, 1.0, next, 1.0, 1.0, 1.0]);
        assert_eq!(
            pair(&files.matrix(None), 0, 2).max_ulp,
            Some(1),
            "{dtype:?}"
        );
    }
}

#[test]
fn equal_nan_is_identical_but_its_difference_is_not_zero() {
    let mut values = noise(4, 12);
    values[5] = f64::NAN;
    let mut files = Files::new();
    files
        .add("a", Dtype::F32, [1, 3, 4], &values)
        .add("b", Dtype::F32, [1, 3, 4], &values);
    let measured = files.matrix(None);
    assert!(pair(&measured, 0, 1).identical);
    assert!(pair(&measured, 0, 1).l2.is_nan() && pair(&measured, 0, 0).l2.is_nan());
    values[7] += 1.0;
    files.add("c", Dtype::F32, [1, 3, 4], &values);
    assert!(!pair(&files.matrix(None), 0, 2).identical);
}

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

#[test]
fn logits_of_the_ancestor_are_read_without_unpickling_code() {
    let mut files = Files::new();
    let values: Vec<f64> = (0..12).map(|i| f64::from(i) / 8.0 - 0.5).collect();
    files.add("written", Dtype::F32, [1, 1, 12], &values);
    for (name, dtype) in [
        ("bf16", Dtype::Bf16),
        ("f32", Dtype::F32),
        ("f16", Dtype::F16),
    ] {
        let logits = Logits::open(&fixture(&format!("logits_{name}.pt")), Positions::All).unwrap();
        assert_eq!(
            (logits.shape(), logits.positions(), logits.storage()),
            ([1, 1, 12], Positions::Last, dtype)
        );
        files.entries.push(Entry {
            name: name.to_owned(),
            dtype,
            logits: Ok(logits),
        });
    }
    let measured = files.matrix(None);
    for index in 1..4 {
        assert!(
            pair(&measured, 0, index).identical,
            "{}",
            measured.names[index]
        );
    }
}

#[test]
fn damaged_files_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("logits.safetensors");
    let check = |path: &Path, expected: &str| {
        let error: LogitsError = Logits::open(path, Positions::All).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    };
    write(&path, Dtype::F32, [1, 2, 8], &noise(1, 16));
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    check(&path, "is truncated");
    std::fs::write(&path, &whole[..20]).unwrap();
    check(&path, "is truncated within its header");
    std::fs::write(&path, b"not a tensor at all, but long enough").unwrap();
    check(&path, "is not a safetensors file");
    check(&fixture("not_one_tensor.pt"), "not one tensor");
    check(&fixture("absent.safetensors"), "cannot read");
}

#[test]
fn choices_are_probabilities_at_the_last_real_position() {
    let mut values = vec![0.0; 2 * 3 * 4];
    values[2 * 4] = 3.0_f64.ln();
    values[(3 + 1) * 4 + 1] = f64::from(2000.0_f32);
    let mask = Mask::new(2, 3, vec![true, true, true, true, true, false]).unwrap();
    let mut files = Files::new();
    files.add("a", Dtype::F64, [2, 3, 4], &values);
    let found = choices(files.entries[0].logits.as_ref().unwrap(), &mask, &[0, 1, 9]).unwrap();
    let first = found[0].as_ref().unwrap();
    check("three of six", first[0].unwrap(), 0.5);
    check("one of six", first[1].unwrap(), 1.0 / 6.0);
    assert_eq!(first[2], None, "token 9 is outside the vocabulary");
    assert_eq!(
        found[1].as_ref().unwrap()[1],
        Some(1.0),
        "a large logit does not overflow"
    );
}

fn judged(files: &Files, families: &[&str]) -> Vec<Verdict> {
    let measured = files.matrix(None);
    let families: Vec<String> = families.iter().map(|&family| family.to_owned()).collect();
    verdicts(
        &measured,
        &Oracles::new(&measured, &families),
        &Tolerances::default(),
    )
}

/// One pair without an oracle.
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
        let exact: Vec<f64> = noise(seed + 100, WIDE_LENGTH)
            .iter()
            .map(|x| 12.0 * x * x * x)
            .collect();
        // Two bf16 paths: errors of some bf16 epsilons (2⁻⁸) relative to the row, then bf16 logits.
        let path = |salt: u64| bf16(&added(&exact, &noise(seed + salt, WIDE_LENGTH), 0.05));
        assert_eq!(
            verdict_of(Dtype::Bf16, WIDE, &path(1), &path(2)),
            Decision::SameMathematics,
            "bf16 {seed}"
        );
        let path = |salt: u64| added(&exact, &noise(seed + salt, WIDE_LENGTH), 1e-5);
        assert_eq!(
            verdict_of(Dtype::F32, WIDE, &path(3), &path(4)),
            Decision::SameMathematics,
            "f32 {seed}"
        );
        // One last bit of one logit.
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
            if dtype == Dtype::Bf16 {
                bf16(&values)
            } else {
                values
            }
        };
        let mut wrong = added(&exact, &noise(8, WIDE_LENGTH), spread);
        for position in 0..4 {
            wrong[position * 49152 + 40000] += change;
        }
        let right = round(added(&exact, &noise(9, WIDE_LENGTH), spread));
        let decision = verdict_of(dtype, WIDE, &right, &round(wrong));
        assert_eq!(
            decision,
            Decision::Diverged,
            "{dtype:?}: one token of 49152"
        );
    }
}

#[test]
fn a_single_wrong_position_among_many_does_not_pass() {
    let shape = [1, 512, 256];
    let exact: Vec<f64> = noise(7, 512 * 256).iter().map(|x| 5.0 * x).collect();
    let mut wrong = added(&exact, &noise(8, 512 * 256), 0.02);
    // The window is off by one at the last position only: its logits move by a third.
    for (x, moved) in wrong[511 * 256..].iter_mut().zip(noise(10, 256)) {
        *x += 2.5 * moved;
    }
    assert_eq!(
        verdict_of(Dtype::Bf16, shape, &bf16(&exact), &bf16(&wrong)),
        Decision::Diverged
    );
}

#[test]
fn without_an_oracle_the_evidence_says_so() {
    let mut files = Files::new();
    files.add("a", Dtype::F32, [1, 2, 8], &[1.0; 16]).add(
        "b",
        Dtype::F32,
        [1, 2, 8],
        &[1.000_001; 16],
    );
    let verdict = judged(&files, &["x", "y"]).remove(0);
    assert_eq!(verdict.decision, Decision::SameMathematics);
    assert!(
        verdict.evidence.contains("no float64 oracle was run"),
        "{}",
        verdict.evidence
    );
}

#[test]
fn float64_tells_a_bug_that_bfloat16_hides_from_rounding() {
    let shape = [1, 4, 2000];
    let exact: Vec<f64> = noise(1, 8000).iter().map(|x| 5.0 * x).collect();
    let mut files = Files::new();
    // Another epsilon in the norm: 1e-4, far below bf16's rounding.
    let wrong: Vec<f64> = exact.iter().map(|x| x * (1.0 + 1e-4)).collect();
    files
        .add(
            "a_bf16",
            Dtype::Bf16,
            shape,
            &bf16(&added(&exact, &noise(2, 8000), 0.02)),
        )
        .add(
            "b_bf16",
            Dtype::Bf16,
            shape,
            &bf16(&added(&wrong, &noise(3, 8000), 0.02)),
        )
        .add("a_f64", Dtype::F64, shape, &exact);
    let found = judged(&files, &["a", "b", "a"]);
    assert_eq!(found[0].decision, Decision::SameMathematics);
    assert!(
        found[0].evidence.contains("no float64 result of its own"),
        "{}",
        found[0].evidence
    );
    files.add("b_f64", Dtype::F64, shape, &wrong);
    let found = judged(&files, &["a", "b", "a", "b"]);
    assert_eq!(
        found[0].decision,
        Decision::Diverged,
        "{}",
        found[0].evidence
    );
}

#[test]
fn with_agreeing_oracles_the_worse_rounding_is_named_and_a_broken_fast_path_diverges() {
    let shape = [1, 4, 2000];
    let exact: Vec<f64> = noise(1, 8000).iter().map(|x| 5.0 * x).collect();
    let mut files = Files::new();
    files
        .add("a_f64", Dtype::F64, shape, &exact)
        .add(
            "b_f64",
            Dtype::F64,
            shape,
            &added(&exact, &noise(5, 8000), 1e-13),
        )
        .add(
            "a",
            Dtype::Bf16,
            shape,
            &bf16(&added(&exact, &noise(2, 8000), 0.01)),
        )
        .add(
            "b",
            Dtype::Bf16,
            shape,
            &bf16(&added(&exact, &noise(3, 8000), 0.01)),
        )
        .add(
            "b_sloppy",
            Dtype::Bf16,
            shape,
            &bf16(&added(&exact, &noise(4, 8000), 0.2)),
        )
        .add(
            "b_broken",
            Dtype::Bf16,
            shape,
            &bf16(&added(&exact, &noise(6, 8000), 1.0)),
        )
        .add(
            "b_f32",
            Dtype::F32,
            shape,
            &added(&exact, &noise(8, 8000), 1e-5),
        );
    let families = ["a", "b", "a", "b", "b", "b", "b"];
    let found = judged(&files, &families);
    let decision = |a: &str, b: &str| {
        found
            .iter()
            .find(|verdict| verdict.a == a && verdict.b == b)
            .unwrap()
    };
    assert_eq!(
        decision("a_f64", "b_f64").decision,
        Decision::SameMathematics
    );
    assert_eq!(decision("a", "b").decision, Decision::SameMathematics);
    let sloppy = Decision::WorseRounding {
        worse: "b_sloppy".to_owned(),
    };
    assert_eq!(decision("a", "b_sloppy").decision, sloppy);
    assert_eq!(decision("a", "b_broken").decision, Decision::Diverged);
    assert_eq!(
        decision("b", "b_f32").decision,
        Decision::SameMathematics,
        "another dtype is not a worse one"
    );

    let measured = files.matrix(None);
    let oracles = Oracles::new(&measured, &families.map(str::to_owned));
    let errors = accuracies(&measured, &oracles);
    let of = |variant: usize| {
        errors
            .iter()
            .find(|accuracy| accuracy.variant == variant)
            .unwrap()
    };
    assert_eq!(of(3).oracle, 1);
    // Uniform noise of ±0.2 has an RMS of 0.2/√3; bf16's own rounding adds a little.
    assert!(
        (of(4).rmse - 0.2 / 3.0_f64.sqrt()).abs() < 5e-3,
        "{}",
        of(4).rmse
    );
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
        // Rounding of sums of 63 terms is below 1e-14 of them.
        prop_assert!(ac.l2 <= (ab.l2 + bc.l2) * (1.0 + 1e-14), "triangle");
        prop_assert!(pair(&m, 0, 0).l2 == 0.0 && pair(&m, 0, 0).identical, "identity");
        prop_assert!(ab.max_abs <= ab.l2 * (1.0 + 1e-14), "max is a lower bound of L2");
        prop_assert!((-1.0..=1.0).contains(&ab.cosine), "cosine");
        let distribution = ab.distribution.as_ref().unwrap();
        prop_assert!(distribution.kl.mean >= 0.0 && distribution.kl_reversed.mean >= 0.0, "KL");
        prop_assert!((0.0..=1.0).contains(&distribution.top_k_agreement), "top-k");
        let PairOutcome::Compared(ba) = m.oriented(1, 0) else { panic!("not compared") };
        prop_assert!(ba.l2 == ab.l2 && ba.relative_l2(Side::B) == ab.relative_l2(Side::A), "symmetry");
        prop_assert!(ba.distribution.unwrap().kl == distribution.kl_reversed, "KL changes sides");
        prop_assert_eq!(pair(&m, 0, 3).identical, a[swap] == a[swap + 1], "a permutation is seen");
        let beyond = PositionIndex { row: 1, position: 0 };
        prop_assert!(ab.worst_position.1 < beyond);
    }
}
