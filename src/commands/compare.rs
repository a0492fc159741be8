//! `tfcheck compare`: regenerates the tables of saved runs without running anything.
//!
//! For a single tfcheck run the reports are written again. For several runs, cases with the same checkpoint
//! and inputs are merged into one matrix. A legacy run (written by the Python framework that tfcheck
//! replaces) has no record of its inputs: its `logits_<note>.pt` are compared with each other only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use miette::{IntoDiagnostic, Result, WrapErr, miette};
use reference::protocol::{Mode, Positions};

use crate::execute::cell::{Cell, Completed, Failure, FailureKind, Outcome};
use crate::execute::progress::Progress;
use crate::judge::assess::{self, Known};
use crate::judge::changes;
use crate::judge::details::Details;
use crate::judge::exit_code::ExitCode;
use crate::judge::findings::findings;
use crate::judge::gates;
use crate::judge::view::RunView;
use crate::report::{self, Source};
use crate::results::{Case, RunFolder, torch_zip, write_file};
use crate::spec::gate::Gate;
use crate::spec::variant::{Runner, Variant, variant_dtype};
use compare::logits::Logits;
use compare::matrix::Entry;
use compare::verdict::Tolerances;

/// Compares the runs and prints their tables. If `fail_on` is empty, a single tfcheck run is checked against
/// its config's gates.
///
/// # Errors
/// When a folder holds no run, or its files cannot be read.
pub fn compare(runs: &[PathBuf], fail_on: &[Gate], progress: &Progress) -> Result<ExitCode> {
    if let [only] = runs
        && !is_legacy(only)
    {
        let folder = RunFolder::resume(only)?;
        let mut manifest = folder.manifest()?;
        if !fail_on.is_empty() {
            manifest.config.run.fail_on = fail_on.to_vec();
        }
        let cells = folder.all_cells(&manifest)?;
        return report::write(&folder, &manifest, &cells, &manifest.config.tolerances, progress);
    }
    let mut tolerances = Tolerances::default();
    let mut sides = Vec::new();
    for path in runs {
        if is_legacy(path) {
            sides.push(legacy_run(path)?);
            continue;
        }
        let folder = RunFolder::open(path)?;
        let manifest = folder.manifest()?;
        tolerances = manifest.config.tolerances;
        for (case, cells) in manifest.cases.iter().zip(folder.all_cells(&manifest)?) {
            let files = folder.case_folder(&manifest, &case.name);
            let logits = cells.iter().map(|cell| assess::entry(cell, &files)).collect();
            sides.push(Side { run: name(path), case: case.clone(), inputs: Some(files), cells, logits });
        }
    }
    let view = merged(sides, &tolerances)?;
    let judged = gates::of_run(&view, fail_on, None);
    let (found, details) = (findings(&view), Details::default());
    report::show(&Source { run: &view, found: &found, judged: &judged, details: &details }, progress);
    Ok(gates::exit_code(&view, &judged))
}

/// Writes what changed from the first run to the second as one page, and says in one line where.
///
/// # Errors
/// When there are not two runs of tfcheck's own, they cannot be read, or the page cannot be written.
pub fn changes(runs: &[PathBuf], file: &Path) -> Result<String> {
    let [before, after] = runs else {
        return Err(miette!(
            help = "tfcheck compare BEFORE AFTER --html",
            "--html compares two runs, and {} were given",
            runs.len()
        ));
    };
    let found = changes::between(before, after)?;
    write_file(file, report::changes::page(&found).as_bytes())?;
    Ok(format!("{}: {}", file.display(), found.summary()))
}

/// One case of one run.
struct Side {
    run: String,
    case: Case,
    /// Folder with `inputs.safetensors`, if the run recorded its inputs.
    inputs: Option<PathBuf>,
    cells: Vec<Cell>,
    logits: Vec<Entry>,
}

/// Merges cases of equal checkpoint and inputs.
fn merged(sides: Vec<Side>, tolerances: &Tolerances) -> Result<RunView> {
    let mut groups: BTreeMap<(String, String), Vec<Side>> = BTreeMap::new();
    for side in sides {
        let key = (side.case.checkpoint_digest.clone(), side.case.inputs_digest.clone());
        groups.entry(key).or_default().push(side);
    }
    let alone = groups.values().all(|group| group.len() == 1) && groups.len() > 1;
    let cases = groups.into_values().map(|group| one_case(group, tolerances)).collect::<Result<_>>()?;
    let note = "no two of the runs have the same checkpoint and inputs, so each is compared only with itself";
    Ok(RunView {
        id: "compared runs".to_owned(),
        environment: Vec::new(),
        packages: Vec::new(),
        cases,
        relations: Vec::new(),
        notes: alone.then(|| note.to_owned()).into_iter().collect(),
    })
}

