//! What each subcommand does, in terms of the rest of the crate.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bounds::limits::CONFIG_BYTES;
use miette::{IntoDiagnostic, Report, Result, WrapErr};

use crate::cli::{Baseline, Cli, Command, List, Selection};
use crate::commands::bench;
use crate::commands::bisect;
use crate::commands::check_worker;
use crate::commands::compare;
use crate::commands::explain;
use crate::commands::gpu_check;
use crate::commands::list;
use crate::commands::record;
use crate::commands::run::{self, Destination, RunRequest};
use crate::commands::scoreboard;
use crate::execute::foreseen;
use crate::execute::progress::Progress;
use crate::execute::worker;
use crate::hunt::diagnose::{DiagnoseError, Diagnosed};
use crate::hunt::localize::LocalizeError;
use crate::judge::baseline;
use crate::judge::exit_code::ExitCode;
use crate::results::{Manifest, ResultsError, RunFolder};
use crate::spec::checkpoint;
use crate::spec::config::{self, Config};
use crate::spec::inputs;
use crate::spec::machine;
use crate::spec::plan::{CasePlan, CellPlan, Filters, Plan};

/// Runs one command line.
///
/// # Errors
/// Whatever the command cannot do; [`code_of`] tells with which exit code.
pub fn execute(cli: &Cli) -> Result<ExitCode> {
    match &cli.command {
        Command::Run(arguments) if arguments.dry_run => say(&plan_text(&arguments.selection)?),
        Command::Run(arguments) => run(cli, arguments),
        Command::Relations(arguments) => relations(cli, arguments),
        Command::Scoreboard(arguments) => scoreboard(cli, arguments),
        Command::Bench(arguments) => bench(cli, arguments),
        Command::GpuCheck(arguments) => check_gpu(cli, arguments),
        Command::Bisect(arguments) => search(cli, arguments),
        Command::Plan(selection) => say(&plan_text(selection)?),
        Command::Init(arguments) => say(&config::init(&arguments.path)?),
        Command::Schema => say(&config::schema_text()),
        Command::Compare(arguments) => {
            if let Some(file) = &arguments.html {
                say(&compare::changes(&arguments.runs, file)?)?;
            }
            let progress = progress(cli).with_all_tables(arguments.full);
            compare::compare(&arguments.runs, &arguments.fail_on, &progress)
        }
        Command::Baseline(arguments) => say(&match arguments {
            Baseline::Save { name, run, results } => baseline::save(results, name, run.as_deref())?,
            Baseline::List { results } => baseline::list(results)?,
            Baseline::Remove { name, results } => baseline::remove(results, name)?,
        }),
        Command::Explain(arguments) => say(&explain::explain(&arguments.run, &arguments.pair)?),
        Command::Record(arguments) => record(cli, arguments),
        Command::List(List::Models) => say(&list::models()),
        Command::Localize(arguments) => localize(cli, arguments),
        Command::CheckWorker(arguments) => check_worker(arguments),
        Command::Diagnose(arguments) => diagnose(cli, arguments),
        Command::Worker(arguments) => serve(arguments),
        Command::Foreign => {
            inputs::serve().into_diagnostic().wrap_err("the process of tokenizers and templates")?;
            Ok(ExitCode::Agree)
        }
    }
}

