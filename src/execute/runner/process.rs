//! A runner whose workers are processes; the other files of this folder choose the command.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bounds::limits::LINE;
use reference::protocol::{Failed, Reply, Request};
use reference::{Environment, Launch, Template, Worker, compiler_caches};

use super::{NoResult, Runner, Session, Start};
use crate::execute::cell::{Failure, FailureKind};

/// How long a worker may take to exit when asked to.
pub(super) const GRACE: Duration = Duration::from_secs(2);
/// Lines of `worker.log` that a failure keeps.
const TAIL: usize = 30;
/// candle's limit on how often its own threads poll for work before they sleep. The default of 25000 takes cores from the
/// matmul, which uses other threads: on 2 cores a forward pass of SmolLM2-135M over 128 tokens in F32 takes 50 % longer.
const SPIN_LIMIT: &str = "CANDLE_BARRIER_POOL_SPIN_LIMIT";

/// Has glibc keep the memory that a process frees. Otherwise logits above 32 MiB come from new pages in each forward pass, which the
/// system fills with zeros first: that took 8 % of the fused backend's time at 512 tokens of SmolLM2-135M in f32.
const KEPT_MEMORY: [(&str, &str); 2] =
    [("MALLOC_MMAP_MAX_", "0"), ("MALLOC_TRIM_THRESHOLD_", "1099511627776")];

/// Starts one process per cell.
#[derive(Clone, Debug)]
pub struct ProcessRunner {
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// The working directory; that of this process if `None`.
    pub folder: Option<PathBuf>,
    /// Compute threads.
    pub threads: usize,
    /// [`Runner::is_reusable`].
    pub reusable: bool,
    /// The processes that fork its workers; `None` if each is started by itself.
    pub templates: Option<Arc<Templates>>,
    /// Whether its workers keep the memory that they free.
    pub keeps_memory: bool,
}

/// The processes that fork the workers of one environment.
#[derive(Debug)]
pub struct Templates {
    first: Template,
    /// Workers of one process share the seed of Python's hashes and the places of libraries in memory, which may decide how a
    /// sum is computed: those that repeat a cell come from another one.
    second: Template,
}

impl Templates {
    /// Two processes for workers of so many threads; `None` where workers cannot be forked.
    ///
    /// # Errors
    /// When the bridge cannot be written to `cache`.
    pub fn new(environment: &Environment, cache: &Path, threads: usize) -> io::Result<Option<Self>> {
        let template = || Template::of(environment, cache, threads);
        Ok(template()?.zip(template()?).map(|(first, second)| Self { first, second }))
    }

    fn of(&self, how: Start<'_>) -> &Template {
        if how.is_second { &self.second } else { &self.first }
    }
}

impl Runner for ProcessRunner {
    fn start<'a>(
        &'a self,
        log: PathBuf,
        stop: &'a AtomicBool,
        how: Start<'_>,
    ) -> Result<Box<dyn Session + 'a>, NoResult> {
        Ok(Box::new(ProcessSession { worker: self.worker(log, stop, how)?, stop }))
    }

    fn is_reusable(&self) -> bool {
        self.reusable
    }
}

impl ProcessRunner {
    /// Starts the process.
    pub(super) fn worker(&self, log: PathBuf, stop: &AtomicBool, how: Start<'_>) -> Result<Worker, NoResult> {
        let mut launch = Launch::program(self.command.clone(), log, self.threads);
        launch.folder.clone_from(&self.folder);
        // candle's matmul and rayon both read this variable.
        launch.variables.push(("RAYON_NUM_THREADS".into(), self.threads.to_string().into()));
        if std::env::var_os(SPIN_LIMIT).is_none() {
            launch.variables.push((SPIN_LIMIT.into(), "1000".into()));
        }
        if self.keeps_memory {
            launch.variables.extend(KEPT_MEMORY.map(|(name, value)| (name.into(), value.into())));
        }
        if let Some(caches) = how.caches {
            launch.variables.extend(compiler_caches(caches));
        }
        let started = match &self.templates {
            Some(templates) => Worker::fork(templates.of(how), &launch, stop),
            None => Worker::start(&launch),
        };
        started.map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => NoResult::Interrupted,
            _ => NoResult::failed(FailureKind::Environment, error.to_string()),
        })
    }
}

struct ProcessSession<'a> {
    worker: Worker,
    stop: &'a AtomicBool,
}

impl Session for ProcessSession<'_> {
    fn ask(&mut self, request: &Request, timeout: Duration) -> Result<Reply, NoResult> {
        ask(&mut self.worker, request, timeout, self.stop)
    }

    fn end(self: Box<Self>) {
        self.worker.exit(GRACE);
    }
}

