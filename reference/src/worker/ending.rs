//! The ways a request ends without its reply.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use super::memory::OomKills;
use crate::protocol::{Failed, FailedKind, Reply};

/// Why a request was not answered. Every variant is something that a report can show.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum WorkerEnd {
    /// The worker raised an exception and said so.
    #[error("{}", line(.0))]
    Exception(Failed),
    /// The worker does not have what was asked and said so.
    #[error("unsupported: {}", .0.message)]
    Unsupported(Failed),
    /// An allocation was refused, or the kernel killed the worker for its memory.
    #[error("out of memory: {}", line(.0))]
    OutOfMemory(Failed),
    /// The worker was ended by a signal.
    #[error("killed by signal {signal} ({name}){note}")]
    Signalled {
        /// The signal's number.
        signal: i32,
        /// The signal's name.
        name: &'static str,
        /// What the signal often means; empty, or beginning with a comma.
        note: &'static str,
    },
    /// The worker exited of its own accord.
    #[error("exited with code {code} before it answered{}", partial(.written))]
    Exited {
        /// The exit code.
        code: i32,
        /// What it had written of a reply.
        written: String,
    },
    /// The time limit passed; the worker's process group was killed.
    #[error("no answer within {} s", after.as_secs_f64())]
    TimedOut {
        /// The limit.
        after: Duration,
    },
    /// The worker lives outside the protocol: no reply, or one that is none.
    #[error("no valid reply: {reason}")]
    NoReply {
        /// What came instead.
        reason: String,
    },
    /// The stop flag was raised.
    #[error("interrupted")]
    Interrupted,
}

impl WorkerEnd {
    /// The traceback or cause chain, where the worker sent one.
    pub fn traceback(&self) -> Option<&str> {
        match self {
            Self::Exception(failed) | Self::Unsupported(failed) | Self::OutOfMemory(failed) => {
                Some(failed.traceback.as_str()).filter(|text| !text.is_empty())
            }
            _ => None,
        }
    }

    /// A reply of another kind than the request's; [`super::Worker::ask`] rules it out before.
    pub(super) fn unexpected(reply: &Reply) -> Self {
        Self::NoReply { reason: format!("{reply:?} answers another request") }
    }

    /// The ending of a worker that exited with `status` without a kill of ours.
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
