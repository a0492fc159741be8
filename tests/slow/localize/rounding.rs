//! Changes that affect rounding only: the verdict is never *diverged*, and localisation finds nothing.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use compare::logits::Logits;
use compare::mask::Mask;
use compare::matrix::{self, Entry};
use compare::oracle::{Oracles, Origin};
use compare::verdict::{Decision, Tolerances, verdicts};
use models::synthetic::catalogue;
use reference::protocol::{Attention, Dtype, Forward, Load, Mode, Request};
use tfcheck::execute::runner::{self, ProcessRunner, Runner, Session, Start};
use tfcheck::hunt::localize::{Finding, Options};
use tfcheck::spec::variant::measured_dtype;
use tfcheck::spec::variant::{Variant, attention_name, dtype_name, mode_name};

use crate::engine::InProcess;
use crate::fork::newest;
use crate::setting::{Setting, Tensors};

const HALVES: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::F16];

/// A variant and its number of threads; cells of one checkpoint differ in rounding only.
#[derive(Clone)]
struct Cell {
    variant: Variant,
    threads: usize,
}

impl Cell {
    fn new(
        runner: tfcheck::spec::variant::Runner,
        mode: Mode,
        attention: Option<Attention>,
        dtype: Dtype,
        threads: usize,
    ) -> Self {
        let variant = Variant {
            runner,
            version: format!("{runner:?}"),
            mode,
            attention,
            dtype,
            device: "cpu".into(),
            auto_dtype: false,
            qualified: true,
        };
        Self { variant, threads }
    }

    fn native(mode: Mode, dtype: Dtype, threads: usize) -> Self {
        Self::new(tfcheck::spec::variant::Runner::Candle, mode, None, dtype, threads)
    }

    fn transformers(mode: Mode, attention: Attention, dtype: Dtype, threads: usize) -> Self {
        Self::new(tfcheck::spec::variant::Runner::Transformers, mode, Some(attention), dtype, threads)
    }

    fn name(&self) -> String {
        let Variant { mode, attention, dtype, .. } = &self.variant;
        let attention = attention.map(attention_name).unwrap_or_default();
        format!("{} {attention} {} {} threads", mode_name(*mode), dtype_name(*dtype), self.threads)
    }

    fn is_oracle(&self) -> bool {
        self.variant.dtype == Dtype::F64
    }

    /// Names of the settings in which two cells differ.
    fn differences(&self, other: &Self) -> Vec<&'static str> {
        let (a, b) = (&self.variant, &other.variant);
        [
            ("dtype", a.dtype != b.dtype),
            ("attention", a.attention != b.attention),
            ("mode", a.mode != b.mode),
            ("threads", self.threads != other.threads),
        ]
        .into_iter()
        .filter_map(|(what, differs)| differs.then_some(what))
        .collect()
    }

    fn entry(&self, setting: &Setting, session: &mut dyn Session) -> Entry {
        let Variant { mode, attention, dtype, .. } = self.variant;
        let load = Load { attention, threads: self.threads, ..setting.load(mode, dtype) };
        let path = setting.folder.path().join(format!("{}.safetensors", self.name()));
        let limit = Duration::from_mins(5);
        session.ask(&Request::Load(load), limit).unwrap();
        session.ask(&Request::Forward(Forward::new(path.clone())), limit).unwrap();
        Entry {
            name: self.name(),
            dtype: measured_dtype(dtype),
            logits: Ok(Logits::open(&path, compare::Positions::All).unwrap()),
        }
    }
}

/// Asserts that every pair computes the same function; returns the settings in which the sides of each pair differ. In
/// half precision the verdict *worse rounding* is accepted for a mixture of experts, because a token that a near-tie sends
/// to another expert can cause it, depending on the machine (README, Limits).
fn check(setting: &Setting, cells: &[Cell], entries: &[Entry]) -> Vec<Vec<&'static str>> {
    let mask = Mask::of_inputs(&setting.inputs()).unwrap().unwrap();
    let matrix = matrix::matrix(entries, Some(&mask), &matrix::Options::default()).unwrap();
    let origins: Vec<Origin> =
        cells.iter().map(|cell| tfcheck::judge::assess::origin(&cell.variant)).collect();
    let judged = verdicts(&matrix, &Oracles::new(&matrix, &origins), &Tolerances::default());
    let dtype = |name: &str| cells.iter().find(|cell| cell.name() == name).unwrap().variant.dtype;
    for verdict in &judged {
        let is_one = match &verdict.decision {
            Decision::Identical | Decision::SameMathematics => true,
            Decision::WorseRounding { worse } => {
                setting.is_mixture() && matches!(dtype(worse), Dtype::Bf16 | Dtype::F16)
            }
            _ => false,
        };
        assert!(is_one, "{}: {verdict:?}", setting.model_type);
    }
    let pairs = (0..cells.len()).flat_map(|a| (a + 1..cells.len()).map(move |b| (a, b)));
    pairs
        .filter(|(a, b)| !cells[*a].is_oracle() && !cells[*b].is_oracle())
        .map(|(a, b)| cells[a].differences(&cells[b]))
        .collect()
}

