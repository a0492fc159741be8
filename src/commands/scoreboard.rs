//! The scoreboard: every architecture's synthetic checkpoints in tfcheck's own models and in
//! candle-transformers' ports, each compared with the newest transformers in eager attention.
//!
//! It is an ordinary run (with a run folder, resumption and verdicts) over a generated config, aggregated
//! into one table.

mod lines;
mod page;
mod table;

use std::path::{Path, PathBuf};

use miette::{IntoDiagnostic, Result};
use models::synthetic::catalogue;
use ports::{is_quantised, port};
use reference::protocol::{Attention, Dtype, Mode, Positions};
use serde::Serialize;

use crate::execute::cell::{Cell, Completed, FailureKind, Outcome};
use crate::judge::assess;
use crate::judge::view::{CaseView, RunView};
use crate::results::{Axes, RunFolder};
use crate::spec::checkpoint::tiny;
use crate::spec::config::{
    Candle, Checkpoint, CheckpointSource, Command, Config, InputsConfig, Padding, Run, Version,
};
use crate::spec::machine;
use crate::spec::plan::{CasePlan, CellPlan, Plan, release_order};
use crate::spec::variant::{Runner, Variant};
use compare::matrix::PairOutcome;
use compare::verdict::Decision;

/// Sequence length of the short input: shorter than the window of every synthetic checkpoint (8 keys).
const SHORT: usize = 6;
/// Sequence length of the long inputs: longer than every window, and than the 32 positions after which rope
/// scalings change.
const LONG: usize = 40;
/// Sequence length of the inputs of the checkpoints named [`TABLES`]: rope tables in bf16 cannot count past 256 positions.
const LONGEST: usize = 600;
/// Variants of checkpoints whose tables have more positions than [`LONGEST`].
const TABLES: &str = "long";
/// Tokens of the prefill of the long inputs; the others are decoded through the KV cache.
const PREFILL: usize = 32;

/// Checkpoints per second of all diagnoses together, so that they take about as long as the cells. A checkpoint on which nothing
/// diverges leaves its share to others.
const DIAGNOSED_PER_S: u64 = 2;

/// Name of the ports of another checkout, as a variant.
const CHECKOUT: &str = "checkout";

/// Name of the ports that read GGUF files, as a variant.
const GGUF: &str = "gguf";

/// Which checkpoints are compared.
#[derive(Clone, Debug, Default)]
pub struct ScoreboardOptions {
    /// Model types; empty for all.
    pub only: Vec<String>,
    /// Whether to include every variant of a model type, not only its default.
    pub all: bool,
    /// The worker of another checkout's ports, as [`crate::execute::checkout`] builds it.
    pub checkout: Option<PathBuf>,
}

/// The config of a scoreboard; transformers, environment, device and tolerances come from `base`.
///
/// # Errors
/// When a model type is unknown, or `base` has no transformers version to compare with.
pub fn config(base: &Config, options: &ScoreboardOptions) -> Result<Config> {
    let entries: Vec<(&str, &str)> = entries().collect();
    let mut known: Vec<&str> = entries.iter().map(|(model_type, _)| *model_type).collect();
    known.dedup();
    if let Some(unknown) = options.only.iter().find(|name| !known.contains(&name.as_str())) {
        miette::bail!(
            help = format!("there are {}", known.join(", ")),
            "there is no model type `{unknown}` with a native model or a port"
        );
    }
    let wanted = entries.into_iter().filter(|(model_type, variant)| {
        let is_named = options.only.is_empty() || options.only.iter().any(|name| name == model_type);
        is_named && (options.all || variant.is_empty())
    });
    let checkpoint = |(model_type, variant): (&str, &str)| {
        Checkpoint::new(CheckpointSource::Synthetic {
            model_type: model_type.to_owned(),
            variant: Some(variant).filter(|variant| !variant.is_empty()).map(str::to_owned),
        })
    };
    let checkpoints: Vec<Checkpoint> = wanted.map(checkpoint).collect();
    let newest = base.versions.iter().max_by_key(|version| release_order(version)).cloned();
    let newest = newest.ok_or_else(|| {
        miette::miette!(
            help = "list one under [[versions]]",
            "the config has no transformers version to compare with"
        )
    })?;
    let diagnose_s = diagnosis_s(base.run.diagnose_s, checkpoints.len());
    Ok(Config {
        checkpoints,
        inputs: InputsConfig {
            lengths: Some(vec![SHORT, LONG, LONGEST]),
            prefill: Some(vec![PREFILL]),
            batch: Some(vec![1, 3]),
            padding: Some(vec![Padding::None, Padding::Left]),
            seed: base.inputs.seed,
            ..InputsConfig::default()
        },
        versions: vec![Version { modes: None, attention: None, dtypes: None, ..newest }],
        candle: Candle { modes: vec![Mode::Eager, Mode::Fused], upstream: true },
        commands: commands(options)?,
        run: Run {
            modes: vec![Mode::Eager],
            attention: vec![Attention::Eager],
            dtypes: vec![Dtype::F32.into(), Dtype::Bf16.into()],
            warm_up: 0,
            iterations: 1,
            rounds: 1,
            trace: false,
            oracle: true,
            noise: false,
            baseline: None,
            fail_on: Vec::new(),
            against: None,
            diagnose_s,
            // On models of this size more threads wait for each other, and the longer the busier the machine is.
            threads: base.run.threads.or(Some(1)),
            // Nothing is timed, so that cells need not wait for each other; more than there are cores, because some wait for files.
            first_passes_at_once: base.run.first_passes_at_once.max(2 * machine::physical_cores()),
            ..base.run.clone()
        },
        ..base.clone()
    })
}

