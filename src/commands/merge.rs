//! `tfcheck merge`: puts the parts of one plan, computed on any number of machines, into one run.
//!
//! Every logits file, record and digest of a part is checked before it is used: a part is a folder that others may have
//! written.

mod copy;
mod equal;
mod parts;
mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bounds::limits::{CONFIG_BYTES, LINE};
use compare::units::count;
use miette::{IntoDiagnostic, Result, WrapErr};
use serde::Serialize;

use crate::execute::cell::{Cell, Failure, FailureKind, Outcome};
use crate::execute::progress::Progress;
use crate::judge::history;
use crate::results::{Frozen, Manifest, RunFolder};
use crate::spec::units::Unit;
use copy::Copy;
pub use parts::runs_in;
use parts::{Part, Parts};

/// What to merge.
#[derive(Clone, Copy, Debug)]
pub struct MergeRequest<'a> {
    /// Run folders of parts, or folders that contain such run folders.
    pub folders: &'a [PathBuf],
    /// The plan; `None` if a part has it.
    pub plan: Option<&'a Path>,
    /// A file with the reason why a unit is missing, one unit a line: its name, a tab, the reason.
    pub reasons: Option<&'a Path>,
    /// Folder in which the merged run is created.
    pub results: &'a Path,
    /// The progress display.
    pub progress: &'a Progress,
}

/// A merged run, which is not judged yet.
#[derive(Debug)]
pub struct Merged {
    /// Its folder.
    pub folder: RunFolder,
    /// Its manifest.
    pub manifest: Manifest,
    /// The cells of each case.
    pub cells: Vec<Vec<Cell>>,
}

/// `merged.json`: where the units of a merged run come from.
#[derive(Debug, Serialize)]
struct Origin<'a> {
    /// Digest of the plan.
    plan: &'a str,
    parts: Vec<PartOrigin<'a>>,
    /// Units that no part has, with the reason.
    missing: BTreeMap<&'a str, String>,
}

#[derive(Debug, Serialize)]
struct PartOrigin<'a> {
    /// Name of the part's folder.
    folder: String,
    /// `shard 2/4`.
    part: &'a str,
    /// Fingerprint of its machine.
    machine: &'a str,
    /// The units that were taken from it.
    units: Vec<&'a str>,
}

/// A unit with the part that it is taken from, or the reason why there is none.
type Taken<'a> = (&'a Unit, Result<&'a Part, String>);

/// Merges the parts into a new run folder. Cells of missing units are recorded as not run, with the reason.
///
/// # Errors
/// When a folder holds no part, parts are of different plans, checkpoints, inputs, environments or builds of tfcheck, two parts
/// have different numbers for one unit, or a file cannot be read or written.
pub fn merge(request: &MergeRequest<'_>) -> Result<Merged> {
    let Parts { frozen, parts } = parts::open(request.folders, request.plan, request.progress)?;
    let reasons = request.reasons.map_or(Ok(BTreeMap::new()), reasons)?;
    let taken: Vec<Taken> = frozen
        .units
        .iter()
        .map(|unit| {
            let part = equal::chosen(unit, &parts)?;
            let missing =
                || reasons.get(&unit.name).cloned().unwrap_or_else(|| "no merged folder has it".into());
            Ok((unit, part.ok_or_else(missing)))
        })
        .collect::<Result<_>>()?;
    let used: BTreeSet<usize> =
        taken.iter().filter_map(|(_, part)| part.as_ref().ok().map(|part| part.number)).collect();
    let used: Vec<&Part> = parts.iter().filter(|part| used.contains(&part.number)).collect();
    if used.is_empty() {
        miette::bail!(
            help = "name the run folders that `tfcheck run --shard 1/4` wrote",
            "none of the folders has a finished unit of the plan"
        );
    }
    let stamp = jiff::Timestamp::now().strftime("%Y%m%d_%H%M%S").to_string();
    let folder = RunFolder::create(request.results, &stamp)?;
    request.progress.log_to(&folder.path().join("run.log"));
    request.progress.line(&format!("results in {}", folder.path().display()));
    let notes = frozen.run.notes.iter().cloned().chain(record::machine_note(&used)).collect();
    let manifest = Manifest { stamp, share: None, notes, ..frozen.run.clone() };
    folder.write_manifest(&manifest)?;
    folder.write("config.toml", config_text(&manifest, &used)?.as_bytes())?;
    frozen.keep(&folder)?;
    if let Some(record) = record::environment(&frozen, &taken) {
        folder.write_environment(&record)?;
    }
    write_origin(&folder, &frozen, &used, &taken)?;
    let copy = Copy { frozen: &frozen, folder: &folder, manifest: &manifest };
    copy.shared(&used)?;
    let cells = cells(&copy, &taken, &reasons)?;
    copy.relations(&taken)?;
    remember(request, &folder, &manifest, &cells, &used);
    let missing = taken.iter().filter(|(_, part)| part.is_err()).count();
    request.progress.line(&format!(
        "merged {} from {}{}",
        count(taken.len() - missing, "unit"),
        count(used.len(), "folder"),
        if missing > 0 { format!("; {missing} missing") } else { String::new() }
    ));
    Ok(Merged { folder, manifest, cells })
}

