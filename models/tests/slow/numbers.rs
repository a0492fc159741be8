//! Compares the fused backend on the emulated GPU with the oracle, and its errors with the eager backend's.

use candle_core::{DType, Device, Tensor};
use models::cuda::{Emulator, Order};
use models::synthetic::{catalogue, write};
use models::{Backend, Cache, Error, Inputs, Loaded, load_on_gpu};

use super::checkpoints::{Case, Checkpoint, SEQ, relative};

/// Largest relative L2 in f32: a rounding of 6e-8 per operation over a chain of a few hundred operations, as in `laws.rs`.
const F32_BOUND: f64 = 1e-5;
/// Largest error as a multiple of the eager backend's in the same dtype, which rounds after each operation as torch does.
const OF_EAGER: f64 = 1.5;
/// The same for classifiers: the ratio varies more, because they give only a few numbers per row.
const OF_EAGER_FEW: f64 = 2.0;

impl Checkpoint {
    /// Largest accepted relative L2 if the eager backend's is `eager`.
    fn bound(&self, dtype: DType, eager: f64) -> f64 {
        match dtype {
            DType::F32 => F32_BOUND,
            _ if self.is_classifier => OF_EAGER_FEW * eager,
            _ => OF_EAGER * eager,
        }
    }

    /// Relative L2 over all cases of `loaded` and of the eager backend in the same dtype. For a mixture of experts in
    /// 16 bits it is the median token's, because router near-ties send a few tokens to other experts.
    fn errors(
        &self,
        loaded: &mut Loaded,
        dtype: DType,
        cases: &[Case],
        run: impl Fn(&mut Loaded, &Case) -> Tensor,
    ) -> [f64; 2] {
        let mut squares = [const { Vec::new() }; 2];
        let (mut exact, mut eager) = (self.exact(), self.on_cpu(dtype, Backend::Eager));
        for case in cases {
            let expected = exact.forward(&case.inputs()).unwrap();
            for (squares, loaded) in squares.iter_mut().zip([&mut *loaded, &mut eager]) {
                let of_case = case.squares(&run(loaded, case), &expected);
                if dtype == DType::F32 {
                    let relative = relative(&of_case);
                    assert!(relative <= F32_BOUND, "{} {}: {relative:e}", self.name, case.name);
                }
                squares.extend(of_case);
            }
        }
        let has_router = self.name.contains("moe") || self.name.contains("mixtral");
        squares.map(
            |squares| {
                if has_router && dtype != DType::F32 { median(&squares) } else { relative(&squares) }
            },
        )
    }
}

fn median(squares: &[[f64; 2]]) -> f64 {
    let mut errors: Vec<f64> = squares.iter().map(|token| relative(&[*token])).collect();
    errors.sort_by(f64::total_cmp);
    errors[errors.len() / 2]
}

#[expect(clippy::print_stdout, reason = "figures for who asks for them")]
fn check_all(dtype: DType) {
    for checkpoint in Checkpoint::all() {
        let mut gpu = checkpoint.on_gpu(dtype);
        let [ours, eager] = checkpoint.errors(&mut gpu, dtype, &checkpoint.cases(), |loaded, case| {
            loaded.forward(&case.inputs()).unwrap_or_else(|error| panic!("{}: {error}", checkpoint.name))
        });
        let name = &checkpoint.name;
        println!("{name} {dtype:?}: ours {ours:.2e} eager {eager:.2e} ratio {:.2}", ours / eager);
        assert!(ours <= checkpoint.bound(dtype, eager), "{name} {dtype:?}: {ours:e}, eager {eager:e}");
    }
}

#[test]
fn every_checkpoint_is_right_in_f32() {
    check_all(DType::F32);
}

#[test]
fn every_checkpoint_stays_within_its_multiple_of_the_eager_error_in_bf16() {
    check_all(DType::BF16);
}

#[test]
fn every_checkpoint_stays_within_its_multiple_of_the_eager_error_in_f16() {
    check_all(DType::F16);
}

/// Runs a case through a cache with capacity `room`: the first `first` tokens at once, the others `chunk` at a time.
fn cached(loaded: &mut Loaded, case: &Case, (first, chunk): (usize, usize), room: usize) -> Tensor {
    let mut cache = Cache::with_capacity(room);
    let starts = std::iter::once(0).chain((first..SEQ).step_by(chunk));
    let parts = starts.map(|start| {
        let end = if start == 0 { first } else { (start + chunk).min(SEQ) };
        loaded.forward_with(&case.columns(start..end), Some(&mut cache), None).unwrap()
    });
    Tensor::cat(&parts.collect::<Vec<_>>(), 1).unwrap()
}

#[test]
fn decoding_from_a_cache_equals_a_full_sequence_pass() {
    for checkpoint in Checkpoint::all().filter(|checkpoint| checkpoint.is_decoder) {
        let cases = [checkpoint.padded()];
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let mut gpu = checkpoint.on_gpu(dtype);
            // A cache with room for all tokens, whose decoding passes are captured as graphs, and one that grows.
            let runs: &[_] =
                if dtype == DType::F32 { &[((9, 1), SEQ), ((6, 3), 0)] } else { &[((9, 1), SEQ)] };
            for (steps, room) in runs {
                let run = |loaded: &mut Loaded, case: &Case| cached(loaded, case, *steps, *room);
                let [ours, eager] = checkpoint.errors(&mut gpu, dtype, &cases, run);
                let name = format!("{} {dtype:?} by {steps:?}", checkpoint.name);
                println!("{name}: ours {ours:.2e} eager {eager:.2e}");
                assert!(ours <= checkpoint.bound(dtype, eager), "{name}: {ours:e}, eager {eager:e}");
            }
            // Five single tokens, of which the first runs without a graph.
            let replayed = gpu.pass_counts().unwrap().replayed;
            assert!(replayed >= 4, "{} {dtype:?}: {replayed}", checkpoint.name);
        }
    }
}

