//! Tests which positions and files are compared, and that the blocked loops equal plain loops.

use std::path::Path;

use compare::choices;
use compare::logits::{Logits, LogitsError};
use compare::mask::Mask;
use compare::matrix::{Entry, Incomparable, MetricSet, Options, PairOutcome, matrix};
use compare::{Dtype, Positions};
use tfcheck::results::torch_zip;

use super::files::{Files, bf16, noise, pair, write};
use super::metrics::check;

/// The plain loop that the blocked loops must equal.
fn brute_l2(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a as f32) - f64::from(*b as f32)).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn matrix_equals_the_pairwise_brute_force_and_does_not_depend_on_the_block() {
    let shape = [2, 3, 1003];
    let n = shape.iter().product();
    let mut files = Files::new();
    // Enough entries that pairs are measured both in groups and singly; entry 6 holds the last positions only.
    let values: Vec<Vec<f64>> = (0..11).map(|seed| noise(seed + 1, n)).collect();
    let last = |values: &[f64]| [&values[2 * 1003..3 * 1003], &values[5 * 1003..]].concat();
    for (index, values) in values.iter().enumerate() {
        let dtype = if index == 4 { Dtype::Bf16 } else { Dtype::F32 };
        if index == 6 {
            files.add(&index.to_string(), dtype, [2, 1, 1003], &last(values));
        } else {
            files.add(&index.to_string(), dtype, shape, values);
        }
    }
    let whole = files.matrix(None);
    for a in 0..11 {
        for b in 0..11 {
            let expected = if a == 6 || b == 6 {
                brute_l2(&last(&values[a]), &last(&values[b]))
            } else {
                brute_l2(&values[a], &values[b])
            };
            check(&format!("({a}, {b})"), pair(&whole, a, b).l2, expected);
        }
    }
    for block in [16, 48, 1008, 4096] {
        let options = Options { block: Some(block), ..Options::default() };
        // Bitwise equal, because the lanes' partial sums continue across blocks.
        assert_eq!(matrix(&files.entries, None, &options).unwrap(), whole, "block {block}");
    }
    let family =
        matrix(&files.entries, None, &Options { metrics: MetricSet::L2Family, ..Options::default() })
            .unwrap();
    for (a, b) in [(0, 1), (2, 4), (3, 3)] {
        let (fast, full) = (pair(&family, a, b), pair(&whole, a, b));
        assert_eq!((fast.l2, fast.cosine, fast.max_abs), (full.l2, full.cosine, full.max_abs));
        assert_eq!(fast.distribution, None);
    }
}

/// Squares of these differences overflow, underflow, or are NaN beside the largest difference.
#[test]
fn the_largest_difference_and_the_cosine_are_those_of_plain_loops() {
    let (shape, n) = ([1, 2, 1003], 2 * 1003);
    let scaled = |seed, scale: f64| noise(seed, n).iter().map(|x| x * scale).collect::<Vec<f64>>();
    let with = |changes: &[(usize, f64)]| {
        let mut values = noise(1, n);
        for &(index, value) in changes {
            values[index] = value;
        }
        values
    };
    let values = [
        noise(1, n),
        noise(2, n),
        scaled(3, 1e-200),
        scaled(4, 1e-200),
        scaled(5, 1e200),
        scaled(6, 3e3),
        with(&[(3, f64::NAN), (11, 1e3), (700, 5e2)]),
        with(&[(1500, f64::INFINITY), (40, 1e9)]),
        with(&[(1700, 2e200), (1, 1e200)]),
        vec![0.0; n],
    ];
    let mut files = Files::new();
    for (index, values) in values.iter().enumerate() {
        files.add(&index.to_string(), Dtype::F64, shape, values);
    }
    let measured = files.matrix(None);
    for a in 0..values.len() {
        for b in (0..values.len()).filter(|&b| b != a) {
            let pairs = || values[a].iter().zip(&values[b]);
            let sum = |of: fn(&f64, &f64) -> f64| pairs().map(|(a, b)| of(a, b)).sum::<f64>();
            let found = pair(&measured, a.min(b), a.max(b));
            let max = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            let undefined = pairs().any(|(a, b)| (a - b).is_nan());
            check(&format!("({a}, {b}) max"), found.max_abs, if undefined { f64::NAN } else { max });
            assert_eq!(found.max_abs_at.is_none(), undefined, "({a}, {b})");
            assert!(!found.identical, "({a}, {b})");
            let (norm_a, norm_b) = (sum(|a, _| a * a).sqrt(), sum(|_, b| b * b).sqrt());
            if [norm_a, norm_b].iter().all(|norm| norm.is_finite() && *norm > 0.0) {
                let cosine = sum(|a, b| a * b) / norm_a / norm_b;
                assert!((found.cosine - cosine).abs() < 1e-12, "({a}, {b}): {} and {cosine}", found.cosine);
            } else {
                assert!(found.cosine.is_nan(), "({a}, {b}): {}", found.cosine);
            }
        }
    }
}