/// Number of pairs that differ in `what` and, apart from it, at most in `others`.
fn count(pairs: &[Vec<&'static str>], what: &str, others: &[&str]) -> usize {
    let is_it = |pair: &&Vec<&'static str>| {
        pair.contains(&what) && pair.iter().all(|other| *other == what || others.contains(other))
    };
    pairs.iter().filter(is_it).count()
}

fn start<'a>(runner: &'a dyn Runner, setting: &Setting, stop: &'a AtomicBool) -> Box<dyn Session + 'a> {
    runner.start(setting.folder.path().join("worker.log"), stop, Start::default()).unwrap()
}

#[test]
fn other_kernels_and_other_dtypes_never_diverge() {
    let stop = AtomicBool::new(false);
    let mut pairs = Vec::new();
    // The inputs are token ids.
    let is_wanted =
        |entry: &&models::synthetic::Entry| !entry.bench && entry.variant.is_empty() && entry.is_one_text();
    for entry in catalogue().iter().filter(is_wanted) {
        let setting = Setting::new(entry.model_type);
        let config = models::synthetic::config(entry.model_type, "").unwrap();
        if config["architectures"][0].as_str().is_some_and(|name| name.ends_with("SequenceClassification")) {
            continue;
        }
        // Mixtures are included: their routers have near-ties, which must not be reported as divergence either.
        let cells: Vec<Cell> = [
            (Mode::Eager, Dtype::F64),
            (Mode::Eager, Dtype::F32),
            (Mode::Fused, Dtype::F32),
            (Mode::Eager, Dtype::Bf16),
            (Mode::Fused, Dtype::Bf16),
            (Mode::Eager, Dtype::F16),
        ]
        .into_iter()
        .map(|(mode, dtype)| Cell::native(mode, dtype, 2))
        .collect();
        let mut session = start(&InProcess, &setting, &stop);
        let entries: Vec<Entry> = cells.iter().map(|cell| cell.entry(&setting, session.as_mut())).collect();
        pairs.extend(check(&setting, &cells, &entries));
    }
    assert!(count(&pairs, "mode", &[]) >= 40, "other kernels");
    assert!(count(&pairs, "dtype", &["mode"]) >= 150, "other dtypes");
}

/// The number of threads determines how work is divided, and thereby the order of sums.
#[test]
fn native_models_of_one_and_of_two_threads_never_diverge() {
    let stop = AtomicBool::new(false);
    let mut pairs = Vec::new();
    let runner = |threads| ProcessRunner {
        command: vec![env!("CARGO_BIN_EXE_tfcheck").into(), "worker".into()],
        folder: None,
        threads,
        reusable: true,
        templates: None,
        keeps_memory: true,
    };
    let settings: Vec<Setting> =
        ["llama:tiny", "gemma2", "qwen3", "mixtral"].map(Setting::new).into_iter().collect();
    let mut cells: Vec<Vec<Cell>> = vec![Vec::new(); settings.len()];
    let mut entries: Vec<Vec<Entry>> = settings.iter().map(|_| Vec::new()).collect();
    for threads in [1, 2] {
        let runner = runner(threads);
        let mut session = start(&runner, &settings[0], &stop);
        for (index, setting) in settings.iter().enumerate() {
            let mut forms = vec![(Mode::Eager, Dtype::F64)];
            forms.extend(HALVES.map(|dtype| (Mode::Eager, dtype)));
            forms.extend([Dtype::F32, Dtype::Bf16].map(|dtype| (Mode::Fused, dtype)));
            for (mode, dtype) in forms {
                let cell = Cell::native(mode, dtype, threads);
                entries[index].push(cell.entry(setting, session.as_mut()));
                cells[index].push(cell);
            }
        }
        session.end();
    }
    for (index, setting) in settings.iter().enumerate() {
        pairs.extend(check(setting, &cells[index], &entries[index]));
    }
    assert!(count(&pairs, "threads", &[]) >= 20, "{}", count(&pairs, "threads", &[]));
}

