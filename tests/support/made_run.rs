//! Writes a run folder with generated logits, for any number of cases and variants, without running a model.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use reference::protocol::{Attention, Dtype, LOGITS, Mode, Positions};
use safetensors::tensor::TensorView;
use sha2::{Digest, Sha256};
use tfcheck::execute::cell::{Cell, Completed, Failure, FailureKind, Outcome};
use tfcheck::results::environment::{EnvironmentRecord, PythonEnvironment};
use tfcheck::results::localized::{Divergence, Finding, Localized, ModuleError};
use tfcheck::results::{Case, Manifest, RunFolder, SCHEMA_VERSION};
use tfcheck::spec::config::Config;
use tfcheck::spec::inputs::Inputs;
use tfcheck::spec::machine::Machine;
use tfcheck::spec::variant::{Runner, Variant};

/// Sequence length, batch size and vocabulary size of every case.
const SEQ: usize = 48;
const BATCH: usize = 2;
const VOCAB: usize = 64;
/// Text of a token that would run a script if the page did not escape it.
pub(crate) const HOSTILE: &str = "</script><img src=x onerror=\"document.title='broken'\">";

/// Transformers versions, newest first; the first is the reference's.
const VERSIONS: [&str; 12] = [
    "5.24.0", "5.10.4", "5.0.0", "4.57.6", "4.54.0", "4.51.3", "4.49.0", "4.46.3", "4.44.0", "4.43.1",
    "4.42.0", "4.40.2",
];

/// Writes a run of `cases` cases with `variants` variants each. The oldest version diverges in every third case, one variant
/// has a NaN in every fourth case, and one fails in every fifth. `slower` multiplies the times of the second variant.
pub(crate) fn made_run(results: &Path, cases: usize, variants: usize, slower: f64) -> PathBuf {
    let folder = RunFolder::create(results, "20261130_120000").unwrap();
    let all = variants_of(variants);
    let manifest = Manifest {
        schema_version: SCHEMA_VERSION,
        stamp: "20261130_120000".into(),
        config: Config::default(),
        folder: PathBuf::new(),
        baseline: Some(all[0].name()),
        plan: None,
        share: None,
        cases: (0..cases).map(|number| case(number, &all)).collect(),
        notes: vec!["a note with <b>markup</b> & more".into()],
    };
    folder.write_manifest(&manifest).unwrap();
    folder.write_environment(&record(slower)).unwrap();
    let mut localized = Vec::new();
    for (number, case) in manifest.cases.iter().enumerate() {
        let files = folder.case_folder(&manifest, &case.name);
        std::fs::create_dir_all(&files).unwrap();
        inputs(number).save(&files).unwrap();
        for (index, variant) in all.iter().enumerate() {
            let is_apart = number % 3 == 0 && variant.version == apart_version(&all);
            let cell = Cell::new(variant, "key", outcome((number, index), variant, &files, slower, is_apart));
            folder.write_cell(&manifest, &case.name, &cell).unwrap();
        }
        if number % 3 == 0 && variants > 2 {
            let apart = all.iter().find(|variant| variant.version == apart_version(&all)).unwrap();
            localized.push(found(&case.name, &all[0].name(), &apart.name()));
        }
    }
    folder.write_localized(&localized).unwrap();
    folder.path().to_owned()
}

/// Environment record of a run; all runs have the same machine, and runs with `slower > 1` have another numpy version.
fn record(slower: f64) -> EnvironmentRecord {
    let numpy = if slower > 1.0 { "2.4.2" } else { "2.4.1" };
    let environment = PythonEnvironment {
        versions: vec![VERSIONS[0].to_owned()],
        packages: [("numpy".to_owned(), numpy.to_owned())].into(),
        ..PythonEnvironment::default()
    };
    EnvironmentRecord {
        schema_version: SCHEMA_VERSION,
        machine: Machine::detect(),
        fingerprint: "the machine of all made runs".to_owned(),
        threads: 2,
        auto_device: None,
        environments: vec![environment],
        checkpoints: Vec::new(),
    }
}

