//! Tests that a worker that runs several cells gives the same logits as a separate worker per cell.

#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use reference::protocol::{Dtype, Forward, Load, Request};
use tfcheck::execute::runner::{NoResult, ProcessRunner, Runner, SharedRunner, Start};

const LIMIT: Duration = Duration::from_mins(1);

fn native() -> ProcessRunner {
    ProcessRunner {
        command: vec![env!("CARGO_BIN_EXE_tfcheck").into(), "worker".into()],
        folder: None,
        threads: 1,
        reusable: true,
        templates: None,
        keeps_memory: false,
    }
}

/// Writes a synthetic checkpoint with inputs into a folder of its own.
fn checkpoint(folder: &Path, model_type: &str) -> PathBuf {
    let folder = folder.join(model_type);
    models::synthetic::write(model_type, "", 0, &folder).unwrap();
    let row = |values: Vec<i64>| Tensor::from_vec(values, (1, 12), &Device::Cpu).unwrap();
    let tensors = [
        ("input_ids", row((0..12).map(|n| 7 + n * 11).collect())),
        ("attention_mask", row(vec![1; 12])),
        ("position_ids", row((0..12).collect())),
    ];
    let tensors = tensors.map(|(name, tensor)| (name.to_owned(), tensor)).into();
    candle_core::safetensors::save(&tensors, folder.join("inputs.safetensors")).unwrap();
    folder
}

/// Runs one cell in `folder` and returns its logits.
fn cell(
    runner: &dyn Runner,
    checkpoint: &Path,
    dtype: Dtype,
    folder: &Path,
) -> Result<Vec<Vec<Vec<f64>>>, NoResult> {
    let stop = AtomicBool::new(false);
    let mut session = runner.start(folder.join("worker.log"), &stop, Start::default())?;
    let load = Load { dtype, ..Load::new(checkpoint.to_owned(), checkpoint.join("inputs.safetensors")) };
    session.ask(&Request::Load(load), LIMIT)?;
    let logits = folder.join("logits.safetensors");
    session.ask(&Request::Forward(Forward::new(logits.clone())), LIMIT)?;
    session.end();
    let logits = candle_core::safetensors::load(logits, &Device::Cpu).unwrap().remove("logits").unwrap();
    Ok(logits.to_dtype(DType::F64).unwrap().to_vec3().unwrap())
}

#[test]
fn a_shared_worker_gives_the_logits_of_separate_workers() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = ["mistral", "gpt2"].map(|model_type| checkpoint(folder.path(), model_type));
    let (shared, own) = (SharedRunner::new(native()), native());
    for (number, (checkpoint, dtype)) in
        [(0, Dtype::F64), (1, Dtype::Bf16), (0, Dtype::F32), (0, Dtype::F64)].into_iter().enumerate()
    {
        let at = |kind: &str| folder.path().join(format!("{kind}{number}"));
        let checkpoint = &checkpoints[checkpoint];
        let one = cell(&shared, checkpoint, dtype, &at("shared")).unwrap();
        let other = cell(&own, checkpoint, dtype, &at("own")).unwrap();
        assert_eq!(one, other, "cell {number}");
        // Only the first cell started a process.
        assert_eq!(at("shared").join("worker.log").exists(), number == 0);
    }
}

#[test]
fn a_worker_that_failed_is_given_no_other_cell() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(folder.path(), "mistral");
    let shared = SharedRunner::new(native());
    let at = |name: &str| folder.path().join(name);
    assert!(cell(&shared, &at("nowhere"), Dtype::F32, &at("first")).is_err());
    assert!(cell(&shared, &checkpoint, Dtype::F32, &at("second")).is_ok());
    assert!(at("second").join("worker.log").exists(), "a process of its own");
}

#[test]
fn cells_at_once_have_a_worker_each_and_later_cells_reuse_them() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(folder.path(), "mistral");
    let shared = SharedRunner::new(native());
    let (at, stop) = (|name: &str| folder.path().join(name), AtomicBool::new(false));
    let start = |name: &str| shared.start(at(name).join("worker.log"), &stop, Start::default()).unwrap();
    let has_started = |name: &str| at(name).join("worker.log").exists();
    let (one, two) = (start("one"), start("two"));
    assert!(has_started("one") && has_started("two"));
    one.end();
    two.end();
    let (three, four) = (start("three"), start("four"));
    assert!(!has_started("three") && !has_started("four"), "both workers are idle");
    three.end();
    four.end();
    assert!(cell(&shared, &checkpoint, Dtype::F32, &at("five")).is_ok());
    assert!(!has_started("five"));
}
