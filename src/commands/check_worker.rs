//! `tfcheck check-worker`: whether a program speaks the worker protocol, request by request.

mod checks;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bounds::limits::RUN_JSON_BYTES;
use miette::{IntoDiagnostic, Result, WrapErr};
use reference::protocol::Load;
use reference::{Launch, Worker, WorkerEnd};

use crate::judge::exit_code::ExitCode;
use crate::spec::checkpoint::Checkpoint;
use crate::spec::inputs::{self, Padding, Spec};
use checks::CHECKS;

/// Two rows of 12 tokens, of which one has padding: enough for a mask, a prefill and three chunks.
const TOKENS: usize = 12;
const ROWS: usize = 2;

/// A program to check.
pub struct Subject<'a> {
    /// The program and its arguments, started in this process's folder.
    pub program: &'a [String],
    /// What it loads.
    pub checkpoint: &'a Checkpoint,
    /// How long it may take for one request.
    pub timeout: Duration,
    /// Set when the user interrupts.
    pub stop: &'a AtomicBool,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The reply is right; what it was.
    Passed(String),
    /// The program does not answer this request, and need not; its reason.
    Unsupported(String),
    /// The reply is wrong: what it was and what it should be.
    Wrong(String),
    /// The model does not load or compute, so that this check was not made.
    Skipped,
}

/// One request, and how a program must answer it.
struct Check {
    /// The request, as docs/protocol.md names it.
    request: &'static str,
    /// Whether a program must support it.
    is_required: bool,
    made: fn(&mut Bench) -> Result<String, Problem>,
}

/// Why a check did not pass.
enum Problem {
    Unsupported(String),
    Wrong(String),
}

impl From<WorkerEnd> for Problem {
    fn from(ended: WorkerEnd) -> Self {
        match ended {
            WorkerEnd::Unsupported(failed) => Self::Unsupported(failed.message),
            ended => Self::Wrong(ended.to_string()),
        }
    }
}

/// Shorthand for a wrong reply.
fn wrong<T>(text: impl Into<String>) -> Result<T, Problem> {
    Err(Problem::Wrong(text.into()))
}

/// The files and the worker of a check.
struct Bench<'a> {
    subject: &'a Subject<'a>,
    folder: &'a Path,
    load: Load,
    worker: Option<Worker>,
}

impl Bench<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Starts the program.
    fn start(&self) -> Result<Worker, Problem> {
        let command = self.subject.program.iter().map(Into::into).collect();
        let launch = Launch::program(command, self.path("worker.log"), 1);
        Worker::start(&launch).or_else(|error| wrong(error.to_string()))
    }

    /// The program with its model loaded. A program that failed a request is started anew, because after a failure it need
    /// only answer `exit`.
    fn worker(&mut self) -> Result<&mut Worker, Problem> {
        let worker = if let Some(worker) = self.worker.take() {
            worker
        } else {
            let mut worker = self.start()?;
            worker.load(self.load.clone(), self.subject.timeout, self.subject.stop)?;
            worker
        };
        Ok(self.worker.insert(worker))
    }
}

/// What each check found, in their order.
pub struct Conformance {
    rows: Vec<(&'static str, bool, Outcome)>,
    /// The end of the program's own output, if something is wrong.
    log: String,
}

/// Makes every check.
///
/// # Errors
/// When the inputs cannot be made, or the user interrupts.
pub fn check(subject: &Subject) -> Result<Conformance> {
    let folder = crate::commands::scratch()?;
    let spec = Spec::Lengths {
        lengths: vec![TOKENS],
        batches: vec![ROWS],
        paddings: vec![Some(Padding::Left)],
        text: None,
        seed: 0,
    };
    let made = inputs::make(&spec, subject.checkpoint).into_diagnostic()?;
    for inputs in made.iter().take(1) {
        inputs.save(folder.path()).into_diagnostic().wrap_err("cannot write the inputs")?;
    }
    let load = Load::new(subject.checkpoint.folder.clone(), folder.path().join("inputs.safetensors"));
    let mut bench = Bench { subject, folder: folder.path(), load, worker: None };
    let mut rows: Vec<(&'static str, bool, Outcome)> = Vec::new();
    for check in CHECKS {
        // Everything else needs a model that loads and computes.
        let is_over = rows.iter().take(2).any(|(_, _, outcome)| outcome.is_wrong());
        let outcome = if is_over {
            Outcome::Skipped
        } else {
            match (check.made)(&mut bench) {
                Ok(found) => Outcome::Passed(found),
                Err(problem) => {
                    bench.worker = None;
                    match problem {
                        Problem::Unsupported(reason) if check.is_required => {
                            Outcome::Wrong(format!("unsupported: {reason}"))
                        }
                        Problem::Unsupported(reason) => Outcome::Unsupported(reason),
                        Problem::Wrong(text) => Outcome::Wrong(text),
                    }
                }
            }
        };
        rows.push((check.request, check.is_required, outcome));
    }
    let log =
        bounds::file::read_unlinked(&folder.path().join("worker.log"), RUN_JSON_BYTES).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().collect();
    let tail = lines[lines.len().saturating_sub(10)..].join("\n");
    Ok(Conformance { rows, log: tail })
}

impl Outcome {
    fn is_wrong(&self) -> bool {
        matches!(self, Self::Wrong(_))
    }
}

impl Conformance {
    /// 0 if nothing is wrong, else 1.
    pub fn exit_code(&self) -> ExitCode {
        let is_wrong = self.rows.iter().any(|(_, _, outcome)| outcome.is_wrong());
        if is_wrong { ExitCode::Diverged } else { ExitCode::Agree }
    }
}

impl fmt::Display for Conformance {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (request, is_required, outcome) in &self.rows {
            let kind = if *is_required { "required" } else { "optional" };
            let (word, text) = match outcome {
                Outcome::Passed(text) => ("passed", text.as_str()),
                Outcome::Unsupported(text) => ("unsupported", text.as_str()),
                Outcome::Wrong(text) => ("WRONG", text.as_str()),
                Outcome::Skipped => ("skipped", "it needs `load` and `forward`"),
            };
            writeln!(out, "{request:22} {kind:8}  {word:11}  {text}")?;
        }
        let count = |is: fn(&Outcome) -> bool| self.rows.iter().filter(|(_, _, outcome)| is(outcome)).count();
        write!(
            out,
            "{} passed, {} unsupported, {} wrong",
            count(|outcome| matches!(outcome, Outcome::Passed(_))),
            count(|outcome| matches!(outcome, Outcome::Unsupported(_))),
            count(Outcome::is_wrong)
        )?;
        if self.exit_code() != ExitCode::Agree && !self.log.is_empty() {
            write!(out, "\nthe program's own last output:\n{}", self.log)?;
        }
        Ok(())
    }
}