/// Eager variants run in one process and compiled ones in another, because the compiler's state outlives its model.
#[test]
fn attention_threads_and_compilation_of_transformers_never_diverge() {
    let stop = AtomicBool::new(false);
    let environment = newest();
    let runner = super::transformers(&environment);
    let settings: Vec<Setting> =
        ["llama:tiny", "mistral", "qwen3", "gpt2", "mixtral"].map(Setting::new).into_iter().collect();
    let mut pairs = Vec::new();
    let mut eager = start(&runner, &settings[0], &stop);
    let mut cells: Vec<Vec<Cell>> = Vec::new();
    let mut entries: Vec<Vec<Entry>> = Vec::new();
    for setting in &settings {
        let mut own = vec![Cell::transformers(Mode::Eager, Attention::Eager, Dtype::F64, 2)];
        for dtype in HALVES {
            for attention in [Attention::Eager, Attention::Sdpa] {
                own.extend([1, 2].map(|threads| Cell::transformers(Mode::Eager, attention, dtype, threads)));
            }
        }
        entries.push(own.iter().map(|cell| cell.entry(setting, eager.as_mut())).collect());
        cells.push(own);
    }
    eager.end();
    let mut compiled = start(&runner, &settings[0], &stop);
    for (index, setting) in settings.iter().enumerate().take(COMPILED) {
        for dtype in HALVES {
            let cell = Cell::transformers(Mode::Compiled, Attention::Sdpa, dtype, 2);
            entries[index].push(cell.entry(setting, compiled.as_mut()));
            cells[index].push(cell);
        }
    }
    compiled.end();
    for (index, setting) in settings.iter().enumerate() {
        pairs.extend(check(setting, &cells[index], &entries[index]));
    }
    for (what, others) in
        [("attention", &[][..]), ("threads", &[]), ("dtype", &[]), ("mode", &["attention", "threads"])]
    {
        assert!(count(&pairs, what, others) >= 20, "{what}: {}", count(&pairs, what, others));
    }
}

/// Number of settings that are compiled: each compilation takes seconds and adds four pairs of its dtype.
const COMPILED: usize = 2;

/// Falcon's eager attention adds the position biases twice, sdpa once (`FalconModel.forward` and `FalconAttention.forward`
/// of transformers 5.23.0). A difference between a variant and its eager twin is reported as [`Finding::Execution`].
#[test]
fn a_correct_release_has_nothing_to_localise_and_sdpa_is_distinguished_from_eager() {
    let setting = Setting::new("falcon:alibi");
    let right = setting.load(Mode::Eager, Dtype::F32);
    let environment = newest();
    let runner = runner::SharedRunner::new(super::transformers(&environment));
    let localized = |load: Load| {
        setting.localize_with((&InProcess, right.clone()), (&runner, load), &Options::default()).unwrap()
    };
    let found = localized(setting.transformers());
    assert_eq!(found.finding, Finding::Nothing, "{}", found.sentence);
    let found = localized(Load { attention: Some(Attention::Sdpa), ..setting.transformers() });
    let Finding::Execution { variant, what, .. } = &found.finding else { panic!("{}", found.sentence) };
    assert_eq!((variant.as_str(), what.as_str()), ("wrong", "sdpa attention"));
}

#[test]
fn sums_in_another_order_are_nothing_to_localise() {
    // Permuting the MLP's hidden features computes the same function with sums in another order.
    let mut others = 0;
    for checkpoint in [
        "llama:tiny",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma",
        "gemma2",
        "gemma3_text",
        "olmo2",
        "granite",
        "smollm3",
        "stablelm",
        "cohere",
    ] {
        let setting = Setting::new(checkpoint);
        let changed = setting.changed(
            |_| (),
            |tensors: &mut Tensors| {
                let names: Vec<String> =
                    tensors.keys().filter(|name| name.contains(".mlp.")).cloned().collect();
                for name in names {
                    let dim = usize::from(name.contains("down_proj"));
                    let size = tensors[&name].dim(dim).unwrap() as u32;
                    let order: Vec<u32> = (0..size).rev().collect();
                    let order = candle_core::Tensor::new(order, &candle_core::Device::Cpu).unwrap();
                    let turned = tensors[&name].index_select(&order, dim).unwrap();
                    tensors.insert(name, turned);
                }
            },
        );
        for (mode, dtype) in [(Mode::Eager, Dtype::F32), (Mode::Fused, Dtype::F32)] {
            let right = setting.load(Mode::Eager, Dtype::F32);
            let other = Load { checkpoint: changed.clone(), ..setting.load(mode, dtype) };
            let found = setting.localize(right, other);
            assert_eq!(found.finding, Finding::Nothing, "{checkpoint}: {}", found.sentence);
        }
        for (mode, dtype) in [Mode::Eager, Mode::Fused]
            .into_iter()
            .flat_map(|mode| [Dtype::F32, Dtype::Bf16].map(|dtype| (mode, dtype)))
        {
            let right = setting.load(Mode::Eager, dtype);
            let other = Load { checkpoint: changed.clone(), ..setting.load(mode, dtype) };
            let verdict = setting.verdict(&right, &other);
            let is_one = matches!(verdict.decision, Decision::SameMathematics | Decision::Identical);
            assert!(is_one, "{checkpoint}: {verdict:?}");
            others += usize::from(verdict.decision == Decision::SameMathematics);
        }
    }
    assert!(others >= 30, "{others} pairs of 48 round otherwise");
}
