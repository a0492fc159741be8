//! Which variants are timed, and how their times are aggregated.

use std::path::Path;

use super::*;
use crate::execute::cell::Cell;
use crate::spec::config::Config;
use crate::spec::variant::Variant;
use compare::matrix::{self, Entry};

fn options() -> BenchOptions {
    BenchOptions { dtypes: vec![Dtype::F32], lengths: vec![128, 512], batch: vec![1, 4], rounds: 6 }
}

#[test]
fn all_torch_modes_run_with_the_port_and_both_backends() {
    let config = config(&Config::default(), &options()).unwrap();
    let plan = plan(&config).unwrap();
    let first: Vec<String> =
        plan.cells.iter().filter(|cell| cell.case == 0).map(|cell| cell.variant.name()).collect();
    let newest = &reference::Versions::known().newest;
    let torch = ["eager", "compiled", "frozen"].map(|mode| format!("{newest}_{mode}_sdpa"));
    let native = ["candle_eager", "candle_fused", "candle-transformers_eager"].map(str::to_owned);
    let oracles = [format!("{newest}_eager_eager_f64"), "candle_eager_f64".to_owned()];
    let (mut timed, mut untimed): (Vec<String>, Vec<String>) =
        first.into_iter().partition(|name| !name.ends_with("_f64"));
    for name in &mut timed {
        *name = name.trim_end_matches("_f32").to_owned();
    }
    untimed.sort();
    assert_eq!(timed, [torch, native].concat());
    assert_eq!(untimed, oracles);
    assert_eq!(plan.cases.len(), 4, "two lengths of one row and of four");
    assert!(plan.cells.iter().all(|cell| cell.measured != cell.oracle));
}

#[test]
fn variants_of_one_dtype_are_adjacent() {
    let options = BenchOptions { dtypes: vec![Dtype::F32, Dtype::Bf16], ..options() };
    let plan = plan(&config(&Config::default(), &options).unwrap()).unwrap();
    let dtypes: Vec<(usize, Dtype)> = plan.cells.iter().map(|cell| (cell.case, cell.variant.dtype)).collect();
    let mut changes = dtypes.clone();
    changes.dedup();
    assert_eq!(dtypes.len(), 4 * (12 + 2), "and two in float64");
    assert_eq!(changes.len(), 4 * 3, "{changes:?}");
}

#[test]
fn the_benchmark_config_parses_as_a_tfcheck_config() {
    let config = config(&Config::default(), &options()).unwrap();
    let text = toml::to_string(&config).unwrap();
    assert_eq!(Config::parse(&text, Path::new("tfcheck.toml")).unwrap(), config);
}

/// A cell timed in three rounds; each round is slower than the previous one by the same factor for all cells.
fn cell(runner: Runner, version: &str, mode: Mode, dtype: Dtype, ms: u64) -> Cell {
    let variant = Variant {
        runner,
        version: version.into(),
        mode,
        attention: None,
        dtype,
        device: "cpu".into(),
        auto_dtype: false,
        qualified: true,
    };
    let completed = Completed {
        written: None,
        logits: "logits".into(),
        shape: vec![1, 128, 8],
        positions: if runner == Runner::CandleTransformers { Positions::Last } else { Positions::All },
        trace: None,
        libraries: std::collections::BTreeMap::new(),
        notes: Vec::new(),
        load_ns: 1,
        first_call_ns: 1,
        rounds_ns: (1..=3).map(|round| vec![ms * round * 1_000_000; 3]).collect(),
        decode_rounds_ns: if runner == Runner::CandleTransformers {
            vec![Vec::new(); 3]
        } else {
            (1..=3).map(|round| vec![ms * round * 100_000; 2]).collect()
        },
        round_numbers: vec![0, 1, 2],
        yardstick_ns: Vec::new(),
        peak_bytes: Some(3 << 29),
        ..Completed::default()
    };
    Cell::new(&variant, "key", Outcome::Completed(completed))
}

