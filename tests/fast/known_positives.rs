//! Plants each class of bug found in candle's ports into a correct model. The scoreboard must flag it, and the first module
//! whose output differs on equal inputs must be the one that the bug was planted in.
//!
//! The native model in the eager backend replaces transformers, so that no Python is needed; the golden tests compare the
//! two. A bug is planted by editing the checkpoint or the inputs of one side.

#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use compare::logits::Logits;
use compare::mask::Mask;
use compare::matrix::{self, Entry};
use compare::oracle::{Oracles, Origin, accuracies};
use compare::verdict::{Tolerances, verdicts};
use models::{Backend, Inputs, Options, Probe};
use reference::protocol::{Attention, Dtype, LOGITS, Mode};
use serde_json::Value;
use tfcheck::commands::scoreboard::{Score, fold};
use tfcheck::execute::cell::{Cell, Completed, Outcome};
use tfcheck::judge::view::{CaseView, RunView, Times};
use tfcheck::spec::variant::{Runner, Variant};

use crate::plants::Edit;
use crate::plants::known::{Known, known_positives};
use crate::setting::Tensors;

/// Plants the bug of a claim into a synthetic checkpoint; the port must be flagged, and the bug's module must be the first
/// diverging module.
fn is_flagged(claim: &str) {
    let known = known_positives().into_iter().find(|known| known.claim == claim).unwrap();
    let Known { plant, lengths, .. } = known;
    let folder = tempfile::tempdir().unwrap();
    let [right, wrong] = ["right", "wrong"].map(|name| folder.path().join(name));
    let (model_type, variant) = plant.checkpoint.split_once(':').unwrap_or((plant.checkpoint, ""));
    for folder in [&right, &wrong] {
        models::synthetic::write(model_type, variant, 0, folder).unwrap();
    }
    plant.edit_checkpoint(&right, &wrong);
    let inputs = inputs(lengths, &right);
    let wrong_inputs = changed(&inputs, &plant.edit);
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let variants = [
            (Runner::Transformers, "5.23.0", Mode::Eager, dtype),
            (Runner::Transformers, "5.23.0", Mode::Eager, Dtype::F64),
            (Runner::Candle, "candle", Mode::Fused, dtype),
            (Runner::CandleTransformers, "candle-transformers", Mode::Eager, dtype),
        ];
        let cells = variants.map(|(runner, version, mode, dtype)| {
            let is_port = runner == Runner::CandleTransformers;
            let (checkpoint, inputs) = if is_port { (&wrong, &wrong_inputs) } else { (&right, &inputs) };
            cell(folder.path(), runner, version, mode, dtype, &logits(checkpoint, inputs, mode, dtype))
        });
        let [control, port] = &scores(cells.to_vec(), &inputs)[..] else { panic!("two are judged") };
        let found = port.relative_l2.unwrap();
        assert!(["identical", "same mathematics"].contains(&control.word.as_str()), "{control:?}");
        // A difference smaller than bf16's rounding (2^-9 per operation) is not flagged in bf16.
        if dtype == Dtype::F32 || found > 0.2 {
            assert_eq!(port.word, "diverged", "{dtype:?}: {port:?}");
        }
    }
    assert_eq!(first_difference([(&right, &inputs), (&wrong, &wrong_inputs)]), plant.module);
}

/// The inputs with the edit, where it is one of inputs.
fn changed(inputs: &Inputs, edit: &Edit) -> Inputs {
    let Edit::Inputs(edit) = edit else { return inputs.clone() };
    let mut tensors: Tensors =
        [("attention_mask", &inputs.attention_mask), ("position_ids", &inputs.position_ids)]
            .map(|(name, tensor)| (name.to_owned(), tensor.as_ref().unwrap().to_dtype(DType::I64).unwrap()))
            .into();
    edit(&mut tensors);
    let taken = |name: &str| Some(tensors[name].to_dtype(DType::U32).unwrap());
    Inputs { attention_mask: taken("attention_mask"), position_ids: taken("position_ids"), ..inputs.clone() }
}

