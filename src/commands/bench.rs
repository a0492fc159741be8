//! The benchmark: transformers in eager mode, compiled, and compiled with frozen weights, next to
//! candle-transformers' port and tfcheck's native models in both backends, in interleaved rounds of one run.
//!
//! It is an ordinary run (with a run folder, resumption and verdicts) over a generated config, aggregated
//! into one table.

pub(crate) mod table;

use std::path::Path;

use miette::Result;
use reference::protocol::{Attention, Dtype, Mode, Positions};
use serde::Serialize;

use super::scoreboard::word_on;
use crate::execute::cell::{Cell, Completed, Outcome};
use crate::judge::assess;
use crate::judge::view::{CaseView, RunView, Timed, side_by_side};
use crate::results::RunFolder;
use crate::spec::config::{Candle, Config, InputsConfig, LoadDtype, Run, Version};
use crate::spec::machine;
use crate::spec::plan::{Plan, release_order};
use crate::spec::variant::{Runner, dtype_name};
use compare::timing::{Interval, speed_up, summarize};

/// Which forward passes are timed, and how often.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// dtypes; variants are compared within one dtype only.
    pub dtypes: Vec<Dtype>,
    /// Sequence lengths.
    pub lengths: Vec<usize>,
    /// Batch sizes.
    pub batch: Vec<usize>,
    /// Interleaved rounds.
    pub rounds: usize,
}

/// Timed forward passes per round: enough that the first, which runs on caches filled by another variant, is
/// not the median.
const ITERATIONS: usize = 3;

/// Tokens decoded in each round.
const DECODED: usize = 8;

/// The config of a benchmark; checkpoints, environment, device, threads and tolerances come from `base`.
///
/// # Errors
/// When `base` has no transformers version to compare with.
pub fn config(base: &Config, options: &BenchOptions) -> Result<Config> {
    let newest = base.versions.iter().max_by_key(|version| release_order(version)).cloned();
    let newest = newest.ok_or_else(|| {
        miette::miette!(
            help = "list one under [[versions]]",
            "the config has no transformers version to measure against"
        )
    })?;
    Ok(Config {
        inputs: InputsConfig {
            lengths: Some(options.lengths.clone()),
            batch: Some(options.batch.clone()),
            text: base.inputs.text.clone(),
            padding: base.inputs.padding.clone(),
            seed: base.inputs.seed,
            ..InputsConfig::default()
        },
        versions: vec![Version { modes: None, attention: None, dtypes: None, ..newest }],
        candle: Candle { modes: vec![Mode::Eager, Mode::Fused], upstream: true },
        run: Run {
            modes: vec![Mode::Eager, Mode::Compiled, Mode::Frozen],
            attention: vec![Attention::Sdpa],
            dtypes: options.dtypes.iter().copied().map(LoadDtype::from).collect(),
            warm_up: 1,
            iterations: ITERATIONS,
            decode: DECODED,
            rounds: options.rounds,
            trace: false,
            noise: false,
            diagnose_s: 0,
            // Speed is listed beside correctness.
            oracle: true,
            baseline: None,
            fail_on: Vec::new(),
            against: None,
            // All compared variants are loaded at once; 20 % of memory is left to the system and the page
            // cache.
            memory_budget_gb: base.run.memory_budget_gb.or(Some(machine::memory_bytes() as f64 * 0.8e-9)),
            ..base.run.clone()
        },
        ..base.clone()
    })
}

/// The cells of a benchmark's config, sorted by dtype within a case: cells of one dtype are compared, so they
/// must be timed in one group.
///
/// # Errors
/// When no plan can be made from the config.
pub fn plan(config: &Config) -> Result<Plan> {
    let mut plan = Plan::new(config, machine::auto_device())?;
    plan.cells.sort_by_key(|cell| (cell.case, dtype_order(config, cell.variant.dtype)));
    Ok(plan)
}

fn dtype_order(config: &Config, dtype: Dtype) -> Option<usize> {
    config.run.dtypes.iter().position(|known| *known == LoadDtype::from(dtype))
}

