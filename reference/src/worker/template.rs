//! A process that has imported an environment's libraries and forks workers: importing transformers takes seconds, a fork of
//! what is imported milliseconds.
//!
//! A worker that is forked becomes a child of this process, which adopts orphans: it is waited for and killed as one that was
//! started. CUDA must not be used before a fork, so that there is no template where a GPU may be.

use std::io::{self, IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::Pid;
use serde::Serialize;

use super::launch::{Launch, compiler_caches};
use super::{Group, SLICE, readable};
use crate::Environment;

/// Imports of a loaded machine took up to a minute.
const LIMIT: Duration = Duration::from_mins(5);
/// Devices of NVIDIA's and AMD's drivers.
const GPUS: [&str; 2] = ["/dev/nvidiactl", "/dev/kfd"];

/// Forks the workers of one environment. Dropping it ends its process, but none of the workers.
#[derive(Debug)]
pub struct Template {
    launch: Launch,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    NotStarted,
    Running(Running),
    /// Its process ended or did not answer: workers are started by themselves.
    Unusable,
}

#[derive(Debug)]
struct Running {
    group: Group,
    socket: UnixStream,
    _scratch: tempfile::TempDir,
}

/// A message to the template's process.
#[derive(Serialize)]
struct Asked<'a> {
    /// Who adopts the worker.
    parent: u32,
    variables: Vec<(&'a str, &'a str)>,
}

/// Why there is no worker.
pub(super) enum NoFork {
    /// The user asked to stop.
    Stopped,
    /// The worker is to be started by itself.
    Unusable,
}

impl Template {
    /// A process that imports what `environment` has and forks workers; `None` on systems that cannot adopt workers, and
    /// where a GPU may be.
    ///
    /// # Errors
    /// When the cache cannot be written.
    pub fn of(environment: &Environment, cache: &Path, threads: usize) -> io::Result<Option<Self>> {
        let launch = Launch::bridge(environment, cache, PathBuf::new(), threads, "fork_workers")?;
        let has_gpu = GPUS.iter().any(|device| Path::new(device).exists());
        let is_possible = cfg!(target_os = "linux") && !has_gpu;
        Ok(is_possible.then(|| Self { launch, state: Mutex::new(State::NotStarted) }))
    }

    /// Forks a worker that has these ends of its pipes and the log and variables of `launch`.
    pub(super) fn fork(
        &self,
        launch: &Launch,
        scratch: &Path,
        pipes: [BorrowedFd<'_>; 2],
        stop: &AtomicBool,
    ) -> Result<Group, NoFork> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::NotStarted) {
            let running = Running::start(&Launch { log: launch.log.clone(), ..self.launch.clone() });
            *state = running.map_or(State::Unusable, State::Running);
        }
        let State::Running(running) = &mut *state else { return Err(NoFork::Unusable) };
        let forked = running.fork(launch, scratch, pipes, stop);
        if matches!(forked, Err(NoFork::Unusable)) {
            *state = State::Unusable;
        }
        forked
    }
}

impl Running {
    fn start(launch: &Launch) -> io::Result<Self> {
        adopt_orphans()?;
        let (socket, own) = UnixStream::pair()?;
        let scratch = tempfile::Builder::new().prefix("tfcheck-").tempdir()?;
        let mut command = launch.command(scratch.path(), own.try_clone()?.into(), own.into())?;
        Ok(Self { group: Group::spawn(&mut command)?, socket, _scratch: scratch })
    }

    fn fork(
        &mut self,
        launch: &Launch,
        scratch: &Path,
        [requests, replies]: [BorrowedFd<'_>; 2],
        stop: &AtomicBool,
    ) -> Result<Group, NoFork> {
        let unusable = |_| NoFork::Unusable;
        let log = launch.open_log().map_err(unusable)?;
        let caches = compiler_caches(scratch);
        let variables = caches.iter().chain(&launch.variables);
        let asked = Asked {
            parent: std::process::id(),
            variables: variables
                .map(|(name, value)| Some((name.to_str()?, value.to_str()?)))
                .collect::<Option<_>>()
                .ok_or(NoFork::Unusable)?,
        };
        let message = serde_json::to_vec(&asked).map_err(|_| NoFork::Unusable)?;
        let descriptors = [requests, replies, log.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(NoFork::Unusable);
        }
        // Rust's runtime ignores SIGPIPE, so that no flag is needed against it; macOS has none.
        let sent = sendmsg(&self.socket, &[IoSlice::new(&message)], &mut ancillary, SendFlags::empty());
        if sent != Ok(message.len()) {
            return Err(NoFork::Unusable);
        }
        self.adopted(stop).map(Group::of)
    }

    /// The process id of the worker, which it writes as soon as it is this process's child.
    fn adopted(&mut self, stop: &AtomicBool) -> Result<Pid, NoFork> {
        let deadline = Instant::now() + LIMIT;
        let mut line = Vec::new();
        loop {
            if stop.load(Ordering::Relaxed) {
                return Err(NoFork::Stopped);
            }
            if readable(self.socket.as_fd(), SLICE) {
                let mut byte = [0];
                match self.socket.read(&mut byte) {
                    Ok(1) if byte == *b"\n" => break,
                    Ok(1) if line.len() < 20 => line.push(byte[0]),
                    _ => return Err(NoFork::Unusable),
                }
            } else if self.group.has_exited() || Instant::now() >= deadline {
                return Err(NoFork::Unusable);
            }
        }
        let number = std::str::from_utf8(&line).ok().and_then(|text| text.parse().ok());
        number.and_then(Pid::from_raw).ok_or(NoFork::Unusable)
    }
}

/// Makes this process the parent of workers whose own parent has ended.
#[cfg(target_os = "linux")]
fn adopt_orphans() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

#[cfg(not(target_os = "linux"))]
fn adopt_orphans() -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