/// The exit code of an error: a run that could not be written and a worker that gave no answer are failed cells,
/// anything else is bad usage.
pub fn code_of(report: &Report) -> Option<ExitCode> {
    let is_stopped = report.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(checkpoint::Error::Interrupted))
            || matches!(cause.downcast_ref(), Some(inputs::Error::Interrupted))
    });
    if is_stopped {
        return Some(ExitCode::Interrupted);
    }
    let localize = report.chain().find_map(|cause| cause.downcast_ref::<LocalizeError>());
    if let Some(error) = localize {
        return Some(match error {
            LocalizeError::Interrupted => ExitCode::Interrupted,
            LocalizeError::Worker { .. } | LocalizeError::Io { .. } => ExitCode::CellFailed,
            LocalizeError::NothingInCommon { .. } => ExitCode::Usage,
        });
    }
    let diagnose = report.chain().find_map(|cause| cause.downcast_ref::<DiagnoseError>());
    if let Some(error) = diagnose {
        return Some(match error {
            DiagnoseError::Interrupted => ExitCode::Interrupted,
            DiagnoseError::Worker { .. } | DiagnoseError::Io { .. } => ExitCode::CellFailed,
            DiagnoseError::Checkpoint { .. } => ExitCode::Usage,
        });
    }
    // What cannot be written is no mistake of the user's.
    let is_unwritten = report.chain().any(|cause| {
        let written = |action: &str| action != "read";
        matches!(cause.downcast_ref(), Some(checkpoint::Error::Io { action, .. }) if written(action))
            || matches!(cause.downcast_ref(), Some(inputs::Error::Io { action, .. }) if written(action))
    });
    if is_unwritten {
        return Some(ExitCode::CellFailed);
    }
    report.chain().find_map(|cause| cause.downcast_ref::<ResultsError>()).map(|error| match error {
        ResultsError::Io { action: "write" | "create", .. } => ExitCode::CellFailed,
        _ => ExitCode::Usage,
    })
}

/// Where tfcheck keeps environments, imports and the bridge: `TFCHECK_CACHE`, else the user's cache folder.
///
/// # Errors
/// When neither is known.
pub fn cache_folder() -> Result<PathBuf> {
    std::env::var_os("TFCHECK_CACHE")
        .map(PathBuf::from)
        .or_else(|| dirs::cache_dir().map(|folder| folder.join("tfcheck")))
        .ok_or_else(|| {
            miette::miette!(help = "set TFCHECK_CACHE to a folder", "the user's cache folder is unknown")
        })
}

/// What the user sees, as the command line asks.
fn progress(cli: &Cli) -> Progress {
    Progress::new(cli.quiet).verbose(cli.verbose)
}

fn run(cli: &Cli, arguments: &crate::cli::Run) -> Result<ExitCode> {
    let stop = stop_on_signals()?;
    let progress = progress(cli).with_all_tables(arguments.full);
    let cache = cache_folder()?;
    let (mut loaded, plan, destination) =
        begun(arguments.resume.as_deref(), &arguments.selection, &arguments.results)?;
    let settings = &mut loaded.config.run;
    if !arguments.fail_on.is_empty() {
        settings.fail_on.clone_from(&arguments.fail_on);
    }
    if let Some(name) = &arguments.against {
        settings.against = Some(name.clone());
    }
    if let Some(name) = &settings.against {
        // A name that does not exist should not be found out after an hour of computing.
        let results = match &destination {
            Destination::New(results) => results.as_path(),
            Destination::Resume(folder) => folder.path().parent().unwrap_or(Path::new(".")),
        };
        baseline::check(results, name)?;
    }
    let request = RunRequest {
        config: &loaded.config,
        text: &loaded.text,
        plan: &plan,
        cache: &cache,
        clean: arguments.clean,
        localize: true,
        stop: &stop,
        progress: &progress,
        turn: None,
    };
    Ok(run::run(&request, destination)?.code)
}

/// The relations of each variant by itself.
fn relations(cli: &Cli, arguments: &crate::cli::Relations) -> Result<ExitCode> {
    let stop = stop_on_signals()?;
    let progress = progress(cli).with_all_tables(arguments.full);
    let cache = cache_folder()?;
    let (mut loaded, plan, destination) =
        begun(arguments.resume.as_deref(), &arguments.selection, &arguments.results)?;
    if !arguments.relations.is_empty() {
        loaded.config = loaded.config.with_relations(&arguments.relations)?;
    }
    let request = RunRequest {
        config: &loaded.config,
        text: &loaded.text,
        plan: &plan,
        cache: &cache,
        clean: false,
        localize: false,
        stop: &stop,
        progress: &progress,
        turn: None,
    };
    Ok(run::relations(&request, destination)?.code)
}

