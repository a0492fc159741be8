//! `tfcheck gpu-check`: all checks that need a GPU, in one command with a time limit and without network
//! access.
//!
//! First every kernel and every architecture is compared with the CPU, then the timing tables are measured
//! against the installed torch. The parts run in order of importance; the last ones are dropped when time is
//! short, and the result lists them. Runs are ordinary ones in a folder that is deleted when the check ends;
//! their results are aggregated into `gpu_check.json` and `gpu_check.md`. docs/cuda.md describes the use on a
//! remote machine without network access.

mod budget;
mod correctness;
mod items;
mod kernels;
mod report;
mod speed;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use miette::{IntoDiagnostic, Result, WrapErr, miette};
use models::cuda::Gpu;
use models::cuda::driver::{Driver, OpenError, Setting};
use reference::protocol::glob;

use crate::commands::run::{self, Destination, RunRequest};
use crate::execute::at_once::at_once;
use crate::execute::progress::Progress;
use crate::execute::schedule::Turn;
use crate::judge::exit_code::ExitCode;
use crate::spec::config::{Config, Device};
use crate::spec::machine::{self, Machine};
use crate::spec::plan::Plan;
use budget::{Budget, Stop, Watch, fitting};
use items::{Item, Work};
use report::{Done, Found, Report, State};

/// Options of a check.
#[derive(Clone, Debug)]
pub struct GpuCheckOptions {
    /// Folder for the result.
    pub out: PathBuf,
    /// The interpreter whose torch is timed.
    pub python: PathBuf,
    /// Time limit of the whole check.
    pub limit: Duration,
    /// Globs over the names of parts; empty for all.
    pub only: Vec<String>,
    /// Whether an emulated GPU replaces the real one.
    pub emulate: bool,
}

/// A check that has ended.
#[derive(Debug)]
pub struct Checked {
    /// The outcome.
    pub code: ExitCode,
    /// The result as Markdown.
    pub text: String,
}

use crate::execute::worker::EMULATOR;

/// Lists the parts that would run on this machine, and those that would not fit.
///
/// # Errors
/// When a pattern matches no part.
pub fn listing(options: &GpuCheckOptions) -> Result<String> {
    let setting = setting(options, None);
    let state = match Driver::open(0, &setting) {
        Ok(driver) => format!("GPU: {}\n", driver.description().name),
        Err(error) => format!("No GPU check can run here: {error}\n"),
    };
    let libraries = machine::cuda_versions(&setting.pythons);
    let libraries = libraries.iter().map(|(library, version)| format!("  {library}: {version}"));
    let libraries = libraries.collect::<Vec<_>>().join("\n");
    Ok(format!("{state}CUDA's libraries:\n{libraries}\n{}", plan_text(&chosen(options)?, options.limit)))
}

/// The parts that the options select.
fn chosen(options: &GpuCheckOptions) -> Result<Vec<Item>> {
    let is_named =
        |item: &Item| options.only.iter().any(|pattern| glob(pattern.as_bytes(), item.name.as_bytes()));
    let mut items = items::all();
    if let Some(pattern) = options
        .only
        .iter()
        .find(|pattern| !items.iter().any(|item| glob(pattern.as_bytes(), item.name.as_bytes())))
    {
        let known: Vec<&str> = items.iter().map(|item| item.name.as_str()).collect();
        return Err(miette!(help = format!("there are {}", known.join(", ")), "no part is called {pattern}"));
    }
    items.retain(|item| options.only.is_empty() || is_named(item));
    Ok(items)
}

/// The items, marked by whether their estimates fit into the limit.
fn plan_text(items: &[Item], limit: Duration) -> String {
    use std::fmt::Write;
    let estimates: Vec<Duration> = items.iter().map(|item| item.estimate).collect();
    let fits = fitting(&estimates, Budget::new(limit).left());
    let mut text = format!(
        "Parts, limited to {} s (estimates for an H200; parts that do not fit are dropped from the end):\n",
        limit.as_secs()
    );
    for (index, item) in items.iter().enumerate() {
        let dropped = if index < fits { "" } else { " (dropped)" };
        let _ = writeln!(text, "  {:>4} s  {}: {}{dropped}", item.estimate.as_secs(), item.name, item.about);
    }
    text
}