/// The ports of another checkout, and those that read GGUF files, as variants.
fn commands(options: &ScoreboardOptions) -> Result<Vec<Command>> {
    let command = |name: &str, program: &Path, arguments: &[&str]| Command {
        name: name.to_owned(),
        program: std::iter::once(program.to_string_lossy().into_owned())
            .chain(arguments.iter().map(|&argument| argument.to_owned()))
            .collect(),
        float64: false,
    };
    let this = std::env::current_exe().into_diagnostic()?;
    let gguf = command(GGUF, &this, &["worker", "--upstream", "--gguf"]);
    let checkout = options.checkout.iter().map(|program| command(CHECKOUT, program, &[]));
    Ok(checkout.chain([gguf]).collect())
}

/// Seconds for the diagnoses of a scoreboard: the config's, or more if there are many checkpoints; 0 stays 0.
fn diagnosis_s(of_config: u64, checkpoints: usize) -> u64 {
    if of_config == 0 { 0 } else { of_config.max(checkpoints as u64 / DIAGNOSED_PER_S) }
}

/// Model type and variant of every checkpoint: the native models' (but those with the shape of a real model), each model
/// type's further ones, and then those of ports without a native model.
fn entries() -> impl Iterator<Item = (&'static str, &'static str)> {
    let native = catalogue().iter().filter(|entry| !entry.bench);
    let native = native.map(|entry| (entry.model_type, entry.variant));
    let mut entries: Vec<(&str, &str)> = native.collect();
    for (model_type, variant) in tiny::catalogue().iter().map(|entry| (entry.model_type, entry.variant)) {
        if let Some(last) = entries.iter().rposition(|(known, _)| *known == model_type) {
            entries.insert(last + 1, (model_type, variant));
        } else if port(model_type).is_some() {
            entries.push((model_type, variant));
        }
    }
    entries.into_iter()
}

/// The cells of a scoreboard's config; nothing is timed. Every checkpoint runs on one short and one long sequence and on a padded
/// batch of long ones, the default of a model type also on a batch of equal lengths and through the KV cache, and a checkpoint
/// with long tables on one sequence beyond the positions that bf16 counts.
///
/// # Errors
/// When no plan can be made from the config.
pub fn plan(config: &Config) -> Result<Plan> {
    let is_wanted = |case: &CasePlan, cell: &CellPlan| {
        let CheckpointSource::Synthetic { model_type, variant } = &config.checkpoints[case.checkpoint].source
        else {
            return false;
        };
        let is_gguf = cell.variant.version == GGUF;
        if is_gguf && (!is_quantised(model_type) || cell.variant.dtype != Dtype::F32) {
            return false;
        }
        let shape = (case.inputs.length(), case.inputs.batch() == Some(1), case.inputs.is_padded());
        match variant.as_deref() {
            Some(TABLES) => case.inputs.prefill().is_none() && shape == (Some(LONGEST), true, false),
            _ if case.inputs.prefill().is_some() => {
                variant.is_none() && decodes(model_type) && shape == (Some(LONG), true, false)
            }
            None if shape == (Some(SHORT), false, false) => true,
            _ => matches!(shape, (Some(SHORT | LONG), true, false) | (Some(LONG), false, true)),
        }
    };
    let mut plan = Plan::new(config, machine::auto_device())?.selected(config, is_wanted)?;
    untimed(&mut plan);
    Ok(plan)
}

/// Whether the model or the port is a decoder, which has a KV cache.
fn decodes(model_type: &str) -> bool {
    models::kind(model_type) == Some(models::Kind::Decoder)
        || port(model_type).is_some_and(|port| port.caches)
}

/// Marks all cells as untimed, so that each worker exits as soon as its logits are written.
pub fn untimed(plan: &mut Plan) {
    for cell in &mut plan.cells {
        cell.measured = false;
    }
}

