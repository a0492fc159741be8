//! From the cells of a run to what people read: opens logits, measures pairs, judges, writes every format.

use std::collections::BTreeMap;
use std::path::Path;

use console::Term;
use miette::{IntoDiagnostic, Result, WrapErr, miette};
use reference::protocol::Mode;
use serde::Serialize;

use crate::against;
use crate::compare::logits::{Logits, Mask};
use crate::compare::matrix::{self, Entry, Matrix};
use crate::compare::oracle::{Oracles, Origin, accuracies, bears_on};
use crate::compare::repeat;
use crate::compare::verdict::{Tolerances, Verdict, verdicts};
use crate::compare::{self};
use crate::gates::{self, Judged};
use crate::localize::{self, Finding, Localized};
use crate::machine::Machine;
use crate::outcome::ExitCode;
use crate::progress::Progress;
use crate::report::terminal::Terminal;
use crate::report::{self, CaseView, ChoiceRow, ChoicesView, Report, RunView, github};
use crate::results::{Case, Cell, Completed, Failure, FailureKind, Manifest, Outcome, RunFolder};

/// Marks the one pass beside which a prefill and what followed it are judged.
pub(crate) const ONE_PASS: &str = " in one pass";

/// Compares the cells of each case, writes every report into the run and shows the terminal's.
///
/// # Errors
/// When logits cannot be read or a report cannot be written; the terminal's is shown all the same.
pub fn write(
    folder: &RunFolder,
    manifest: &Manifest,
    cells: &[Vec<Cell>],
    tolerances: &Tolerances,
    progress: &Progress,
) -> Result<ExitCode> {
    publish(folder, manifest, view(folder, manifest, cells, tolerances)?, tolerances, progress)
}

/// Judges a view by the run's gates, writes every report into the run and shows the terminal's.
///
/// # Errors
/// When a report cannot be written; the terminal's is shown all the same.
pub fn publish(
    folder: &RunFolder,
    manifest: &Manifest,
    mut view: RunView,
    tolerances: &Tolerances,
    progress: &Progress,
) -> Result<ExitCode> {
    let run = &manifest.config.run;
    let against =
        run.against.as_ref().map(|name| against::compare(name, folder, manifest, &view.cases, tolerances));
    // The run's own reports do not depend on the baseline.
    let (against, lost) = match against.transpose() {
        Ok(against) => (against, None),
        Err(error) => (None, Some(error)),
    };
    view.judged = gates::judge(&view, &run.fail_on, against);
    show(&view, progress);
    github::publish(&view, progress);
    for format in report::all() {
        folder.write(format.file_name(), format.render(&view).as_bytes())?;
    }
    progress.line(&format!(
        "{} and report.html are in {}",
        report::markdown::Markdown.file_name(),
        folder.path().display()
    ));
    lost.map_or(Ok(exit_code(&view)), Err)
}

/// A saved run as reports see it, under its own tolerances.
///
/// # Errors
/// When the run, or logits that exist, cannot be read.
pub fn saved(folder: &RunFolder) -> Result<RunView> {
    let manifest = folder.manifest()?;
    view(folder, &manifest, &folder.all_cells(&manifest)?, &manifest.config.tolerances)
}

/// Writes what a run was folded into as `NAME.json` and `NAME.md`.
///
/// # Errors
/// When a file cannot be written.
pub fn write_folded(folder: &RunFolder, name: &str, folded: &impl Serialize, markdown: &str) -> Result<()> {
    let json =
        serde_json::to_vec_pretty(folded).into_diagnostic().wrap_err_with(|| format!("{name} as JSON"))?;
    folder.write(format!("{name}.json"), &json)?;
    folder.write(format!("{name}.md"), markdown.as_bytes())?;
    Ok(())
}