/// Aggregates a finished or interrupted run into `bench.md` and `bench.json`; returns the Markdown.
///
/// # Errors
/// When the run cannot be read or the files cannot be written.
pub fn write(run: &Path) -> Result<String> {
    let folder = RunFolder::open(run)?;
    let bench = fold(&assess::saved(&folder)?);
    let markdown = table::markdown(&bench);
    folder.write_folded("bench", &bench, &markdown)?;
    Ok(markdown)
}

/// The measurements of a run: a table for each case, dtype and kind of forward pass.
#[derive(Clone, Debug, Serialize)]
pub struct Bench {
    /// The run that was aggregated.
    pub run: String,
    /// Properties of the machine that affect the times, in order.
    pub environment: Vec<(String, String)>,
    /// The tables.
    pub tables: Vec<Table>,
}

/// All variants of one case in one dtype and kind of forward pass.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// The checkpoint's name.
    pub checkpoint: String,
    /// The inputs, described in words.
    pub inputs: String,
    /// `f32`.
    pub dtype: String,
    /// `prefill` (all inputs in one forward pass) or `decode` (one token per sequence after them).
    pub pass: &'static str,
    /// A row per variant.
    pub rows: Vec<TimedVariant>,
    /// Compared times: fused with the fastest transformers variant, eager with candle-transformers (or with
    /// the fastest transformers variant if there is no port).
    pub ratios: Vec<Ratio>,
}

/// One variant's forward passes.
#[derive(Clone, Debug, Serialize)]
pub struct TimedVariant {
    /// The variant's name.
    pub variant: String,
    /// The times, or why there are none.
    pub measured: std::result::Result<Measured, String>,
    /// `‖variant − float64‖ / ‖float64‖`, where float64 is the result of the same family, or else of transformers.
    pub relative_l2: Option<f64>,
    /// The verdict on this variant and the first transformers variant of its dtype; `reference` for that one.
    pub verdict: Option<String>,
    /// The time of the native fused variant over this one's.
    pub fused_over: Option<Ratio>,
    /// What a program of the config says about its numbers.
    pub notes: Vec<String>,
}

/// Milliseconds per forward pass, and memory.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Median.
    pub p50_ms: f64,
    /// Bounds of the median's 95 % interval.
    pub interval_ms: [f64; 2],
    /// Minimum.
    pub min_ms: f64,
    /// Number of timed forward passes.
    pub n: usize,
    /// Largest resident set of the worker (device memory on a GPU) in bytes.
    pub peak_bytes: Option<u64>,
    /// Whether the forward pass computes logits of the last position only, and so does less work.
    pub is_last_only: bool,
}

/// The time of one variant over the time of another.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    /// The variant in the numerator.
    pub variant: String,
    /// The variant in the denominator.
    pub over: String,
    /// Ratio of the medians; below 1 if `variant` is faster.
    pub ratio: f64,
    /// Bounds of the ratio's 95 % interval over interleaved rounds.
    pub interval: [f64; 2],
}

/// The tables of a run.
pub fn fold(view: &RunView) -> Bench {
    Bench {
        run: view.id.clone(),
        environment: view.environment.clone(),
        tables: view.cases.iter().flat_map(tables).collect(),
    }
}

fn tables(case: &CaseView) -> Vec<Table> {
    let mut dtypes: Vec<Dtype> = case.cells.iter().map(|cell| cell.variant.dtype).collect();
    dtypes.sort_unstable();
    dtypes.dedup();
    let passes = [Timed::Prefill, Timed::Decode];
    // A float64 variant that serves as reference only is not timed.
    let is_oracle = |index: usize| case.accuracies.iter().any(|accuracy| accuracy.oracle == index);
    let is_timed =
        |(index, cell): (usize, &Cell)| !is_oracle(index) || measured(&cell.outcome, Timed::Prefill).is_ok();
    dtypes.retain(|dtype| {
        case.cells.iter().enumerate().any(|each| each.1.variant.dtype == *dtype && is_timed(each))
    });
    let all = dtypes.into_iter().flat_map(|dtype| passes.map(|pass| table(case, dtype, pass)));
    all.filter(|table| table.pass == "prefill" || table.rows.iter().any(|row| row.measured.is_ok())).collect()
}

/// A variant's name, record and median.
type Best<'a> = (&'a String, &'a Completed, f64);

