//! Laws of every decoder on every synthetic checkpoint: a KV cache, padding, the other rows of a batch and a probe do not
//! change results. Of every architecture: every config key and tensor is read. `sequences.rs` has the laws of models of
//! more than one sequence.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::ops::Range;

use candle_core::{DType, Device, IndexOp, Tensor};
use models::synthetic::{catalogue, write};
use models::{Backend, Cache, Inputs, Kind, Loaded, Options, Probe, load};

/// Sequence length, padded on the left: longer than the windows (8), and shorter than the contexts (32) past which rope
/// frequencies depend on the length of the forward pass, so that a chunked prefill equals a full-sequence forward pass.
const LENGTHS: [usize; 3] = [24, 17, 9];
const SEQ: usize = 24;
/// Bound of the token ids; every synthetic checkpoint's vocabulary is larger.
const VOCAB: u32 = 280;

/// Dtypes and backends with the largest accepted relative L2: a rounding of 1e-16 (F64) or 6e-8 (F32) per operation over
/// a chain of a few hundred operations.
pub(crate) const EXACT: [(DType, Backend, f64); 2] =
    [(DType::F64, Backend::Eager, 1e-12), (DType::F32, Backend::Fused, 1e-5)];

/// Calls `law` with every small synthetic decoder.
fn each_decoder(dtype: DType, backend: Backend, law: impl Fn(&str, Loaded)) {
    each(|of| of == Kind::Decoder, dtype, backend, law);
}

/// Calls `law` with every small synthetic checkpoint of the wanted kinds.
pub(crate) fn each(
    wanted: impl Fn(Kind) -> bool,
    dtype: DType,
    backend: Backend,
    law: impl Fn(&str, Loaded),
) {
    let mut count = 0;
    for entry in catalogue().iter().filter(|entry| !entry.bench) {
        let folder = tempfile::tempdir().unwrap();
        if !wanted(entry.kind) {
            continue;
        }
        write(entry.model_type, entry.variant, 0, folder.path()).unwrap();
        let name = format!("{}:{} {backend:?}", entry.model_type, entry.variant);
        let options = Options { dtype, device: Device::Cpu, backend };
        law(&name, load(folder.path(), &options).unwrap_or_else(|error| panic!("{name}: {error}")));
        count += 1;
    }
    assert!(count > 0);
}

/// The inputs of `columns` of all rows, padded on the left; the attention mask starts at column 0.
fn batch(columns: Range<usize>) -> Inputs {
    let (mut ids, mut mask, mut positions) = (Vec::new(), Vec::new(), Vec::new());
    for (row, length) in LENGTHS.into_iter().enumerate() {
        let padding = SEQ - length;
        mask.extend((0..columns.end).map(|column| i64::from(column >= padding)));
        positions.extend(columns.clone().map(|column| column.saturating_sub(padding) as i64));
        ids.extend(columns.clone().map(|column| token(row, column)));
    }
    let shape = (LENGTHS.len(), columns.len());
    Inputs {
        attention_mask: Some(Tensor::from_vec(mask, (LENGTHS.len(), columns.end), &Device::Cpu).unwrap()),
        position_ids: Some(Tensor::from_vec(positions, shape, &Device::Cpu).unwrap()),
        ..Inputs::new(Tensor::from_vec(ids, shape, &Device::Cpu).unwrap())
    }
}

/// The token id of a column; padding has ids too, which must not affect results.
pub(crate) fn token(row: usize, column: usize) -> u32 {
    ((row as u32 + 3) * 7919 + column as u32 * 104_729) % VOCAB
}

/// The real tokens of one row, without padding.
fn alone(row: usize) -> Tensor {
    let ids: Vec<u32> = (SEQ - LENGTHS[row]..SEQ).map(|column| token(row, column)).collect();
    Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap()
}

pub(crate) fn norm(xs: &Tensor) -> f64 {
    let xs = xs.to_dtype(DType::F64).unwrap();
    xs.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
}

/// Asserts the bound on the relative L2 over the real positions of each row.
fn assert_same(name: &str, result: &Tensor, reference: &Tensor, bound: f64) {
    for (row, length) in LENGTHS.into_iter().enumerate() {
        let real = |xs: &Tensor| xs.i((row, SEQ - length..)).unwrap();
        assert_row_same(name, &real(result), &real(reference), bound);
    }
}