/// The run as reports see it.
///
/// # Errors
/// When logits that exist cannot be read.
pub fn view(
    folder: &RunFolder,
    manifest: &Manifest,
    cells: &[Vec<Cell>],
    tolerances: &Tolerances,
) -> Result<RunView> {
    let localized = folder.localized()?;
    let all = cells;
    let cases = manifest.cases.iter().zip(cells).map(|(case, cells)| {
        let files = folder.case_folder(manifest, &case.name);
        let cells: Vec<Cell> = case.variants.iter().map(|variant| cell_of(variant, cells)).collect();
        let entries: Vec<Entry> = cells.iter().map(|cell| entry(cell, &files)).collect();
        let mask = Mask::open(&files.join("inputs.safetensors")).map_err(|error| miette!("{error}"))?;
        let mut view = case_view(
            (case, &localized),
            manifest.baseline.as_deref(),
            cells,
            &entries,
            Some(&mask),
            tolerances,
        )?;
        view.verdicts.extend(cached(folder, manifest, all, case, &view.cells, &mask, tolerances)?);
        Ok::<_, miette::Report>(view)
    });
    Ok(RunView {
        id: folder.path().file_name().unwrap_or_default().to_string_lossy().into_owned(),
        environment: environment(folder.path()),
        packages: packages(folder.path()),
        cases: cases.collect::<Result<_>>()?,
        notes: manifest.notes.clone(),
        judged: Judged::default(),
    })
}

/// Shows a run on the terminal.
pub fn show(view: &RunView, progress: &Progress) {
    let term = Term::stderr();
    let width = term.size_checked().map_or(100, |(_, columns)| usize::from(columns));
    let terminal = Terminal { width, color: console::colors_enabled_stderr() };
    progress.result(&terminal.render(view));
}

/// What the process should tell its caller; a gate that failed counts more than a cell that is missing.
pub fn exit_code(view: &RunView) -> ExitCode {
    if view.judged.has_failed() {
        ExitCode::Diverged
    } else if view.tally().failed > 0 {
        ExitCode::CellFailed
    } else {
        ExitCode::Agree
    }
}

/// Measures and judges the cells of a case; `entries` are their logits, in the same order. What is known of the first
/// divergence of pairs, of this case or of others, tells a choice of experts from another mathematics.
///
/// # Errors
/// When logits that exist cannot be read.
pub fn case_view(
    (case, localized): (&Case, &[Localized]),
    baseline: Option<&str>,
    cells: Vec<Cell>,
    entries: &[Entry],
    mask: Option<&Mask>,
    tolerances: &Tolerances,
) -> Result<CaseView> {
    let matrix =
        matrix::matrix(entries, mask, &matrix::Options::default()).map_err(|error| miette!("{error}"))?;
    let origins: Vec<Origin> = cells.iter().map(|cell| Origin::of(&cell.variant)).collect();
    let localized: Vec<Localized> =
        localized.iter().filter(|found| found.case == case.name).cloned().collect();
    let oracles = with_near_ties(Oracles::new(&matrix, &origins), &cells, &localized);
    let tolerances = tolerances.with(case.tolerances.as_ref());
    let mut judged = verdicts(&matrix, &oracles, &tolerances);
    let noises: Vec<_> = cells
        .iter()
        .map(|cell| match &cell.outcome {
            Outcome::Completed(completed) => completed.noise.clone(),
            _ => None,
        })
        .collect();
    repeat::annotate(&mut judged, &matrix, &noises);
    Ok(CaseView {
        name: case.name.clone(),
        checkpoint: case.checkpoint.clone(),
        inputs: case.inputs.clone(),
        baseline: baseline.map(str::to_owned),
        axes: case.axes,
        verdicts: judged,
        accuracies: accuracies(&matrix, &oracles),
        choices: mask.map(|mask| choices(case, entries, mask)).transpose()?.flatten(),
        localized,
        cells,
        matrix,
    })
}