fn view(cells: Vec<Cell>) -> RunView {
    let entry = |cell: &Cell| Entry {
        name: cell.name.clone(),
        dtype: crate::spec::variant::measured_dtype(cell.variant.dtype),
        logits: Err("not compared here".into()),
    };
    let entries: Vec<Entry> = cells.iter().map(entry).collect();
    let case = CaseView {
        name: "llama-128".into(),
        checkpoint: "synthetic:llama".into(),
        inputs: "batch 1, 128 tokens".into(),
        axes: None,
        baseline: None,
        verdicts: Vec::new(),
        caches: Vec::new(),
        accuracies: Vec::new(),
        outputs: Vec::new(),
        embeddings: None,
        choices: None,
        localized: Vec::new(),
        diagnosed: Vec::new(),
        times: crate::judge::view::Times::default(),
        matrix: matrix::matrix(&entries, None, &matrix::Options::default()).unwrap(),
        cells,
    };
    let environment = vec![("CPU".to_owned(), "a machine of 2 cores".to_owned())];
    RunView {
        id: "run_1".into(),
        environment,
        packages: Vec::new(),
        cases: vec![case],
        relations: Vec::new(),
        notes: Vec::new(),
    }
}

#[test]
fn fused_is_held_against_the_fastest_of_torch_in_its_own_dtype() {
    let (torch, candle, port) = (Runner::Transformers, Runner::Candle, Runner::CandleTransformers);
    let mut lost = cell(torch, "5.23.0", Mode::Frozen, Dtype::Bf16, 1);
    lost.outcome = Outcome::Unsupported { reason: "no bf16 here".into() };
    let bench = fold(&view(vec![
        cell(torch, "5.23.0", Mode::Eager, Dtype::F32, 30),
        cell(torch, "5.23.0", Mode::Compiled, Dtype::F32, 25),
        cell(torch, "5.23.0", Mode::Frozen, Dtype::F32, 20),
        cell(torch, "5.23.0", Mode::Eager, Dtype::Bf16, 8),
        lost,
        cell(candle, "candle", Mode::Eager, Dtype::F32, 28),
        cell(candle, "candle", Mode::Fused, Dtype::F32, 10),
        cell(candle, "candle", Mode::Fused, Dtype::Bf16, 6),
        cell(port, "candle-transformers", Mode::Eager, Dtype::F32, 40),
    ]));
    let ratios: Vec<(&str, &str, f64)> = bench
        .tables
        .iter()
        .filter(|table| table.pass == "prefill")
        .flat_map(|table| &table.ratios)
        .map(|ratio| (ratio.variant.as_str(), ratio.over.as_str(), (ratio.ratio * 1000.0).round() / 1000.0))
        .collect();
    let expected = [
        ("candle_fused_f32", "5.23.0_frozen_f32", 0.5),
        ("candle_eager_f32", "candle-transformers_eager_f32", 0.7),
        ("candle_fused_bf16", "5.23.0_eager_bf16", 0.75),
    ];
    assert_eq!(ratios, expected);
    // Rounds drift threefold, equally for both sides of a ratio.
    assert!(bench.tables[0].ratios[0].interval[0] > 0.1 && bench.tables[0].ratios[0].interval[1] < 2.0);
    let decode = &bench.tables[1];
    assert_eq!((decode.pass, decode.ratios.len()), ("decode", 1), "the port decodes nothing");
    assert!((decode.ratios[0].ratio - 0.5).abs() < 1e-9);
    insta::assert_snapshot!(table::markdown(&bench));
}

#[test]
fn without_a_common_round_there_is_no_ratio() {
    let torch = cell(Runner::Transformers, "5.23.0", Mode::Eager, Dtype::F32, 20);
    let mut fused = cell(Runner::Candle, "candle", Mode::Fused, Dtype::F32, 10);
    if let Outcome::Completed(completed) = &mut fused.outcome {
        completed.round_numbers = vec![7, 8, 9];
    }
    assert!(fold(&view(vec![torch, fused])).tables[0].ratios.is_empty());
}
