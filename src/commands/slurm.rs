//! `--engine slurm`: computes the units of a plan as jobs of a Slurm cluster.
//!
//! The submitting host prepares environments and checkpoints once, in a cache that the nodes share. Each unit is a task of an
//! array of jobs; a last job merges what there is when all of them have ended, or leaves the merge to the submitting host.

mod queue;
mod script;

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bounds::limits::{LINE, RUN_JSON_BYTES};
use compare::units::count;
use miette::{IntoDiagnostic, Result, WrapErr};
use serde::{Deserialize, Serialize};

use super::merge::{self, MergeRequest};
use super::run::{self, RunRequest};
use crate::execute::progress::Progress;
use crate::judge::exit_code::ExitCode;
use crate::results::{Frozen, RunFolder, check_links, write_file};
use queue::Queue;
use script::{Batch, Scripts};

/// Time between two looks at the queue.
const POLL: Duration = Duration::from_secs(2);

/// A run on a cluster.
pub struct SlurmRequest<'a> {
    /// The command that completes a cancelled run with `--resume`: `tfcheck run --engine slurm`. `None` if the caller names it.
    pub command: Option<&'a str>,
    /// What to run.
    pub run: &'a RunRequest<'a>,
    /// Folder in which the folder of the jobs and the merged run are created.
    pub results: &'a Path,
    /// A folder of jobs to complete: only units without a result are submitted.
    pub resume: Option<&'a Path>,
    /// Whether the scripts are written and nothing is submitted.
    pub dry_run: bool,
    /// Whether the cluster merges the units and compares all variants of a case; otherwise this host merges them, and no variants
    /// are compared.
    pub is_reported: bool,
}

/// `submitted.json`: the jobs of the last submission.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Submitted {
    /// Ids of the arrays.
    arrays: Vec<String>,
    /// Id of the job that merges.
    merge: Option<String>,
}

impl Submitted {
    fn all(&self) -> Vec<&str> {
        self.arrays.iter().chain(&self.merge).map(String::as_str).collect()
    }
}

/// What came of a run on a cluster.
pub struct Ended {
    /// The report's; *agree* if nothing was compared.
    pub code: ExitCode,
    /// The merged run; `None` if nothing was merged.
    pub merged: Option<PathBuf>,
}

impl From<ExitCode> for Ended {
    fn from(code: ExitCode) -> Self {
        Self { code, merged: None }
    }
}

/// Freezes the plan, submits its units and the merge, and waits for the merged run. A request to stop cancels what was
/// submitted.
///
/// # Errors
/// When something cannot be prepared or written, or Slurm refuses a job.
pub fn run(request: &SlurmRequest<'_>) -> Result<Ended> {
    let progress = request.run.progress;
    let (folder, frozen) = match request.resume {
        Some(folder) => {
            check_links(folder, 0)?;
            (folder.to_owned(), Frozen::read(&folder.join("plan.json"))?)
        }
        None => begun(request)?,
    };
    let folder = std::path::absolute(&folder).into_diagnostic()?;
    let open = open_units(&frozen, &folder);
    let units = frozen.units.len();
    progress.line(&format!(
        "jobs in {}: {} of {} to compute",
        folder.display(),
        open.len(),
        count(units, "unit")
    ));
    let engine = &frozen.run.config.engine;
    let scripts = Scripts {
        folder: &folder,
        results: &std::path::absolute(request.results).into_diagnostic()?,
        cache: &std::path::absolute(request.run.cache).into_diagnostic()?,
        program: &std::env::current_exe().into_diagnostic().wrap_err("the path of this program")?,
        engine,
        is_reported: request.is_reported,
    };
    let batches = scripts.write(&frozen, &open)?;
    if request.dry_run {
        for batch in &batches {
            progress.line(&format!("would run: {}", scripts.submit_line(batch)));
        }
        progress.line(&format!("would run: {}", scripts.merge_line(&["IDS".to_owned()])));
        return Ok(ExitCode::Agree.into());
    }
    if open.is_empty() && !request.is_reported {
        return merged_here(request, &folder, &frozen);
    }
    let mut submitted = Submitted::default();
    let outcome = submit(&scripts, &batches, &folder, &mut submitted)
        .and_then(|()| wait(request, &folder, &submitted, (open.len(), units)));
    if outcome.is_err() || matches!(outcome, Ok(ExitCode::Interrupted)) {
        queue::cancel(&submitted.all());
    }
    if matches!(outcome, Ok(ExitCode::Interrupted)) {
        let folder = folder.display();
        progress.line(&match request.command {
            Some(command) => format!("cancelled the jobs; complete them with: {command} --resume {folder}"),
            None => "cancelled the jobs".to_owned(),
        });
    }
    match outcome? {
        ExitCode::Agree if !request.is_reported => merged_here(request, &folder, &frozen),
        code => Ok(Ended { code, merged: merged(request.results, &frozen) }),
    }
}

/// Merges the units on this host.
fn merged_here(request: &SlurmRequest<'_>, folder: &Path, frozen: &Frozen) -> Result<Ended> {
    let units = (1..=frozen.units.len()).map(|number| script::unit_folder(folder, number));
    let reasons = folder.join("reasons.tsv");
    let merged = merge::merge(&MergeRequest {
        folders: &units.filter(|folder| folder.is_dir()).collect::<Vec<_>>(),
        plan: Some(&folder.join("plan.json")),
        reasons: reasons.is_file().then_some(&*reasons),
        results: request.results,
        progress: request.run.progress,
    });
    let merged = merged.wrap_err_with(|| {
        format!("cannot merge the units of {}, whose logs are in logs", folder.display())
    })?;
    Ok(Ended { code: ExitCode::Agree, merged: Some(merged.folder.path().to_owned()) })
}

