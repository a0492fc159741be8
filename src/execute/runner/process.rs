//! A runner whose workers are processes; the other files of this folder choose the command.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use reference::protocol::{Failed, Reply, Request};
use reference::{Launch, Worker};

use super::{NoResult, Runner, Session};
use crate::execute::cell::{Failure, FailureKind};

/// How long a worker may take to exit when asked to.
pub(super) const GRACE: Duration = Duration::from_secs(2);
/// Lines of `worker.log` that a failure keeps.
const TAIL: usize = 30;
/// candle's limit on how often its own threads poll for work before they sleep. The default of 25000 takes cores from the
/// matmul, which uses other threads: on 2 cores a forward pass of SmolLM2-135M over 128 tokens in F32 takes 50 % longer.
const SPIN_LIMIT: &str = "CANDLE_BARRIER_POOL_SPIN_LIMIT";

/// Starts one process per cell.
#[derive(Clone, Debug)]
pub struct ProcessRunner {
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// The working directory; that of this process if `None`.
    pub folder: Option<PathBuf>,
    /// Compute threads.
    pub threads: usize,
}

impl Runner for ProcessRunner {
    fn start<'a>(&'a self, log: PathBuf, stop: &'a AtomicBool) -> Result<Box<dyn Session + 'a>, NoResult> {
        Ok(Box::new(ProcessSession { worker: self.worker(log)?, stop }))
    }
}

impl ProcessRunner {
    /// Starts the process.
    pub(super) fn worker(&self, log: PathBuf) -> Result<Worker, NoResult> {
        let mut launch = Launch::program(self.command.clone(), log, self.threads);
        launch.folder.clone_from(&self.folder);
        // candle's matmul and rayon both read this variable.
        launch.variables.push(("RAYON_NUM_THREADS".into(), self.threads.to_string().into()));
        if std::env::var_os(SPIN_LIMIT).is_none() {
            launch.variables.push((SPIN_LIMIT.into(), "1000".into()));
        }
        Worker::start(&launch).map_err(|error| NoResult::failed(FailureKind::Environment, error.to_string()))
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
    let kind = match ended {
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
    NoResult::Failed(Failure {
        kind,
        reason: ended.to_string(),
        detail: ended.traceback().unwrap_or_default().to_owned(),
        log_tail: log_tail.to_owned(),
    })
}
