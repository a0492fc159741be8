//! A repeated forward pass on the GPU allocates nothing, and graph capture involves no transfer and no wait.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use candle_core::DType;
use models::Cache;

use super::checkpoints::{Checkpoint, SEQ};
use super::strict::Strict;

#[test]
fn the_second_pass_of_a_shape_allocates_nothing_and_is_recorded_without_a_transfer() {
    for checkpoint in Checkpoint::all() {
        let strict = Strict::start();
        let mut gpu = checkpoint.on(DType::F32, Arc::clone(&strict) as _);
        let cases = checkpoint.cases();
        for case in &cases {
            gpu.forward(&case.inputs()).unwrap();
        }
        let before = strict.allocations.load(Ordering::Relaxed);
        for case in cases.iter().chain(&cases) {
            gpu.forward(&case.inputs()).unwrap();
        }
        assert_eq!(strict.allocations.load(Ordering::Relaxed), before, "{}", checkpoint.name);
        let counts = gpu.pass_counts().unwrap();
        assert_eq!(counts.recorded, counts.called, "{}: {counts:?}", checkpoint.name);
        assert!(counts.replayed > counts.recorded, "{}: {counts:?}", checkpoint.name);
    }
}

#[test]
fn decoding_allocates_nothing_and_launches_only_the_captured_graph() {
    for checkpoint in Checkpoint::all().filter(|checkpoint| checkpoint.is_decoder) {
        let strict = Strict::start();
        let mut gpu = checkpoint.on(DType::F32, Arc::clone(&strict) as _);
        let case = checkpoint.case("without padding", 0, |_, _| true);
        let mut cache = Cache::with_capacity(SEQ);
        // The prompt, a token that runs without a graph, and one whose pass is captured.
        for columns in [0..8, 8..9, 9..10] {
            gpu.forward_with(&case.columns(columns), Some(&mut cache), None).unwrap();
        }
        let counts =
            || [&strict.allocations, &strict.uploads, &strict.launches].map(|n| n.load(Ordering::Relaxed));
        for column in 10..SEQ {
            let before = counts();
            gpu.forward_with(&case.columns(column..column + 1), Some(&mut cache), None).unwrap();
            let [allocations, uploads, launches] = [0, 1, 2].map(|i| counts()[i] - before[i]);
            // Learned positions, attention biases and the rope rows of length-dependent frequencies are separate uploads.
            assert!(uploads <= 4, "{}: {uploads} uploads", checkpoint.name);
            assert_eq!((allocations, launches), (0, 0), "{}", checkpoint.name);
        }
        // Decoding starts again after the prompt.
        cache.truncate(8);
        let before = counts();
        gpu.forward_with(&case.columns(8..9), Some(&mut cache), None).unwrap();
        assert_eq!(counts()[0], before[0], "{}", checkpoint.name);
    }
}

#[test]
fn bytes_are_those_of_the_weights_and_of_the_buffers() {
    let strict = Strict::start();
    let checkpoint = Checkpoint::of("llama", "tiny");
    let mut gpu = checkpoint.on(DType::F32, Arc::clone(&strict) as _);
    let (weights, buffers) = gpu.fused_bytes().unwrap();
    let file = std::fs::metadata(checkpoint.path().join("model.safetensors")).unwrap().len() as usize;
    // The weights fill the file except for its header.
    assert!(weights <= file && weights + 8192 > file, "{weights} of {file}");
    assert_eq!(buffers, 0);
    gpu.forward(&checkpoint.cases()[0].inputs()).unwrap();
    assert!(gpu.fused_bytes().unwrap().1 > 0);
}
