//! A runner that reuses its workers for several cells.
//!
//! Without timing, a cell's cost is mostly the start of its worker: seconds of imports for a forward pass of
//! milliseconds. A worker whose last request failed is not reused, unless it answered that
//! it does not support a model.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reference::Worker;
use reference::protocol::{Forwarded, Reply, Request};

use super::process::{GRACE, ProcessRunner, ask};
use super::{NoResult, Runner, Session, Start};
use crate::execute::cell::FailureKind;

/// The workers that no cell uses.
type Idle = Arc<Mutex<Vec<Worker>>>;

/// Starts a process for a cell when every earlier one is in use, and reuses them; they end with the runner.
#[derive(Debug)]
pub struct SharedRunner {
    runner: ProcessRunner,
    idle: Idle,
}

impl SharedRunner {
    /// Starts its workers with `runner`.
    pub fn new(runner: ProcessRunner) -> Self {
        Self { runner, idle: Idle::default() }
    }
}

impl Runner for SharedRunner {
    fn start<'a>(
        &'a self,
        log: PathBuf,
        stop: &'a AtomicBool,
        _how: Start<'_>,
    ) -> Result<Box<dyn Session + 'a>, NoResult> {
        let worker = match take(&self.idle) {
            Some(worker) => {
                // The log belongs to the worker's first cell, but the logits of this cell go to the same folder as its
                // log would.
                log.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(|error| {
                    NoResult::failed(FailureKind::Environment, format!("{}: {error}", log.display()))
                })?;
                worker
            }
            // It outlives the cell, and a folder for the cell's caches.
            None => self.runner.worker(log, stop, Start::default())?,
        };
        Ok(Box::new(SharedSession { worker: Some(worker), idle: Arc::clone(&self.idle), stop }))
    }
}

impl Drop for SharedRunner {
    fn drop(&mut self) {
        while let Some(worker) = take(&self.idle) {
            worker.exit(GRACE);
        }
    }
}

fn take(idle: &Idle) -> Option<Worker> {
    idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
}

fn give_back(idle: &Idle, worker: Option<Worker>) {
    idle.lock().unwrap_or_else(PoisonError::into_inner).extend(worker);
}

struct SharedSession<'a> {
    /// `None` once the worker has failed.
    worker: Option<Worker>,
    idle: Idle,
    stop: &'a AtomicBool,
}

impl Session for SharedSession<'_> {
    fn ask(&mut self, request: &Request, timeout: Duration) -> Result<Reply, NoResult> {
        let Some(worker) = &mut self.worker else {
            return Err(NoResult::failed(FailureKind::Crashed, "the worker failed in an earlier cell"));
        };
        let reply = ask(worker, request, timeout, self.stop);
        match reply {
            // The worker's peak resident set covers all its cells, so it is not reported for one cell.
            Ok(Reply::Forwarded(forwarded)) => {
                Ok(Reply::Forwarded(Forwarded { peak_bytes: None, ..forwarded }))
            }
            // A model that the worker does not know leaves it as it was.
            Err(ended @ NoResult::Unsupported(_)) if matches!(request, Request::Load(_)) => {
                give_back(&self.idle, self.worker.take());
                Err(ended)
            }
            Err(ended) => {
                self.worker = None;
                Err(ended)
            }
            reply => reply,
        }
    }

    fn end(self: Box<Self>) {
        give_back(&self.idle, self.worker);
    }
}
