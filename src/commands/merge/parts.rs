//! The parts of a plan: run folders of `tfcheck run --shard 1/4`, checked against the plan and against each other.

use std::path::{Path, PathBuf};

use miette::Result;

use crate::execute::cell::{Cell, FailureKind, Outcome};
use crate::execute::progress::Progress;
use crate::results::environment::EnvironmentRecord;
use crate::results::{Built, Frozen, Manifest, ResultsError, RunFolder, Share};
use crate::spec::variant::Variant;

/// A run of a part of the plan.
#[derive(Debug)]
pub(super) struct Part {
    /// Its place among the parts.
    pub(super) number: usize,
    pub(super) folder: RunFolder,
    pub(super) manifest: Manifest,
    pub(super) share: Share,
    pub(super) record: Option<EnvironmentRecord>,
    /// The cells of each of its cases; a cell whose logits are gone, damaged or replaced is a failed one.
    cells: Vec<Vec<Cell>>,
}

impl Part {
    /// The folder's name.
    pub(super) fn name(&self) -> String {
        self.folder.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Fingerprint of the machine; empty if it is not recorded.
    pub(super) fn machine(&self) -> &str {
        self.record.as_ref().map_or("", |record| &record.fingerprint)
    }

    /// The record of a cell.
    pub(super) fn cell(&self, case: &str, variant: &Variant) -> Option<&Cell> {
        let at = self.manifest.cases.iter().position(|known| known.name == case)?;
        self.cells.get(at)?.iter().find(|cell| cell.variant == *variant)
    }

    /// The folder of a case's files.
    pub(super) fn files(&self, case: &str) -> PathBuf {
        self.folder.case_folder(&self.manifest, case)
    }

    /// Whether it has the case.
    pub(super) fn has(&self, case: &str) -> bool {
        self.manifest.cases.iter().any(|known| known.name == case)
    }
}

/// Whether a cell has ended by itself: an interrupted one has not.
pub(super) fn is_finished(cell: &Cell) -> bool {
    let interrupted = FailureKind::Interrupted;
    match &cell.outcome {
        Outcome::Failed(failure) => failure.kind != interrupted,
        Outcome::Completed(known) => {
            known.unfinished.as_ref().is_none_or(|failure| failure.kind != interrupted)
        }
        Outcome::Unsupported { .. } => true,
    }
}

/// A plan and its parts.
pub(super) struct Parts {
    pub(super) frozen: Frozen,
    pub(super) parts: Vec<Part>,
}

/// Opens the parts in `folders` and the plan, which is in `plan` or in one of them.
pub(super) fn open(folders: &[PathBuf], plan: Option<&Path>, progress: &Progress) -> Result<Parts> {
    let mut runs = Vec::new();
    for folder in folders {
        let found = runs_in(folder)?;
        if found.is_empty() {
            progress.line(&format!("{} holds no run", folder.display()));
        }
        runs.extend(found);
    }
    if runs.is_empty() {
        miette::bail!(
            help = "name the run folders that `tfcheck run --shard 1/4` wrote, or folders that hold them",
            "there is no run to merge"
        );
    }
    let mut frozen = plan.map(Frozen::read).transpose()?;
    let mut opened = Vec::new();
    for path in runs {
        let folder = RunFolder::open(&path)?;
        let manifest = folder.manifest()?;
        let share = manifest.share.clone().ok_or_else(|| {
            miette::miette!(
                help = "`tfcheck run --shard 1/4` writes such a run; `tfcheck compare` compares whole runs",
                "{} is a whole run, not a part of a plan",
                path.display()
            )
        })?;
        if let Some(own) = Frozen::of_run(&folder)? {
            match &frozen {
                Some(known) => same_plan(known, &own, &path)?,
                None => frozen = Some(own),
            }
        }
        opened.push((folder, manifest, share));
    }
    let frozen = frozen.ok_or_else(|| {
        miette::miette!(
            help = "name the plan that the parts were computed from with --plan",
            "none of the folders has a plan"
        )
    })?;
    let here = Built::here();
    if here != frozen.tfcheck {
        let what = if here.version == frozen.tfcheck.version { "another build of " } else { "" };
        miette::bail!(
            help = "merge with the tfcheck that computed the parts",
            "the plan was made by {what}tfcheck {}, and this is tfcheck {}",
            bounds::shown(&frozen.tfcheck.version, 100),
            here.version
        );
    }
    let mut parts = Vec::new();
    for (folder, manifest, share) in opened {
        check(&frozen, &folder, &manifest, &share)?;
        let cells = folder.all_cells(&manifest)?;
        let record = folder.environment();
        parts.push(Part { number: parts.len(), folder, manifest, share, record, cells });
    }
    Ok(Parts { frozen, parts })
}

/// Whether every cell of a run has a result: none failed, was interrupted or is missing.
pub(super) fn is_complete(path: &Path) -> Result<bool, ResultsError> {
    let folder = RunFolder::open(path)?;
    let manifest = folder.manifest()?;
    for case in &manifest.cases {
        let records = folder.records(&manifest, case)?;
        let has_result = |cell: &Cell| match &cell.outcome {
            Outcome::Completed(completed) => completed.unfinished.is_none(),
            Outcome::Unsupported { .. } => true,
            Outcome::Failed(_) => false,
        };
        if records.len() != case.variants.len() || !records.iter().all(has_result) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The run folders in `folder`: itself, or its folders `run_…`, in the order of their names.
///
/// # Errors
/// When the folder cannot be read.
pub fn runs_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let is_run = |path: &Path| path.join("run.json").is_file();
    if is_run(folder) {
        return Ok(vec![folder.to_owned()]);
    }
    let entries = std::fs::read_dir(folder).map_err(super::Unreadable::of(folder))?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("run_")))
        .filter(|path| is_run(path))
        .collect();
    found.sort();
    Ok(found)
}