#[test]
fn files_with_one_digest_are_measured_once_and_give_the_same_matrix() {
    let shape = [1, 3, 200];
    // Of entries 1 and 3 the later one comes first in a pair with a copy of the other.
    let seeds = [1, 2, 1, 3, 2, 3, 4];
    let files = |digests: bool| {
        let mut files = Files::new();
        for (index, seed) in seeds.into_iter().enumerate() {
            files.add(&index.to_string(), Dtype::F32, shape, &noise(seed, 600));
        }
        for (entry, seed) in files.entries.iter_mut().zip(seeds).filter(|_| digests) {
            let known = std::mem::replace(&mut entry.logits, Err(String::new()));
            entry.logits = known.map(|logits| logits.with_digest(Some(seed.to_string())));
        }
        files
    };
    assert_eq!(files(true).matrix(None), files(false).matrix(None));

    // Files that differ although a digest says that they do not: they are not read.
    let mut told = Files::new();
    told.add("a", Dtype::F32, shape, &noise(1, 600)).add("b", Dtype::F32, shape, &noise(2, 600));
    for entry in &mut told.entries {
        let known = std::mem::replace(&mut entry.logits, Err(String::new()));
        entry.logits = known.map(|logits| logits.with_digest(Some("one".to_owned())));
    }
    assert!(pair(&told.matrix(None), 0, 1).identical);
}

#[test]
fn a_reversed_pair_is_the_pair_measured_in_the_other_order() {
    let shape = [1, 3, 200];
    let mut files = Files::new();
    files.add("a", Dtype::F32, shape, &noise(1, 600)).add("b", Dtype::F32, shape, &noise(2, 600));
    let reversed = files.matrix(None).oriented(1, 0);
    files.entries.reverse();
    assert_eq!(files.matrix(None).oriented(0, 1), reversed);
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
    files.add("a", Dtype::F32, shape, &base).add("b", Dtype::F32, shape, &other);
    let measured = files.matrix(Some(&mask));
    assert!(pair(&measured, 0, 1).identical);
    assert_eq!(pair(&measured, 0, 1).positions, 5);
    assert!(!pair(&files.matrix(None), 0, 1).identical);
}

#[test]
fn a_last_position_file_is_compared_only_in_rows_that_end_in_a_real_token() {
    let base = noise(3, 2 * 3 * 8);
    let last: Vec<f64> = [&base[16..24], &base[40..48]].concat();
    let mut files = Files::new();
    files.add("all", Dtype::F32, [2, 3, 8], &base).add("last", Dtype::F32, [2, 1, 8], &last);
    let measured = files.matrix(None);
    let whole = pair(&measured, 0, 1);
    assert!(whole.identical && whole.last_positions_only);
    assert_eq!(whole.positions, 2);

    // The second row ends in padding; the last-position file holds the logits of that padding.
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
        assert_eq!(measured.pair(0, b), &PairOutcome::Incomparable(reason));
    };
    pair(&measured, 0, 1);
    check(2, Incomparable::Vocabulary(8, 7));
    check(3, Incomparable::Positions(3, 4));
    check(4, Incomparable::Batch(1, 2));
    assert_eq!(measured.pair(0, 5), &PairOutcome::NotRun("dead: crashed".to_owned()));
    assert_eq!(measured.pair(5, 5), &PairOutcome::NotRun("dead: crashed".to_owned()));
}

