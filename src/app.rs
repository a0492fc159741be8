//! What each subcommand does, in terms of the rest of the crate.

mod exit;
mod plans;
mod session;
mod shares;
mod shell;

use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use miette::{IntoDiagnostic, Result, WrapErr};

use crate::cli::{Baseline, Cli, Command, EngineName, List, Selection};
use crate::commands::bench;
use crate::commands::bisect;
use crate::commands::check_worker;
use crate::commands::compare;
use crate::commands::explain;
use crate::commands::gpu_check;
use crate::commands::list;
use crate::commands::record;
use crate::commands::run::{self, Destination, Part, RunRequest, Sharing};
use crate::commands::scoreboard;
use crate::execute::answer;
use crate::execute::checkout::Checkout;
use crate::execute::progress::Progress;
use crate::execute::worker;
use crate::hunt::bisect::record::Place;
use crate::hunt::diagnose::Diagnosed;
use crate::hunt::localize::Localized;
use crate::judge::baseline;
use crate::judge::exit_code::ExitCode;
use crate::results::{ResultsError, RunFolder};
use crate::spec::checkpoint;
use crate::spec::config::{self, Config};
use crate::spec::inputs;
use crate::spec::plan::{Filters, Plan};
pub use exit::code_of;
use plans::{begun, of_run, plan_text, planned, resumed};
pub use session::cache_folder;
use session::{Session, stop_on_signals};
pub use shell::build;

/// Runs one command line.
///
/// # Errors
/// Whatever the command cannot do; [`code_of`] tells with which exit code.
pub fn execute(cli: &Cli) -> Result<ExitCode> {
    match &cli.command {
        Command::Run(arguments) if arguments.sharing.engine.is_some() => shares::slurm(cli, arguments),
        Command::Run(arguments) if arguments.dry_run => say(&plan_text(&arguments.selection)?),
        Command::Run(arguments) => run(cli, arguments),
        Command::Relations(arguments) => relations(cli, arguments),
        Command::Scoreboard(arguments) => scoreboard(cli, arguments),
        Command::Bench(arguments) => bench(cli, arguments),
        Command::GpuCheck(arguments) => check_gpu(cli, arguments),
        Command::Bisect(arguments) => search(cli, arguments),
        Command::Plan(arguments) => shares::plan(cli, arguments),
        Command::Merge(arguments) => shares::merge(cli, arguments),
        Command::Init(arguments) => say(&config::init(&arguments.path)?),
        Command::Schema(arguments) => shell::schema(arguments.of),
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
        Command::Completions(arguments) => shell::completions(arguments),
        Command::Man(arguments) => shell::man(arguments.out.as_deref()),
        Command::Worker(arguments) => serve(arguments),
        Command::Foreign => {
            inputs::serve().into_diagnostic().wrap_err("the process of tokenizers and templates")?;
            Ok(ExitCode::Agree)
        }
    }
}

/// What the user sees, as the command line asks.
fn progress(cli: &Cli) -> Progress {
    Progress::new(cli.quiet).verbose(cli.verbose)
}

fn run(cli: &Cli, arguments: &crate::cli::Run) -> Result<ExitCode> {
    let session = Session::open(progress(cli).with_all_tables(arguments.full))?;
    let sharing = shares::sharing(&arguments.sharing)?;
    let frozen = sharing.as_ref().and_then(|sharing| sharing.frozen.as_ref());
    let (mut loaded, plan, destination) =
        if let Some((frozen, path)) = frozen.zip(arguments.sharing.plan.as_ref()) {
            let (loaded, plan) = shares::of_frozen(frozen, path)?;
            (loaded, plan, Destination::New(arguments.results.clone()))
        } else {
            begun(arguments.resume.as_deref(), &arguments.selection, &arguments.results)?
        };
    gated(&mut loaded.config, arguments);
    if let Some(name) = &loaded.config.run.against {
        // A name that does not exist should not be found out after an hour of computing.
        let results = match &destination {
            Destination::New(results) => results.as_path(),
            Destination::Resume(folder) => folder.path().parent().unwrap_or(Path::new(".")),
        };
        baseline::check(results, name)?;
    }
    let request = RunRequest {
        clean: arguments.clean,
        sharing: sharing.as_ref(),
        ..session.request(&loaded.config, &loaded.text, &plan)
    };
    Ok(run::run(&request, destination)?.code)
}

/// Replaces gates and baseline of the config by those of the command line.
fn gated(config: &mut Config, arguments: &crate::cli::Run) {
    if !arguments.fail_on.is_empty() {
        config.run.fail_on.clone_from(&arguments.fail_on);
    }
    if let Some(name) = &arguments.against {
        config.run.against = Some(name.clone());
    }
}