/// Versions in f32 and bf16, with sdpa and eager attention; the last two variants are the float64 references of the newest
/// and the oldest version.
fn variants_of(count: usize) -> Vec<Variant> {
    let variant = |version: &str, attention, dtype| Variant {
        runner: Runner::Transformers,
        version: version.to_owned(),
        mode: Mode::Eager,
        attention: Some(attention),
        dtype,
        device: "cpu".to_owned(),
        auto_dtype: false,
        qualified: true,
    };
    let mut all = Vec::new();
    for version in VERSIONS {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            all.extend(
                [Attention::Sdpa, Attention::Eager].map(|attention| variant(version, attention, dtype)),
            );
        }
    }
    all.truncate(count - 2);
    let oldest = all[count - 3].version.clone();
    all.push(variant(VERSIONS[0], Attention::Eager, Dtype::F64));
    // A variant stands in a run once.
    let attention = if oldest == VERSIONS[0] { Attention::Sdpa } else { Attention::Eager };
    all.push(variant(&oldest, attention, Dtype::F64));
    all
}

/// The oldest version of the run.
fn apart_version(all: &[Variant]) -> &str {
    &all[all.len() - 1].version
}

fn case(number: usize, variants: &[Variant]) -> Case {
    let names = ["llama", "mistral", "qwen3", "gemma2", "phi3", "olmo2", "it's"];
    Case {
        name: format!("{}-{}", names[number % names.len()], 32 + number),
        checkpoint: format!("synthetic:{}", names[number % names.len()]),
        checkpoint_digest: format!("checkpoint {number}"),
        inputs: format!("batch {BATCH}, {SEQ} tokens"),
        inputs_digest: format!("inputs {number}"),
        choices: Vec::new(),
        pooling: None,
        questions: None,
        axes: None,
        tolerances: None,
        variants: variants.to_vec(),
        notes: Vec::new(),
    }
}

fn inputs(number: usize) -> Inputs {
    let words = ["The", " quick", " brown", " fox", "\n", " jumps", HOSTILE, " über", " 犬", ","];
    let ids: Vec<i64> = (0..BATCH * SEQ).map(|at| ((at * 7 + number) % words.len()) as i64).collect();
    let texts = ids.iter().map(|id| words[*id as usize].to_owned()).collect();
    let ones = vec![1; BATCH * SEQ];
    let positions: Vec<i64> = (0..BATCH).flat_map(|_| 0..SEQ as i64).collect();
    let mut hasher = Sha256::new();
    hasher.update(format!("tfcheck inputs 1\n{BATCH} {SEQ}\n"));
    for value in [&ids, &ones, &positions].into_iter().flatten() {
        hasher.update(value.to_le_bytes());
    }
    Inputs {
        name: "made".to_owned(),
        input_ids: ids,
        attention_mask: ones,
        position_ids: positions,
        batch: BATCH,
        seq: SEQ,
        padding: None,
        prompts: Vec::new(),
        rendered: Vec::new(),
        texts,
        choices: Vec::new(),
        tensors: std::collections::BTreeMap::new(),
        own_positions: false,
        digest: hasher.finalize().iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").unwrap();
            text
        }),
        notes: Vec::new(),
    }
}