fn same_plan(known: &Frozen, other: &Frozen, path: &Path) -> Result<()> {
    if known.digest == other.digest {
        return Ok(());
    }
    let difference = known.difference(other).unwrap_or_else(|| "its digest".to_owned());
    miette::bail!(
        help = "parts are merged only if all of them were made from one plan, by one build of tfcheck",
        "{} is a part of another plan, which differs in {difference}",
        path.display()
    )
}

/// Checks that a part is of the plan: its digests are the plan's.
fn check(frozen: &Frozen, folder: &RunFolder, manifest: &Manifest, share: &Share) -> Result<()> {
    let path = folder.path().display();
    let refused = |what: String| {
        miette::miette!(
            help = "the folder was made from another plan, or was changed: leave it out",
            "{path}: {what}"
        )
    };
    if share.plan != frozen.digest {
        return Err(refused("it is a part of another plan".to_owned()));
    }
    for name in &share.units {
        if !frozen.units.iter().any(|unit| unit.name == *name) {
            return Err(refused(format!("the plan has no unit `{}`", bounds::shown(name, 200))));
        }
    }
    for case in &manifest.cases {
        let known = frozen.run.cases.iter().find(|known| known.name == case.name);
        let Some(known) = known else {
            return Err(refused(format!("the plan has no case `{}`", bounds::shown(&case.name, 200))));
        };
        for (what, own, plan) in [
            ("checkpoint", &case.checkpoint_digest, &known.checkpoint_digest),
            ("inputs", &case.inputs_digest, &known.inputs_digest),
        ] {
            if own != plan {
                let own = bounds::shown(own, 100);
                return Err(refused(format!(
                    "{}: the digest of the {what} is {own}, and the plan has {plan}",
                    case.name
                )));
            }
        }
        let is_of_the_plan = case.variants.iter().all(|variant| known.variants.contains(variant));
        if !is_of_the_plan {
            return Err(refused(format!("{}: it has variants that the plan does not have", case.name)));
        }
    }
    Ok(())
}
