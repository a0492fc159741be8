//! What a person sees while a run goes on: bars on a terminal, plain lines elsewhere, and `run.log` always.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// The progress display of one command.
#[derive(Debug)]
pub struct Progress {
    bars: Option<MultiProgress>,
    quiet: bool,
    shows_results: bool,
    shows_all: bool,
    log: Mutex<Option<File>>,
    started: Instant,
}

/// One thing under way; its bar goes when it is dropped.
#[derive(Debug)]
pub struct Task<'a> {
    progress: &'a Progress,
    bar: ProgressBar,
    name: String,
}

impl Progress {
    /// Bars when standard error is a terminal, plain lines otherwise, neither when `quiet`.
    pub fn new(quiet: bool) -> Self {
        let bars = (!quiet && std::io::stderr().is_terminal()).then(MultiProgress::new);
        Self {
            bars,
            quiet,
            shows_results: true,
            shows_all: false,
            log: Mutex::new(None),
            started: Instant::now(),
        }
    }

    /// One for a run that goes on beside others: lines only, and a `run.log` of its own.
    #[must_use]
    pub fn beside(&self) -> Self {
        let (quiet, shows_results, shows_all) = (self.quiet, self.shows_results, self.shows_all);
        Self { bars: None, quiet, shows_results, shows_all, log: Mutex::new(None), started: self.started }
    }

    /// The same for a command that shows something else at its end: results go to `run.log` only.
    #[must_use]
    pub fn without_results(self) -> Self {
        Self { shows_results: false, ..self }
    }

    /// The same with every table of a run's results instead of what fits a screen, where `all` is set.
    #[must_use]
    pub fn with_all_tables(self, all: bool) -> Self {
        Self { shows_all: all, ..self }
    }

    /// Whether every table of a run's results is shown.
    pub fn shows_all(&self) -> bool {
        self.shows_all
    }

    /// Keeps every line in `path` too, from now on. A log that cannot be opened is said once and done without.
    pub fn log_to(&self, path: &Path) {
        match File::options().create(true).append(true).open(path) {
            Ok(file) => *self.log_file() = Some(file),
            Err(error) => self.line(&format!("no run.log: cannot open {}: {error}", path.display())),
        }
    }

    /// Says one line.
    pub fn line(&self, line: &str) {
        self.log(line);
        match &self.bars {
            _ if self.quiet => {}
            // A line that cannot be shown is in the log.
            Some(bars) => drop(bars.println(line)),
            None => drop(writeln!(std::io::stderr(), "{line}")),
        }
    }

    /// Shows what was asked for: on standard output, even when quiet, once every bar is gone.
    pub fn result(&self, text: &str) {
        self.log(text);
        if self.shows_results {
            // A reader that went away is no failure.
            drop(std::io::stdout().write_all(text.as_bytes()));
        }
    }

    /// Keeps one line in `run.log` only.
    pub fn log(&self, line: &str) {
        if let Some(file) = self.log_file().as_mut() {
            let seconds = self.started.elapsed().as_secs_f64();
            // The log is a convenience: a full disk is reported where results are written.
            drop(writeln!(file, "{seconds:9.3} {line}"));
        }
    }

    /// Begins something that takes `steps` steps.
    pub fn task(&self, name: &str, steps: u64) -> Task<'_> {
        let bar = match &self.bars {
            Some(bars) => bars.add(ProgressBar::new(steps)),
            None => ProgressBar::hidden(),
        };
        let template = "{spinner:.cyan} {prefix:.bold} {bar:24.cyan/dim} {pos}/{len} {wide_msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        Task { progress: self, bar, name: name.to_owned() }
    }

    fn log_file(&self) -> std::sync::MutexGuard<'_, Option<File>> {
        self.log.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Task<'_> {
    /// Says what is being done now, without counting it as done.
    pub fn doing(&self, what: &str) {
        self.bar.set_message(what.to_owned());
        self.progress.log(&format!("{}: {what}", self.name));
    }

    /// Shows that `steps` steps are done and what is being done now.
    pub fn at(&self, steps: u64, what: &str) {
        self.bar.set_position(steps);
        self.bar.set_message(what.to_owned());
    }

    /// Counts one step as done.
    pub fn done_one(&self) {
        self.bar.inc(1);
    }

    /// Says a line about this task that stays on the screen.
    pub fn line(&self, line: &str) {
        self.progress.line(&format!("{}: {line}", self.name));
    }
}

impl Drop for Task<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
