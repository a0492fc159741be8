//! Progress of a run: bars on a terminal, plain lines elsewhere, and always `run.log`; with `--verbose` also each step's
//! command and time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bounds::limits::LINE;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::answer;

/// Limit on the bytes of a worker's log that are shown at a time; the log file itself is complete.
const MOST_OUTPUT: u64 = 1 << 20;

/// The progress display of one command.
#[derive(Debug)]
pub struct Progress {
    bars: Option<MultiProgress>,
    quiet: bool,
    /// How often `--verbose` was given.
    verbose: u8,
    shows_results: bool,
    shows_all: bool,
    log: Mutex<Option<File>>,
    /// The workers' logs, and how many bytes of each have been shown.
    followed: Mutex<BTreeMap<PathBuf, u64>>,
    started: Instant,
}

/// One task in progress; its bar is removed when this is dropped.
#[derive(Debug)]
pub struct Task<'a> {
    progress: &'a Progress,
    bar: ProgressBar,
    name: String,
}

impl Progress {
    /// Shows bars if standard error is a terminal, plain lines otherwise, and neither if `quiet`.
    pub fn new(quiet: bool) -> Self {
        let bars = (!quiet && std::io::stderr().is_terminal()).then(MultiProgress::new);
        Self {
            bars,
            quiet,
            verbose: 0,
            shows_results: true,
            shows_all: false,
            log: Mutex::default(),
            followed: Mutex::default(),
            started: Instant::now(),
        }
    }

    /// Also shows each step's command and time; from 2 on also the workers' output.
    #[must_use]
    pub fn verbose(self, verbose: u8) -> Self {
        Self { verbose, ..self }
    }

    /// A display for a run that goes on in parallel with others: lines only, with its own `run.log`.
    #[must_use]
    pub fn beside(&self) -> Self {
        Self {
            bars: None,
            quiet: self.quiet,
            verbose: self.verbose,
            shows_results: self.shows_results,
            shows_all: self.shows_all,
            log: Mutex::default(),
            followed: Mutex::default(),
            started: self.started,
        }
    }

    /// Writes results to `run.log` only, for a command that prints something else at its end.
    #[must_use]
    pub fn without_results(self) -> Self {
        Self { shows_results: false, ..self }
    }

    /// If `all` is set, shows every table of a run's results instead of one screen.
    #[must_use]
    pub fn with_all_tables(self, all: bool) -> Self {
        Self { shows_all: all, ..self }
    }

    /// Whether every table of a run's results is shown.
    pub fn shows_all(&self) -> bool {
        self.shows_all
    }

    /// Also appends every later line to `path`. If the file cannot be opened, one line reports it and the run continues.
    pub fn log_to(&self, path: &Path) {
        match bounds::file::append(path) {
            Ok(file) => *self.log_file() = Some(file),
            Err(error) => self.line(&format!("no run.log: cannot open {}: {error}", path.display())),
        }
    }

    /// Shows and logs one line.
    pub fn line(&self, line: &str) {
        self.log(line);
        self.show(line);
    }

    /// Logs one line, and shows it with `--verbose`.
    pub fn detail(&self, line: &str) {
        self.log(line);
        if self.verbose > 0 {
            self.show(line);
        }
    }

    /// Runs one step, and logs its duration (with `--verbose` also shows it).
    pub fn timed<T>(&self, step: &str, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let done = work();
        self.detail(&format!("{step} took {:.3} s", begun.elapsed().as_secs_f64()));
        done
    }

    /// Whether `--verbose` was given, so that workers are observed.
    pub fn is_verbose(&self) -> bool {
        self.verbose > 0
    }

    /// From now on shows what workers append to this log.
    pub fn follow(&self, log: &Path) {
        if self.verbose > 1 {
            let length = std::fs::metadata(log).map_or(0, |metadata| metadata.len());
            self.followed().entry(log.to_owned()).or_insert(length);
        }
    }

    /// Shows the workers' output since the last call.
    pub fn show_output(&self) {
        for (log, shown) in self.followed().iter_mut() {
            let Ok(bytes) = read_from(log, *shown) else { continue };
            *shown += bytes.len() as u64;
            let version = log.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
            for line in String::from_utf8_lossy(&bytes).lines() {
                self.show(&format!("{version} | {}", bounds::shown(line, LINE.most)));
            }
        }
    }

    fn followed(&self) -> MutexGuard<'_, BTreeMap<PathBuf, u64>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every line passes here, so that nothing foreign controls the terminal.
    fn show(&self, line: &str) {
        let line = &*bounds::styled(line);
        match &self.bars {
            _ if self.quiet => {}
            // A line that cannot be shown is still in the log.
            Some(bars) => drop(bars.println(line)),
            None => drop(writeln!(std::io::stderr(), "{line}")),
        }
    }

    /// Logs the requested result and prints it on standard output, even if `quiet`.
    pub fn result(&self, text: &str) {
        let text = &*bounds::styled(text);
        self.log(text);
        if self.shows_results && !answer::add_text(text) {
            let printed = std::io::stdout().write_all(text.as_bytes());
            // A closed standard output is not an error.
            if let Some(error) = printed.err().filter(|error| error.kind() != std::io::ErrorKind::BrokenPipe)
            {
                self.line(&format!("the result cannot be printed: {error}; the reports have it too"));
            }
        }
    }

    /// Writes one line to `run.log` only.
    pub fn log(&self, line: &str) {
        if let Some(file) = self.log_file().as_mut() {
            let seconds = self.started.elapsed().as_secs_f64();
            // A log line that cannot be written is not an error; a full disk is reported when results are written.
            drop(writeln!(file, "{seconds:9.3} {}", bounds::styled(&console::strip_ansi_codes(line))));
        }
    }

    /// Starts a task of `steps` steps.
    pub fn task(&self, name: &str, steps: u64) -> Task<'_> {
        let bar = match &self.bars {
            Some(bars) => bars.add(ProgressBar::new(steps)),
            None => ProgressBar::hidden(),
        };
        let template = "{spinner:.cyan} {prefix:.bold} {bar:24.cyan/dim} {pos}/{len} {wide_msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(bounds::shown(name, 200).into_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        Task { progress: self, bar, name: name.to_owned() }
    }

    fn log_file(&self) -> MutexGuard<'_, Option<File>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_from(path: &Path, offset: u64) -> std::io::Result<Vec<u8>> {
    let mut file = bounds::file::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.take(MOST_OUTPUT).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Task<'_> {
    /// Shows the current activity without counting a step.
    pub fn doing(&self, what: &str) {
        self.bar.set_message(bounds::shown(what, 200).into_owned());
        self.progress.log(&format!("{}: {what}", self.name));
    }

    /// Sets the number of finished steps and the current activity.
    pub fn at(&self, steps: u64, what: &str) {
        self.bar.set_position(steps);
        self.bar.set_message(bounds::shown(what, 200).into_owned());
    }

    /// Counts one step as done.
    pub fn done_one(&self) {
        self.bar.inc(1);
    }

    /// Shows a line about this task that stays on the screen.
    pub fn line(&self, line: &str) {
        self.progress.line(&format!("{}: {line}", self.name));
    }
}

impl Drop for Task<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
