//! The revisions of a scan, computed as the units of one plan on a Slurm cluster, and the run of a step, which takes its results
//! from them.

use std::path::{Path, PathBuf};

use miette::{IntoDiagnostic, Result};

use super::Context;
use super::link::link_results;
use super::subject::Subject;
use crate::commands::merge::runs_in;
use crate::commands::run::RunRequest;
use crate::commands::slurm::{self, SlurmRequest};
use crate::execute::cell::{Cell, FailureKind, Outcome};
use crate::execute::progress::Progress;
use crate::hunt::bisect::record::{Question, Revision};
use crate::judge::assess;
use crate::judge::exit_code::ExitCode;
use crate::judge::view::CaseView;
use crate::report;
use crate::results::{Case, Manifest, RunFolder};
use crate::spec::config::{Config, UnitOf};
use crate::spec::machine;
use crate::spec::plan::Plan;

/// Folder of the jobs and of the merged run, in the bisection's folder.
const FOLDER: &str = "cluster";

/// The merged run of all revisions.
pub(super) struct Cluster {
    folder: RunFolder,
    manifest: Manifest,
    /// The cells of each case.
    cells: Vec<Vec<Cell>>,
}

impl Cluster {
    /// The results of all revisions; computes those that an earlier call did not get. `None` when the user stopped it.
    ///
    /// # Errors
    /// When the plan cannot be made, Slurm refuses a job, or no unit has a result.
    pub(super) fn computed(
        context: &Context,
        question: &Question,
        subject: &Subject,
        revisions: &[Revision],
        folder: &Path,
    ) -> Result<Option<Self>> {
        let results = folder.join(FOLDER);
        let known = if results.is_dir() { runs_in(&results)?.pop() } else { None };
        if let Some(known) = known {
            let known = Self::open(&known)?;
            if !known.cells.iter().flatten().any(is_not_run) {
                return Ok(Some(known));
            }
        }
        let mut config = subject.config(question, &revisions.iter().collect::<Vec<_>>());
        config.engine.unit = UnitOf::Version;
        // A job has the memory of its largest worker.
        config.run.first_passes_at_once = 1;
        let plan = Plan::new(&config, machine::auto_device())?;
        let request = RunRequest {
            config: &config,
            text: &toml::to_string(&config).into_diagnostic()?,
            plan: &plan,
            cache: context.cache,
            clean: false,
            localize: false,
            stop: context.stop,
            progress: context.progress,
            turn: None,
            sharing: None,
        };
        let ended = slurm::run(&SlurmRequest {
            command: None,
            run: &request,
            results: &results,
            resume: begun(&results).as_deref(),
            dry_run: false,
            is_reported: false,
        });
        // The merge has a log of its own.
        context.progress.log_to(&folder.join("run.log"));
        let ended = ended?;
        let merged = ended.merged.filter(|_| ended.code != ExitCode::Interrupted);
        merged.map(|path| Self::open(&path)).transpose()
    }

    fn open(path: &Path) -> Result<Self> {
        let folder = RunFolder::open(path)?;
        let manifest = folder.manifest()?;
        let cells = folder.all_cells(&manifest)?;
        Ok(Self { folder, manifest, cells })
    }

    /// Makes a run folder below `runs` that holds these revisions and nothing else, with `config`, and compares them; returns the
    /// run's name and its cases.
    ///
    /// # Errors
    /// When the run cannot be written, or logits cannot be read.
    pub(super) fn step(
        &self,
        runs: &Path,
        config: Config,
        revisions: &[&Revision],
    ) -> Result<(String, Vec<CaseView>)> {
        let is_own = |version: &str| revisions.iter().any(|revision| revision.name == version);
        let whole =
            self.manifest.plan.clone().ok_or_else(|| miette::miette!("the merged run lists no cells"))?;
        let plan = whole.selected(&config, |_, cell| is_own(&cell.variant.version))?;
        let own = |case: &Case| {
            let variants = case.variants.iter().filter(|variant| is_own(&variant.version));
            Case { variants: variants.cloned().collect(), ..case.clone() }
        };
        let manifest = Manifest {
            config,
            baseline: Some(plan.baseline.clone()),
            plan: Some(plan),
            cases: self.manifest.cases.iter().map(own).collect(),
            ..self.manifest.clone()
        };
        let folder = RunFolder::create(runs, &jiff::Timestamp::now().strftime("%Y%m%d_%H%M%S").to_string())?;
        folder.write_manifest(&manifest)?;
        let text = toml::to_string(&manifest.config).into_diagnostic()?;
        folder.write("config.toml", text.as_bytes())?;
        if let Some(mut record) = self.folder.environment() {
            record.environments.retain(|known| known.versions.iter().any(|version| is_own(version)));
            folder.write_environment(&record)?;
        }
        let names: Vec<&str> = revisions.iter().map(|revision| revision.name.as_str()).collect();
        link_results((&self.folder, &self.manifest), (&folder, &manifest), &names)?;
        for case in &manifest.cases {
            let vocabulary = self.folder.vocabulary(&case.checkpoint_digest);
            if !vocabulary.is_empty() {
                folder.write_vocabulary(&case.checkpoint_digest, &vocabulary)?;
            }
        }
        let only = |cells: &Vec<Cell>| {
            cells.iter().filter(|cell| is_own(&cell.variant.version)).cloned().collect::<Vec<_>>()
        };
        let cells: Vec<Vec<Cell>> = self.cells.iter().map(only).collect();
        let tolerances = &manifest.config.tolerances;
        let view = assess::view(&folder, &manifest, &cells, tolerances)?;
        let quiet = Progress::new(true).without_results();
        report::publish(&folder, &manifest, &view, tolerances, &quiet)?;
        Ok((view.id, view.cases))
    }
}

/// Whether a job of the cluster ended before the cell had a result, or its memory did not suffice: neither is due to the revision.
pub(super) fn is_not_run(cell: &Cell) -> bool {
    matches!(&cell.outcome, Outcome::Failed(failure)
        if matches!(failure.kind, FailureKind::Interrupted | FailureKind::OutOfMemory))
}

/// The newest folder of jobs in `results` that has a plan.
fn begun(results: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(results).ok()?.flatten().map(|entry| entry.path());
    let is_it = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("slurm_") && path.join("plan.json").is_file()
    };
    entries.filter(is_it).max()
}