/// The first module at which two variants depart, case by case.
fn localize(cli: &Cli, arguments: &crate::cli::Localize) -> Result<ExitCode> {
    use crate::cli::DtypeName;
    use reference::protocol::Dtype;
    let stop = stop_on_signals()?;
    let progress = progress(cli);
    let cache = cache_folder()?;
    let folder = arguments.run.as_deref().map(RunFolder::resume).transpose()?;
    let (loaded, plan) = match &folder {
        Some(folder) => resumed(folder, |_| ())?,
        None => planned(&Selection { config: arguments.config.clone(), ..Selection::default() })?,
    };
    let request = RunRequest {
        config: &loaded.config,
        text: &loaded.text,
        plan: &plan,
        cache: &cache,
        clean: false,
        localize: true,
        stop: &stop,
        progress: &progress,
        turn: None,
    };
    let mut options = crate::hunt::localize::Options { max_bytes: arguments.max_disk, ..Default::default() };
    if !arguments.modules.is_empty() {
        options.modules.clone_from(&arguments.modules);
    }
    options.dtype = arguments.dtype.map(|dtype| match dtype {
        DtypeName::F64 => Dtype::F64,
        DtypeName::F32 => Dtype::F32,
        DtypeName::Bf16 => Dtype::Bf16,
        DtypeName::F16 => Dtype::F16,
    });
    let wanted = run::Wanted {
        case: arguments.case.as_deref(),
        variants: [&arguments.a, &arguments.b],
        options: &options,
    };
    let found = run::localize(&request, &wanted, folder.as_ref())?;
    if let Some(folder) = folder.map(|folder| folder.path().to_owned()) {
        // The lock is gone with the folder; the comparison takes its own.
        compare::compare(&[folder], &[], &Progress::new(true).without_results())?;
    }
    for localized in &found {
        say(&localized.to_string())?;
    }
    let diverged = found.iter().any(crate::hunt::localize::Localized::is_divergence);
    Ok(if diverged { ExitCode::Diverged } else { ExitCode::Agree })
}

/// What a variant that diverges computes instead, case by case.
fn diagnose(cli: &Cli, arguments: &crate::cli::Diagnose) -> Result<ExitCode> {
    let stop = stop_on_signals()?;
    let progress = progress(cli);
    let cache = cache_folder()?;
    let folder = arguments.run.as_deref().map(RunFolder::resume).transpose()?;
    let (loaded, plan) = match &folder {
        Some(folder) => resumed(folder, |_| ())?,
        None => planned(&Selection { config: arguments.config.clone(), ..Selection::default() })?,
    };
    let request = RunRequest {
        config: &loaded.config,
        text: &loaded.text,
        plan: &plan,
        cache: &cache,
        clean: false,
        localize: true,
        stop: &stop,
        progress: &progress,
        turn: None,
    };
    let wanted = run::WantedDiagnosis {
        case: arguments.case.as_deref(),
        trusted: &arguments.trusted,
        suspect: &arguments.suspect,
        budget: Duration::from_secs(arguments.seconds),
    };
    let found = run::diagnose(&request, &wanted, folder.as_ref())?;
    if let Some(folder) = folder.map(|folder| folder.path().to_owned()) {
        // The lock is gone with the folder; the comparison takes its own.
        compare::compare(&[folder], &[], &Progress::new(true).without_results())?;
    }
    for diagnosed in &found {
        say(&diagnosed.to_string())?;
    }
    let diverged = found.iter().any(Diagnosed::is_divergence);
    Ok(if diverged { ExitCode::Diverged } else { ExitCode::Agree })
}

