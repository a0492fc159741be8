//! Which variants are compared, and how a run is aggregated.

use std::collections::HashSet;

use super::*;
use crate::execute::cell::Cell;
use crate::spec::variant::measured_dtype;
use compare::logits::Logits;
use compare::mask::Mask;
use compare::matrix::{self, Entry};
use compare::oracle::{Oracles, Origin, accuracies};
use compare::verdict::{Decision, Tolerances, verdicts};

#[test]
fn each_default_checkpoint_is_judged_in_three_shapes() {
    let config = config(&Config::default(), &ScoreboardOptions::default()).unwrap();
    let plan = plan(&config).unwrap();
    let native = catalogue().iter().map(|entry| entry.model_type);
    let ported = tiny::catalogue().iter().filter(|entry| entry.variant.is_empty());
    let ported = ported.map(|entry| entry.model_type).filter(|name| port(name).is_some());
    let model_types: HashSet<&str> = native.chain(ported).collect();
    assert!(["olmo", "clip", "vit"].iter().all(|name| model_types.contains(name)), "{model_types:?}");
    let of_each = |name: &str| {
        let is_it = |case: &&str| case.ends_with(name) && (name.contains("-b3") || !case.contains("-b3-"));
        plan.cases.iter().map(|case| case.name.as_str()).filter(is_it).count()
    };
    let shapes = ["-6", "-40", "-b3-40-left", "-b3-6", "-40-prefill32"].map(of_each);
    assert_eq!(shapes[..4], [model_types.len(); 4]);
    // Encoders have no cache.
    assert!((30..model_types.len()).contains(&shapes[4]), "{shapes:?}");
    assert_eq!(plan.cases.len(), shapes.iter().sum::<usize>());
    let mistral: Vec<&str> = plan
        .cases
        .iter()
        .map(|case| case.name.as_str())
        .filter(|name| name.starts_with("mistral-"))
        .collect();
    assert_eq!(
        mistral,
        ["mistral-6", "mistral-b3-6", "mistral-40", "mistral-40-prefill32", "mistral-b3-40-left"]
    );
    let variants: HashSet<String> = plan.cells.iter().map(|cell| cell.variant.name()).collect();
    for name in
        ["candle_eager_f64", "candle_eager_bf16", "candle_fused_f32", "candle-transformers_eager_bf16"]
    {
        assert!(variants.contains(name), "{name} is not in {variants:?}");
    }
    assert!(plan.cells.iter().all(|cell| !cell.measured));
}

#[test]
fn all_variants_of_one_model_type_can_be_chosen() {
    let options = ScoreboardOptions { only: vec!["mistral".into()], all: true, checkout: None };
    let config = config(&Config::default(), &options).unwrap();
    let sources: Vec<String> =
        config.checkpoints.iter().map(|checkpoint| checkpoint.source.to_string()).collect();
    assert_eq!(
        sources,
        ["", ":full", ":head-dim", ":long", ":v5"].map(|variant| format!("synthetic:mistral{variant}"))
    );
    // Tables in bf16 cannot count past 256 positions.
    let plan = plan(&config).unwrap();
    let long: Vec<&str> =
        plan.cases.iter().map(|case| case.name.as_str()).filter(|name| name.contains("long")).collect();
    assert_eq!(long, ["mistral-long-600"]);
}

#[test]
fn the_newest_version_is_the_reference() {
    let base = Config { versions: ["5.23.0", "4.54.0"].map(Version::release).to_vec(), ..Config::default() };
    let config = config(&base, &ScoreboardOptions::default()).unwrap();
    assert_eq!(config.versions.iter().map(|version| version.name.as_str()).collect::<Vec<_>>(), ["5.23.0"]);
}

#[test]
fn an_unknown_model_type_is_an_error_that_lists_the_known() {
    let options = ScoreboardOptions { only: vec!["mistrel".into()], ..ScoreboardOptions::default() };
    let error = config(&Config::default(), &options).unwrap_err();
    assert!(error.help().unwrap().to_string().contains("mistral"), "{error:?}");
}

#[test]
fn the_scoreboard_config_parses_as_a_tfcheck_config() {
    let config = config(&Config::default(), &ScoreboardOptions::default()).unwrap();
    let text = toml::to_string(&config).unwrap();
    assert_eq!(Config::parse(&text, Path::new("tfcheck.toml")).unwrap(), config);
}