pub(crate) fn assert_row_same(name: &str, result: &Tensor, reference: &Tensor, bound: f64) {
    let relative = norm(&(result - reference).unwrap()) / norm(reference);
    assert!(relative <= bound, "{name}: relative L2 {relative:e}");
}

#[test]
fn prefill_in_chunks_and_token_by_token_equal_a_full_sequence_pass() {
    for (dtype, backend, bound) in EXACT {
        each_decoder(dtype, backend, |name, mut loaded| {
            let whole = loaded.forward(&batch(0..SEQ)).unwrap();
            for chunk in [1, 5] {
                let mut cache = Cache::new();
                let mut parts = Vec::new();
                for start in (0..SEQ).step_by(chunk) {
                    let inputs = batch(start..(start + chunk).min(SEQ));
                    parts.push(loaded.forward_with(&inputs, Some(&mut cache), None).unwrap());
                }
                assert_eq!(cache.len(), SEQ);
                assert_same(&format!("{name} by {chunk}"), &Tensor::cat(&parts, 1).unwrap(), &whole, bound);
            }
        });
    }
}

#[test]
fn a_row_gives_the_same_alone_and_in_a_batch_padded_on_either_side() {
    for (dtype, backend, bound) in EXACT {
        each_decoder(dtype, backend, |name, mut loaded| {
            let whole = loaded.forward(&batch(0..SEQ)).unwrap();
            for (row, length) in LENGTHS.into_iter().enumerate() {
                let expected = whole.i((row, SEQ - length..)).unwrap();
                let ids = alone(row);
                let unpadded = loaded.forward(&Inputs::new(ids.clone())).unwrap().i(0).unwrap();
                assert_row_same(&format!("{name} row {row} alone"), &unpadded, &expected, bound);
                let padding = SEQ - length;
                let right = Inputs {
                    attention_mask: Some(ids.ones_like().unwrap().pad_with_zeros(1, 0, padding).unwrap()),
                    ..Inputs::new(ids.pad_with_zeros(1, 0, padding).unwrap())
                };
                let right = loaded.forward(&right).unwrap().i((0, ..length)).unwrap();
                assert_row_same(&format!("{name} row {row} padded on the right"), &right, &expected, bound);
            }
        });
    }
}

#[test]
fn no_key_or_tensor_is_left_unread() {
    each(
        |_| true,
        DType::F32,
        Backend::Eager,
        |name, loaded| {
            assert_eq!(loaded.unread_tensors, [""; 0], "{name}");
            // The checkpoints have their rope parameters in the old and the new spelling; only one is read, as in transformers.
            let twice_said = ["rope_parameters", "rope_parameters.full_attention"];
            let unread = loaded.unread_keys.iter().filter(|key| !twice_said.contains(&key.as_str()));
            assert_eq!(unread.collect::<Vec<_>>(), [""; 0], "{name}");
        },
    );
}

/// A probe that checks that modules end in the order in which they began, and keeps the shapes of their outputs.
#[derive(Default)]
pub(super) struct Trace {
    pub(super) open: Vec<String>,
    /// Path and shape of each output, in the order in which the modules ended.
    pub(super) outputs: Vec<(String, Vec<usize>)>,
}

impl Probe for Trace {
    fn enter(&mut self, path: &str, _input: &Tensor) {
        self.open.push(path.to_owned());
    }

    fn leave(&mut self, path: &str, output: &Tensor) {
        assert_eq!(self.open.pop().as_deref(), Some(path));
        self.outputs.push((path.to_owned(), output.dims().to_vec()));
    }
}

#[test]
fn a_probe_changes_nothing() {
    let runs = [
        (DType::F64, Backend::Eager),
        (DType::BF16, Backend::Eager),
        (DType::F32, Backend::Fused),
        // In this mode an observed sum might be rounded once more than an unobserved one.
        (DType::BF16, Backend::Fused),
    ];
    for (dtype, backend) in runs {
        each_decoder(dtype, backend, |name, mut loaded| {
            let mut trace = Trace::default();
            let plain = loaded.forward(&batch(0..SEQ)).unwrap();
            let probed = loaded.forward_with(&batch(0..SEQ), None, Some(&mut trace)).unwrap();
            let values = |xs: &Tensor| xs.to_dtype(DType::F64).unwrap().to_vec3::<f64>().unwrap();
            assert_eq!(values(&plain), values(&probed), "{name} {dtype:?}");
            assert!(trace.open.is_empty() && !trace.outputs.is_empty(), "{name}");
        });
    }
}
