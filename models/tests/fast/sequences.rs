//! Laws of models of more than one sequence on every synthetic checkpoint: padding of either sequence, the other rows of
//! a batch, later tokens of a decoder and a probe do not change results; inputs that do not fit are refused.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::ops::Range;

use candle_core::{DType, Device, IndexOp, Tensor};
use models::{Backend, Cache, Inputs, Kind, Loaded};

use super::laws::{EXACT, Trace, assert_row_same, each, norm, token};

/// Sequence lengths of the encoder: longer than the distances whose biases differ (20).
const ENCODER: [usize; 3] = [27, 16, 9];
/// Sequence lengths of the decoder.
const DECODER: [usize; 3] = [13, 24, 5];

fn each_encoder_decoder(dtype: DType, backend: Backend, law: impl Fn(&str, Loaded)) {
    each(|kind| kind == Kind::EncoderDecoder, dtype, backend, law);
}

/// A sequence of one row, as in the batch of [`padded`].
#[derive(Clone, Copy)]
struct Text {
    row: usize,
    length: usize,
    /// Distinguishes the tokens of encoder and decoder.
    offset: usize,
}

impl Text {
    /// `[1, before + length + after]`: token ids; padding has ids too, which must not affect results.
    fn ids(self, before: usize, after: usize) -> Tensor {
        let columns = (0..before + self.length + after).map(|column| {
            let column = column + 100 - before;
            token(self.row, self.offset + column)
        });
        Tensor::from_iter(columns, &Device::Cpu).unwrap().unsqueeze(0).unwrap()
    }

    /// `[1, before + length + after]`: 1 for the real tokens.
    fn mask(self, before: usize, after: usize) -> Tensor {
        let real = (0..before + self.length + after)
            .map(|column| i64::from(column >= before && column < before + self.length));
        Tensor::from_iter(real, &Device::Cpu).unwrap().unsqueeze(0).unwrap()
    }
}

fn encoder(row: usize) -> Text {
    Text { row, length: ENCODER[row], offset: 0 }
}

fn decoder(row: usize) -> Text {
    Text { row, length: DECODER[row], offset: 1000 }
}

/// The inputs of one row, with padding before and after each of its sequences.
fn padded(row: usize, [before, after]: [usize; 2], [decoder_before, decoder_after]: [usize; 2]) -> Inputs {
    let (encoder, decoder) = (encoder(row), decoder(row));
    let inputs = Inputs {
        attention_mask: Some(encoder.mask(before, after)),
        ..Inputs::new(encoder.ids(before, after))
    };
    inputs
        .with("decoder_input_ids", decoder.ids(decoder_before, decoder_after))
        .with("decoder_attention_mask", decoder.mask(decoder_before, decoder_after))
}

/// The inputs of one row without padding and without masks.
fn alone(row: usize) -> Inputs {
    Inputs::new(encoder(row).ids(0, 0)).with("decoder_input_ids", decoder(row).ids(0, 0))
}

/// All rows, padded on the left of both sequences, or on the right of the encoder's.
fn batch(is_left: bool) -> Inputs {
    let longest = |lengths: [usize; 3]| lengths.into_iter().max().unwrap();
    let of_encoder = |padding: usize| if is_left { [padding, 0] } else { [0, padding] };
    let rows: Vec<Inputs> = (0..ENCODER.len())
        .map(|row| {
            padded(row, of_encoder(longest(ENCODER) - ENCODER[row]), [longest(DECODER) - DECODER[row], 0])
        })
        .collect();
    let cat =
        |of: &dyn Fn(&Inputs) -> Tensor| Tensor::cat(&rows.iter().map(of).collect::<Vec<_>>(), 0).unwrap();
    let named = |name: &str| (name.to_owned(), cat(&|row| row.tensors[name].clone()));
    Inputs {
        attention_mask: Some(cat(&|row| row.attention_mask.clone().unwrap())),
        tensors: ["decoder_input_ids", "decoder_attention_mask"].map(named).into(),
        ..Inputs::new(cat(&|row| row.input_ids.clone()))
    }
}