fn table<'a>(case: &'a CaseView, dtype: Dtype, pass: Timed) -> Table {
    let cells = || case.cells.iter().filter(move |cell| cell.variant.dtype == dtype);
    let timed = |cell: &'a Cell| -> Option<Best<'a>> {
        let Outcome::Completed(completed) = &cell.outcome else { return None };
        Some((&cell.name, completed, summarize(pass.rounds(completed))?.p50_ms))
    };
    let best = |wanted: &dyn Fn(Runner, Mode) -> bool| {
        let wanted = cells().filter(|cell| wanted(cell.variant.runner, cell.variant.mode));
        wanted.filter_map(timed).min_by(|a, b| a.2.total_cmp(&b.2))
    };
    let torch = best(&|runner, _| runner == Runner::Transformers);
    let port = best(&|runner, _| runner == Runner::CandleTransformers);
    let of = |mode| best(&move |runner, is| runner == Runner::Candle && is == mode);
    let ratio = |(above, below): (Best<'_>, Best<'_>)| {
        // The ratio of `above` over `below` is the speed-up of `below` relative to `above`.
        let (above_ns, below_ns) = side_by_side(pass, above.1, below.1);
        let found = speed_up(&above_ns, &below_ns)?;
        let Interval { low, high } = found.interval;
        Some(Ratio {
            variant: above.0.clone(),
            over: below.0.clone(),
            ratio: found.ratio,
            interval: [low, high],
        })
    };
    let fused = of(Mode::Fused);
    // Without a port, eager is compared with torch too.
    let has_port = cells().any(|cell| cell.variant.runner == Runner::CandleTransformers);
    let pairs = [(fused, torch), (of(Mode::Eager), if has_port { port } else { torch })];
    Table {
        checkpoint: case.checkpoint.clone(),
        inputs: case.inputs.clone(),
        dtype: dtype_name(dtype).to_owned(),
        pass: match pass {
            Timed::Prefill => "prefill",
            Timed::Decode => "decode",
        },
        rows: cells()
            .map(|cell| TimedVariant {
                variant: cell.name.clone(),
                measured: measured(&cell.outcome, pass),
                relative_l2: relative_l2(case, cell),
                verdict: verdict(case, cell),
                fused_over: fused.zip(timed(cell)).filter(|(fused, own)| fused.0 != own.0).and_then(ratio),
                notes: of_program(cell),
            })
            .collect(),
        ratios: pairs.into_iter().filter_map(|(above, below)| ratio((above?, below?))).collect(),
    }
}

/// The notes of a program of the config.
fn of_program(cell: &Cell) -> Vec<String> {
    match &cell.outcome {
        Outcome::Completed(completed) if cell.variant.runner == Runner::Command => completed.notes.clone(),
        _ => Vec::new(),
    }
}

fn relative_l2(case: &CaseView, cell: &Cell) -> Option<f64> {
    let index = case.cells.iter().position(|other| other.name == cell.name)?;
    Some(case.accuracies.iter().find(|accuracy| accuracy.variant == index)?.relative_l2)
}

fn verdict(case: &CaseView, cell: &Cell) -> Option<String> {
    let is_reference = |other: &&Cell| {
        other.variant.runner == Runner::Transformers && other.variant.dtype == cell.variant.dtype
    };
    let reference = &case.cells.iter().find(is_reference)?.name;
    if *reference == cell.name {
        return Some("reference".to_owned());
    }
    Some(word_on(&cell.name, &case.verdict(&cell.name, reference)?.decision).to_owned())
}

fn measured(outcome: &Outcome, pass: Timed) -> std::result::Result<Measured, String> {
    let Outcome::Completed(completed) = outcome else { return Err(outcome.reason()) };
    let times = summarize(pass.rounds(completed)).ok_or_else(|| {
        completed.unfinished.as_ref().map_or_else(|| "not timed".to_owned(), |failure| failure.reason.clone())
    })?;
    Ok(Measured {
        p50_ms: times.p50_ms,
        interval_ms: [times.median_interval_ms.low, times.median_interval_ms.high],
        min_ms: times.min_ms,
        n: times.n,
        peak_bytes: completed.peak_bytes,
        is_last_only: completed.positions == Positions::Last,
    })
}

#[cfg(test)]
mod tests;
