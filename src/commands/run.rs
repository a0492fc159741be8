//! `tfcheck run`, in order: checkpoints, inputs, environments, cells, comparison, report.

mod diagnose;
mod envelopes;
mod estimate;
mod keys;
mod localize;
mod modules;
mod prepare;
mod processed;
mod relations;
mod runners;
mod share;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use miette::{Result, WrapErr};
use reference::protocol::{Load, PROTOCOL_VERSION};

use crate::execute::cell::{Cell, Outcome};
use crate::execute::progress::Progress;
use crate::execute::schedule::{Job, Ran, Schedule, Settings, Turn};
use crate::execute::written::{self, Check};
use crate::judge::assess;
use crate::judge::exit_code::ExitCode;
use crate::judge::history::{self, History};
use crate::report;
use crate::results::{Case, Manifest, ResultsError, RunFolder, Share};
use crate::spec::config::Config;
use crate::spec::inputs;
use crate::spec::machine::{self, Machine};
use crate::spec::plan::{CellPlan, Plan};
use crate::spec::variant;
pub use diagnose::{WantedDiagnosis, diagnose};
pub use localize::{Wanted, localize};
pub use modules::{modules, surgery};
pub(crate) use prepare::specification;
use prepare::{Preparation, PreparedCase};
pub use relations::relations;
use runners::Runners;
pub use share::{Part, Sharing, end_of_run, freeze};
use watch::Watch;

/// A run to start or to resume.
pub struct RunRequest<'a> {
    /// What to run.
    pub config: &'a Config,
    /// The config's text, which is copied into the run folder.
    pub text: &'a str,
    /// The cells to run.
    pub plan: &'a Plan,
    /// Where tfcheck keeps environments, imports and the bridge.
    pub cache: &'a Path,
    /// Whether environments are reinstalled.
    pub clean: bool,
    /// Whether diverging pairs are localised at the end.
    pub localize: bool,
    /// Set when the user asks to stop.
    pub stop: &'a Arc<AtomicBool>,
    /// Where progress and results are shown.
    pub progress: &'a Progress,
    /// The timing lock, if several runs go on at the same time.
    pub turn: Option<&'a Turn>,
    /// The part of the plan to run; `None` for all of it.
    pub sharing: Option<&'a Sharing>,
}

/// Where a run's results go.
pub enum Destination {
    /// A new folder below this one.
    New(PathBuf),
    /// A run to complete; its finished cells are kept.
    Resume(RunFolder),
}

/// A run that has ended.
#[derive(Debug)]
pub struct Finished {
    /// The outcome.
    pub code: ExitCode,
    /// The run's folder.
    pub folder: PathBuf,
}