/// Fused forms that were fed, module by module, what a variant of their dtype gives whose code ran in float64, and
/// depart from it by near-ties of routers alone. What is looked into through an eager twin, as a compiled model, is not
/// known by that.
fn with_near_ties(oracles: Oracles, cells: &[Cell], localized: &[Localized]) -> Oracles {
    let mut found = oracles;
    for localized in localized {
        let Finding::Spread { near_ties: Some(near_ties), .. } = &localized.finding else { continue };
        let index = |name: &String| cells.iter().position(|cell| cell.name == *name);
        let (Some(a), Some(b)) = (index(&localized.a), index(&localized.b)) else { continue };
        let is_in_it = |index: usize| cells[index].variant.dtype == localized.dtype;
        let is_fed = found.ran(a) && cells[b].variant.mode == Mode::Fused && is_in_it(a) && is_in_it(b);
        if is_fed {
            found = found.with_near_ties(b, localize::near_ties(near_ties, &localized.a));
        }
    }
    found
}

/// A case of prefill and decoding against the one pass over the same inputs, variant by variant: nothing where the
/// case is another, or the run has no such pass.
fn cached(
    folder: &RunFolder,
    manifest: &Manifest,
    cells: &[Vec<Cell>],
    case: &Case,
    decoded: &[Cell],
    mask: &Mask,
    tolerances: &Tolerances,
) -> Result<Vec<Verdict>> {
    let prefill = |case: &Case| case.axes.and_then(|axes| axes.prefill);
    let same = |other: &Case| {
        prefill(other).is_none()
            && (&other.checkpoint_digest, &other.inputs_digest)
                == (&case.checkpoint_digest, &case.inputs_digest)
    };
    let Some((one_pass, cells)) =
        manifest.cases.iter().zip(cells).find(|(other, _)| same(other)).filter(|_| prefill(case).is_some())
    else {
        return Ok(Vec::new());
    };
    let files = [case, one_pass].map(|case| folder.case_folder(manifest, &case.name));
    let mut found = Vec::new();
    for cell in decoded {
        let Some(whole) = cells.iter().find(|whole| whole.name == cell.name) else { continue };
        let variant = &cell.variant;
        // Each way with what its verdict rests on: that of the same family alone, for it is not about another.
        let judges = |other: &&Cell| {
            (other.variant.runner, &other.variant.version) == (variant.runner, &variant.version)
                && other.name != cell.name
                && bears_on(&other.variant, [variant, variant])
                && matches!(other.outcome, Outcome::Completed(_))
        };
        let pair = [(cell, 0), (whole, 1)];
        let rest = decoded.iter().filter(judges).map(|other| (other, 0));
        let rest = rest.chain(cells.iter().filter(judges).map(|other| (other, 1)));
        let (mut entries, mut origins) = (Vec::new(), Vec::new());
        for (other, way) in pair.into_iter().chain(rest) {
            let mut entry = entry(other, &files[way]);
            entry.name.push_str(["", ONE_PASS][way]);
            entries.push(entry);
            origins.push(Origin::of(&other.variant).made(["decoded", "one pass"][way]));
        }
        if entries[..2].iter().any(|entry| entry.logits.is_err()) {
            // The cells say why.
            continue;
        }
        let matrix: Matrix = matrix::matrix(&entries, Some(mask), &matrix::Options::default())
            .map_err(|error| miette!("{error}"))?;
        let oracles = Oracles::new(&matrix, &origins);
        // The first pair is that of the variant and itself.
        let judged = verdicts(&matrix, &oracles, &tolerances.with(case.tolerances.as_ref()));
        found.extend(judged.into_iter().take(1));
    }
    Ok(found)
}

/// The record of a variant; one that was never begun has its place in the tables too.
fn cell_of(variant: &crate::variant::Variant, cells: &[Cell]) -> Cell {
    let never = || {
        let failure = Failure {
            kind: FailureKind::Interrupted,
            reason: "the run ended before this variant was begun".into(),
            detail: String::new(),
            log_tail: String::new(),
        };
        Cell::new(variant, "", Outcome::Failed(failure))
    };
    cells.iter().find(|cell| cell.variant == *variant).cloned().unwrap_or_else(never)
}

/// The logits of a cell whose case's files lie in `files`, or why there are none.
pub fn entry(cell: &Cell, files: &Path) -> Entry {
    let logits = match &cell.outcome {
        Outcome::Completed(Completed { logits, positions, .. }) => {
            Logits::open(&files.join(logits), *positions).map_err(|error| error.to_string())
        }
        outcome => Err(report::reason(outcome)),
    };
    Entry { name: cell.name.clone(), dtype: cell.variant.dtype, logits }
}