fn inputs(lengths: &[usize], folder: &Path) -> Inputs {
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    let vocabulary = config["vocab_size"].as_u64().unwrap() as usize;
    let shape = (lengths.len(), lengths[0]);
    let columns = |value: fn(usize, usize, usize) -> usize| -> Vec<u32> {
        let row = |(row, length): (usize, &usize)| {
            let padding = shape.1 - length;
            (0..shape.1).map(move |column| value(row, column, padding) as u32).collect::<Vec<_>>()
        };
        lengths.iter().enumerate().flat_map(row).collect()
    };
    let tensor = |values: Vec<u32>| Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    let ids = columns(|row, column, _| (row + 3) * 7919 + column * 104_729);
    Inputs {
        attention_mask: Some(tensor(columns(|_, column, padding| usize::from(column >= padding)))),
        position_ids: Some(tensor(columns(|_, column, padding| column.saturating_sub(padding)))),
        ..Inputs::new(tensor(ids.into_iter().map(|id| id % vocabulary as u32).collect()))
    }
}

fn load(folder: &Path, mode: Mode, dtype: Dtype) -> models::Loaded {
    let dtype = match dtype {
        Dtype::F64 => DType::F64,
        Dtype::Bf16 => DType::BF16,
        _ => DType::F32,
    };
    let backend = if mode == Mode::Fused { Backend::Fused } else { Backend::Eager };
    models::load(folder, &Options { dtype, device: Device::Cpu, backend }).unwrap()
}

fn logits(folder: &Path, inputs: &Inputs, mode: Mode, dtype: Dtype) -> Tensor {
    let kept = if dtype == Dtype::F64 { DType::F64 } else { DType::F32 };
    load(folder, mode, dtype).forward(inputs).unwrap().to_dtype(kept).unwrap()
}

fn cell(folder: &Path, runner: Runner, version: &str, mode: Mode, dtype: Dtype, logits: &Tensor) -> Cell {
    let variant = Variant {
        runner,
        version: version.into(),
        mode,
        attention: (runner == Runner::Transformers).then_some(Attention::Eager),
        dtype,
        device: "cpu".into(),
        auto_dtype: false,
        qualified: true,
    };
    let path = folder.join(variant.name());
    candle_core::safetensors::save(&[(LOGITS, logits.clone())].into(), &path).unwrap();
    let completed = Completed {
        logits: path,
        shape: logits.dims().to_vec(),
        load_ns: 1,
        first_call_ns: 1,
        ..Completed::default()
    };
    Cell::new(&variant, "key", Outcome::Completed(completed))
}

/// The scoreboard's scores of every cell except transformers'.
fn scores(cells: Vec<Cell>, inputs: &Inputs) -> Vec<Score> {
    let entry = |cell: &Cell| {
        let Outcome::Completed(completed) = &cell.outcome else { panic!("every cell has logits") };
        let logits =
            Logits::open(&completed.logits, compare::Positions::All).map_err(|error| error.to_string());
        Entry {
            name: cell.name.clone(),
            dtype: tfcheck::spec::variant::measured_dtype(cell.variant.dtype),
            logits,
        }
    };
    let entries: Vec<Entry> = cells.iter().map(entry).collect();
    let (batch, seq) = inputs.input_ids.dims2().unwrap();
    let mask = inputs.attention_mask.as_ref().unwrap().flatten_all().unwrap().to_vec1::<u32>().unwrap();
    let mask = Mask::new(batch, seq, mask.iter().map(|real| *real != 0).collect()).unwrap();
    let matrix = matrix::matrix(&entries, Some(&mask), &matrix::Options::default()).unwrap();
    let origins: Vec<Origin> =
        cells.iter().map(|cell| tfcheck::judge::assess::origin(&cell.variant)).collect();
    let oracles = Oracles::new(&matrix, &origins);
    let case = CaseView {
        name: "case".into(),
        checkpoint: "synthetic".into(),
        inputs: "inputs".into(),
        axes: None,
        baseline: None,
        verdicts: verdicts(&matrix, &oracles, &Tolerances::default()),
        caches: Vec::new(),
        accuracies: accuracies(&matrix, &oracles),
        outputs: Vec::new(),
        embeddings: None,
        choices: None,
        localized: Vec::new(),
        diagnosed: Vec::new(),
        times: Times::default(),
        cells,
        matrix,
    };
    let view = RunView {
        id: "run".into(),
        environment: Vec::new(),
        packages: Vec::new(),
        cases: vec![case],
        relations: Vec::new(),
        notes: Vec::new(),
    };
    fold(&view).rows.remove(0).scores.into_iter().flatten().collect()
}

