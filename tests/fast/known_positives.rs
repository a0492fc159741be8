//! Plants each class of bug found in candle's ports into a correct model. The scoreboard must flag it, and the first module
//! whose output differs on equal inputs must be the one that the bug was planted in.
//!
//! The native model in the eager backend replaces transformers, so that no Python is needed; the golden tests compare the
//! two. A bug is planted by editing the checkpoint or the inputs of one side.

#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use compare::logits::Logits;
use compare::mask::Mask;
use compare::matrix::{self, Entry};
use compare::oracle::{Oracles, Origin, accuracies};
use compare::verdict::{Tolerances, verdicts};
use models::{Backend, Inputs, Options, Probe};
use reference::protocol::{Attention, Dtype, LOGITS, Mode};
use serde_json::{Value, json};
use tfcheck::commands::scoreboard::{Score, fold};
use tfcheck::execute::cell::{Cell, Completed, Outcome};
use tfcheck::judge::view::{CaseView, RunView, Times};
use tfcheck::spec::variant::{Runner, Variant};

type Tensors = HashMap<String, Tensor>;

/// The edit that plants a bug.
enum Edit {
    Config(fn(&mut Value)),
    Weights(fn(&mut Tensors)),
    Inputs(fn(&mut Inputs)),
}

/// Sequence lengths of a batch padded on the left: unequal, and longer than every sliding window (8).
const LENGTHS: [usize; 3] = [40, 31, 17];
/// Sequence length with positions above 256, which bf16 (8 significand bits) cannot represent.
const LONG: [usize; 1] = [300];

/// Plants `edit` into a synthetic checkpoint; the port must be flagged, and `module` must be the first diverging module.
fn check(source: (&str, &str), lengths: &[usize], edit: &Edit, module: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [right, wrong] = ["right", "wrong"].map(|name| folder.path().join(name));
    for folder in [&right, &wrong] {
        models::synthetic::write(source.0, source.1, 0, folder).unwrap();
    }
    let inputs = inputs(lengths, &right);
    let mut wrong_inputs = inputs.clone();
    match edit {
        Edit::Config(edit) => edit_config(&wrong, *edit),
        Edit::Weights(edit) => edit_weights(&wrong, *edit),
        Edit::Inputs(edit) => edit(&mut wrong_inputs),
    }
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
    assert_eq!(first_departure([(&right, &inputs), (&wrong, &wrong_inputs)]), module);
}

fn edit_config(folder: &Path, edit: fn(&mut Value)) {
    let path = folder.join("config.json");
    let mut config = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
}