#[test]
fn pairs_of_two_dtypes_are_also_compared_after_rounding() {
    let exact = noise(9, 3 * 300);
    let mut files = Files::new();
    files.add("f32", Dtype::F32, [1, 3, 300], &exact).add("bf16", Dtype::Bf16, [1, 3, 300], &bf16(&exact));
    let measured = files.matrix(None);
    let mixed = pair(&measured, 0, 1);
    assert!(mixed.l2 > 0.0);
    assert_eq!(mixed.lower_dtype, Dtype::Bf16);
    let rounded = mixed.rounded.unwrap();
    // Rounding the f32 value instead of the f64 one can differ at a tie, once in about 2¹⁵ values; here are none.
    assert_eq!((rounded.l2, rounded.max_abs, mixed.max_ulp), (0.0, 0.0, Some(0)));
}

#[test]
fn ulps_are_counted_in_the_dtype_of_the_variants() {
    for (dtype, next) in [
        (Dtype::F64, 1.0 + f64::EPSILON),
        (Dtype::F32, 1.0 + f64::from(f32::EPSILON)),
        (Dtype::Bf16, half::bf16::from_bits(half::bf16::ONE.to_bits() + 1).to_f64()),
        (Dtype::F16, half::f16::from_bits(half::f16::ONE.to_bits() + 1).to_f64()),
    ] {
        let mut files = Files::new();
        files.add("a", dtype, [1, 2, 3], &[1.0; 6]).add(
            "b",
            dtype,
            [1, 2, 3],
            &[1.0, 1.0, next, 1.0, -0.0, 1.0],
        );
        let one_and_zero = files.matrix(None);
        assert!(pair(&one_and_zero, 0, 1).max_ulp.unwrap() > 1, "{dtype:?}: 1 and −0 are far apart");
        files.add("c", dtype, [1, 2, 3], &[1.0, 1.0, next, 1.0, 1.0, 1.0]);
        assert_eq!(pair(&files.matrix(None), 0, 2).max_ulp, Some(1), "{dtype:?}");
    }
}

#[test]
fn equal_nan_is_identical_but_its_difference_is_not_zero() {
    let mut values = noise(4, 12);
    values[5] = f64::NAN;
    let mut files = Files::new();
    files.add("a", Dtype::F32, [1, 3, 4], &values).add("b", Dtype::F32, [1, 3, 4], &values);
    let measured = files.matrix(None);
    assert!(pair(&measured, 0, 1).identical);
    assert!(pair(&measured, 0, 1).l2.is_nan() && pair(&measured, 0, 0).l2.is_nan());
    values[7] += 1.0;
    files.add("c", Dtype::F32, [1, 3, 4], &values);
    assert!(!pair(&files.matrix(None), 0, 2).identical);
}

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[test]
fn logits_of_a_legacy_run_are_read_without_unpickling_code() {
    let mut files = Files::new();
    let values: Vec<f64> = (0..12).map(|i| f64::from(i) / 8.0 - 0.5).collect();
    files.add("written", Dtype::F32, [1, 1, 12], &values);
    for (name, dtype) in [("bf16", Dtype::Bf16), ("f32", Dtype::F32), ("f16", Dtype::F16)] {
        let logits = torch_zip::open(&fixture(&format!("logits_{name}.pt"))).unwrap();
        assert_eq!(
            (logits.shape(), logits.positions(), logits.storage()),
            ([1, 1, 12], Positions::Last, dtype)
        );
        files.entries.push(Entry { name: name.to_owned(), dtype, logits: Ok(logits) });
    }
    let measured = files.matrix(None);
    for index in 1..4 {
        assert!(pair(&measured, 0, index).identical, "{}", measured.names[index]);
    }
}

#[test]
fn damaged_files_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("logits.safetensors");
    let open = |path: &Path| match path.extension() {
        Some(extension) if extension == "pt" => torch_zip::open(path),
        _ => Logits::open(path, Positions::All),
    };
    let check = |path: &Path, expected: &str| {
        let error: LogitsError = open(path).unwrap_err();
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
    check(&fixture("absent.safetensors"), "cannot be read");
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
    assert_eq!(found[1].as_ref().unwrap()[1], Some(1.0), "a large logit does not overflow");
}