/// Aggregates a finished or interrupted run into `scoreboard.md` and `scoreboard.json`; returns the Markdown.
///
/// # Errors
/// When the run cannot be read or the files cannot be written.
pub fn write(run: &Path) -> Result<String> {
    let folder = RunFolder::open(run)?;
    let scoreboard = fold(&assess::saved(&folder)?);
    let markdown = table::markdown(&scoreboard);
    folder.write_folded("scoreboard", &scoreboard, &markdown)?;
    Ok(markdown)
}

/// One table over all cases of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Scoreboard {
    /// The run that was aggregated.
    pub run: String,
    /// The transformers version that the variants are compared with.
    pub reference: String,
    /// The version, folder and commit of the candle-transformers that `checkout` has, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkout: Option<String>,
    /// The compared variants.
    pub variants: Vec<String>,
    /// A row per checkpoint and inputs.
    pub rows: Vec<ScoreboardRow>,
}

/// One checkpoint with one batch of inputs.
#[derive(Clone, Debug, Serialize)]
pub struct ScoreboardRow {
    /// `synthetic:mistral:head-dim`.
    pub checkpoint: String,
    /// The inputs, described in words.
    pub inputs: String,
    /// Their length, batch size, padding and prefill.
    #[serde(skip)]
    pub axes: Option<Axes>,
    /// One per variant of [`Scoreboard::variants`]; nothing for a variant that the checkpoint is not for.
    pub scores: Vec<Option<Score>>,
}

/// One variant on one checkpoint and inputs.
#[derive(Clone, Debug, Serialize)]
pub struct Score {
    /// The variant, as in [`Scoreboard::variants`].
    #[serde(skip)]
    pub variant: Variant,
    /// The verdict on this variant and the reference of the same dtype; `unsupported`, `failed` or `not run`
    /// if there are no logits.
    pub word: String,
    /// The evidence of the verdict, or why there are no logits.
    pub evidence: String,
    /// `‖variant − oracle‖ / ‖oracle‖`, where the oracle is the reference in float64.
    pub relative_l2: Option<f64>,
    /// The same for the reference in the variant's dtype.
    pub reference_relative_l2: Option<f64>,
    /// The position with the largest relative L2 against the float64 reference.
    pub worst: Option<Worst>,
    /// The first diverging module or another localisation result, if the run localised this pair.
    pub module: Option<String>,
    /// What the variant computes instead, or the part in which it differs, if the run diagnosed it in this case.
    pub diagnosis: Option<String>,
    /// Which positions the variant's logits cover.
    pub positions: Option<Positions>,
    /// Notes reported by the worker.
    pub notes: Vec<String>,
}

/// The position at which a variant differs most.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Worst {
    /// Index of the sequence in the batch.
    pub row: usize,
    /// Position in the sequence, padding included.
    pub position: usize,
    /// Relative L2 of this position.
    pub relative_l2: f64,
}

/// The table of a run whose cases all have the same variants.
pub fn fold(view: &RunView) -> Scoreboard {
    let judged = |case: &CaseView| -> Vec<usize> {
        let is_judged = |&index: &usize| case.cells[index].variant.runner != Runner::Transformers;
        let mut judged: Vec<usize> = (0..case.cells.len()).filter(is_judged).collect();
        // The float64 variant first: whether the function is the same precedes the effect of each dtype.
        judged.sort_by_key(|&index| case.cells[index].variant.dtype != Dtype::F64);
        judged
    };
    let first = view.cases.first();
    // Not every checkpoint has a port that reads GGUF files: the variants are those of all cases, in the order of the first.
    let mut names: Vec<String> = Vec::new();
    for case in &view.cases {
        for index in judged(case) {
            if !names.contains(&case.cells[index].name) {
                names.push(case.cells[index].name.clone());
            }
        }
    }
    let scores = |case: &CaseView| -> Vec<Option<Score>> {
        let of = |name: &String| {
            let index = case.cells.iter().position(|cell| cell.name == *name)?;
            Some(score(case, index))
        };
        names.iter().map(of).collect()
    };
    let reference = |case: &CaseView| {
        let version =
            |variant: &Variant| (variant.runner == Runner::Transformers).then(|| variant.version.clone());
        case.cells.iter().find_map(|cell| version(&cell.variant))
    };
    let row = |case: &CaseView| ScoreboardRow {
        checkpoint: case.checkpoint.clone(),
        inputs: case.inputs.clone(),
        axes: case.axes,
        scores: scores(case),
    };
    Scoreboard {
        run: view.id.clone(),
        reference: first.and_then(reference).unwrap_or_default(),
        checkout: view.cases.iter().flat_map(|case| &case.cells).find_map(checkout),
        rows: view.cases.iter().map(row).collect(),
        variants: names,
    }
}