fn choices(case: &Case, entries: &[Entry], mask: &Mask) -> Result<Option<ChoicesView>> {
    if case.choices.is_empty() {
        return Ok(None);
    }
    let tokens: Vec<u32> = case.choices.iter().map(|choice| choice.id).collect();
    let mut rows = Vec::new();
    for entry in entries {
        let Ok(logits) = &entry.logits else { continue };
        let found = compare::choices(logits, mask, &tokens).map_err(|error| miette!("{error}"))?;
        for (row, probabilities) in found.into_iter().enumerate() {
            let probabilities = probabilities.unwrap_or_else(|| vec![None; tokens.len()]);
            rows.push(ChoiceRow { variant: entry.name.clone(), row, probabilities });
        }
    }
    let tokens = case.choices.iter().map(|choice| choice.text.clone()).collect();
    Ok(Some(ChoicesView { tokens, rows }))
}

/// What `environment.json` lists of each version's environment.
fn packages(run: &Path) -> Vec<(String, BTreeMap<String, String>)> {
    let record = std::fs::read(run.join("environment.json")).ok();
    let record: Option<serde_json::Value> = record.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let Some(record) = record else { return Vec::new() };
    let mut found = Vec::new();
    for environment in record["environments"].as_array().into_iter().flatten() {
        let packages = serde_json::from_value::<BTreeMap<String, String>>(environment["packages"].clone());
        let Ok(packages) = packages else { continue };
        for version in
            environment["versions"].as_array().into_iter().flatten().filter_map(|name| name.as_str())
        {
            found.push((version.to_owned(), packages.clone()));
        }
    }
    found
}

/// What `environment.json` says of the machine, in the words of a table; nothing where there is none.
fn environment(run: &Path) -> Vec<(String, String)> {
    let record = std::fs::read(run.join("environment.json")).ok();
    let record: Option<serde_json::Value> = record.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let Some(record) = record else { return Vec::new() };
    let Ok(machine) = serde_json::from_value::<Machine>(record["machine"].clone()) else { return Vec::new() };
    let gib = machine.memory_bytes as f64 / f64::from(1 << 30);
    let mut rows = vec![
        ("CPU".to_owned(), format!("{}, {} cores, {gib:.0} GiB", machine.cpu, machine.cores)),
        ("Threads".to_owned(), record["threads"].to_string()),
        ("System".to_owned(), machine.system),
        ("tfcheck".to_owned(), format!("{}, {}", machine.tfcheck, machine.rustc)),
    ];
    for (index, gpu) in machine.gpus.into_iter().enumerate() {
        let details = machine.gpu_details.get(index).map(|known| {
            format!(", {}, clock {}, memory clock {}", known.memory, known.clock, known.memory_clock)
        });
        rows.push(("GPU".to_owned(), format!("{gpu}{}", details.unwrap_or_default())));
    }
    if !machine.cuda.is_empty() {
        let versions: Vec<String> =
            machine.cuda.iter().map(|(library, version)| format!("{library} {version}")).collect();
        rows.push(("CUDA".to_owned(), versions.join(", ")));
    }
    if let Some(device) = record["auto_device"]["device"].as_str() {
        let reason = record["auto_device"]["reason"].as_str().unwrap_or_default();
        rows.push(("Device".to_owned(), format!("{device}, taken for `auto`: {reason}")));
    }
    for environment in record["environments"].as_array().into_iter().flatten() {
        let Some(installed) = environment["installed"].as_object() else { continue };
        let name = environment["versions"].as_array().into_iter().flatten().filter_map(|name| name.as_str());
        let packages = installed
            .iter()
            .map(|(package, version)| format!("{package} {}", version.as_str().unwrap_or("?")))
            .chain(environment["torch_cuda"].as_str().map(|cuda| format!("torch's CUDA {cuda}")));
        rows.push((name.collect::<Vec<_>>().join(", "), packages.collect::<Vec<_>>().join(", ")));
    }
    rows
}