/// Whether a folder holds a run of a unit in which every cell has a result.
pub fn is_complete(folder: &Path) -> bool {
    let runs = parts::runs_in(folder).unwrap_or_default();
    runs.iter().any(|path| parts::is_complete(path).unwrap_or(false))
}

/// Copies the cells of every unit and records those that are missing.
fn cells(copy: &Copy<'_>, taken: &[Taken<'_>], reasons: &BTreeMap<String, String>) -> Result<Vec<Vec<Cell>>> {
    let manifest = copy.manifest;
    let mut all = Vec::new();
    for case in &manifest.cases {
        let mut rounds = copy::Rounds::default();
        let mut found: Vec<Cell> = Vec::new();
        for (unit, part) in taken.iter().filter(|(unit, _)| unit.case == case.name) {
            for variant in case.variants.iter().filter(|known| unit.variants.contains(&known.name())) {
                let cell = part.as_ref().ok().and_then(|part| Some((part, part.cell(&case.name, variant)?)));
                let cell = if let Some((part, cell)) = cell {
                    copy.cell(part, case, cell, &mut rounds)?
                } else {
                    let reason = match (part, reasons.get(&unit.name)) {
                        (Ok(part), None) => format!("{} did not finish it", part.name()),
                        (Ok(_), Some(reason)) | (Err(reason), _) => reason.clone(),
                    };
                    not_run(variant, &format!("unit {}: {reason}", unit.name))
                };
                copy.folder.write_cell(manifest, &case.name, &cell)?;
                found.push(cell);
            }
        }
        found.sort_by_key(|cell| case.variants.iter().position(|variant| *variant == cell.variant));
        all.push(found);
    }
    Ok(all)
}

/// The record of a cell that no part has; without a key it counts as not started.
fn not_run(variant: &crate::spec::variant::Variant, reason: &str) -> Cell {
    let failure = Failure {
        kind: FailureKind::Interrupted,
        reason: bounds::shown(reason, LINE.most).into_owned(),
        detail: String::new(),
        log_tail: String::new(),
    };
    Cell::new(variant, "", Outcome::Failed(failure))
}

/// The config as its author wrote it if a part has it, else the plan's.
fn config_text(manifest: &Manifest, used: &[&Part]) -> Result<String> {
    let written = used
        .iter()
        .find_map(|part| bounds::file::read_text(&part.folder.path().join("config.toml"), CONFIG_BYTES).ok());
    written.map_or_else(
        || toml::to_string(&manifest.config).into_diagnostic().wrap_err("the plan's config as TOML"),
        Ok,
    )
}

fn write_origin(folder: &RunFolder, frozen: &Frozen, used: &[&Part], taken: &[Taken<'_>]) -> Result<()> {
    let of = |part: &Part| {
        let own = taken.iter().filter(|(_, from)| from.as_ref().is_ok_and(|from| from.number == part.number));
        own.map(|(unit, _)| unit.name.as_str()).collect()
    };
    let parts = used.iter().map(|part| PartOrigin {
        folder: part.name(),
        part: &part.share.part,
        machine: part.machine(),
        units: of(part),
    });
    let missing =
        taken.iter().filter_map(|(unit, part)| Some((unit.name.as_str(), part.as_ref().err()?.clone())));
    let origin = Origin { plan: &frozen.digest, parts: parts.collect(), missing: missing.collect() };
    let text = serde_json::to_string_pretty(&origin).into_diagnostic().wrap_err("merged.json")?;
    Ok(folder.write("merged.json", (text + "\n").as_bytes())?)
}

/// Adds the run to the history if one kind of machine computed all of it: times are recorded with their machine.
fn remember(
    request: &MergeRequest<'_>,
    folder: &RunFolder,
    manifest: &Manifest,
    cells: &[Vec<Cell>],
    used: &[&Part],
) {
    let Some(record) = used.first().and_then(|part| part.record.as_ref()) else { return };
    if used.iter().any(|part| part.machine() != record.fingerprint) {
        return;
    }
    let machine = (record.fingerprint.as_str(), record.threads);
    if let Err(error) = history::remember(request.results, folder, manifest, machine, cells) {
        request.progress.line(&error.note());
    }
}

/// A folder or file of the parts that cannot be read.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
#[error("cannot read {}", path.display())]
#[diagnostic(help("name the run folders that `tfcheck run --shard 1/4` wrote, or a folder that holds them"))]
struct Unreadable {
    path: PathBuf,
    source: std::io::Error,
}

impl Unreadable {
    fn of(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        |source| Self { path, source }
    }
}

/// Why units are missing, by their names.
fn reasons(path: &Path) -> Result<BTreeMap<String, String>> {
    let text = bounds::file::read_text(path, CONFIG_BYTES).map_err(Unreadable::of(path))?;
    let line = |line: &str| line.split_once('\t').map(|(unit, why)| (unit.to_owned(), why.trim().to_owned()));
    Ok(text.lines().filter_map(line).collect())
}