#[test]
fn a_captured_graph_is_right_on_other_inputs_of_its_shape() {
    for checkpoint in Checkpoint::all() {
        let (mut gpu, mut exact) = (checkpoint.on_gpu(DType::F32), checkpoint.exact());
        for (seed, lengths) in [[14, 9], [11, 14], [14, 3], [1, 13]].into_iter().enumerate() {
            let case = checkpoint.case("of other lengths", seed as u32, |row, column| column < lengths[row]);
            let expected = exact.forward(&case.inputs()).unwrap();
            let relative = case.relative(&gpu.forward(&case.inputs()).unwrap(), &expected);
            assert!(relative <= F32_BOUND, "{} pass {seed}: {relative:e}", checkpoint.name);
        }
        let counts = gpu.pass_counts().unwrap();
        assert_eq!((counts.called, counts.recorded, counts.replayed), (1, 1, 3), "{}", checkpoint.name);
    }
}

#[test]
fn a_pass_that_does_not_fit_its_graph_runs_without_one() {
    // The rope frequencies depend on whether a forward pass goes past position 32.
    let checkpoint = Checkpoint::of("phi3", "longrope");
    let (mut gpu, mut exact) = (checkpoint.on_gpu(DType::F32), checkpoint.exact());
    let case = checkpoint.case("without padding", 0, |_, _| true);
    for first in [0, 0, 0, 60, 60, 60, 0] {
        let mut inputs = case.columns(0..8);
        inputs.position_ids = Some((inputs.position_ids.unwrap() + first as f64).unwrap());
        let expected = exact.forward(&inputs).unwrap();
        let ours = gpu.forward(&inputs).unwrap().to_dtype(DType::F64).unwrap();
        let norm = |xs: &Tensor| xs.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
        let relative = norm(&(ours - &expected).unwrap()) / norm(&expected);
        assert!(relative <= F32_BOUND, "from {first} on: {relative:e}");
    }
    assert!(gpu.pass_counts().unwrap().called > 1);
}

#[test]
fn an_id_outside_the_vocabulary_is_an_error_also_in_a_captured_graph() {
    let mut gpu = Checkpoint::of("llama", "tiny").on_gpu(DType::F32);
    let ids = |id: u32| Inputs::new(Tensor::new(&[[1, id]], &Device::Cpu).unwrap());
    for _ in 0..3 {
        for _ in 0..3 {
            gpu.forward(&ids(5)).unwrap();
        }
        let error = gpu.forward(&ids(90_000)).unwrap_err();
        assert!(matches!(&error, Error::Inputs(reason) if reason.contains("90000")), "{error}");
    }
    gpu.forward(&ids(5)).unwrap();
    assert!(gpu.pass_counts().unwrap().replayed > 0);
}

#[test]
fn the_order_of_threads_changes_nothing() {
    for (model_type, variant) in [("llama", "tiny"), ("gemma3_text", ""), ("mixtral", ""), ("modernbert", "")]
    {
        let checkpoint = Checkpoint::of(model_type, variant);
        for dtype in [DType::F32, DType::BF16] {
            let case = &checkpoint.cases()[0];
            let logits = |order| {
                let logits = checkpoint.on(dtype, Emulator::start(order)).forward(&case.inputs()).unwrap();
                logits.to_dtype(DType::F64).unwrap()
            };
            // Bitwise equal, because no sum depends on the order in which threads run.
            let relative = case.relative(&logits(Order::Reversed), &logits(Order::Forward));
            assert!(relative <= 0.0, "{} {dtype:?}: {relative:e}", checkpoint.name);
        }
    }
}

#[test]
fn a_planted_kernel_bug_exceeds_100_times_the_bound() {
    // The last key of a causal row is left out, the epsilon is omitted, and the window is one key wider.
    let bugs = [
        ("slot + p.after + 1", "slot + p.after", "llama", "tiny"),
        ("/ p.size + p.eps", "/ p.size", "bert", ""),
        ("slot - p.before", "slot - p.before - 1", "mistral", ""),
    ];
    for (from, to, model_type, variant) in bugs {
        let checkpoint = Checkpoint::of(model_type, variant);
        let case = checkpoint.case("without padding", 0, |_, _| true);
        let exact = checkpoint.exact().forward(&case.inputs()).unwrap();
        let ours = checkpoint.on(DType::F32, Emulator::planted(from, to)).forward(&case.inputs()).unwrap();
        let relative = case.relative(&ours, &exact);
        assert!(relative > 100.0 * F32_BOUND, "{from} for {to} in {}: {relative:e}", checkpoint.name);
    }
}

/// On a GPU, the fused backend does not support models that take more than one sequence (T5, Whisper, CLIP), and its error says that.
#[test]
fn a_model_of_more_than_one_sequence_is_refused_on_a_gpu() {
    let others = catalogue().iter().filter(|entry| !entry.is_one_text());
    let mut count = 0;
    for entry in others {
        let folder = tempfile::tempdir().unwrap();
        write(entry.model_type, entry.variant, 0, folder.path()).unwrap();
        let result = load_on_gpu(folder.path(), DType::F32, Emulator::start(Order::Forward));
        let Err(Error::Unsupported(reason)) = result else { panic!("{} was loaded", entry.model_type) };
        assert_eq!(reason, format!("{} in the fused backend on a GPU", entry.model_type));
        count += 1;
    }
    assert!(count > 0);
}