#[test]
fn a_row_gives_the_same_alone_and_in_a_batch_with_either_sequence_padded_on_either_side() {
    for (dtype, backend, bound) in EXACT {
        each_encoder_decoder(dtype, backend, |name, mut loaded| {
            let whole = loaded.forward(&batch(true)).unwrap();
            let right = loaded.forward(&batch(false)).unwrap();
            let seq = whole.dim(1).unwrap();
            for (row, length) in DECODER.into_iter().enumerate() {
                let expected = whole.i((row, seq - length..)).unwrap();
                let padded_right = right.i((row, seq - length..)).unwrap();
                assert_row_same(&format!("{name} row {row} on the right"), &padded_right, &expected, bound);
                let unpadded = loaded.forward(&alone(row)).unwrap().i(0).unwrap();
                assert_row_same(&format!("{name} row {row} alone"), &unpadded, &expected, bound);
                for (of_encoder, of_decoder) in [([0, 5], [0, 0]), ([0, 0], [0, 3]), ([2, 40], [4, 35])] {
                    let result = loaded.forward(&padded(row, of_encoder, of_decoder)).unwrap();
                    let result = result.i((0, of_decoder[0]..of_decoder[0] + length)).unwrap();
                    let case = format!("{name} row {row} padded {of_encoder:?} {of_decoder:?}");
                    assert_row_same(&case, &result, &expected, bound);
                }
            }
        });
    }
}

