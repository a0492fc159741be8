//! Tests that `tfcheck-port` gives the same metrics and verdict on a port's logits in memory as `compare` on files.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use compare::logits::Logits;
use compare::mask::Mask;
use compare::matrix::{Entry, Options, matrix};
use compare::oracle::{Oracles, Origin, accuracies};
use compare::verdict::{Tolerances, verdicts};
use reference::protocol::{Dtype, LOGITS};
use safetensors::tensor::TensorView;
use tfcheck::spec::variant::measured_dtype;
use tfcheck_port::{Limits, Recorded, Recording, Reference, SCHEMA_VERSION, Tensors};

const BATCH: usize = 2;
const SEQ: usize = 6;
const VOCAB: usize = 2048;

/// A reproducible sequence of uniform values in ±1.
fn noise(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / f64::from(1_u32 << 30) - 1.0
    }
}

fn file(folder: &Path, name: &str, dtype: Dtype, values: &[f64]) -> Entry {
    let path = folder.join(format!("{name}.safetensors"));
    let (stored, bytes): (_, Vec<u8>) = match dtype {
        Dtype::F64 => (safetensors::Dtype::F64, values.iter().flat_map(|x| x.to_le_bytes()).collect()),
        _ => (safetensors::Dtype::F32, values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect()),
    };
    let view = TensorView::new(stored, vec![BATCH, SEQ, VOCAB], &bytes).unwrap();
    safetensors::serialize_to_file([(LOGITS, view)], None, &path).unwrap();
    let logits = Logits::open(&path, compare::Positions::All).map_err(|error| error.to_string());
    Entry { name: name.to_owned(), dtype: measured_dtype(dtype), logits }
}

fn limits(tolerances: &Tolerances) -> [(String, Limits); 2] {
    let of = |relative_l2, dynamo| Limits { relative_l2, local_factor: tolerances.local_factor, dynamo };
    [
        ("f64".to_owned(), of(tolerances.f64_agreement, tolerances.dynamo.f64)),
        ("f32".to_owned(), of(tolerances.relative_l2.f32, tolerances.dynamo.f32)),
    ]
}

/// Compares a port by both crates and asserts that they agree.
fn check(what: &str, change: impl Fn(usize, f64) -> f64, expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut next = noise(1);
    let oracle: Vec<f64> = (0..BATCH * SEQ * VOCAB).map(|_| 4.0 * next()).collect();
    let mut next = noise(2);
    let upstream: Vec<f64> = oracle.iter().map(|x| x + 1e-6 * next()).collect();
    let port: Vec<f64> = oracle.iter().enumerate().map(|(i, &x)| f64::from(change(i, x) as f32)).collect();
    // The second row is padded on the left by two positions.
    let real: Vec<bool> = (0..BATCH * SEQ).map(|i| !(SEQ..SEQ + 2).contains(&i)).collect();
    let mask = Mask::new(BATCH, SEQ, real.clone()).unwrap();
    let entries = [
        file(folder.path(), "port", Dtype::F32, &port),
        file(folder.path(), "upstream_f64", Dtype::F64, &oracle),
        file(folder.path(), "upstream_f32", Dtype::F32, &upstream),
    ];
    let matrix = matrix(&entries, Some(&mask), &Options::default()).unwrap();
    let origins = ["port", "upstream", "upstream"]
        .map(|family| Origin { family: family.to_owned(), path: family.to_owned() });
    let oracles = Oracles::new(&matrix, &origins);
    let tolerances = Tolerances::default();
    let verdicts = verdicts(&matrix, &oracles, &tolerances);
    let verdict = verdicts.iter().find(|verdict| verdict.b == "upstream_f32" && verdict.a == "port").unwrap();
    let accuracies = accuracies(&matrix, &oracles);

    let places: Vec<[i64; 2]> =
        (0..BATCH * SEQ).filter(|&i| real[i]).map(|i| [(i / SEQ) as i64, (i % SEQ) as i64]).collect();
    let rows = (0..BATCH * SEQ).filter(|&i| real[i]).flat_map(|i| &oracle[i * VOCAB..][..VOCAB]);
    let grid: Vec<i64> = (0..BATCH * SEQ).map(|i| i as i64).collect();
    let recorded = Recorded {
        schema_version: SCHEMA_VERSION,
        checkpoint: "none".into(),
        seed: None,
        files: [].into(),
        batch: BATCH,
        seq: SEQ,
        vocab_size: VOCAB,
        real_positions: places.len(),
        reference: Reference { variant: "upstream_f64".into(), dtype: "f64".into(), libraries: [].into() },
        reference_rmse: [(
            "f32".to_owned(),
            accuracies.iter().find(|known| known.variant == 2).unwrap().rmse,
        )]
        .into(),
        limits: limits(&tolerances).into(),
        limits_from: "the defaults".into(),
        tfcheck: "0.1.0".into(),
        tensors_sha256: String::new(),
        modules: Vec::new(),
        surgery: None,
    };
    let tensors = Tensors {
        input_ids: grid.clone(),
        attention_mask: real.iter().map(|&real| i64::from(real)).collect(),
        position_ids: grid,
        places,
        logits: rows.copied().collect(),
        ..Tensors::default()
    };
    Recording::write(folder.path(), &recorded, &tensors).unwrap();
    let recording = Recording::open(folder.path()).unwrap();
    let comparison = recording.compare_values(&[BATCH, SEQ, VOCAB], &port, "f32").unwrap();

    let words = (comparison.verdict.decision.word(), verdict.decision.word());
    assert_eq!(words, (expected, expected), "{what}: {comparison}\ncompare: {}", verdict.evidence);
    // Every metric must be bitwise equal; compared as text, because NaN is unequal to itself.
    let pair = matrix.compared(0, 1).unwrap();
    assert_eq!(format!("{:?}", comparison.metrics), format!("{pair:?}"), "{what}");
}

#[test]
fn a_port_in_memory_gets_the_metrics_and_verdict_of_files() {
    let at = |index: usize, row: usize, position: usize| index / VOCAB == row * SEQ + position;
    check("rounding alone", |_, x| x, "same mathematics");
    check(
        "noise a hundred times upstream's",
        |i, x| x + if i % 2 == 0 { 1.5e-5 } else { -1.5e-5 },
        "worse rounding",
    );
    check("a scale", |_, x| x * 1.01, "diverged");
    check("one position", |i, x| if at(i, 1, 3) { x * 1.0005 } else { x }, "diverged");
    check("one logit", |i, x| if i == 3 * VOCAB + 17 { x + 4e-4 } else { x }, "diverged");
    check("padding alone", |i, x| if at(i, 1, 0) { -x } else { x }, "same mathematics");
    check("NaN", |i, x| if i == 5 { f64::NAN } else { x }, "diverged");
    check("infinity", |i, x| if i == 5 { f64::INFINITY } else { x }, "diverged");
}