fn setting(options: &GpuCheckOptions, cache: Option<&Path>) -> Setting {
    Setting {
        pythons: reference::interpreter(&options.python).into_iter().collect(),
        cubins: cache.map(|cache| cache.join("cubins")),
        ..Setting::default()
    }
}

/// The GPU under check.
struct Subject {
    gpu: Arc<dyn Gpu>,
    /// Absent on the emulator.
    driver: Option<Arc<Driver>>,
    /// The device's name in runs, such as `cuda:0`.
    device: &'static str,
}

impl Subject {
    fn open(options: &GpuCheckOptions, cache: &Path) -> std::result::Result<Self, OpenError> {
        if options.emulate {
            let gpu = models::cuda::Emulator::start(models::cuda::Order::Forward);
            return Ok(Self { gpu, driver: None, device: EMULATOR });
        }
        let driver = Driver::open(0, &setting(options, Some(cache)))?;
        Ok(Self { gpu: driver.clone(), driver: Some(driver), device: "cuda:0" })
    }
}

/// Runs the parts that fit into the time limit and writes the result.
///
/// # Errors
/// When a pattern matches no part, or the result or a run's folder cannot be written.
pub fn check(
    options: &GpuCheckOptions,
    cache: &Path,
    stop: &Arc<AtomicBool>,
    progress: &Progress,
) -> Result<Checked> {
    let items = chosen(options)?;
    let subject = match Subject::open(options, cache) {
        Ok(subject) => subject,
        Err(error) => {
            let text = format!(
                "no GPU check here: {error}\n\n{}\n`tfcheck gpu-check --emulate` checks correctness without a GPU.",
                plan_text(&items, options.limit)
            );
            return Ok(Checked { code: ExitCode::NoGpu, text });
        }
    };
    std::fs::create_dir_all(&options.out)
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot create {}", options.out.display()))?;
    let runs = tempfile::Builder::new().prefix("tfcheck-gpu-").tempdir().into_diagnostic()?;
    let bench = Bench { options, cache, user: stop, progress, subject: &subject, runs: runs.path() };
    let done = bench.all(&items);
    let report = Report::new(options, subject.driver.as_deref(), Machine::detect(), done);
    let text = report.write(&options.out)?;
    Ok(Checked { code: report.code(stop.load(Ordering::Relaxed)), text })
}

/// Shared parameters of all items.
struct Bench<'a> {
    options: &'a GpuCheckOptions,
    cache: &'a Path,
    user: &'a Arc<AtomicBool>,
    progress: &'a Progress,
    subject: &'a Subject,
    runs: &'a Path,
}