/// The relations of each variant by itself.
fn relations(cli: &Cli, arguments: &crate::cli::Relations) -> Result<ExitCode> {
    let session = Session::open(progress(cli).with_all_tables(arguments.full))?;
    let (mut loaded, plan, destination) =
        begun(arguments.resume.as_deref(), &arguments.selection, &arguments.results)?;
    if !arguments.relations.is_empty() {
        loaded.config = loaded.config.with_relations(&arguments.relations)?;
    }
    let request = RunRequest { localize: false, ..session.request(&loaded.config, &loaded.text, &plan) };
    Ok(run::relations(&request, destination)?.code)
}

/// The first diverging module of two variants, case by case.
fn localize(cli: &Cli, arguments: &crate::cli::Localize) -> Result<ExitCode> {
    use crate::cli::DtypeName;
    use reference::protocol::Dtype;
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
    let found = of_pair(cli, (&arguments.run, &arguments.config), |request, folder| {
        run::localize(request, &wanted, folder)
    })?;
    told(&found, Localized::is_divergence)
}

/// What a variant that diverges computes instead, case by case.
fn diagnose(cli: &Cli, arguments: &crate::cli::Diagnose) -> Result<ExitCode> {
    let wanted = run::WantedDiagnosis {
        case: arguments.case.as_deref(),
        trusted: &arguments.trusted,
        suspect: &arguments.suspect,
        budget: Duration::from_secs(arguments.seconds),
    };
    let found = of_pair(cli, (&arguments.run, &arguments.config), |request, folder| {
        run::diagnose(request, &wanted, folder)
    })?;
    told(&found, Diagnosed::is_divergence)
}

/// What `find` finds about a pair of variants of a run, whose reports are then written anew, or else of a config.
fn of_pair<T>(
    cli: &Cli,
    (run, config): (&Option<PathBuf>, &Option<PathBuf>),
    find: impl FnOnce(&RunRequest, Option<&RunFolder>) -> Result<Vec<T>>,
) -> Result<Vec<T>> {
    let session = Session::open(progress(cli))?;
    let folder = run.as_deref().map(RunFolder::resume).transpose()?;
    let (loaded, plan) = match &folder {
        Some(folder) => resumed(folder, |_| ())?,
        None => planned(&Selection { config: config.clone(), ..Selection::default() })?,
    };
    let found = find(&session.request(&loaded.config, &loaded.text, &plan), folder.as_ref())?;
    if let Some(folder) = folder.map(|folder| folder.path().to_owned()) {
        // The lock is gone with the folder; the comparison takes its own.
        compare::compare(&[folder], &[], &Progress::new(true).without_results())?;
    }
    Ok(found)
}

/// Prints what was found; the exit code tells whether something of it diverges.
fn told<T: Display + serde::Serialize>(found: &[T], diverges: impl Fn(&T) -> bool) -> Result<ExitCode> {
    answer::set_data(&found);
    for found in found {
        say(&found.to_string())?;
    }
    Ok(if found.iter().any(diverges) { ExitCode::Diverged } else { ExitCode::Agree })
}

/// A run over the synthetic checkpoints, folded into one table.
fn scoreboard(cli: &Cli, arguments: &crate::cli::Scoreboard) -> Result<ExitCode> {
    let sharing = arguments.shard.map(|shard| Sharing { part: Part::Shard(shard), frozen: None });
    let make = |session: &Session| {
        let base = Config::load(arguments.config.as_deref())?.config.absolute();
        let built =
            |path: &PathBuf| Checkout::at(path)?.build(&session.cache, &session.stop, &session.progress);
        let options = scoreboard::ScoreboardOptions {
            only: arguments.only.clone(),
            all: arguments.all,
            checkout: arguments.checkout.as_ref().map(built).transpose()?,
        };
        let config = scoreboard::config(&base, &options)?;
        let plan = scoreboard::plan(&config)?;
        Ok((config, plan))
    };
    if arguments.engine.is_some() {
        return shares::slurm_scoreboard(cli, arguments, &make);
    }
    let fold = Fold { adapt: scoreboard::untimed, write: scoreboard::write, sharing: sharing.as_ref() };
    folded(cli, arguments.resume.as_deref(), &arguments.results, &make, &fold)
}