/// A run over the synthetic checkpoints, folded into one table.
fn scoreboard(cli: &Cli, arguments: &crate::cli::Scoreboard) -> Result<ExitCode> {
    let make = || {
        let base = Config::load(arguments.config.as_deref())?.config.absolute();
        let options = scoreboard::ScoreboardOptions { only: arguments.only.clone(), all: arguments.all };
        let config = scoreboard::config(&base, &options)?;
        let plan = scoreboard::plan(&config)?;
        Ok((config, plan))
    };
    let fold = Fold { adapt: scoreboard::untimed, write: scoreboard::write };
    folded(cli, arguments.resume.as_deref(), &arguments.results, &make, &fold)
}

/// A run of the variants whose speeds are compared, folded into one table.
fn bench(cli: &Cli, arguments: &crate::cli::Bench) -> Result<ExitCode> {
    let make = || {
        let mut base = Config::load(arguments.config.as_deref())?.config;
        if !arguments.checkpoints.is_empty() {
            base = base.with_checkpoints(&arguments.checkpoints)?;
        }
        let options = bench::BenchOptions {
            dtypes: arguments.dtypes.clone(),
            lengths: arguments.lengths.clone(),
            batch: arguments.batch.clone(),
            rounds: arguments.rounds,
        };
        let config = bench::config(&base.absolute(), &options)?;
        let plan = bench::plan(&config)?;
        Ok((config, plan))
    };
    let fold = Fold { adapt: |_| (), write: bench::write };
    folded(cli, arguments.resume.as_deref(), &arguments.results, &make, &fold)
}

/// What a command that makes its own config does besides running it.
struct Fold {
    /// What the plan of a resumed run without a kept plan must be told that its config does not say.
    adapt: fn(&mut Plan),
    /// Folds the run folder into files of its own and gives the text that is shown.
    write: fn(&Path) -> Result<String>,
}

/// A run over a config that the command makes, begun or resumed.
fn folded(
    cli: &Cli,
    resume: Option<&Path>,
    results: &Path,
    make: &dyn Fn() -> Result<(Config, Plan)>,
    fold: &Fold,
) -> Result<ExitCode> {
    let stop = stop_on_signals()?;
    let progress = progress(cli).without_results();
    let cache = cache_folder()?;
    let (loaded, plan, destination) = if let Some(path) = resume {
        let folder = RunFolder::resume(path)?;
        let (loaded, plan) = resumed(&folder, fold.adapt)?;
        (loaded, plan, Destination::Resume(folder))
    } else {
        let (config, plan) = make()?;
        let text = toml::to_string(&config).into_diagnostic().wrap_err("the config as TOML")?;
        (config::Loaded { config, text, path: None }, plan, Destination::New(results.to_owned()))
    };
    let request = RunRequest {
        config: &loaded.config,
        text: &loaded.text,
        plan: &plan,
        cache: &cache,
        clean: false,
        localize: true,
        stop: &stop,
        progress: &progress,
        turn: None,
    };
    let finished = run::run(&request, destination)?;
    say(&(fold.write)(&finished.folder)?)?;
    Ok(finished.code)
}

/// Everything that takes a GPU to be seen.
fn check_gpu(cli: &Cli, arguments: &crate::cli::GpuCheck) -> Result<ExitCode> {
    let options = gpu_check::GpuCheckOptions {
        out: arguments.out.clone(),
        python: arguments.python.clone(),
        limit: Duration::from_secs(arguments.seconds),
        only: arguments.only.clone(),
        emulate: arguments.emulate,
    };
    if arguments.dry_run {
        return say(&gpu_check::listing(&options)?);
    }
    let (cache, stop) = (cache_folder()?, stop_on_signals()?);
    let checked = gpu_check::check(&options, &cache, &stop, &progress(cli).without_results())?;
    say(&checked.text)?;
    Ok(checked.code)
}