/// A cell whose logits `[1, 2, 4]` are `1..=8` plus `error` at the last position.
fn cell(folder: &Path, runner: Runner, dtype: Dtype, error: f64) -> (Cell, Entry) {
    let version = match runner {
        Runner::Transformers => "5.23.0",
        Runner::Candle => "candle",
        _ => "candle-transformers",
    };
    let variant = Variant {
        runner,
        version: version.into(),
        mode: Mode::Eager,
        attention: None,
        dtype,
        device: "cpu".into(),
        auto_dtype: false,
        qualified: true,
    };
    let values: Vec<f64> = (1..=8).map(|n| f64::from(n) + if n == 8 { error } else { 0.0 }).collect();
    let tensor = candle_core::Tensor::from_vec(values, (1, 2, 4), &candle_core::Device::Cpu).unwrap();
    let path = folder.join(variant.name());
    candle_core::safetensors::save(&[(reference::protocol::LOGITS, tensor)].into(), &path).unwrap();
    let completed = Completed {
        logits: path.clone(),
        shape: vec![1, 2, 4],
        load_ns: 1,
        first_call_ns: 1,
        ..Completed::default()
    };
    let cell = Cell::new(&variant, "key", Outcome::Completed(completed));
    let logits = Logits::open(&path, compare::Positions::All).map_err(|error| error.to_string());
    let entry = Entry { name: cell.name.clone(), dtype: measured_dtype(dtype), logits };
    (cell, entry)
}

/// A cell of each runner and dtype, whose last logit has this error.
fn cells(folder: &Path, wanted: &[(Runner, Dtype, f64)]) -> (Vec<Cell>, Vec<Entry>) {
    wanted.iter().map(|&(runner, dtype, error)| cell(folder, runner, dtype, error)).unzip()
}

#[test]
fn a_diverging_port_stands_out_and_a_missing_one_keeps_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let (mut cells, mut entries) = cells(
        folder.path(),
        &[
            (Runner::Transformers, Dtype::F32, 1e-7),
            (Runner::Transformers, Dtype::F64, 0.0),
            (Runner::Candle, Dtype::F32, 2e-7),
            (Runner::Candle, Dtype::F64, 1e-13),
            (Runner::CandleTransformers, Dtype::F32, 0.5),
        ],
    );
    let (mut missing, mut absent) = cell(path, Runner::CandleTransformers, Dtype::Bf16, 0.0);
    missing.outcome = Outcome::Unsupported { reason: "no such port".into() };
    absent.logits = Err("no such port".into());
    cells.push(missing);
    entries.push(absent);
    let scoreboard = fold(&view(cells, &entries));
    assert_eq!(words(&scoreboard), ["same mathematics", "same mathematics", "diverged", "unsupported"]);
    insta::assert_snapshot!(table::markdown(&scoreboard));
}

/// A run of one case.
fn view(cells: Vec<Cell>, entries: &[Entry]) -> RunView {
    let mask = Mask::all_real(1, 2);
    let matrix = matrix::matrix(entries, Some(&mask), &matrix::Options::default()).unwrap();
    let origins: Vec<Origin> = cells.iter().map(|cell| crate::judge::assess::origin(&cell.variant)).collect();
    let oracles = Oracles::new(&matrix, &origins);
    RunView {
        id: "run".into(),
        environment: Vec::new(),
        packages: Vec::new(),
        cases: vec![CaseView {
            name: "mistral-40".into(),
            checkpoint: "synthetic:mistral".into(),
            inputs: "batch 1, 2 tokens".into(),
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
            times: crate::judge::view::Times::default(),
            cells,
            matrix,
        }],
        relations: Vec::new(),
        notes: Vec::new(),
    }
}

fn words(scoreboard: &Scoreboard) -> Vec<&str> {
    scoreboard.rows[0].scores.iter().flatten().map(|score| score.word.as_str()).collect()
}

/// The last position's logits have norm 13 and bf16's limit there is a relative L2 of 0.26; dynamo's rule
/// allows 3 times the reference's error of 4.
#[test]
fn a_variant_within_three_times_the_reference_error_agrees() {
    let folder = tempfile::tempdir().unwrap();
    let (cells, entries) = cells(
        folder.path(),
        &[
            (Runner::Transformers, Dtype::Bf16, 4.0),
            (Runner::Transformers, Dtype::F64, 0.0),
            (Runner::Candle, Dtype::Bf16, -5.0),
            (Runner::CandleTransformers, Dtype::Bf16, -16.0),
        ],
    );
    assert_eq!(words(&fold(&view(cells, &entries))), ["same mathematics", "diverged"]);
}