fn outcome(
    (number, index): (usize, usize),
    variant: &Variant,
    files: &Path,
    slower: f64,
    is_apart: bool,
) -> Outcome {
    if number % 5 == 4 && index == 2 {
        return Outcome::Failed(Failure {
            kind: FailureKind::Exception,
            reason: "KeyError: '<rope>'".to_owned(),
            detail: "Traceback\n  KeyError: '<rope>'".to_owned(),
            log_tail: "loading </script> weights".to_owned(),
        });
    }
    let name = PathBuf::from(format!("{}/logits_{}.safetensors", variant.version, variant.note()));
    let values = logits((number, index), variant, is_apart);
    let bytes: Vec<u8> = match variant.dtype {
        Dtype::F64 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        _ => values.iter().flat_map(|value| (*value as f32).to_le_bytes()).collect(),
    };
    let stored = if variant.dtype == Dtype::F64 { safetensors::Dtype::F64 } else { safetensors::Dtype::F32 };
    let view = TensorView::new(stored, vec![BATCH, SEQ, VOCAB], &bytes).unwrap();
    std::fs::create_dir_all(files.join(&variant.version)).unwrap();
    safetensors::serialize_to_file([(LOGITS, view)], None, &files.join(&name)).unwrap();
    let median = (20.0 + index as f64) * if index == 1 { slower } else { 1.0 };
    let round = |round: usize| -> Vec<u64> {
        (0..3).map(|pass| ((median + random(number, index, round * 3 + pass)) * 1e6) as u64).collect()
    };
    let is_timed = variant.dtype != Dtype::F64;
    Outcome::Completed(Completed {
        logits: name,
        shape: vec![BATCH, SEQ, VOCAB],
        positions: Positions::All,
        first_call_ns: 90_000_000,
        load_ns: 500_000_000,
        rounds_ns: if is_timed { (0..8).map(round).collect() } else { Vec::new() },
        round_numbers: if is_timed { (0..8).collect() } else { Vec::new() },
        peak_bytes: Some(1 << 30),
        ..Completed::default()
    })
}

/// A deterministic pseudo-random number between −1 and 1.
fn random(a: usize, b: usize, c: usize) -> f64 {
    let mut z = (a as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ ((b as u64) << 32)
        ^ (c as u64).wrapping_add(0x1234_5678);
    for _ in 0..3 {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z ^= z >> 27;
    }
    (z >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
}

fn logits((number, index): (usize, usize), variant: &Variant, is_apart: bool) -> Vec<f64> {
    // Size of the simulated relative rounding error of the dtype.
    let rounding = match variant.dtype {
        Dtype::F64 => 0.0,
        Dtype::F32 => 2e-7,
        _ => 4e-3,
    };
    (0..BATCH * SEQ * VOCAB)
        .map(|at| {
            let exact = 3.0 * random(number, 1000, at);
            let position = (at / VOCAB) % SEQ;
            let wrong = if is_apart && position >= 20 { 0.4 * random(number, 2000, at) } else { 0.0 };
            if number % 4 == 3 && index == 3 && at == 20 * VOCAB + 5 {
                return f64::NAN;
            }
            exact * (1.0 + rounding * random(number, index, at)) + wrong
        })
        .collect()
}

/// A localisation of 26 layers whose first diverging layer is `model.layers.7`.
fn found(case: &str, a: &str, b: &str) -> Localized {
    let module = |path: String, error: f64, replayed: Option<f64>| ModuleError {
        path,
        call: 0,
        input: Some(error / 2.0),
        output: Some(error),
        replayed,
    };
    let mut profile = vec![module("model.embed_tokens".to_owned(), 0.0, None)];
    for layer in 0..26 {
        let error = if layer < 7 { 1e-16 * f64::from(layer + 1) } else { 1e-3 * f64::from(layer - 5) };
        let replayed = (layer == 7).then_some(9e-4);
        profile.push(module(format!("model.layers.{layer}"), error, replayed));
    }
    profile.push(module("lm_head".to_owned(), f64::INFINITY, None));
    Localized {
        case: case.to_owned(),
        a: a.to_owned(),
        b: b.to_owned(),
        dtype: Dtype::F64,
        threshold: 1e-10,
        logits: Some(0.13),
        finding: Finding::Module(Divergence {
            path: "model.layers.7.mask".to_owned(),
            output: 1e-3,
            ..Divergence::default()
        }),
        sentence: "model.layers.7.mask differs by 1.0e-3 in f64 although its input agrees (7.0e-16)"
            .to_owned(),
        modules: 28,
        captured_bytes: 1 << 20,
        overhead: Some(1.4),
        elapsed_ns: 2_000_000_000,
        capture_changed_nothing: true,
        is_first_fed: false,
        notes: Vec::new(),
        profile,
    }
}