/// The newest merged run of the plan in `results`.
fn merged(results: &Path, frozen: &Frozen) -> Option<PathBuf> {
    let is_it = |path: &PathBuf| {
        let folder = RunFolder::open(path).ok()?;
        let plan = path.join("merged.json").is_file().then(|| Frozen::of_run(&folder).ok().flatten())??;
        (plan.digest == frozen.digest).then_some(())
    };
    merge::runs_in(results).ok()?.into_iter().rev().find(|path| is_it(path).is_some())
}

/// Freezes the plan in a new folder of jobs.
fn begun(request: &SlurmRequest<'_>) -> Result<(PathBuf, Frozen)> {
    let frozen = match request.run.sharing.and_then(|sharing| sharing.frozen.clone()) {
        Some(frozen) => frozen,
        None => run::freeze(request.run, request.results)?,
    };
    let stamp = jiff::Timestamp::now().strftime("%Y%m%d_%H%M%S").to_string();
    std::fs::create_dir_all(request.results).into_diagnostic()?;
    for attempt in 1.. {
        let name = if attempt == 1 { format!("slurm_{stamp}") } else { format!("slurm_{stamp}_{attempt}") };
        let folder = request.results.join(name);
        match std::fs::create_dir(&folder) {
            Ok(()) => {
                write_file(&folder.join("plan.json"), frozen.text()?.as_bytes())?;
                return Ok((folder, frozen));
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(error)
                    .into_diagnostic()
                    .wrap_err_with(|| format!("cannot create {}", folder.display()));
            }
        }
    }
    unreachable!("the loop ends by returning")
}

/// Numbers, from 1, of the units that have no complete result.
fn open_units(frozen: &Frozen, folder: &Path) -> Vec<usize> {
    let is_open = |number: &usize| !merge::is_complete(&script::unit_folder(folder, *number));
    (1..=frozen.units.len()).filter(is_open).collect()
}

/// Submits the arrays and the merge; keeps the ids as soon as they are known.
fn submit(scripts: &Scripts<'_>, batches: &[Batch], folder: &Path, submitted: &mut Submitted) -> Result<()> {
    let mut tasks = String::new();
    for batch in batches {
        let id = queue::submit(&scripts.submit_arguments(batch))?;
        tasks.push_str(&batch.tasks(&id));
        submitted.arrays.push(id);
        keep(folder, submitted, &tasks)?;
    }
    submitted.merge = Some(queue::submit(&scripts.merge_arguments(&submitted.arrays))?);
    keep(folder, submitted, &tasks)
}

fn keep(folder: &Path, submitted: &Submitted, tasks: &str) -> Result<()> {
    let text = serde_json::to_string_pretty(submitted).into_diagnostic()?;
    write_file(&folder.join("submitted.json"), (text + "\n").as_bytes())?;
    Ok(write_file(&folder.join("tasks.tsv"), tasks.as_bytes())?)
}

/// That a file of the merge cannot be read.
fn unread(path: &Path, error: &std::io::Error) -> miette::Report {
    miette::miette!(
        help = "`tfcheck merge` merges the units that there are",
        "cannot read {}: {error}",
        path.display()
    )
}

/// Waits for the merge, showing the state of the queue; the exit code is the merge's.
fn wait(
    request: &SlurmRequest<'_>,
    folder: &Path,
    submitted: &Submitted,
    (open, all): (usize, usize),
) -> Result<ExitCode> {
    let progress: &Progress = request.run.progress;
    let (code, report) = (folder.join("merge.code"), folder.join("merge.out"));
    let task = progress.task("units", open as u64);
    let mut lost = 0;
    while !code.exists() {
        if request.run.stop.load(Ordering::Relaxed) {
            return Ok(ExitCode::Interrupted);
        }
        // A controller that does not answer for a while is no reason to give up.
        if let Some(queue) = Queue::of(&submitted.all()) {
            let merge = submitted.merge.as_deref().unwrap_or_default();
            task.at(queue.ended(merge) as u64, &queue.words(merge));
            lost = if queue.has(merge) { 0 } else { lost + 1 };
        }
        if lost > 5 {
            miette::bail!(
                help = format!("see {}; `tfcheck merge` merges the units that there are", report.display()),
                "the job that merges ended without a result"
            );
        }
        let until = Instant::now() + POLL;
        while Instant::now() < until && !request.run.stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    drop(task);
    progress.line(&format!("all {} have ended", count(all, "unit")));
    if !request.is_reported {
        return Ok(ExitCode::Agree);
    }
    let text = bounds::file::read_text(&report, RUN_JSON_BYTES).map_err(|error| unread(&report, &error))?;
    progress.result(&text);
    let written = bounds::file::read_text(&code, LINE).map_err(|error| unread(&code, &error))?;
    Ok(match written.trim() {
        "0" => ExitCode::Agree,
        "1" => ExitCode::Diverged,
        "3" => ExitCode::CellFailed,
        "130" => ExitCode::Interrupted,
        _ => ExitCode::Usage,
    })
}
