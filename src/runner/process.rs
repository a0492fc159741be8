//! A runner whose workers are processes; the adapters beside this file say only which process.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use reference::protocol::{Failed, Reply, Request};
use reference::{Launch, Worker};

use super::{Ended, Runner, Session};
use crate::results::{Failure, FailureKind};

/// How long a worker may take to end in good order.
const GRACE: Duration = Duration::from_secs(2);
/// Lines of `worker.log` that a failure keeps.
const TAIL: usize = 30;

/// Starts one process per cell.
#[derive(Clone, Debug)]
pub struct ProcessRunner {
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// The folder it runs in; this process's own when absent.
    pub folder: Option<PathBuf>,
    /// Compute threads.
    pub threads: usize,
}

impl Runner for ProcessRunner {
    fn start<'a>(&self, log: PathBuf, stop: &'a AtomicBool) -> Result<Box<dyn Session + 'a>, Ended> {
        let mut launch = Launch::program(self.command.clone(), log, self.threads);
        launch.folder.clone_from(&self.folder);
        // candle's matmul and rayon both go by this one.
        launch.variables.push(("RAYON_NUM_THREADS".into(), self.threads.to_string().into()));
        let worker = Worker::start(&launch)
            .map_err(|error| Ended::failed(FailureKind::Environment, error.to_string()))?;
        Ok(Box::new(ProcessSession { worker, stop }))
    }
}

struct ProcessSession<'a> {
    worker: Worker,
    stop: &'a AtomicBool,
}

impl Session for ProcessSession<'_> {
    fn ask(&mut self, request: &Request, timeout: Duration) -> Result<Reply, Ended> {
        let stop = self.stop;
        self.worker.ask(request, timeout, stop).map_err(|ended| sorted(&ended, &self.worker.log_tail(TAIL)))
    }

    fn end(self: Box<Self>) {
        self.worker.exit(GRACE);
    }
}

/// The word that the tables have for an ending.
fn sorted(ended: &reference::Ended, log_tail: &str) -> Ended {
    let kind = match ended {
        reference::Ended::Interrupted => return Ended::Interrupted,
        reference::Ended::Unsupported(Failed { message, .. }) => return Ended::Unsupported(message.clone()),
        reference::Ended::Exception(_) => FailureKind::Exception,
        reference::Ended::OutOfMemory(_) => FailureKind::OutOfMemory,
        reference::Ended::Signalled { .. } | reference::Ended::Exited { .. } => FailureKind::Crashed,
        reference::Ended::TimedOut { .. } => FailureKind::TimedOut,
        reference::Ended::NoReply { .. } => FailureKind::MissingResult,
    };
    Ended::Failed(Failure {
        kind,
        reason: ended.to_string(),
        detail: ended.traceback().unwrap_or_default().to_owned(),
        log_tail: log_tail.to_owned(),
    })
}