#[test]
fn padding_between_real_tokens_of_the_encoder_is_not_attended_to() {
    for (dtype, backend, bound) in EXACT {
        each_encoder_decoder(dtype, backend, |name, mut loaded| {
            let ids = encoder(0).ids(0, 0);
            let real: Vec<u32> = (0..ENCODER[0] as u32).map(|column| u32::from(column % 5 != 3)).collect();
            let mask = Tensor::new(real, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let mut with = |ids: Tensor| {
                let inputs = Inputs { attention_mask: Some(mask.clone()), ..Inputs::new(ids) };
                loaded.forward(&inputs.with("decoder_input_ids", decoder(0).ids(0, 0))).unwrap()
            };
            let result = with(ids.clone());
            // Other ids at the padding change nothing.
            let changed = with((&ids * &mask).unwrap());
            assert_row_same(name, &changed.i(0).unwrap(), &result.i(0).unwrap(), bound);
            let everything = loaded.forward(&alone(0)).unwrap();
            let difference = norm(&(everything - &result).unwrap()) / norm(&result);
            assert!(difference > 1e-2, "{name}: the mask has no effect ({difference:e})");
        });
    }
}

#[test]
fn later_tokens_of_the_decoder_change_no_earlier_one_and_all_of_the_encoder_change_the_first() {
    for (dtype, backend, bound) in EXACT {
        each_encoder_decoder(dtype, backend, |name, mut loaded| {
            let (ids, tokens) = (encoder(1).ids(0, 0), decoder(1).ids(0, 0));
            let whole = loaded.forward(&alone(1)).unwrap();
            for length in [1, 7, 20] {
                let tokens = tokens.narrow(1, 0, length).unwrap();
                let part =
                    loaded.forward(&Inputs::new(ids.clone()).with("decoder_input_ids", tokens)).unwrap();
                let expected = whole.i((0, ..length)).unwrap();
                assert_row_same(&format!("{name} {length} tokens"), &part.i(0).unwrap(), &expected, bound);
            }
            for column in 0..ENCODER[1] {
                let mut changed: Vec<u32> = ids.flatten_all().unwrap().to_vec1().unwrap();
                changed[column] = (changed[column] + 1) % 280;
                let changed = Tensor::new(changed, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
                let inputs = Inputs::new(changed).with("decoder_input_ids", tokens.clone());
                let first = loaded.forward(&inputs).unwrap().i((0, 0)).unwrap();
                let expected = whole.i((0, 0)).unwrap();
                let difference = norm(&(first - &expected).unwrap()) / norm(&expected);
                assert!(difference > 1e-5, "{name}: token {column} has no effect ({difference:e})");
            }
        });
    }
}

#[test]
fn a_probe_changes_nothing() {
    let runs = [
        (DType::F64, Backend::Eager),
        (DType::BF16, Backend::Eager),
        (DType::F16, Backend::Eager),
        (DType::F32, Backend::Fused),
        (DType::BF16, Backend::Fused),
    ];
    for (dtype, backend) in runs {
        each_encoder_decoder(dtype, backend, |name, mut loaded| {
            let mut trace = Trace::default();
            let plain = loaded.forward(&batch(true)).unwrap();
            let probed = loaded.forward_with(&batch(true), None, Some(&mut trace)).unwrap();
            let values = |xs: &Tensor| {
                xs.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap()
            };
            let same = values(&plain).iter().zip(&values(&probed)).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{name} {dtype:?}");
            assert!(trace.open.is_empty() && !trace.outputs.is_empty(), "{name}");
        });
    }
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    each_encoder_decoder(DType::F32, Backend::Eager, |name, mut loaded| {
        let mut check = |inputs: &Inputs, expected: &str| {
            let error = loaded.forward(inputs).unwrap_err().to_string();
            assert!(error.contains(expected), "{name}: {error}");
        };
        check(&Inputs::new(encoder(0).ids(0, 0)), "inputs: the model needs decoder_input_ids");
        check(&alone(0).with("pixel_values", encoder(0).ids(0, 0)), "takes no pixel_values");
        let other = Tensor::cat(&[decoder(0).ids(0, 0), decoder(0).ids(0, 0)], 0).unwrap();
        check(
            &alone(0).with("decoder_input_ids", other),
            "inputs: input_ids has 1 rows and decoder_input_ids 2",
        );
        let positions = Inputs { position_ids: Some(encoder(0).ids(0, 0)), ..alone(0) };
        check(&positions, "inputs: an encoder-decoder takes no position_ids");
    });
    each(
        |kind| kind == Kind::Decoder,
        DType::F32,
        Backend::Eager,
        |name, mut loaded| {
            let error = loaded.forward(&alone(0)).unwrap_err().to_string();
            assert!(error.contains("takes no decoder_input_ids"), "{name}: {error}");
        },
    );
}

/// The same inputs with some of the decoder's tokens, and the decoder's mask up to their end.
pub(crate) fn step(inputs: &Inputs, columns: Range<usize>) -> Inputs {
    let ids = inputs.tensors["decoder_input_ids"].i((.., columns.clone())).unwrap().contiguous().unwrap();
    let mut step = inputs.clone().with("decoder_input_ids", ids);
    if let Some(mask) = inputs.tensors.get("decoder_attention_mask") {
        step =
            step.with("decoder_attention_mask", mask.i((.., ..columns.end)).unwrap().contiguous().unwrap());
    }
    step
}

/// The outputs of forward passes over `chunk` tokens of the decoder at a time.
pub(crate) fn through_a_cache(loaded: &mut Loaded, inputs: &Inputs, chunk: usize) -> Tensor {
    let seq = inputs.tensors["decoder_input_ids"].dim(1).unwrap();
    let mut cache = Cache::new();
    let mut parts = Vec::new();
    for start in (0..seq).step_by(chunk) {
        let mut step = step(inputs, start..(start + chunk).min(seq));
        if start > 0 {
            // The encoder does not run again, so that other ids have no effect.
            step.input_ids = step.input_ids.zeros_like().unwrap();
        }
        parts.push(loaded.forward_with(&step, Some(&mut cache), None).unwrap());
    }
    assert_eq!(cache.len(), seq);
    Tensor::cat(&parts, 1).unwrap()
}

#[test]
fn prefill_in_chunks_and_token_by_token_equal_a_full_sequence_pass() {
    for (dtype, backend, bound) in EXACT {
        each_encoder_decoder(dtype, backend, |name, mut loaded| {
            let whole = loaded.forward(&batch(true)).unwrap();
            let seq = whole.dim(1).unwrap();
            for chunk in [1, 5] {
                let parts = through_a_cache(&mut loaded, &batch(true), chunk);
                for (row, length) in DECODER.into_iter().enumerate() {
                    let real = |xs: &Tensor| xs.i((row, seq - length..)).unwrap();
                    assert_row_same(&format!("{name} by {chunk}"), &real(&parts), &real(&whole), bound);
                }
            }
            // A cache that is filled again takes the new encoder's keys and values.
            let mut cache = Cache::new();
            loaded.forward_with(&alone(0), Some(&mut cache), None).unwrap();
            cache.truncate(0);
            let again = loaded.forward_with(&alone(1), Some(&mut cache), None).unwrap();
            let expected = loaded.forward(&alone(1)).unwrap();
            assert_row_same(name, &again.i(0).unwrap(), &expected.i(0).unwrap(), bound);
        });
    }
}