/// Steps inside an attention module, which are ignored here; the tests of `tfcheck localize` cover them.
const STEPS: [&str; 5] = [".rope_q", ".rope_k", ".scores", ".mask", ".softmax"];

/// Input and output of each module, in the order in which modules return.
#[derive(Default)]
struct Recorded {
    open: Vec<Tensor>,
    modules: Vec<(String, [Tensor; 2])>,
}

impl Probe for Recorded {
    fn enter(&mut self, _path: &str, input: &Tensor) {
        self.open.push(input.copy().unwrap());
    }

    fn leave(&mut self, path: &str, output: &Tensor) {
        let input = self.open.pop().unwrap();
        if !STEPS.iter().any(|step| path.ends_with(step)) {
            self.modules.push((path.to_owned(), [input, output.copy().unwrap()]));
        }
    }
}

/// The first module to return a different output on the same input, in float64; empty if there is none.
fn first_difference(models: [(&PathBuf, &Inputs); 2]) -> String {
    let mask = models[0].1.attention_mask.clone().unwrap().to_dtype(DType::F64).unwrap();
    let [right, wrong] = models.map(|(folder, inputs)| {
        let mut recorded = Recorded::default();
        load(folder, Mode::Eager, Dtype::F64).forward_with(inputs, None, Some(&mut recorded)).unwrap();
        recorded.modules
    });
    // A different summation order changes outputs by about 1e-15, every planted bug by more than 1e-6.
    let differs = |a: &Tensor, b: &Tensor| a.dims() != b.dims() || relative_l2(a, b, &mask) > 1e-9;
    let differing = right.iter().zip(&wrong).find(|((path, a), (other, b))| {
        assert_eq!(path, other, "the same modules run");
        !differs(&a[0], &b[0]) && differs(&a[1], &b[1])
    });
    differing.map(|((path, _), _)| path.clone()).unwrap_or_default()
}

/// `‖a − b‖ / ‖b‖` at real (unpadded) positions.
fn relative_l2(a: &Tensor, b: &Tensor, mask: &Tensor) -> f64 {
    let norm = |xs: &Tensor| {
        let xs =
            if xs.rank() == 3 { xs.broadcast_mul(&mask.unsqueeze(2).unwrap()).unwrap() } else { xs.clone() };
        xs.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
    };
    let [a, b] = [a, b].map(|xs| xs.to_dtype(DType::F64).unwrap());
    norm(&(a - &b).unwrap()) / norm(&b).max(f64::MIN_POSITIVE)
}

/// Defines one test per class of bug, so that they run in parallel.
macro_rules! known_positives {
    ($($test:ident: $claim:ident)*) => {
        $(
            #[test]
            fn $test() {
                is_flagged(stringify!($claim));
            }
        )*

        const TESTED: &[&str] = &[$(stringify!($claim)),*];
    };
}

known_positives! {
    a_wrong_epsilon_is_flagged: a_wrong_epsilon
    an_interleaved_rope_is_flagged: an_interleaved_rope
    a_rope_table_in_bf16_is_flagged: a_rope_table_in_bf16
    a_window_of_one_key_more_is_flagged: a_window_of_one_key_more
    a_window_of_one_key_less_is_flagged: a_window_of_one_key_less
    a_missing_scale_of_the_scores_is_flagged: a_missing_scale_of_the_scores
    a_missing_scale_of_the_logits_is_flagged: a_missing_scale_of_the_logits
    a_tanh_gelu_for_the_exact_one_is_flagged: a_tanh_gelu_for_the_exact_one
    swapped_norms_are_flagged: swapped_norms
    a_batch_without_its_mask_is_flagged: a_batch_without_its_mask
    positions_that_count_padding_are_flagged: positions_that_count_padding
    a_wrongly_tied_head_is_flagged: a_wrongly_tied_head
    a_missing_rope_scaling_is_flagged: a_missing_rope_scaling
    one_rope_base_for_all_layers_is_flagged: one_rope_base_for_all_layers
    unread_biases_are_flagged: unread_biases
}

#[test]
fn every_class_of_bug_has_its_test() {
    let claims: Vec<&str> = known_positives().iter().map(|known| known.claim).collect();
    assert_eq!(claims, TESTED);
}