/// A run of the variants whose speeds are compared, folded into one table.
fn bench(cli: &Cli, arguments: &crate::cli::Bench) -> Result<ExitCode> {
    let make = |_: &Session| {
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
    let fold = Fold { adapt: |_| (), write: bench::write, sharing: None };
    folded(cli, arguments.resume.as_deref(), &arguments.results, &make, &fold)
}

/// What a command that makes its own config does besides running it.
struct Fold<'a> {
    /// What the plan of a resumed run without a kept plan must be told that its config does not say.
    adapt: fn(&mut Plan),
    /// Folds the run folder into files of its own and gives the text that is shown.
    write: fn(&Path) -> Result<String>,
    /// The part of the plan to run; `None` for all of it.
    sharing: Option<&'a Sharing>,
}

/// A run over a config that the command makes, begun or resumed.
fn folded(
    cli: &Cli,
    resume: Option<&Path>,
    results: &Path,
    make: &dyn Fn(&Session) -> Result<(Config, Plan)>,
    fold: &Fold<'_>,
) -> Result<ExitCode> {
    let session = Session::open(progress(cli).without_results())?;
    let (loaded, plan, destination) = if let Some(path) = resume {
        let folder = RunFolder::resume(path)?;
        let (loaded, plan) = resumed(&folder, fold.adapt)?;
        (loaded, plan, Destination::Resume(folder))
    } else {
        let (config, plan) = make(&session)?;
        (made(config)?, plan, Destination::New(results.to_owned()))
    };
    let request =
        RunRequest { sharing: fold.sharing, ..session.request(&loaded.config, &loaded.text, &plan) };
    let finished = run::run(&request, destination)?;
    // What a share lacks is known only when all are merged.
    if fold.sharing.is_none() {
        say(&(fold.write)(&finished.folder)?)?;
    }
    Ok(finished.code)
}

/// A config that a command made, with its text.
fn made(config: Config) -> Result<config::Loaded> {
    let text = toml::to_string(&config).into_diagnostic().wrap_err("the config as TOML")?;
    Ok(config::Loaded { config, text, path: None })
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
    let session = Session::open(progress(cli).without_results())?;
    let checked = gpu_check::check(&options, &session.cache, &session.stop, &session.progress)?;
    say(&checked.text)?;
    Ok(checked.code)
}

/// A search for the revision that changed something.
fn search(cli: &Cli, arguments: &crate::cli::Bisect) -> Result<ExitCode> {
    let session = Session::open(progress(cli))?;
    let context = bisect::Context { cache: &session.cache, stop: &session.stop, progress: &session.progress };
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
        place: arguments.engine.map_or(Place::Here, |EngineName::Slurm| Place::Slurm),
    };
    let question = bisect::question(asked, config.absolute())?;
    bisect::begin(&context, question, &arguments.results)
}

/// A run of one version and its float64 result, kept as a recording.
fn record(cli: &Cli, arguments: &crate::cli::Record) -> Result<ExitCode> {
    let session = Session::open(progress(cli).without_results())?;
    let (base, _) =
        planned(&Selection { only: Vec::new(), skip: Vec::new(), ..arguments.selection.clone() })?;
    let config = record::config(&base.config)?;
    let text = toml::to_string(&config).into_diagnostic().wrap_err("the recording's config as TOML")?;
    let filters = Filters { only: arguments.selection.only.clone(), skip: arguments.selection.skip.clone() };
    let plan = record::plan(&config, &filters)?;
    let request = session.request(&config, &text, &plan);
    let finished = run::run(&request, Destination::New(arguments.results.clone()))?;
    if finished.code == ExitCode::Interrupted {
        return Ok(finished.code);
    }
    let out = record::Out {
        folder: &arguments.out,
        positions: arguments.positions,
        modules: &arguments.modules,
        surgery: arguments.surgery,
    };
    say(&record::write(&finished.folder, &request, &out)?)
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
    let mut engine = worker::engine((arguments.upstream, arguments.gguf), cuda);
    worker::run(engine.as_mut()).into_diagnostic().wrap_err("the worker lost its descriptors")?;
    Ok(ExitCode::Agree)
}

/// Prints what a command was asked for. A reader that went away is no failure.
fn say(text: &str) -> Result<ExitCode> {
    if answer::add_text(&format!("{}\n", text.trim_end())) {
        return Ok(ExitCode::Agree);
    }
    print(format!("{}\n", bounds::styled(text.trim_end())).as_bytes())?;
    Ok(ExitCode::Agree)
}

/// Prints bytes as they are. A closed standard output is not an error.
///
/// # Errors
/// When standard output takes no more, such as a file on a full disk.
pub fn print(bytes: &[u8]) -> Result<()> {
    let mut output = std::io::stdout();
    match output.write_all(bytes).and_then(|()| output.flush()) {
        Err(cause) if cause.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(ResultsError::Io { action: "write", path: "standard output".into(), cause }.into())
        }
        _ => Ok(()),
    }
}