impl Bench<'_> {
    fn all(&self, items: &[Item]) -> Vec<Done> {
        let budget = Budget::new(self.options.limit);
        let mut done = Vec::new();
        while let Some((item, _)) = items[done.len()..].split_first() {
            let rest = &items[done.len()..];
            let left = budget.left();
            let estimates: Vec<Duration> = rest.iter().map(|item| item.estimate).collect();
            let fits = fitting(&estimates, left);
            let reason = if self.user.load(Ordering::Relaxed) {
                Some("stopped".to_owned())
            } else if self.options.emulate && matches!(item.work, Work::Speed(_)) {
                Some("nothing is timed on an emulated GPU".to_owned())
            } else if fits == 0 && !self.options.emulate {
                Some(format!("{} s needed, {} s left", item.estimate.as_secs(), left.as_secs()))
            } else {
                None
            };
            if let Some(reason) = reason {
                self.progress.line(&format!("{}: dropped, {reason}", item.name));
                done.push(Done::new(item, Duration::ZERO, State::Dropped(reason), None));
                continue;
            }
            // A tuned shape runs separately, so that nothing else waits for its tuning.
            let is_quick = |item: &&Item| matches!(&item.work, Work::Speed(shape) if !shape.is_tuned());
            let shapes = rest.iter().take_while(is_quick).count();
            let now = &rest[..shapes.min(fits).max(1)];
            let names: Vec<&str> = now.iter().map(|item| item.name.as_str()).collect();
            let (elapsed, limit) = (budget.elapsed().as_secs(), self.options.limit.as_secs());
            self.progress.line(&format!("{} ({elapsed} s of {limit})", names.join(", ")));
            done.extend(self.side_by_side(now, left));
        }
        done
    }

    /// Runs several shapes at the same time: their compilers work in parallel, but each shape is timed alone.
    fn side_by_side(&self, items: &[Item], left: Duration) -> Vec<Done> {
        let run = |item: &Item, turn: Turn| {
            let begun = std::time::Instant::now();
            let (state, found) = self.one(item, &turn, left);
            drop(turn);
            let seconds = begun.elapsed().as_secs_f64();
            self.progress.line(&format!("{}: {state} after {seconds:.0} s", item.name));
            Done::new(item, begun.elapsed(), state, found)
        };
        let turns = Turn::all(items.len());
        at_once(items.iter().zip(turns).collect(), |(item, turn)| run(item, turn))
    }

    fn one(&self, item: &Item, turn: &Turn, left: Duration) -> (State, Option<Found>) {
        let ended = match &item.work {
            Work::Kernels => return self.kernels(left),
            Work::Architectures => self.architectures(turn, left),
            Work::Speed(shape) => self.speed(shape, &item.name, turn, left),
        };
        ended.unwrap_or_else(|error| (State::Failed(format!("{error:?}")), None))
    }

    /// Checks the kernels on a thread of their own, so that a kernel that never ends does not block the
    /// report.
    fn kernels(&self, left: Duration) -> (State, Option<Found>) {
        let (sender, receiver) = std::sync::mpsc::channel();
        let (gpu, driver) = (Arc::clone(&self.subject.gpu), self.subject.driver.clone());
        let end = std::time::Instant::now() + left;
        std::thread::spawn(move || {
            // A compile error is reported by the check that needs the kernel.
            let _ = driver.map(|driver| driver.compile_all());
            kernels::run(&gpu, &mut |check| sender.send(check).is_ok());
        });
        let mut checks = Vec::new();
        let state = loop {
            let wait =
                end.saturating_duration_since(std::time::Instant::now()).min(Duration::from_millis(200));
            match receiver.recv_timeout(wait) {
                Ok(check) => checks.push(check),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break State::Done,
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                    if self.user.load(Ordering::Relaxed) || std::time::Instant::now() >= end {
                        break State::Cut;
                    }
                }
            }
        };
        (state, Some(Found::Kernels(checks)))
    }

    fn architectures(&self, turn: &Turn, left: Duration) -> Result<(State, Option<Found>)> {
        let config = Config {
            // The environment may contain CUDA's libraries; the plan keeps none of its cells.
            versions: speed::versions(&self.options.python),
            ..correctness::config(&|_, _| true)
        };
        let plan = correctness::plan(&config, self.subject.device)?;
        let (state, folder) = self.run(&config, &plan, "architectures", true, (turn, left))?;
        Ok((state, Some(Found::Architectures(correctness::read(&folder)?))))
    }

    fn speed(
        &self,
        shape: &items::Shape,
        name: &str,
        turn: &Turn,
        left: Duration,
    ) -> Result<(State, Option<Found>)> {
        let config = speed::config(shape, &self.options.python, Device::Cuda(0));
        let plan = speed::plan(&config)?;
        // Not localised: other shapes wait for the timing lock meanwhile, and torch's modes differ in 16-bit
        // dtypes anyway.
        let (state, folder) = self.run(&config, &plan, name, false, (turn, left))?;
        Ok((state, Some(Found::Speed(speed::read(&folder, shape)?))))
    }

    /// Runs an ordinary run in a folder of this name, which is stopped at the limit.
    fn run(
        &self,
        config: &Config,
        plan: &Plan,
        name: &str,
        localize: bool,
        (turn, left): (&Turn, Duration),
    ) -> Result<(State, PathBuf)> {
        let stop = Arc::new(Stop::default());
        let watch = Watch::new(&stop, self.user, left);
        let text = toml::to_string(config).into_diagnostic().wrap_err("the config as TOML")?;
        let request = RunRequest {
            config,
            text: &text,
            plan,
            cache: self.cache,
            clean: false,
            localize,
            stop: &stop.flag,
            progress: &self.progress.beside(),
            turn: Some(turn),
            sharing: None,
        };
        let finished = run::run(&request, Destination::New(self.runs.join(name)))?;
        drop(watch);
        let state = match finished.code {
            ExitCode::Interrupted => State::Cut,
            _ => State::Done,
        };
        Ok((state, finished.folder))
    }
}

#[cfg(test)]
mod tests;
