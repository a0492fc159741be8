//! The [`Runner`] trait: it starts one worker for one cell and exchanges requests and replies with it.

pub mod candle;
pub mod candle_transformers;
pub mod command;
mod observed;
mod process;
mod shared;
pub mod transformers;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use reference::protocol::{Reply, Request};

pub use observed::ObservedRunner;
pub(crate) use observed::quoted;
pub use process::ProcessRunner;
pub use shared::SharedRunner;

use crate::execute::cell::{Failure, FailureKind};

/// How a worker is started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Start<'a> {
    /// Where its compilers keep their caches, which otherwise end with the worker.
    pub caches: Option<&'a Path>,
    /// Whether it repeats what another worker computed, so that nothing may be the same but the code.
    pub is_second: bool,
}

/// Starts workers of one kind.
pub trait Runner: Send + Sync {
    /// Starts the worker of one cell; the worker's output is appended to `log`.
    ///
    /// # Errors
    /// When the worker cannot be started.
    fn start<'a>(
        &'a self,
        log: PathBuf,
        stop: &'a AtomicBool,
        how: Start<'_>,
    ) -> Result<Box<dyn Session + 'a>, NoResult>;

    /// Whether a worker may load one model after another.
    fn is_reusable(&self) -> bool {
        false
    }
}

/// A running worker.
pub trait Session: Send {
    /// Sends `request` and waits for its reply, at most for `timeout`.
    ///
    /// # Errors
    /// When the worker fails, dies, does not answer in time, or tfcheck is asked to stop.
    fn ask(&mut self, request: &Request, timeout: Duration) -> Result<Reply, NoResult>;

    /// Asks the worker to exit and waits for it; every process that it started has ended when this returns.
    fn end(self: Box<Self>);
}

/// Why a worker gave no result.
#[derive(Clone, Debug, PartialEq)]
pub enum NoResult {
    /// The runner does not support the request, for this reason.
    Unsupported(String),
    /// The worker failed.
    Failed(Failure),
    /// tfcheck was asked to stop.
    Interrupted,
}

impl NoResult {
    /// A failure of kind `kind` without traceback or log.
    pub fn failed(kind: FailureKind, reason: impl Into<String>) -> Self {
        Self::Failed(Failure { kind, reason: reason.into(), detail: String::new(), log_tail: String::new() })
    }
}
