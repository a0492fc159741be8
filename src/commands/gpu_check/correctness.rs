//! Compares every architecture's fused backend on the GPU with float64 on the CPU.
//!
//! It is an ordinary run. Its cells are the eager backend on the CPU in float64 (the oracle) and in each
//! dtype (whose rounding error is the scale), and the fused backend on the GPU. Verdicts are those of every
//! run.

use std::path::Path;

use miette::Result;
use models::Task;
use models::synthetic::catalogue;
use reference::protocol::{Dtype, Mode};
use serde::Serialize;

use crate::execute::cell::Outcome;
use crate::judge::assess;
use crate::judge::view::{CaseView, RunView};
use crate::results::RunFolder;
use crate::spec::config::{Candle, Checkpoint, CheckpointSource, Config, Device, InputsConfig, Padding, Run};
use crate::spec::plan::{CellPlan, Plan};
use crate::spec::variant::{Variant, dtype_name};
use compare::matrix::PairOutcome;
use compare::metrics::Side;

/// Sequence length: longer than every window, and than the positions after which rope scalings change.
const LENGTH: usize = 40;
/// Tokens of the prefill; the others are decoded one by one through the KV cache.
const PREFILL: usize = 33;
/// Batch size of the padded inputs.
const ROWS: usize = 3;

/// Selects checkpoints by `model_type` and variant.
pub(super) type Wanted<'a> = &'a dyn Fn(&str, &str) -> bool;

/// The config of the run.
pub(super) fn config(wanted: Wanted<'_>) -> Config {
    // The fused backend has no other models on a GPU.
    let entries = catalogue()
        .iter()
        .filter(|entry| !entry.bench && entry.is_one_text() && wanted(entry.model_type, entry.variant));
    let checkpoints = entries.map(|entry| {
        Checkpoint::new(CheckpointSource::Synthetic {
            model_type: entry.model_type.to_owned(),
            variant: Some(entry.variant).filter(|variant| !variant.is_empty()).map(str::to_owned),
        })
    });
    Config {
        checkpoints: checkpoints.collect(),
        inputs: InputsConfig {
            lengths: Some(vec![LENGTH]),
            batch: Some(vec![1, ROWS]),
            padding: Some(vec![Padding::None, Padding::Left]),
            prefill: Some(vec![PREFILL]),
            ..InputsConfig::default()
        },
        versions: Vec::new(),
        candle: Candle { modes: vec![Mode::Eager, Mode::Fused], upstream: false },
        run: Run {
            dtypes: vec![Dtype::F32.into(), Dtype::Bf16.into(), Dtype::F16.into()],
            devices: vec![Device::Cpu, Device::Cuda(0)],
            warm_up: 0,
            iterations: 1,
            rounds: 1,
            trace: false,
            oracle: true,
            noise: false,
            diagnose_s: 0,
            ..Run::default()
        },
        ..Config::default()
    }
}

/// The cells of the run. `device` is the GPU's name in them: `cuda:0`, or the emulator's.
///
/// # Errors
/// When no plan can be made from the config.
pub(super) fn plan(config: &Config, device: &str) -> Result<Plan> {
    let mut plan = Plan::new(config, "cpu")?;
    let cases = plan.cases.clone();
    plan.cells.retain(|cell| {
        let case = &cases[cell.case];
        let is_one_row = case.inputs.batch() == Some(1);
        if case.inputs.is_padded() == is_one_row {
            return false;
        }
        // Only the batch goes through the cache, because its rows are of several lengths.
        let is_one_row_cached = case.inputs.prefill().is_some() && is_one_row;
        // A classifier on one sequence gives a few numbers, on which the CPU's rounding error may be small by
        // chance.
        let is_luck = is_classifier(&config.checkpoints[case.checkpoint].source)
            && is_one_row
            && matches!(cell.variant.dtype, Dtype::Bf16 | Dtype::F16);
        let is_side = cell.variant.mode == Mode::Fused && is_gpu(&cell.variant)
            || cell.variant.mode == Mode::Eager && !is_gpu(&cell.variant);
        // The transformers version is listed only for the CUDA libraries in its environment.
        let is_native = cell.variant.runner == crate::spec::variant::Runner::Candle;
        is_native && is_side && !is_one_row_cached && !is_luck
    });
    for cell in &mut plan.cells {
        cell.measured = false;
        if is_gpu(&cell.variant) {
            device.clone_into(&mut cell.variant.device);
        }
    }
    let first = |cell: &&CellPlan| cell.oracle;
    plan.baseline = plan.cells.iter().find(first).map(|cell| cell.variant.name()).unwrap_or_default();
    plan.drop_unused();
    Ok(plan)
}

/// Whether a synthetic checkpoint has a classification head, by the `architectures` of its config.
fn is_classifier(source: &CheckpointSource) -> bool {
    let CheckpointSource::Synthetic { model_type, variant } = source else { return false };
    models::synthetic::config(model_type, variant.as_deref().unwrap_or_default()).is_ok_and(|config| {
        let class = config["architectures"][0].as_str();
        class.and_then(Task::of_class) == Some(Task::SequenceClassification)
    })
}