fn one_case(group: Vec<Side>, tolerances: &Tolerances) -> Result<crate::judge::view::CaseView> {
    let Some(first) = group.first() else { return Err(miette!("a group of no cases")) };
    let case = first.case.clone();
    let mask = first.inputs.as_ref().map(|files| assess::mask(files, &first.cells)).transpose()?.flatten();
    let several = group.len() > 1;
    let (mut cells, mut entries) = (Vec::new(), Vec::new());
    for side in group {
        for (mut cell, mut entry) in side.cells.into_iter().zip(side.logits) {
            if several {
                cell.name = format!("{}@{}", cell.name, side.run);
                entry.name.clone_from(&cell.name);
            }
            cells.push(cell);
            entries.push(entry);
        }
    }
    assess::case_view((&case, Known::default()), None, cells, &entries, mask.as_ref(), tolerances)
}

/// Whether the folder is a legacy run.
fn is_legacy(path: &Path) -> bool {
    !path.join("run.json").is_file() && saved_by_legacy_run(path).is_ok_and(|files| !files.is_empty())
}

/// `<version>/logits_<note>.pt` below a folder, in the order of their names.
fn saved_by_legacy_run(path: &Path) -> std::io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for version in std::fs::read_dir(path)? {
        let version = version?.path();
        if !version.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(&version)? {
            let file = file?.path();
            let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let is_torch = file.extension().is_some_and(|extension| extension == "pt");
            if let (true, Some(note)) = (is_torch, stem.strip_prefix("logits_")) {
                found.push((format!("{}_{note}", name(&version)), file));
            }
        }
    }
    found.sort();
    Ok(found)
}

fn legacy_run(path: &Path) -> Result<Side> {
    let files = saved_by_legacy_run(path)
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot read {}", path.display()))?;
    let (mut cells, mut logits) = (Vec::new(), Vec::new());
    for (name, file) in files {
        let opened = torch_zip::open(&file);
        let storage = opened.as_ref().map_or(::compare::Dtype::F32, Logits::storage);
        let dtype = variant_dtype(storage);
        let variant = Variant {
            runner: Runner::Transformers,
            version: name.split('_').next().unwrap_or_default().to_owned(),
            mode: if name.contains("compiled") { Mode::Compiled } else { Mode::Eager },
            attention: None,
            dtype,
            device: "unknown".to_owned(),
            auto_dtype: false,
            qualified: false,
        };
        let completed = Completed {
            logits: file,
            shape: opened.as_ref().map_or_else(|_| Vec::new(), |logits| logits.shape().to_vec()),
            positions: Positions::Last,
            notes: vec!["legacy run of the Python framework; its times are not read".to_owned()],
            load_ns: 0,
            first_call_ns: 0,
            ..Completed::default()
        };
        // A damaged file is a failed cell, as in a run of tfcheck's own.
        let outcome = match &opened {
            Ok(_) => Outcome::Completed(completed),
            Err(error) => Outcome::Failed(Failure {
                kind: FailureKind::MissingResult,
                reason: error.to_string(),
                detail: String::new(),
                log_tail: String::new(),
            }),
        };
        let cell = Cell::new(&variant, "", outcome);
        cells.push(Cell { name: name.clone(), ..cell });
        logits.push(Entry { name, dtype: storage, logits: opened.map_err(|error| error.to_string()) });
    }
    let run = name(path);
    let case = Case {
        name: run.clone(),
        checkpoint: "not recorded".to_owned(),
        // Nothing shows that two legacy runs had the same inputs, so each is a case of its own.
        checkpoint_digest: path.display().to_string(),
        inputs: "last position, inputs not recorded".to_owned(),
        inputs_digest: String::new(),
        choices: Vec::new(),
        pooling: None,
        questions: None,
        axes: None,
        tolerances: None,
        variants: cells.iter().map(|cell| cell.variant.clone()).collect(),
        notes: Vec::new(),
    };
    Ok(Side { run, case, inputs: None, cells, logits })
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
