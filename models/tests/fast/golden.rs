//! Compares every tiny checkpoint of `tests/golden/` with the logits of transformers 5.23.0 in every dtype, and tests that
//! a KV cache, padding, batching and a probe do not change results.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its fixtures has failed")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, IndexOp, Tensor};
use models::{Backend, Cache, Inputs, Kind, Loaded, Options, Probe, kind_of, load};

/// Begins the names of the outputs beside the main one.
const OUTPUT: &str = "output.";

/// A case's folder with the weights filled in, and the outputs of transformers.
struct Case {
    name: String,
    kind: Kind,
    /// `architectures` of the config.
    architecture: String,
    /// Module paths of the tensors.
    modules: BTreeSet<String>,
    folder: tempfile::TempDir,
    expected: HashMap<String, Tensor>,
}

fn cases() -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut folders: Vec<PathBuf> = std::fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("tensors.json").exists())
        .collect();
    folders.sort();
    assert!(!folders.is_empty());
    folders.iter().map(|folder| case(folder)).collect()
}

fn case(golden: &Path) -> Case {
    let folder = tempfile::tempdir().unwrap();
    let config = std::fs::read_to_string(golden.join("config.json")).unwrap();
    std::fs::write(folder.path().join("config.json"), &config).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let shapes = std::fs::read_to_string(golden.join("tensors.json")).unwrap();
    let shapes: BTreeMap<String, Vec<usize>> = serde_json::from_str(&shapes).unwrap();
    let modules = shapes.keys().filter_map(|name| Some(name.rsplit_once('.')?.0.to_owned())).collect();
    let tensors = shapes.into_iter().map(|(name, shape)| {
        let values = weights(&name, shape.iter().product());
        (name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
    });
    let tensors: HashMap<String, Tensor> = tensors.collect();
    candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
    Case {
        name: golden.file_name().unwrap().to_string_lossy().into_owned(),
        kind: kind_of(&config).unwrap(),
        architecture: config["architectures"][0].as_str().unwrap().to_owned(),
        modules,
        folder,
        expected: candle_core::safetensors::load(golden.join("expected.safetensors"), &Device::Cpu).unwrap(),
    }
}

/// The values of the tensor `name`, computed as in `make.py`.
fn weights(name: &str, count: usize) -> Vec<f32> {
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |seed, byte| {
        (seed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (1..=count as u64)
        .map(|i| {
            let z = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let z = z ^ (z >> 31);
            let unit = (z >> 40) as f64 / f64::from(1 << 23) - 1.0;
            (unit * 0.5) as f32
        })
        .collect()
}

impl Case {
    fn is_decoder(&self) -> bool {
        self.kind == Kind::Decoder
    }

    /// Whether the model gives one vector per row. With left padding a classifier may read padding, as in transformers.
    fn is_classifier(&self) -> bool {
        self.architecture.ends_with("ForSequenceClassification")
    }

    fn load(&self, dtype: DType) -> Loaded {
        self.load_backend(dtype, Backend::Eager)
    }

    fn load_backend(&self, dtype: DType, backend: Backend) -> Loaded {
        let options = Options { dtype, device: Device::Cpu, backend };
        load(self.folder.path(), &options).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    fn given(&self, name: &str) -> Option<Tensor> {
        self.expected.get(name).cloned()
    }

    fn inputs(&self) -> Inputs {
        let of_text = ["input_ids", "attention_mask", "position_ids"];
        let others = self.expected.iter().filter(|(name, _)| {
            let name = name.as_str();
            !of_text.contains(&name) && !["logits", "errors"].contains(&name) && !name.starts_with(OUTPUT)
        });
        let ids = || self.given("input_ids").or_else(|| self.given("decoder_input_ids"));
        Inputs {
            // A model of speech or images reads none.
            input_ids: ids().unwrap_or_else(|| Tensor::zeros((1, 1), DType::U32, &Device::Cpu).unwrap()),
            attention_mask: self.given("attention_mask"),
            position_ids: self.given("position_ids"),
            tensors: others.map(|(name, tensor)| (name.clone(), tensor.clone())).collect(),
        }
    }

    /// The inputs of one row and of `columns`, with the attention mask of all columns up to their end.
    fn slice(&self, row: usize, columns: std::ops::Range<usize>) -> Inputs {
        let cut = |name: &str, start: usize| {
            self.expected[name].i((row..=row, start..columns.end)).unwrap().contiguous().unwrap()
        };
        Inputs {
            attention_mask: Some(cut("attention_mask", 0)),
            position_ids: Some(cut("position_ids", columns.start)),
            ..Inputs::new(cut("input_ids", columns.start))
        }
    }

    /// Relative L2 of `result` to `reference` over the tokens that the mask marks as real: those of a decoder, if the
    /// model has one beside an encoder.
    fn relative(&self, result: &Tensor, reference: &Tensor) -> f64 {
        let mask = self.given("decoder_attention_mask").or_else(|| self.given("attention_mask"));
        let mask = mask.map(|mask| mask.to_dtype(DType::F64).unwrap().unsqueeze(2).unwrap());
        let norm = |xs: &Tensor| {
            let xs = xs.to_dtype(DType::F64).unwrap();
            let xs = match &mask {
                Some(mask) if xs.rank() > 2 => xs.broadcast_mul(mask).unwrap(),
                _ => xs,
            };
            xs.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
        };
        let difference = (result.to_dtype(DType::F64).unwrap() - reference).unwrap();
        norm(&difference) / norm(reference)
    }
}

fn norm(xs: &Tensor) -> f64 {
    let xs = xs.to_dtype(DType::F64).unwrap();
    xs.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
}

/// Dtypes and backends with the largest accepted relative L2: a rounding of about 1e-16 (F64) or 1e-7 (F32) per
/// operation, over a few hundred operations in the widest case.
const EXACT: [(DType, Backend, f64); 2] =
    [(DType::F64, Backend::Eager, 1e-12), (DType::F32, Backend::Fused, 5e-6)];

fn assert_same(name: &str, result: &Tensor, reference: &Tensor, bound: f64) {
    let relative = norm(&(result - reference).unwrap()) / norm(reference);
    assert!(relative <= bound, "{name}: relative L2 {relative:e}");
}

#[test]
fn f64_logits_are_those_of_transformers() {
    for case in cases() {
        let logits = case.load(DType::F64).forward(&case.inputs()).unwrap();
        let relative = case.relative(&logits, &case.expected["logits"]);
        println!("{}: {relative:e}", case.name);
        // The limit of native models in float64, as in examples/judge.rs.
        assert!(relative <= 1e-12, "{}: relative L2 {relative:e}", case.name);
    }
}

#[test]
fn f64_outputs_beside_the_main_one_are_those_of_transformers() {
    let mut names = BTreeSet::new();
    for case in cases() {
        let further: BTreeMap<_, _> =
            case.load(DType::F64).outputs(&case.inputs()).unwrap().into_iter().skip(1).collect();
        let expected: Vec<&str> = case.expected.keys().filter_map(|name| name.strip_prefix(OUTPUT)).collect();
        assert_eq!(further.len(), expected.len(), "{}", case.name);
        for name in expected {
            let relative = case.relative(&further[name], &case.expected[&format!("{OUTPUT}{name}")]);
            println!("{} {name}: {relative:e}", case.name);
            assert!(relative <= 1e-12, "{} {name}: relative L2 {relative:e}", case.name);
            names.insert(name.to_owned());
        }
    }
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["last_hidden_state", "pooler_output"]);
}

#[test]
fn smaller_dtypes_err_no_more_than_torch_does() {
    for case in cases() {
        let errors: Vec<f64> = case.expected["errors"].to_vec1().unwrap();
        let runs = [
            (DType::F32, Backend::Eager, errors[0]),
            (DType::F32, Backend::Fused, errors[0]),
            (DType::BF16, Backend::Eager, errors[1]),
            (DType::BF16, Backend::Fused, errors[1]),
            (DType::F16, Backend::Eager, errors[2]),
        ];
        for (dtype, backend, torch) in runs {
            let logits = case.load_backend(dtype, backend).forward(&case.inputs()).unwrap();
            let ours = case.relative(&logits, &case.expected["logits"]);
            println!("{} {dtype:?} {backend:?}: ours {ours:.3e} torch {torch:.3e}", case.name);
            // The limit of native models, as in examples/judge.rs. f32 errors are a few roundings, so their ratio varies.
            let bound = if dtype == DType::F32 { (1.5 * torch).max(5e-6) } else { 1.5 * torch };
            assert!(ours <= bound, "{} {dtype:?} {backend:?}: error {ours:e}, torch's {torch:e}", case.name);
        }
    }
}

#[test]
fn no_key_or_tensor_is_left_unread() {
    for case in cases() {
        let loaded = case.load(DType::F32);
        assert_eq!(loaded.unread_tensors, [""; 0], "{}", case.name);
        assert_eq!(loaded.unread_keys, [""; 0], "{}", case.name);
    }
}

#[test]
fn prefill_in_chunks_and_token_by_token_equal_a_full_sequence_pass() {
    for (case, (dtype, backend, bound)) in cases().iter().flat_map(|case| EXACT.map(|exact| (case, exact))) {
        if !case.is_decoder() {
            continue;
        }
        // The frequencies of these ropes depend on the length of each forward pass, as in transformers.
        if case.name.contains("dynamic") || case.name.contains("longrope") {
            continue;
        }
        let mut loaded = case.load_backend(dtype, backend);
        for row in 0..2 {
            let seq = case.expected["input_ids"].dim(1).unwrap();
            let whole = loaded.forward(&case.slice(row, 0..seq)).unwrap();
            for chunk in [1, 5] {
                let mut cache = Cache::new();
                let mut parts = Vec::new();
                for start in (0..seq).step_by(chunk) {
                    let inputs = case.slice(row, start..(start + chunk).min(seq));
                    parts.push(loaded.forward_with(&inputs, Some(&mut cache), None).unwrap());
                }
                assert_eq!(cache.len(), seq);
                let real = if row == 0 { 0 } else { 3 };
                let parts = Tensor::cat(&parts, 1).unwrap().i((.., real..)).unwrap();
                assert_same(&case.name, &parts, &whole.i((.., real..)).unwrap(), bound);
            }
        }
    }
}

#[test]
fn an_encoder_refuses_a_cache() {
    let has_none =
        |kind| matches!(kind, Kind::Encoder | Kind::DualEncoder | Kind::TextEncoder | Kind::ImageEncoder);
    for case in cases().iter().filter(|case| has_none(case.kind)) {
        let mut loaded = case.load(DType::F32);
        assert!(loaded.forward_with(&case.inputs(), Some(&mut Cache::new()), None).is_err(), "{}", case.name);
    }
}

#[test]
fn a_row_gives_the_same_alone_unpadded_and_right_padded() {
    for (case, (dtype, backend, bound)) in cases().iter().flat_map(|case| EXACT.map(|exact| (case, exact))) {
        // `sequences.rs` has this law for models of more than one sequence.
        if case.is_classifier() || !case.kind.is_one_text() {
            continue;
        }
        // The frequencies of the dynamic rope depend on the longest row of the batch, as in transformers.
        if case.name.contains("dynamic") {
            continue;
        }
        let mut loaded = case.load_backend(dtype, backend);
        let batch = loaded.forward(&case.inputs()).unwrap();
        let (row, padding) = (1, 3);
        let seq = case.expected["input_ids"].dim(1).unwrap();
        let expected = batch.i((row..=row, padding..)).unwrap();
        let alone = loaded.forward(&case.slice(row, 0..seq)).unwrap();
        assert_same(&case.name, &alone.i((.., padding..)).unwrap(), &expected, bound);
        let ids = case.expected["input_ids"].i((row..=row, padding..)).unwrap().contiguous().unwrap();
        let unpadded = loaded.forward(&Inputs::new(ids.clone())).unwrap();
        assert_same(&case.name, &unpadded, &expected, bound);
        let positions = case.expected["position_ids"].i((row..=row, padding..)).unwrap();
        let right = Inputs {
            attention_mask: Some(ids.ones_like().unwrap().pad_with_zeros(1, 0, padding).unwrap()),
            position_ids: Some(positions.pad_with_zeros(1, 0, padding).unwrap()),
            ..Inputs::new(ids.pad_with_zeros(1, 0, padding).unwrap())
        };
        let right = loaded.forward(&right).unwrap().i((.., ..seq - padding)).unwrap();
        assert_same(&case.name, &right, &expected, bound);
    }
}

#[test]
fn a_classifier_gives_a_row_the_same_alone_and_right_padded() {
    for (case, (dtype, backend, bound)) in cases().iter().flat_map(|case| EXACT.map(|exact| (case, exact))) {
        if !case.is_classifier() {
            continue;
        }
        let mut loaded = case.load_backend(dtype, backend);
        let (row, padding) = (1, 3);
        let cut = |name: &str| case.expected[name].i((row..=row, padding..)).unwrap().contiguous().unwrap();
        let padded = |name: &str| cut(name).pad_with_zeros(1, 0, padding).unwrap();
        let alone = loaded.forward(&Inputs::new(cut("input_ids"))).unwrap();
        let right = Inputs {
            attention_mask: Some(padded("attention_mask")),
            position_ids: Some(padded("position_ids")),
            ..Inputs::new(padded("input_ids"))
        };
        assert_same(&case.name, &loaded.forward(&right).unwrap(), &alone, bound);
    }
}

#[test]
fn a_body_loads_from_files_saved_with_a_head_or_without_and_under_old_names() {
    type Rename = fn(&str) -> String;
    let renamings: [(&str, Rename); 6] = [
        ("gpt2", |name| name.replace("transformer.", "")),
        ("bert", |name| name.trim_start_matches("bert.").to_owned()),
        ("bert_encoder", |name| format!("bert.{name}")),
        ("clip_text_model", |name| format!("text_model.{name}")),
        ("clip_vision_model", |name| format!("vision_model.{name}")),
        ("bert_encoder", |name| {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        }),
    ];
    for (name, rename) in renamings {
        let case = cases().into_iter().find(|case| case.name == name).unwrap();
        let before = case.load(DType::F64).forward(&case.inputs()).unwrap();
        let file = case.folder.path().join("model.safetensors");
        let tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
        let renamed: HashMap<String, Tensor> =
            tensors.into_iter().map(|(name, tensor)| (rename(&name), tensor)).collect();
        candle_core::safetensors::save(&renamed, &file).unwrap();
        let mut loaded = case.load(DType::F64);
        assert_eq!(loaded.unread_tensors, [""; 0], "{name}");
        assert_same(name, &loaded.forward(&case.inputs()).unwrap(), &before, 0.0);
    }
}

#[derive(Default)]
struct Trace {
    open: Vec<String>,
    closed: Vec<String>,
}

impl Probe for Trace {
    fn enter(&mut self, path: &str, _input: &Tensor) {
        self.open.push(path.to_owned());
    }

    fn leave(&mut self, path: &str, _output: &Tensor) {
        assert_eq!(self.open.pop().as_deref(), Some(path));
        self.closed.push(path.to_owned());
    }
}

#[test]
fn a_probe_sees_every_module_and_changes_nothing() {
    for case in cases() {
        let mut loaded = case.load(DType::F32);
        let mut trace = Trace::default();
        let plain = loaded.forward(&case.inputs()).unwrap();
        let probed = loaded.forward_with(&case.inputs(), None, Some(&mut trace)).unwrap();
        assert!(norm(&(plain - probed).unwrap()).abs() <= 0.0, "{}", case.name);
        assert!(trace.open.is_empty());
        let seen = |path: &str| trace.closed.iter().any(|closed| closed == path);
        for path in &case.modules {
            // transformers 5 renamed gpt_neox's head and mixtral's mlp, runs t5's embedding in encoder and decoder, and saves
            // qwen2_vl under its first names. Norms per head and experts are not modules here.
            let path = if case.architecture == "Qwen2VLForConditionalGeneration" {
                &path.replace("model.", "model.language_model.").replace("visual.", "model.visual.")
            } else {
                path
            };
            let path = &path.replace("embed_out", "lm_head").replace("block_sparse_moe", "mlp").replace(
                "shared",
                if case.architecture == "T5EncoderModel" {
                    "encoder.embed_tokens"
                } else {
                    "decoder.embed_tokens"
                },
            );
            let is_part = [".norms.", ".experts"].iter().any(|part| path.contains(part));
            assert!(is_part || seen(path), "{}: no {path}", case.name);
        }
        let has_lm_head = case.is_decoder() || case.architecture == "T5ForConditionalGeneration";
        assert!(!has_lm_head || seen("lm_head"), "{}: no head", case.name);
        let activations = ["act", "act_fn", "activation", "activation_fn", "intermediate_act_fn"];
        let is_activation =
            |path: &String| path.rsplit('.').next().is_some_and(|name| activations.contains(&name));
        let has_experts = case.modules.iter().any(|path| path.contains(".experts."));
        assert!(has_experts || trace.closed.iter().any(is_activation), "{}: no activation", case.name);
    }
}