/// Runs every cell of the request, compares them and writes the report; the exit code gives the outcome.
///
/// # Errors
/// When a checkpoint or inputs cannot be prepared, or the run folder cannot be written.
pub fn run(request: &RunRequest, destination: Destination) -> Result<Finished> {
    let prepared =
        request.progress.timed("preparing checkpoints, inputs and environments", || share::prepared(request));
    let Some(share::Prepared { preparation, share, made }) = prepared? else {
        // A share without units agrees with everything; it has no run folder.
        return Ok(Finished { code: ExitCode::Agree, folder: PathBuf::new() });
    };
    let Preparation { plan, cases, environments } = preparation;
    let request = &RunRequest { plan: &plan, ..*request };
    let machine = Machine::detect();
    let (folder, manifest) = open(request, destination, &cases, share)?;
    if let Some(made) = made {
        made.keep(&folder)?;
    }
    // Which pairs represent a group is known only when all shares are merged.
    let request = &RunRequest { localize: request.localize && manifest.share.is_none(), ..*request };
    request.progress.log_to(&folder.path().join("run.log"));
    request.progress.line(&format!("results in {}", folder.path().display()));
    write_records(request, &folder, &manifest, &cases, &machine, &environments)?;

    let runners = Runners::new(request, &environments, machine.fingerprint())?;
    let settings = settings(request.config);
    // Only a run that waits for a quiet machine needs the calibration loop's best time.
    let quiet_ns = if settings.patience.is_zero() { None } else { quiet_ns(&folder, &runners) };
    // The first record that could not be written.
    let unwritten: Mutex<Option<ResultsError>> = Mutex::new(None);
    let mut interrupted = false;
    let mut cells = Vec::new();
    for (index, prepared) in cases.iter().enumerate() {
        let case = &manifest.cases[index];
        let kept = kept(request, &folder, &manifest, index, prepared, &runners)?;
        let next_round = kept.iter().flat_map(rounds).max().map_or(0, |round| round + 1);
        let jobs = jobs(request, &folder, &manifest, index, prepared, &runners, &kept);
        let files = folder.case_folder(&manifest, &case.name);
        let keep = |cell: &Cell| {
            folder.write_cell(&manifest, &case.name, cell).map_err(|error| {
                let words = error.to_string();
                unwritten.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                words
            })
        };
        let schedule = Schedule {
            case: &case.name,
            folder: std::path::absolute(&files).unwrap_or(files),
            stamp: &manifest.stamp,
            keep: &keep,
            settings: &settings,
            progress: request.progress,
            stop: request.stop,
            turn: request.turn,
            quiet_ns,
        };
        let run = || request.progress.timed(&case.name, || schedule.run(jobs, next_round));
        let ran = if interrupted { Ran::default() } else { run() };
        interrupted |= ran.interrupted;
        cells.push(in_order(case, kept, ran.cells));
    }

    if request.config.relations.enabled && !interrupted {
        let check = relations::Check { request, folder: &folder, manifest: &manifest, cases: &cases };
        interrupted |= request.progress.timed("checking relations", || check.run(&environments, &machine))?;
    }
    let code = request.progress.timed("comparing, localising and reporting", || {
        conclude(request, &folder, &manifest, &cells, &cases, &runners, interrupted)
    });
    remember(request, &folder, &manifest, &cells, &runners);
    // The user may also have stopped the run during localisation; finished cells are kept.
    interrupted |= request.stop.load(Ordering::Relaxed);
    if interrupted {
        let path = folder.path().display();
        request.progress.line(&format!("interrupted; complete it with: tfcheck run --resume {path}"));
        return Ok(Finished { code: ExitCode::Interrupted, folder: folder.path().to_owned() });
    }
    match (unwritten.into_inner().unwrap_or_else(PoisonError::into_inner), code) {
        (None, code) => Ok(Finished { code: code?, folder: folder.path().to_owned() }),
        (Some(error), _) => {
            Err(error).wrap_err("the tables above are complete, but some results could not be saved")
        }
    }
}

/// The time after a request to stop in which results are still compared and reported.
const COMPARING: Duration = Duration::from_secs(8);

/// Compares, localises the diverging pairs (if requested and the run was not interrupted), and reports.
fn conclude(
    request: &RunRequest,
    folder: &RunFolder,
    manifest: &Manifest,
    cells: &[Vec<Cell>],
    cases: &[PreparedCase],
    runners: &Runners,
    interrupted: bool,
) -> Result<ExitCode> {
    let is_localized = request.localize && !interrupted;
    // Cells are on disk by now, and a resumed run compares them again.
    let path = folder.path().display();
    let what =
        format!("interrupted while results were compared; complete it with: tfcheck run --resume {path}");
    let _watch = request.turn.is_none().then(|| Watch::over(request.stop, COMPARING, what));
    // A worker may have changed its logits after its reply.
    let checked = |(case, cells): (&Case, &Vec<Cell>)| {
        let files = folder.case_folder(manifest, &case.name);
        cells.iter().map(|cell| written::checked(cell.clone(), &files, Check::Times)).collect()
    };
    let cells: Vec<Vec<Cell>> = manifest.cases.iter().zip(cells).map(checked).collect();
    // These localisations are from an earlier part of a resumed run, whose cells may have changed since.
    if is_localized && !folder.localized()?.is_empty() {
        folder.write_localized(&[])?;
    }
    if is_localized && !folder.diagnosed()?.is_empty() {
        folder.write_diagnosed(&[])?;
    }
    if is_localized && !folder.envelopes()?.is_empty() {
        folder.write_envelopes(&[])?;
    }
    let assess = || assess::view(folder, manifest, &cells, &request.config.tolerances);
    let mut view = assess()?;
    if is_localized {
        let end = localize::EndOfRun { request, folder, manifest, cases, runners };
        if end.measure_envelopes(&mut view)? {
            let notes = view.notes;
            view = assess()?;
            view.notes = notes;
        }
        view = end.localize(view, assess)?;
        end.diagnose(&mut view)?;
    }
    report::publish(folder, manifest, &view, &request.config.tolerances, request.progress)
}

/// The calibration loop's best time on this machine in earlier runs of the results folder, nanoseconds. An
/// unreadable history is not reported here but at the end, when the run is added to it.
fn quiet_ns(folder: &RunFolder, runners: &Runners) -> Option<u64> {
    let results = folder.path().parent().unwrap_or(Path::new("."));
    let history = History::open(results).ok()?;
    history.yardstick_ns(&runners.fingerprint, runners.threads).ok().flatten()
}