/// A search for the revision that changed something.
fn search(cli: &Cli, arguments: &crate::cli::Bisect) -> Result<ExitCode> {
    let stop = stop_on_signals()?;
    let progress = progress(cli);
    let cache = cache_folder()?;
    let context = bisect::Context { cache: &cache, stop: &stop, progress: &progress };
    if let Some(folder) = &arguments.resume {
        return bisect::resume(&context, folder);
    }
    let mut config = match &arguments.run {
        Some(run) => of_run(&RunFolder::open(run)?.manifest()?),
        None => Config::load(arguments.config.as_deref())?.config,
    };
    if !arguments.checkpoints.is_empty() {
        config = config.with_checkpoints(&arguments.checkpoints)?;
    }
    let asked = bisect::BisectOptions {
        good: arguments.good.clone(),
        bad: arguments.bad.clone(),
        test: arguments.test.clone(),
        scan: arguments.scan,
        pre: arguments.pre,
        yanked: arguments.yanked,
        repository: arguments.repository.clone(),
        command_repository: arguments.command_repository.clone(),
        command: arguments.command.clone(),
        build: arguments.build.clone(),
    };
    let question = bisect::question(asked, config.absolute())?;
    bisect::begin(&context, question, &arguments.results)
}

/// A run of one version and its float64 result, kept as a recording.
fn record(cli: &Cli, arguments: &crate::cli::Record) -> Result<ExitCode> {
    let stop = stop_on_signals()?;
    let progress = progress(cli).without_results();
    let cache = cache_folder()?;
    let (base, _) =
        planned(&Selection { only: Vec::new(), skip: Vec::new(), ..arguments.selection.clone() })?;
    let config = record::config(&base.config)?;
    let text = toml::to_string(&config).into_diagnostic().wrap_err("the recording's config as TOML")?;
    let filters = Filters { only: arguments.selection.only.clone(), skip: arguments.selection.skip.clone() };
    let plan = record::plan(&config, &filters)?;
    let request = RunRequest {
        config: &config,
        text: &text,
        plan: &plan,
        cache: &cache,
        clean: false,
        localize: true,
        stop: &stop,
        progress: &progress,
        turn: None,
    };
    let finished = run::run(&request, Destination::New(arguments.results.clone()))?;
    if finished.code == ExitCode::Interrupted {
        return Ok(finished.code);
    }
    let out =
        record::Out { folder: &arguments.out, positions: arguments.positions, modules: &arguments.modules };
    say(&record::write(&finished.folder, &request, &out)?)
}

fn plan_text(selection: &Selection) -> Result<String> {
    let (loaded, plan) = planned(selection)?;
    Ok(plan.text(&loaded.config, &foreseen::unsupported(&plan, &loaded.config)))
}

/// Config, plan and destination of a run that is resumed, or that goes into a new folder below `results`.
fn begun(
    resume: Option<&Path>,
    selection: &Selection,
    results: &Path,
) -> Result<(config::Loaded, Plan, Destination)> {
    if let Some(path) = resume {
        let folder = RunFolder::resume(path)?;
        let (loaded, plan) = resumed(&folder, |_| ())?;
        return Ok((loaded, plan, Destination::Resume(folder)));
    }
    let (loaded, plan) = planned(selection)?;
    Ok((loaded, plan, Destination::New(results.to_owned())))
}

fn planned(selection: &Selection) -> Result<(config::Loaded, Plan)> {
    let filters = Filters { only: selection.only.clone(), skip: selection.skip.clone() };
    // The commands of a report name the run itself, whose config may be gone.
    if let Some(run) = selection.config.as_deref().filter(|path| path.is_dir()) {
        let (loaded, plan) = resumed(&RunFolder::open(run)?, |_| ())?;
        if !selection.checkpoints.is_empty() {
            miette::bail!(
                help = "name a config file, or leave --checkpoint out",
                "the checkpoints of a run folder cannot be replaced"
            );
        }
        let plan = plan.filtered(&filters, &loaded.config)?;
        return Ok((loaded, plan));
    }
    let mut loaded = Config::load(selection.config.as_deref())?;
    if !selection.checkpoints.is_empty() {
        loaded.config = loaded.config.with_checkpoints(&selection.checkpoints)?;
    }
    loaded.config = loaded.config.absolute();
    let plan = Plan::new(&loaded.config, machine::auto_device())?;
    let plan = plan.filtered(&filters, &loaded.config)?;
    Ok((loaded, plan))
}