fn edit_weights(folder: &Path, edit: fn(&mut Tensors)) {
    let path = folder.join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    edit(&mut tensors);
    candle_core::safetensors::save(&tensors, path).unwrap();
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
fn first_departure(models: [(&PathBuf, &Inputs); 2]) -> String {
    let mask = models[0].1.attention_mask.clone().unwrap().to_dtype(DType::F64).unwrap();
    let [right, wrong] = models.map(|(folder, inputs)| {
        let mut recorded = Recorded::default();
        load(folder, Mode::Eager, Dtype::F64).forward_with(inputs, None, Some(&mut recorded)).unwrap();
        recorded.modules
    });
    // A different summation order changes outputs by about 1e-15, every planted bug by more than 1e-6.
    let departs = |a: &Tensor, b: &Tensor| a.dims() != b.dims() || relative_l2(a, b, &mask) > 1e-9;
    let departed = right.iter().zip(&wrong).find(|((path, a), (other, b))| {
        assert_eq!(path, other, "the same modules run");
        !departs(&a[0], &b[0]) && departs(&a[1], &b[1])
    });
    departed.map(|((path, _), _)| path.clone()).unwrap_or_default()
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

#[test]
fn a_wrong_epsilon_is_flagged() {
    let edit = Edit::Config(|config| config["rms_norm_eps"] = json!(1e-6));
    check(("mistral", ""), &LENGTHS, &edit, "model.layers.0.input_layernorm");
}

/// Reordering the rows of `q_proj` and `k_proj` makes the half-split rotation equal to an interleaved one.
#[test]
fn an_interleaved_rope_is_flagged() {
    let edit = Edit::Weights(|tensors| {
        for (name, tensor) in tensors.iter_mut() {
            if name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight") {
                let (rows, inner) = tensor.dims2().unwrap();
                let pairs = tensor.reshape((rows / 16, 8, 2, inner)).unwrap().transpose(1, 2).unwrap();
                *tensor = pairs.contiguous().unwrap().reshape((rows, inner)).unwrap();
            }
        }
    });
    check(("mistral", ""), &LENGTHS, &edit, "model.layers.0.self_attn.q_proj");
}

/// Rounds the positions to bf16, as a rope table built in bf16 does.
#[test]
fn a_rope_table_in_bf16_is_flagged() {
    let edit = Edit::Inputs(|inputs| {
        let positions = inputs.position_ids.as_ref().unwrap();
        let rounded = positions.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
        inputs.position_ids = Some(rounded.to_dtype(DType::U32).unwrap());
    });
    check(("llama", "tiny"), &LONG, &edit, "model.layers.0.self_attn");
}

#[test]
fn a_window_of_one_key_more_is_flagged() {
    let edit = Edit::Config(|config| config["sliding_window"] = json!(9));
    check(("mistral", ""), &LENGTHS, &edit, "model.layers.0.self_attn");
}

#[test]
fn a_window_of_one_key_less_is_flagged() {
    let edit = Edit::Config(|config| config["sliding_window"] = json!(7));
    check(("mistral", ""), &LENGTHS, &edit, "model.layers.0.self_attn");
}

#[test]
fn a_missing_scale_of_the_scores_is_flagged() {
    let edit = Edit::Config(|config| config["query_pre_attn_scalar"] = config["head_dim"].clone());
    check(("gemma2", ""), &LENGTHS, &edit, "model.layers.0.self_attn");
}

#[test]
fn a_missing_scale_of_the_logits_is_flagged() {
    let edit = Edit::Config(|config| config["logits_scaling"] = json!(1.0));
    // The scale is applied after `lm_head`, in no module of its own.
    check(("granite", ""), &LENGTHS, &edit, "");
}

#[test]
fn a_tanh_gelu_for_the_exact_one_is_flagged() {
    let edit = Edit::Config(|config| config["hidden_act"] = json!("gelu_pytorch_tanh"));
    check(("gpt_neox", ""), &LENGTHS, &edit, "gpt_neox.layers.0.mlp.act");
}

#[test]
fn swapped_norms_are_flagged() {
    let edit = Edit::Weights(|tensors| {
        let norms: Vec<String> =
            tensors.keys().filter(|name| name.contains("input_layernorm")).cloned().collect();
        for first in norms {
            let second = first.replace("input_layernorm", "post_attention_layernorm");
            let (a, b) = (tensors[&first].clone(), tensors[&second].clone());
            tensors.insert(first, b);
            tensors.insert(second, a);
        }
    });
    check(("mistral", ""), &LENGTHS, &edit, "model.layers.0.input_layernorm");
}

#[test]
fn a_batch_without_its_mask_is_flagged() {
    let edit = Edit::Inputs(|inputs| {
        inputs.attention_mask = Some(inputs.input_ids.ones_like().unwrap());
    });
    check(("mistral", "full"), &LENGTHS, &edit, "model.layers.0.self_attn");
}

/// Without `position_ids`, the positions of left-padded rows are off by their padding.
#[test]
fn positions_that_count_padding_are_flagged() {
    let edit = Edit::Inputs(|inputs| inputs.position_ids = None);
    // Rope depends on distances only, so this needs learned positions. `wpe` gets a different input, so its caller diverges.
    check(("gpt2", ""), &LENGTHS, &edit, "transformer");
}

#[test]
fn a_wrongly_tied_head_is_flagged() {
    let edit = Edit::Config(|config| config["tie_word_embeddings"] = json!(true));
    check(("starcoder2", "untied"), &LENGTHS, &edit, "lm_head");
}

#[test]
fn a_missing_rope_scaling_is_flagged() {
    let edit = Edit::Config(|config| {
        config["rope_scaling"] = Value::Null;
        config.as_object_mut().unwrap().remove("rope_parameters");
    });
    check(("llama", "llama3"), &LENGTHS, &edit, "model.layers.0.self_attn");
}

#[test]
fn one_rope_base_for_all_layers_is_flagged() {
    let edit = Edit::Config(|config| {
        config["rope_local_base_freq"] = config["rope_theta"].clone();
        config.as_object_mut().unwrap().remove("rope_parameters");
    });
    check(("gemma3_text", ""), &LENGTHS, &edit, "model.layers.0.self_attn");
}

#[test]
fn unread_biases_are_flagged() {
    let edit = Edit::Config(|config| config["attention_bias"] = json!(false));
    check(("llama", "bias"), &LENGTHS, &edit, "model.layers.0.self_attn.q_proj");
}