/// Sends one request; a failure gets its [`FailureKind`] and the end of the log.
pub(super) fn ask(
    worker: &mut Worker,
    request: &Request,
    timeout: Duration,
    stop: &AtomicBool,
) -> Result<Reply, NoResult> {
    worker.ask(request, timeout, stop).map_err(|ended| sorted(&ended, &worker.log_tail(TAIL)))
}

/// Converts the end of a worker to the result that the tables show.
fn sorted(ended: &reference::WorkerEnd, log_tail: &str) -> NoResult {
    let mut kind = match ended {
        reference::WorkerEnd::Interrupted => return NoResult::Interrupted,
        reference::WorkerEnd::Unsupported(Failed { message, .. }) => {
            return NoResult::Unsupported(message.clone());
        }
        reference::WorkerEnd::Exception(_) => FailureKind::Exception,
        reference::WorkerEnd::OutOfMemory(_) => FailureKind::OutOfMemory,
        reference::WorkerEnd::Signalled { .. } | reference::WorkerEnd::Exited { .. } => FailureKind::Crashed,
        reference::WorkerEnd::TimedOut { .. } => FailureKind::TimedOut,
        reference::WorkerEnd::NoReply { .. } => FailureKind::MissingResult,
    };
    let mut reason = ended.to_string();
    if kind == FailureKind::Crashed
        && let Some(words) = last_words(log_tail)
    {
        if words.starts_with("memory allocation of ") {
            kind = FailureKind::OutOfMemory;
        }
        reason = format!("{reason}: {words}");
    }
    let traceback = ended.traceback().unwrap_or_default();
    if is_damaged_environment(&format!("{reason}\n{log_tail}\n{traceback}")) {
        reason = format!("{reason} (the environment is damaged: --clean installs it again)");
    }
    NoResult::Failed(Failure {
        kind,
        reason: bounds::lines(&reason, LINE.most).into_owned(),
        detail: traceback.to_owned(),
        log_tail: log_tail.to_owned(),
    })
}

/// Whether Python misses a package that every environment has, or cannot read one that is installed.
fn is_damaged_environment(text: &str) -> bool {
    ["torch", "transformers", "numpy", "safetensors"]
        .iter()
        .any(|name| text.contains(&format!("No module named '{name}")))
        || text.contains("site-packages") && text.contains("SyntaxError: ")
}

/// Why a process died, as a Rust program or its runtime writes it to the log: a panic with its message, a stack overflow or
/// an allocation that failed.
fn last_words(log: &str) -> Option<String> {
    let lines: Vec<&str> = log.lines().collect();
    let index = lines.iter().rposition(|line| {
        ["panicked at ", "has overflowed its stack", "memory allocation of "]
            .iter()
            .any(|words| line.contains(words))
    })?;
    let line = lines[index].trim();
    // A panic's message is on the line below its place.
    let Some((_, place)) = line.split_once("panicked at ") else { return Some(line.to_owned()) };
    let message = lines.get(index + 1).map_or("", |message| message.trim());
    Some(format!("panic: {message} ({})", place.trim_end_matches(':')))
}

#[cfg(test)]
mod tests {
    use super::{FailureKind, NoResult, last_words, sorted};

    #[test]
    fn a_process_that_gets_no_memory_is_out_of_memory_and_did_not_crash() {
        let ended = reference::WorkerEnd::Signalled { signal: 6, name: "SIGABRT", note: "" };
        let kind = |log: &str| match sorted(&ended, log) {
            NoResult::Failed(failure) => failure.kind,
            _ => panic!("it failed"),
        };
        assert_eq!(kind("memory allocation of 6400640016 bytes failed\n"), FailureKind::OutOfMemory);
        assert_eq!(kind("corrupted size vs. prev_size\n"), FailureKind::Crashed);
    }

    #[test]
    fn the_reason_of_a_crash_is_quoted_from_the_log() {
        let check = |log: &str, expected: Option<&str>| assert_eq!(last_words(log).as_deref(), expected);
        check(
            "loading\nthread 'main' panicked at src/x.rs:3:5:\nindex out of bounds\nnote: run with `RUST_BACKTRACE=1`\n",
            Some("panic: index out of bounds (src/x.rs:3:5)"),
        );
        check(
            "memory allocation of 4611686018427387904 bytes failed\n",
            Some("memory allocation of 4611686018427387904 bytes failed"),
        );
        check("a warning\n", None);
    }
}
