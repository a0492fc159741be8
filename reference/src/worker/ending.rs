//! The ways in which a request ends without its reply.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use super::memory::OomKills;
use crate::protocol::{Failed, FailedKind, Reply};

/// Why a request was not answered. Reports show every variant.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum WorkerEnd {
    /// The worker raised an exception and replied with it.
    #[error("{}", line(.0))]
    Exception(Failed),
    /// The worker replied that it does not support the request.
    #[error("unsupported: {}", .0.message)]
    Unsupported(Failed),
    /// An allocation failed, or the kernel's out-of-memory killer ended the worker.
    #[error("out of memory: {}", line(.0))]
    OutOfMemory(Failed),
    /// A signal ended the worker.
    #[error("killed by signal {signal} ({name}){note}")]
    Signalled {
        /// The signal's number.
        signal: i32,
        /// The signal's name.
        name: &'static str,
        /// The signal's usual cause; empty, or text that begins with a comma.
        note: &'static str,
    },
    /// The worker exited by itself.
    #[error("exited with code {code} before it answered{}", partial(.written))]
    Exited {
        /// The exit code.
        code: i32,
        /// The incomplete reply that it had written.
        written: String,
    },
    /// The time limit passed; the worker's process group was killed.
    #[error("no answer within {} s", after.as_secs_f64())]
    TimedOut {
        /// The limit.
        after: Duration,
    },
    /// The worker violated the protocol: it sent no reply or an invalid one.
    #[error("no valid reply: {reason}")]
    NoReply {
        /// What it sent instead.
        reason: String,
    },
    /// The stop flag was raised.
    #[error("interrupted")]
    Interrupted,
}

impl WorkerEnd {
    /// The traceback or cause chain, if the worker sent one.
    pub fn traceback(&self) -> Option<&str> {
        match self {
            Self::Exception(failed) | Self::Unsupported(failed) | Self::OutOfMemory(failed) => {
                Some(failed.traceback.as_str()).filter(|text| !text.is_empty())
            }
            _ => None,
        }
    }

    /// A reply of another kind than the request's; [`super::Worker::ask`] rejects it earlier.
    pub(super) fn unexpected(reply: &Reply) -> Self {
        Self::NoReply { reason: format!("{reply:?} answers another request") }
    }

    /// The ending of a worker that exited with `status` and was not killed by tfcheck.
    pub(super) fn from_status(status: ExitStatus, before: OomKills, written: &str) -> Self {
        let Some(signal) = status.signal() else {
            return Self::Exited { code: status.code().unwrap_or(-1), written: written.to_owned() };
        };
        if signal == KILL && before.have_risen() {
            return Self::OutOfMemory(Failed {
                kind: FailedKind::OutOfMemory,
                error: String::new(),
                message: "the kernel's out-of-memory killer ended the worker".to_owned(),
                traceback: String::new(),
            });
        }
        Self::Signalled {
            signal,
            name: name(signal),
            note: if signal == KILL { ", often the out-of-memory killer" } else { "" },
        }
    }
}

const KILL: i32 = 9;

/// Names of the signals that end programs; their numbers are the same on Linux and macOS.
fn name(signal: i32) -> &'static str {
    match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        8 => "SIGFPE",
        KILL => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        _ => "another signal",
    }
}

fn line(failed: &Failed) -> String {
    if failed.error.is_empty() {
        failed.message.clone()
    } else {
        format!("{}: {}", failed.error, failed.message)
    }
}

fn partial(written: &str) -> String {
    if written.is_empty() { String::new() } else { format!("; it had written `{written}`") }
}