/// The candle-transformers that a cell of the other checkout ran.
fn checkout(cell: &Cell) -> Option<String> {
    match &cell.outcome {
        Outcome::Completed(completed) if cell.variant.version == CHECKOUT => {
            completed.libraries.get("candle-transformers").cloned()
        }
        _ => None,
    }
}

fn score(case: &CaseView, index: usize) -> Score {
    let cell = &case.cells[index];
    let of_reference = |dtype: Dtype| {
        let is_it = |cell: &Cell| cell.variant.runner == Runner::Transformers && cell.variant.dtype == dtype;
        case.cells.iter().position(is_it)
    };
    let same_dtype = of_reference(cell.variant.dtype);
    let oracle = of_reference(Dtype::F64);
    let relative = |index: usize, oracle: usize| match case.matrix.oriented(index, oracle) {
        PairOutcome::Compared(pair) => Some(pair.relative_l2(compare::metrics::Side::B)),
        _ => None,
    };
    let worst = oracle.and_then(|oracle| case.matrix.compared(index, oracle)).map(|pair| Worst {
        row: pair.worst_position.1.row,
        position: pair.worst_position.1.position,
        relative_l2: pair.worst_position.0,
    });
    let (word, evidence) = match &cell.outcome {
        Outcome::Unsupported { reason } => ("unsupported".to_owned(), reason.clone()),
        Outcome::Failed(failure) => {
            let word = if failure.kind == FailureKind::Interrupted { "not run" } else { "failed" };
            (word.to_owned(), cell.outcome.reason())
        }
        Outcome::Completed(_) => {
            let verdict = same_dtype.and_then(|other| case.verdict(&cell.name, &case.cells[other].name));
            verdict.map_or_else(
                || ("not judged".to_owned(), "no reference of this dtype".to_owned()),
                |verdict| (word_on(&cell.name, &verdict.decision).to_owned(), verdict.evidence.clone()),
            )
        }
    };
    let (positions, notes) = match &cell.outcome {
        Outcome::Completed(Completed { positions, notes, .. }) => (Some(*positions), notes.clone()),
        _ => (None, Vec::new()),
    };
    Score {
        variant: cell.variant.clone(),
        word,
        evidence,
        relative_l2: oracle.and_then(|oracle| relative(index, oracle)),
        reference_relative_l2: oracle.zip(same_dtype).and_then(|(oracle, same)| relative(same, oracle)),
        worst,
        module: module(case, index),
        diagnosis: diagnosis(case, index),
        positions,
        notes,
    }
}

/// The decision as a word on `variant`: where the reference is the one that rounds worse, the variant is right.
pub(super) fn word_on(variant: &str, decision: &Decision) -> &'static str {
    match decision {
        Decision::WorseRounding { worse } if worse != variant => Decision::SameMathematics.word(),
        decision => decision.word(),
    }
}

/// Whether the two differ at most in the dtype and the device.
fn is_kin(a: &Variant, b: &Variant) -> bool {
    (a.runner, &a.version, a.mode) == (b.runner, &b.version, b.mode)
}

/// The sentence of the diagnosis and its notes, such as that the time ran out. A run diagnoses one dtype of a kind of variant.
fn diagnosis(case: &CaseView, index: usize) -> Option<String> {
    let is_suspect = |name: &str| {
        let mut cells = case.cells.iter();
        cells.any(|cell| cell.name == name && is_kin(&cell.variant, &case.cells[index].variant))
    };
    let mut found = case.diagnosed.iter().filter(|diagnosed| diagnosed.is_divergence());
    let diagnosed = found.find(|diagnosed| is_suspect(&diagnosed.suspect))?;
    let parts: Vec<&str> =
        std::iter::once(&diagnosed.sentence).chain(&diagnosed.notes).map(String::as_str).collect();
    Some(parts.join("; "))
}

/// The first module that diverges from the reference. A run localises one pair for all dtypes of two kinds of
/// variant.
fn module(case: &CaseView, index: usize) -> Option<String> {
    let variant = &case.cells[index].variant;
    let is_kin = |other: &Variant| is_kin(other, variant);
    let is_of = |name: &str, is_it: &dyn Fn(&Variant) -> bool| {
        case.cells.iter().any(|cell| cell.name == name && is_it(&cell.variant))
    };
    let is_reference = |other: &Variant| other.runner == Runner::Transformers;
    let of_pair = |a: &str, b: &str| is_of(a, &is_kin) && is_of(b, &is_reference);
    let found =
        case.localized.iter().find(|found| of_pair(&found.a, &found.b) || of_pair(&found.b, &found.a))?;
    Some(found.path().map_or_else(|| found.sentence.clone(), |path| format!("`{path}`")))
}

#[cfg(test)]
mod tests;