/// Adds the run to the history of its results folder. A failure to write the history is reported but does not
/// fail the run.
fn remember(
    request: &RunRequest,
    folder: &RunFolder,
    manifest: &Manifest,
    cells: &[Vec<Cell>],
    runners: &Runners,
) {
    let results = folder.path().parent().unwrap_or(Path::new("."));
    let machine = (runners.fingerprint.as_str(), runners.threads);
    if let Err(error) = history::remember(results, folder, manifest, machine, cells) {
        request.progress.line(&error.note());
    }
}

/// Opens the destination. For a resumed run, checks that its checkpoints and inputs are unchanged.
fn open(
    request: &RunRequest,
    destination: Destination,
    cases: &[PreparedCase],
    share: Option<Share>,
) -> Result<(RunFolder, Manifest)> {
    let described =
        |stamp: String, notes, share| Manifest { share, ..prepare::manifest(request, cases, stamp, notes) };
    match destination {
        Destination::New(results) => {
            let stamp = jiff::Timestamp::now().strftime("%Y%m%d_%H%M%S").to_string();
            let folder = RunFolder::create(&results, &stamp)?;
            let manifest = described(stamp, Vec::new(), share);
            folder.write_manifest(&manifest)?;
            for (case, prepared) in manifest.cases.iter().zip(cases) {
                save_inputs(&folder, &manifest, case, prepared)?;
            }
            Ok((folder, manifest))
        }
        Destination::Resume(folder) => {
            let begun = folder.manifest()?;
            let manifest = described(begun.stamp.clone(), begun.notes.clone(), begun.share.clone());
            for (now, then) in manifest.cases.iter().zip(&begun.cases) {
                if (&now.checkpoint_digest, &now.inputs_digest)
                    != (&then.checkpoint_digest, &then.inputs_digest)
                {
                    miette::bail!(
                        help = "start a new run: results of different checkpoints or inputs cannot be mixed",
                        "{}: the checkpoint or the inputs have changed since {} started",
                        now.name,
                        folder.path().display()
                    );
                }
            }
            folder.write_manifest(&manifest)?;
            // A run that a full disk stopped early may lack them.
            for (case, prepared) in manifest.cases.iter().zip(cases) {
                let saved = inputs::load(&folder.case_folder(&manifest, &case.name));
                if !saved.is_ok_and(|saved| saved.digest == prepared.inputs.digest) {
                    save_inputs(&folder, &manifest, case, prepared)?;
                }
            }
            Ok((folder, manifest))
        }
    }
}

/// Writes the inputs of a case and its tokenizer's vocabulary.
fn save_inputs(folder: &RunFolder, manifest: &Manifest, case: &Case, prepared: &PreparedCase) -> Result<()> {
    prepared.inputs.save(&folder.make_case_folder(manifest, &case.name)?)?;
    if !prepared.vocabulary.is_empty() {
        folder.write_vocabulary(&case.checkpoint_digest, &prepared.vocabulary)?;
    }
    Ok(())
}

/// Writes what makes the run self-contained: config, environment, locks.
fn write_records(
    request: &RunRequest,
    folder: &RunFolder,
    manifest: &Manifest,
    cases: &[PreparedCase],
    machine: &Machine,
    environments: &[prepare::EnvironmentResult],
) -> Result<()> {
    folder.write("config.toml", request.text.as_bytes())?;
    let record = prepare::environment_record(request, machine, environments, cases);
    folder.write_environment(&record)?;
    for (plan, environment) in request.plan.environments.iter().zip(environments) {
        let Ok(environment) = environment else { continue };
        for (case, version) in
            manifest.cases.iter().flat_map(|case| plan.versions.iter().map(move |v| (case, v)))
        {
            let path = folder.case_folder(manifest, &case.name).join(version).join("uv.lock");
            crate::results::write_file(&path, environment.lock.as_bytes())?;
        }
    }
    Ok(())
}

fn settings(config: &Config) -> Settings {
    let run = &config.run;
    Settings {
        warm_up: run.warm_up,
        iterations: run.iterations,
        decode: run.decode,
        rounds: run.rounds,
        patience: Duration::from_secs(run.patience_s()),
        first_passes_at_once: run.first_passes_at_once,
        trace: run.trace,
        noise: run.noise,
        timeout: Duration::from_secs(run.timeout_s),
        memory_budget: run
            .memory_budget_gb
            .map_or_else(|| machine::memory_bytes() / 2, |gigabytes| (gigabytes * 1e9) as u64),
    }
}