/// The config of a run, with the folder that its paths are relative to.
fn of_run(manifest: &Manifest) -> Config {
    Config { folder: manifest.folder.clone(), ..manifest.config.clone() }
}

/// The config and the plan of a run that is resumed. A run of a tfcheck that did not keep its plan has the cells of the
/// config that `run.json` lists, after `adapt`.
fn resumed(folder: &RunFolder, adapt: fn(&mut Plan)) -> Result<(config::Loaded, Plan)> {
    let manifest = folder.manifest()?;
    let path = folder.path().join("config.toml");
    let config = of_run(&manifest);
    // The manifest has the config; its text is kept for people, and a full disk may have kept it from being written.
    let text = match bounds::file::read_text(&path, CONFIG_BYTES) {
        Ok(text) => text,
        Err(_) => toml::to_string(&config).into_diagnostic().wrap_err("the run's config as TOML")?,
    };
    let plan = if let Some(plan) = manifest.plan {
        plan.checked(&config)?
    } else {
        let begun = |case: &CasePlan, cell: &CellPlan| {
            let known = manifest.cases.iter().find(|known| known.name == case.name);
            known.is_some_and(|known| known.variants.contains(&cell.variant))
        };
        let mut plan = Plan::new(&config, machine::auto_device())?.selected(&config, begun)?;
        adapt(&mut plan);
        plan
    };
    Ok((config::Loaded { config, text, path: Some(path) }, plan))
}

/// Whether a program speaks the worker protocol.
fn check_worker(arguments: &crate::cli::CheckWorker) -> Result<ExitCode> {
    let settings = checkpoint::Settings::new(cache_folder()?);
    let checkpoint = checkpoint::resolve(&arguments.checkpoint, &settings, &mut |_| {})?;
    let found = check_worker::check(&check_worker::Subject {
        program: &arguments.program,
        checkpoint: &checkpoint,
        timeout: Duration::from_secs(arguments.timeout),
        stop: &*stop_on_signals()?,
    })?;
    say(&found.to_string())?;
    Ok(found.exit_code())
}

fn serve(arguments: &crate::cli::Worker) -> Result<ExitCode> {
    let cuda = models::cuda::driver::Setting {
        pythons: arguments.pythons.clone(),
        cubins: arguments.cubins.clone(),
        ..models::cuda::driver::Setting::default()
    };
    let mut engine = worker::engine(arguments.upstream, cuda);
    worker::run(engine.as_mut()).into_diagnostic().wrap_err("the worker lost its descriptors")?;
    Ok(ExitCode::Agree)
}

/// The signals that this process was started to ignore, as `nohup` does with SIGHUP: bit n-1 for signal n. 0 where the system
/// does not tell.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// A flag that Ctrl-C, a request to terminate and a lost terminal raise; a second one ends tfcheck at once.
fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    let stop = Arc::new(AtomicBool::new(false));
    let ignored = ignored_signals();
    for signal in
        [SIGINT, SIGTERM, SIGHUP, SIGQUIT].into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0)
    {
        signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone()).into_diagnostic()?;
        signal_hook::flag::register(signal, stop.clone()).into_diagnostic()?;
    }
    Ok(stop)
}

/// Prints what a command was asked for. A reader that went away is no failure.
fn say(text: &str) -> Result<ExitCode> {
    match writeln!(std::io::stdout(), "{}", bounds::styled(text.trim_end())) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).into_diagnostic(),
        _ => Ok(ExitCode::Agree),
    }
}
