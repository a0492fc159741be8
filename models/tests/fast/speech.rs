//! Laws of models of speech on every synthetic checkpoint: padding on the right of the decoder, its later tokens, the
//! other rows of a batch and a probe do not change results; every frame does; inputs that do not fit are refused.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use candle_core::{DType, Device, IndexOp, Tensor};
use models::{Backend, Inputs, Kind, Loaded};

use super::laws::{EXACT, Trace, assert_row_same, each, norm, token};
use super::sequences::through_a_cache;

/// Sequence lengths of the decoder.
const LENGTHS: [usize; 3] = [13, 24, 5];
/// Features of the synthetic checkpoints: frequency bins and frames.
const FEATURES: [usize; 2] = [20, 60];

fn each_speech_model(dtype: DType, backend: Backend, law: impl Fn(&str, Loaded)) {
    each(|kind| kind == Kind::SpeechEncoderDecoder, dtype, backend, law);
}

/// `[1, 20, 60]`.
fn features(row: usize) -> Tensor {
    let value = |i: usize| (f64::from(token(row, i)) / 140.0 - 1.0) as f32;
    let [bins, frames] = FEATURES;
    Tensor::from_iter((0..bins * frames).map(value), &Device::Cpu)
        .unwrap()
        .reshape((1, bins, frames))
        .unwrap()
}

/// `[1, length + after]`: token ids; padding has ids too, which must not affect results.
fn ids(row: usize, length: usize, after: usize) -> Tensor {
    let ids = (0..length + after).map(|column| token(row, 1000 + column));
    Tensor::from_iter(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap()
}

/// The inputs of one row without a mask.
fn of(features: Tensor, ids: Tensor) -> Inputs {
    Inputs::new(ids.clone()).with("input_features", features).with("decoder_input_ids", ids)
}

fn alone(row: usize) -> Inputs {
    of(features(row), ids(row, LENGTHS[row], 0))
}

/// All rows, padded on the right.
fn batch() -> Inputs {
    let longest = LENGTHS.into_iter().max().unwrap();
    let cat = |of: &dyn Fn(usize) -> Tensor| {
        Tensor::cat(&(0..LENGTHS.len()).map(of).collect::<Vec<_>>(), 0).unwrap()
    };
    let mask = |row: usize| {
        let real = (0..longest).map(|column| i64::from(column < LENGTHS[row]));
        Tensor::from_iter(real, &Device::Cpu).unwrap().unsqueeze(0).unwrap()
    };
    of(cat(&features), cat(&|row| ids(row, LENGTHS[row], longest - LENGTHS[row])))
        .with("decoder_attention_mask", cat(&mask))
}

#[test]
fn a_row_gives_the_same_alone_and_in_a_batch_padded_on_the_right() {
    for (dtype, backend, bound) in EXACT {
        each_speech_model(dtype, backend, |name, mut loaded| {
            let whole = loaded.forward(&batch()).unwrap();
            for (row, length) in LENGTHS.into_iter().enumerate() {
                let result = loaded.forward(&alone(row)).unwrap().i(0).unwrap();
                let expected = whole.i((row, ..length)).unwrap();
                assert_row_same(&format!("{name} row {row}"), &result, &expected, bound);
            }
        });
    }
}

#[test]
fn later_tokens_change_no_earlier_one_and_every_frame_changes_the_first() {
    for (dtype, backend, bound) in EXACT {
        each_speech_model(dtype, backend, |name, mut loaded| {
            let whole = loaded.forward(&alone(1)).unwrap();
            for length in [1, 7, 20] {
                let part = loaded.forward(&of(features(1), ids(1, length, 0))).unwrap().i(0).unwrap();
                let expected = whole.i((0, ..length)).unwrap();
                assert_row_same(&format!("{name} {length} tokens"), &part, &expected, bound);
            }
            let first = whole.i((0, 0)).unwrap();
            let [bins, frames] = FEATURES;
            for frame in 0..frames {
                let mut changed: Vec<f32> = features(1).flatten_all().unwrap().to_vec1().unwrap();
                (0..bins).for_each(|bin| changed[bin * frames + frame] += 1.0);
                let changed = Tensor::from_vec(changed, (1, bins, frames), &Device::Cpu).unwrap();
                let result = loaded.forward(&of(changed, ids(1, 1, 0))).unwrap().i((0, 0)).unwrap();
                let difference = norm(&(result - &first).unwrap()) / norm(&first);
                assert!(difference > 1e-5, "{name}: frame {frame} has no effect ({difference:e})");
            }
        });
    }
}

#[test]
fn a_probe_changes_nothing_and_sees_convolutions_in_torchs_layout() {
    for (dtype, backend) in [
        (DType::F64, Backend::Eager),
        (DType::BF16, Backend::Eager),
        (DType::F32, Backend::Fused),
        (DType::BF16, Backend::Fused),
    ] {
        each_speech_model(dtype, backend, |name, mut loaded| {
            let mut trace = Trace::default();
            let plain = loaded.forward(&batch()).unwrap();
            let probed = loaded.forward_with(&batch(), None, Some(&mut trace)).unwrap();
            let values = |xs: &Tensor| xs.to_dtype(DType::F64).unwrap().to_vec3::<f64>().unwrap();
            assert_eq!(values(&plain), values(&probed), "{name} {dtype:?}");
            let rows = LENGTHS.len();
            for (path, shape) in
                [("model.encoder.conv1", vec![rows, 64, 60]), ("model.encoder.conv2", vec![rows, 64, 30])]
            {
                assert!(trace.outputs.contains(&(path.to_owned(), shape)), "{name}: {path}");
            }
        });
    }
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    each_speech_model(DType::F32, Backend::Eager, |name, mut loaded| {
        let two = Tensor::cat(&[features(0), features(1)], 0).unwrap();
        for (inputs, expected) in [
            (Inputs::new(ids(0, 3, 0)), "inputs: the model needs decoder_input_ids"),
            (
                Inputs::new(ids(0, 3, 0)).with("decoder_input_ids", ids(0, 3, 0)),
                "inputs: the model needs input_features",
            ),
            (alone(0).with("input_features", two), "has shape [2, 20, 60] where [1, 20, 60] is needed"),
            (alone(0).with("pixel_values", features(0)), "whisper takes no pixel_values"),
        ] {
            let error = loaded.forward(&inputs).unwrap_err().to_string();
            assert!(error.contains(expected), "{name}: {error}");
        }
    });
}

#[test]
fn prefill_in_chunks_and_token_by_token_equal_a_full_sequence_pass() {
    for (dtype, backend, bound) in EXACT {
        each_speech_model(dtype, backend, |name, mut loaded| {
            let whole = loaded.forward(&batch()).unwrap();
            for chunk in [1, 5] {
                let parts = through_a_cache(&mut loaded, &batch(), chunk);
                for (row, length) in LENGTHS.into_iter().enumerate() {
                    let real = |xs: &Tensor| xs.i((row, ..length)).unwrap();
                    assert_row_same(&format!("{name} by {chunk}"), &real(&parts), &real(&whole), bound);
                }
            }
        });
    }
}