#[test]
fn a_variant_is_right_where_the_reference_rounds_worse() {
    let folder = tempfile::tempdir().unwrap();
    let (cells, entries) = cells(
        folder.path(),
        &[
            (Runner::Transformers, Dtype::Bf16, 8.0),
            (Runner::Transformers, Dtype::F64, 0.0),
            (Runner::Candle, Dtype::Bf16, 0.25),
            (Runner::Candle, Dtype::F64, 1e-13),
        ],
    );
    let view = view(cells, &entries);
    let case = &view.cases[0];
    let worse = Decision::WorseRounding { worse: case.cells[0].name.clone() };
    assert!(case.verdicts.iter().any(|verdict| verdict.decision == worse), "{:?}", case.verdicts);
    assert_eq!(words(&fold(&view)), ["same mathematics", "same mathematics"]);
}

#[test]
fn the_first_diverging_module_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    let (cells, entries) = cells(
        folder.path(),
        &[
            (Runner::Transformers, Dtype::F32, 0.0),
            (Runner::Transformers, Dtype::F64, 0.0),
            (Runner::Candle, Dtype::F32, 0.5),
            (Runner::CandleTransformers, Dtype::F32, 0.5),
        ],
    );
    let divergence = crate::hunt::localize::Divergence { path: "model.norm".into(), ..Default::default() };
    let localized = crate::hunt::localize::Localized {
        case: "mistral-40".into(),
        a: cells[0].name.clone(),
        b: cells[2].name.clone(),
        dtype: Dtype::F64,
        threshold: 1e-10,
        logits: None,
        finding: crate::hunt::localize::Finding::Module(divergence),
        sentence: "the norm".into(),
        modules: 1,
        captured_bytes: 1,
        overhead: None,
        elapsed_ns: 1,
        capture_changed_nothing: true,
        is_first_fed: false,
        notes: Vec::new(),
        profile: Vec::new(),
    };
    let mut view = view(cells, &entries);
    view.cases[0].localized.push(localized);
    let scoreboard = fold(&view);
    let modules: Vec<Option<&str>> =
        scoreboard.rows[0].scores.iter().flatten().map(|score| score.module.as_deref()).collect();
    assert_eq!(modules, [Some("`model.norm`"), None]);
    assert!(table::markdown(&scoreboard).contains(", first at `model.norm`"));
}

/// A row of a checkpoint on inputs of these axes, on which the port in f32 has this verdict.
fn row(checkpoint: &str, (length, batch): (usize, usize), word: &str) -> ScoreboardRow {
    let variant = Variant {
        runner: Runner::CandleTransformers,
        version: "candle-transformers".into(),
        mode: Mode::Eager,
        attention: None,
        dtype: Dtype::F32,
        device: "cpu".into(),
        auto_dtype: false,
        qualified: true,
    };
    let score = Score {
        variant,
        word: word.into(),
        evidence: String::new(),
        relative_l2: Some(0.5),
        reference_relative_l2: None,
        worst: None,
        module: None,
        diagnosis: None,
        positions: None,
        notes: Vec::new(),
    };
    let padding = (batch > 1).then_some(Padding::Left);
    ScoreboardRow {
        checkpoint: checkpoint.into(),
        inputs: "inputs".into(),
        axes: Some(Axes { length, batch, padding, prefill: None }),
        scores: vec![Some(score)],
    }
}

#[test]
fn a_cell_of_the_page_counts_and_links_to_the_reproduction() {
    let scoreboard = Scoreboard {
        run: "run".into(),
        reference: "5.23.0".into(),
        checkout: None,
        variants: vec!["candle-transformers_eager_f32".into()],
        rows: vec![
            row("synthetic:mistral", (SHORT, 1), "same mathematics"),
            row("synthetic:mistral", (LONG, 1), "diverged"),
            row("synthetic:mistral:full", (LONG, 1), "same mathematics"),
            row("synthetic:mistral:full", (LONG, 3), "diverged"),
            row("synthetic:llama:linear", (SHORT, 1), "unsupported"),
            row("synthetic:llama:linear", (LONG, 1), "unsupported"),
            row("synthetic:gpt2", (SHORT, 1), "unsupported"),
        ],
    };
    let text = page::markdown(&scoreboard);
    let cells = |model_type: &str| -> Vec<String> {
        let line = text.lines().find(|line| line.starts_with(&format!("| {model_type} |"))).unwrap();
        line.split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let window = "[✗](findings/mistral-window.toml)";
    let dtypes = "[f32 ◐ 2/3](findings/mistral-window.toml)";
    assert_eq!(cells("mistral"), ["", "mistral", "✓", "✓", "", "✗", window, "", dtypes, "", "", "", ""]);
    let llama = cells("llama");
    let linear = |text: &str| format!("[{text}](findings/llama-rope-linear.toml)");
    assert_eq!([&llama[2], &llama[7]], [&linear("✗"), &linear("linear ✗")]);
    // There is no such port.
    assert!(!text.contains("| gpt2 |"), "{text}");
}