fn is_gpu(variant: &Variant) -> bool {
    variant.device != "cpu"
}

/// Results of all checkpoints.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Architectures {
    /// A row for each checkpoint, inputs and dtype.
    pub(super) rows: Vec<ArchitectureRow>,
}

/// Result of the fused backend on the GPU for one checkpoint, inputs and dtype.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ArchitectureRow {
    /// `synthetic:mistral:head-dim`.
    pub(super) checkpoint: String,
    /// The inputs, described in words.
    pub(super) inputs: String,
    /// `bf16`.
    pub(super) dtype: String,
    /// The verdict on the GPU's fused backend and the CPU's eager backend in this dtype, both compared with
    /// float64; or `unsupported`, `failed`, `not run`.
    pub(super) word: String,
    /// The evidence of the verdict.
    pub(super) evidence: String,
    /// Relative L2 of the GPU against float64.
    pub(super) relative_l2: Option<f64>,
    /// Relative L2 of the CPU in this dtype against float64.
    pub(super) cpu_relative_l2: Option<f64>,
    /// The first diverging module, if the pair was localised.
    pub(super) module: Option<String>,
}

impl ArchitectureRow {
    /// Whether both sides compute the same function.
    pub(super) fn agrees(&self) -> bool {
        ["identical", "same mathematics"].contains(&self.word.as_str())
    }
}

/// Reads the results of a run.
///
/// # Errors
/// When the run cannot be read.
pub(super) fn read(run: &Path) -> Result<Architectures> {
    Ok(fold(&assess::saved(&RunFolder::open(run)?)?))
}

pub(super) fn fold(view: &RunView) -> Architectures {
    let gpu = |case: &CaseView| (0..case.cells.len()).filter(|&at| is_gpu(&case.cells[at].variant)).collect();
    let rows = view.cases.iter().flat_map(|case| {
        let cells: Vec<usize> = gpu(case);
        cells.into_iter().map(|index| row(case, index))
    });
    Architectures { rows: rows.collect() }
}

fn row(case: &CaseView, index: usize) -> ArchitectureRow {
    let cell = &case.cells[index];
    let on_the_cpu = |dtype: Dtype| {
        let is_it = |cell: &crate::execute::cell::Cell| !is_gpu(&cell.variant) && cell.variant.dtype == dtype;
        case.cells.iter().position(is_it)
    };
    let (reference, oracle) = (on_the_cpu(cell.variant.dtype), on_the_cpu(Dtype::F64));
    let relative = |index: usize| match case.matrix.oriented(index, oracle?) {
        PairOutcome::Compared(pair) => Some(pair.relative_l2(Side::B)),
        _ => None,
    };
    let (word, evidence) = match &cell.outcome {
        Outcome::Unsupported { reason } => ("unsupported".to_owned(), reason.clone()),
        Outcome::Failed(failure) => {
            let is_cut = failure.kind == crate::execute::cell::FailureKind::Interrupted;
            (if is_cut { "not run" } else { "failed" }.to_owned(), cell.outcome.reason())
        }
        Outcome::Completed(_) => verdict(case, index, reference.filter(|_| oracle.is_some())),
    };
    let module = case.localized.iter().find(|found| [&found.a, &found.b].contains(&&cell.name));
    ArchitectureRow {
        checkpoint: case.checkpoint.clone(),
        inputs: case.inputs.clone(),
        dtype: dtype_name(cell.variant.dtype).to_owned(),
        word,
        evidence,
        relative_l2: relative(index),
        cpu_relative_l2: reference.and_then(relative),
        module: module.map(|found| found.path().map_or_else(|| found.sentence.clone(), str::to_owned)),
    }
}

fn verdict(case: &CaseView, index: usize, reference: Option<usize>) -> (String, String) {
    let Some(reference) = reference else {
        return ("not run".to_owned(), "the CPU produced no reference".to_owned());
    };
    let Some(verdict) = case.verdict(&case.cells[index].name, &case.cells[reference].name) else {
        return ("not run".to_owned(), "the pair has no verdict".to_owned());
    };
    (verdict.decision.word().to_owned(), verdict.evidence.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_checkpoint_is_run_in_every_dtype_on_the_gpu_and_in_float64_on_the_cpu() {
        let config = config(&|_, _| true);
        let plan = plan(&config, "cuda:0").unwrap();
        let small = catalogue().iter().filter(|entry| !entry.bench && entry.is_one_text()).count();
        assert_eq!(config.checkpoints.len(), small);
        // One sequence, padded sequences, and padded sequences through the cache.
        assert_eq!(plan.cases.len(), 3 * small);
        let first: Vec<String> =
            plan.cells.iter().filter(|cell| cell.case == 0).map(|cell| cell.variant.name()).collect();
        assert_eq!(
            first,
            [
                "candle_eager_f32",
                "candle_eager_bf16",
                "candle_eager_f16",
                "candle_fused_f32_cuda0",
                "candle_fused_bf16_cuda0",
                "candle_fused_f16_cuda0",
                "candle_eager_f64",
            ]
        );
        assert!(plan.cells.iter().all(|cell| !cell.measured), "nothing is timed");
        assert!(plan.environments.is_empty(), "no Python takes part");
    }
}