/// The finished cells of a case whose key is unchanged; they are not run again.
fn kept(
    request: &RunRequest,
    folder: &RunFolder,
    manifest: &Manifest,
    index: usize,
    prepared: &PreparedCase,
    runners: &Runners,
) -> Result<Vec<Cell>> {
    let mut kept = folder.cells(manifest, &manifest.cases[index])?;
    kept.retain(|cell| {
        let plan = request.plan.cells.iter().find(|plan| plan.case == index && plan.variant == cell.variant);
        let same = plan.is_some_and(|plan| keys::cell(plan, prepared, runners) == cell.key);
        let finished = match &cell.outcome {
            Outcome::Completed(completed) => completed.unfinished.is_none(),
            Outcome::Unsupported { .. } => true,
            Outcome::Failed(_) => false,
        };
        same && finished
    });
    Ok(kept)
}

fn rounds(cell: &Cell) -> Vec<u32> {
    match &cell.outcome {
        Outcome::Completed(completed) => completed.round_numbers.clone(),
        _ => Vec::new(),
    }
}

/// The cells of a case that are to be run; the baseline comes first because every timing group is compared
/// with it.
fn jobs<'a>(
    request: &RunRequest,
    folder: &RunFolder,
    manifest: &Manifest,
    index: usize,
    prepared: &'a PreparedCase,
    runners: &'a Runners,
    kept: &[Cell],
) -> Vec<Job<'a>> {
    let case = &manifest.cases[index];
    let inputs = folder.case_folder(manifest, &case.name).join("inputs.safetensors");
    let is_open =
        |cell: &&CellPlan| cell.case == index && !kept.iter().any(|known| known.variant == cell.variant);
    let mut cells: Vec<&CellPlan> = request.plan.cells.iter().filter(is_open).collect();
    cells.sort_by_key(|cell| cell.variant.name() != request.plan.baseline);
    // One variant per version tokenises the texts: versions in one environment share a tokenizer but have
    // separate notes.
    let speaks_for_its_version = |cell: &CellPlan| {
        let same = |other: &&CellPlan| other.case == index && other.variant.version == cell.variant.version;
        cell.variant.runner == variant::Runner::Transformers
            && request.plan.cells.iter().find(same).is_some_and(|first| first.variant == cell.variant)
            && (manifest.share.as_ref())
                .is_none_or(|share| share.tokenized.contains(&request.plan.cell_name(cell)))
    };
    let job = |cell: &CellPlan| Job {
        variant: cell.variant.clone(),
        key: keys::cell(cell, prepared, runners),
        runner: runners.of(cell),
        load: load(request, prepared, &inputs, runners, cell),
        is_timed: is_timed(request.config, cell),
        prefill: request.plan.cases[index].inputs.prefill(),
        texts: prepared.texts.as_ref().filter(|_| speaks_for_its_version(cell)),
        processed: prepared.processed.as_ref().filter(|_| speaks_for_its_version(cell)),
        notes: cell.environment.map(|index| runners.environment_notes[index].clone()).unwrap_or_default(),
        expected_bytes: estimate::held_bytes(prepared, cell),
    };
    cells.into_iter().map(job).collect()
}

/// Whether a cell's worker is asked for times or a trace in addition to logits.
fn is_timed(config: &Config, cell: &CellPlan) -> bool {
    cell.measured && (config.run.rounds > 0 || config.run.trace)
}

/// The load request of a cell's worker.
fn load(
    request: &RunRequest,
    prepared: &PreparedCase,
    inputs: &Path,
    runners: &Runners,
    cell: &CellPlan,
) -> Load {
    Load {
        protocol: PROTOCOL_VERSION,
        checkpoint: prepared.checkpoint.folder.clone(),
        inputs: std::path::absolute(inputs).unwrap_or_else(|_| inputs.to_owned()),
        mode: cell.variant.mode,
        attention: cell.variant.attention,
        dtype: cell.variant.dtype,
        device: cell.variant.device.clone(),
        threads: runners.threads,
        seed: request.config.run.seed,
        own_positions: prepared.inputs.own_positions,
        as_is: !request.config.checkpoints[request.plan.cases[cell.case].checkpoint].translate,
        auto_dtype: cell.variant.auto_dtype,
        outputs: request.config.run.outputs.clone(),
    }
}

/// Kept and new cells in the manifest's order.
fn in_order(case: &Case, kept: Vec<Cell>, ran: Vec<Cell>) -> Vec<Cell> {
    let mut cells: Vec<Cell> = ran.into_iter().chain(kept).collect();
    cells.sort_by_key(|cell| case.variants.iter().position(|variant| *variant == cell.variant));
    cells
}
