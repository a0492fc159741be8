//! A worker: a process group that answers requests on a pair of pipes.
//!
//! The worker reads requests on descriptor 3 and writes replies on descriptor 4 (variables of
//! [`protocol`](crate::protocol) name both); stdin is empty, stdout and stderr go to its log. When a worker
//! ends, its whole process group is killed. When tfcheck itself is killed, the worker reads end of file on
//! its request descriptor and must end its own group: the bridge does, and a `command` program must.

mod ending;
mod group;
mod launch;
mod memory;
mod reply;
mod template;

use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bounds::limits::{LINES, REPLY_BYTES};
use bounds::shown;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::protocol::{
    Failed, FailedKind, Forward, Forwarded, Load, Ready, Reply, Request, Time, Timed, Trace,
};
pub use ending::WorkerEnd;
use group::Group;
pub use launch::{Launch, compiler_caches};
use memory::OomKills;
use template::NoFork;
pub use template::Template;

/// Interval at which a wait checks the stop flag and the process.
const SLICE: Duration = Duration::from_millis(20);
/// Time between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_millis(300);

/// Starts the program of `launch`. The child's ends of the pipes are closed here when this returns.
fn spawn(launch: &Launch, scratch: &Path, requests: OwnedFd, replies: OwnedFd) -> io::Result<Group> {
    let mut command = launch.command(scratch, requests, replies)?;
    Group::spawn(&mut command).map_err(|error| {
        let program = command.get_program().to_string_lossy();
        let hint = match error.kind() {
            io::ErrorKind::NotFound => "; check the path, or install it",
            io::ErrorKind::PermissionDenied => "; name a file that may be executed (chmod +x)",
            _ => "",
        };
        io::Error::new(error.kind(), format!("{program} could not be started: {error}{hint}"))
    })
}

fn readable(descriptor: BorrowedFd<'_>, wait: Duration) -> bool {
    let mut descriptors = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    let wait = Timespec { tv_sec: 0, tv_nsec: wait.as_nanos() as i64 };
    // An interrupted poll counts as a shorter interval.
    poll(&mut descriptors, Some(&wait)).is_ok_and(|ready| ready > 0)
}

/// A running worker. Dropping it kills its process group.
#[derive(Debug)]
pub struct Worker {
    group: Group,
    requests: Option<PipeWriter>,
    replies: PipeReader,
    /// Received bytes that do not form a complete line yet.
    pending: Vec<u8>,
    log: PathBuf,
    /// Bytes of the log that were written before the last [`Request::Load`]: those of other cells.
    log_begin: u64,
    has_loaded: bool,
    oom_kills: OomKills,
    /// Temporary folder for the compiler's caches, removed with the worker.
    _scratch: tempfile::TempDir,
}

impl Worker {
    /// Starts the program of `launch`.
    ///
    /// # Errors
    /// When the log or the pipes cannot be created, or the program cannot be started.
    pub fn start(launch: &Launch) -> io::Result<Self> {
        Self::begin(launch, |scratch, requests, replies| spawn(launch, scratch, requests, replies))
    }

    /// Forks a worker from `template`, or starts one if the template's process does not fork.
    ///
    /// # Errors
    /// As [`Self::start`], and [`io::ErrorKind::Interrupted`] when `stop` is raised while the template's process imports.
    pub fn fork(template: &Template, launch: &Launch, stop: &AtomicBool) -> io::Result<Self> {
        Self::begin(launch, |scratch, requests, replies| {
            match template.fork(launch, scratch, [requests.as_fd(), replies.as_fd()], stop) {
                Ok(group) => Ok(group),
                Err(NoFork::Stopped) => Err(io::ErrorKind::Interrupted.into()),
                Err(NoFork::Unusable) => spawn(launch, scratch, requests, replies),
            }
        })
    }

    fn begin(
        launch: &Launch,
        process: impl FnOnce(&Path, OwnedFd, OwnedFd) -> io::Result<Group>,
    ) -> io::Result<Self> {
        let (request_read, requests) = io::pipe()?;
        // A worker that does not read must not block a write for longer than the request may take.
        rustix::fs::fcntl_setfl(&requests, rustix::fs::OFlags::NONBLOCK)?;
        let (replies, reply_write) = io::pipe()?;
        let scratch = tempfile::Builder::new().prefix("tfcheck-").tempdir()?;
        let oom_kills = OomKills::now();
        let log_begin = log_length(&launch.log);
        let group = process(scratch.path(), request_read.into(), reply_write.into())?;
        Ok(Self {
            group,
            requests: Some(requests),
            replies,
            pending: Vec::new(),
            log: launch.log.clone(),
            log_begin,
            has_loaded: false,
            oom_kills,
            _scratch: scratch,
        })
    }

    /// Process id of the worker and of its group.
    pub fn id(&self) -> u32 {
        self.group.id()
    }

    /// Sends `request` and waits for its reply, for at most `timeout` and only while `stop` is false.
    ///
    /// # Errors
    /// Every way in which a request ends without its reply. A worker that replied with a failure
    /// ([`WorkerEnd::Exception`], [`WorkerEnd::Unsupported`], or [`WorkerEnd::OutOfMemory`] by reply) still
    /// runs and accepts an exit request; any other is dead.
    pub fn ask(
        &mut self,
        request: &Request,
        timeout: Duration,
        stop: &AtomicBool,
    ) -> Result<Reply, WorkerEnd> {
        let deadline = Instant::now().checked_add(timeout);
        // What a worker writes while it starts belongs to its first cell.
        if matches!(request, Request::Load(_)) && self.has_loaded {
            self.log_begin = log_length(&self.log);
        }
        self.has_loaded |= matches!(request, Request::Load(_));
        let mut line = serde_json::to_vec(request).map_err(|error| WorkerEnd::NoReply {
            reason: format!("the request could not be written as JSON: {error}"),
        })?;
        line.push(b'\n');
        self.send(&line, deadline, timeout, stop)?;
        let line = self.line(deadline, timeout, stop)?;
        let reply = bounds::parse(&line).map_err(|error| {
            self.group.kill(GRACE);
            let error = error.to_string();
            WorkerEnd::NoReply {
                reason: format!("`{}` is not a reply: {}", excerpt(&line), shown(&error, 200)),
            }
        })?;
        let reply = reply::within_limits(reply).map_err(|reason| {
            self.group.kill(GRACE);
            WorkerEnd::NoReply { reason: format!("its reply is refused: {reason}") }
        })?;
        match reply {
            Reply::Failed(failed) => Err(WorkerEnd::from(failed)),
            reply if answers(request, &reply) => Ok(reply),
            other => {
                self.group.kill(GRACE);
                let word = |tagged: serde_json::Result<serde_json::Value>, tag: &str| {
                    tagged.ok().and_then(|value| Some(value.get(tag)?.as_str()?.to_owned()))
                };
                let told = word(serde_json::to_value(&other), "is").unwrap_or_default();
                let asked = word(serde_json::to_value(request), "do").unwrap_or_default();
                let reason = format!("the reply `{told}` does not answer `{asked}`");
                Err(WorkerEnd::NoReply { reason })
            }
        }
    }

    /// [`ask`](Self::ask) with [`Request::Load`].
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn load(&mut self, load: Load, timeout: Duration, stop: &AtomicBool) -> Result<Ready, WorkerEnd> {
        match self.ask(&Request::Load(load), timeout, stop)? {
            Reply::Ready(ready) => Ok(ready),
            other => Err(WorkerEnd::unexpected(&other)),
        }
    }

    /// [`ask`](Self::ask) with [`Request::Forward`].
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn forward(
        &mut self,
        forward: Forward,
        timeout: Duration,
        stop: &AtomicBool,
    ) -> Result<Forwarded, WorkerEnd> {
        match self.ask(&Request::Forward(forward), timeout, stop)? {
            Reply::Forwarded(forwarded) => Ok(forwarded),
            other => Err(WorkerEnd::unexpected(&other)),
        }
    }

    /// [`ask`](Self::ask) with [`Request::Time`].
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn time(&mut self, time: Time, timeout: Duration, stop: &AtomicBool) -> Result<Timed, WorkerEnd> {
        match self.ask(&Request::Time(time), timeout, stop)? {
            Reply::Timed(timed) => Ok(timed),
            other => Err(WorkerEnd::unexpected(&other)),
        }
    }

    /// [`ask`](Self::ask) with [`Request::Trace`].
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn trace(&mut self, trace: Trace, timeout: Duration, stop: &AtomicBool) -> Result<(), WorkerEnd> {
        match self.ask(&Request::Trace(trace), timeout, stop)? {
            Reply::Traced => Ok(()),
            other => Err(WorkerEnd::unexpected(&other)),
        }
    }

    /// Asks the worker to exit, waits for `grace`, and kills the rest of its group.
    pub fn exit(mut self, grace: Duration) {
        if let (Some(mut pipe), Ok(mut line)) = (self.requests.take(), serde_json::to_vec(&Request::Exit)) {
            line.push(b'\n');
            if pipe.write_all(&line).is_ok() {
                // The pipe stays open during the wait, because the worker treats end of file as the death of
                // tfcheck.
                self.group.wait(grace);
            }
        }
        self.group.kill(Duration::ZERO);
    }

    /// The last `lines` lines that the worker wrote into its log since the last [`Request::Load`], without progress bars.
    pub fn log_tail(&self, lines: usize) -> String {
        log_tail(&self.log, self.log_begin, lines)
    }

    /// Writes a request, and waits while the worker does not read.
    fn send(
        &mut self,
        line: &[u8],
        deadline: Option<Instant>,
        timeout: Duration,
        stop: &AtomicBool,
    ) -> Result<(), WorkerEnd> {
        let mut left = line;
        while !left.is_empty() {
            let written = match self.requests.as_mut() {
                Some(pipe) => pipe.write(left),
                None => Err(io::ErrorKind::BrokenPipe.into()),
            };
            match written {
                Ok(count) => left = &left[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.group.has_exited() {
                        return Err(self.gone(deadline, stop));
                    }
                    self.check_wait(deadline, timeout, stop)?;
                    std::thread::sleep(SLICE / 4);
                }
                // A write fails only when the worker closed the pipe; find out how it ended.
                Err(_) => return Err(self.gone(deadline, stop)),
            }
        }
        Ok(())
    }

    /// Ends a wait whose time is over or that the user stopped.
    fn check_wait(
        &mut self,
        deadline: Option<Instant>,
        timeout: Duration,
        stop: &AtomicBool,
    ) -> Result<(), WorkerEnd> {
        if stop.load(Ordering::Relaxed) {
            self.group.kill(GRACE);
            return Err(WorkerEnd::Interrupted);
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            self.group.kill(GRACE);
            return Err(WorkerEnd::TimedOut { after: timeout });
        }
        Ok(())
    }

    /// Waits for one line of the reply pipe.
    fn line(
        &mut self,
        deadline: Option<Instant>,
        timeout: Duration,
        stop: &AtomicBool,
    ) -> Result<Vec<u8>, WorkerEnd> {
        // Bytes of `pending` that are known to hold no line end.
        let mut searched = 0;
        loop {
            let found = self.pending[searched..].iter().position(|byte| *byte == b'\n');
            if let Some(end) = found.map(|index| searched + index) {
                let rest = self.pending.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.pending, rest);
                line.pop();
                return Ok(line);
            }
            searched = self.pending.len();
            if self.pending.len() as u64 > REPLY_BYTES.most {
                self.group.kill(GRACE);
                return Err(WorkerEnd::NoReply {
                    reason: format!("more than {} bytes without a line end", REPLY_BYTES.most),
                });
            }
            // Checked before reading: anything a process wrote before it exited is in the pipe by then.
            let exited = self.group.has_exited();
            if self.readable(if exited { Duration::ZERO } else { SLICE }) {
                let mut block = [0; 16384];
                match self.replies.read(&mut block) {
                    Ok(0) | Err(_) => return Err(self.gone(deadline, stop)),
                    Ok(count) => self.pending.extend_from_slice(&block[..count]),
                }
            } else if exited {
                return Err(self.gone(deadline, stop));
            }
            // Also while bytes arrive: a worker that writes for ever without a line end must not outlast its time.
            self.check_wait(deadline, timeout, stop)?;
        }
    }

    fn readable(&self, wait: Duration) -> bool {
        readable(self.replies.as_fd(), wait)
    }

    /// The worker closed a pipe: it is dead, about to exit, or has violated the protocol.
    fn gone(&mut self, deadline: Option<Instant>, stop: &AtomicBool) -> WorkerEnd {
        let last_wait = Instant::now() + Duration::from_secs(2);
        while !self.group.has_exited() {
            let now = Instant::now();
            if now >= last_wait
                || deadline.is_some_and(|deadline| now >= deadline)
                || stop.load(Ordering::Relaxed)
            {
                self.group.kill(GRACE);
                return WorkerEnd::NoReply {
                    reason: "the worker closed its pipes but went on running".to_owned(),
                };
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        match self.group.kill(Duration::ZERO) {
            Some(status) => WorkerEnd::from_status(status, self.oom_kills, &excerpt(&self.pending)),
            None => WorkerEnd::NoReply { reason: "the worker's exit status could not be read".to_owned() },
        }
    }
}

/// Bytes of the log at `path`; 0 for a log that does not exist.
fn log_length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |log| log.len())
}

/// The last `lines` lines of the log at `path` from byte `begin` on, without progress bars.
fn log_tail(path: &Path, begin: u64, lines: usize) -> String {
    const WINDOW: u64 = 64 << 10;
    let read = || -> io::Result<Vec<u8>> {
        let mut file = bounds::file::open(path)?;
        let length = file.metadata()?.len();
        let from = begin.max(length.saturating_sub(WINDOW));
        file.seek(SeekFrom::Start(from))?;
        let mut window = Vec::new();
        file.take(WINDOW).read_to_end(&mut window)?;
        Ok(window)
    };
    let window = read().unwrap_or_default();
    let tail = crate::failure::tail(&without_progress_bars(&String::from_utf8_lossy(&window)), lines);
    bounds::lines(&tail, LINES.most).into_owned()
}

/// `log` as a terminal would show it: of what a carriage return overwrites, the last state, and no line of a bar as tqdm
/// draws it, `42%|████▏     | 5/12 [00:01<00:02]`.
fn without_progress_bars(log: &str) -> String {
    let shown = |line: &str| {
        let state = line.split('\r').rfind(|state| !state.trim().is_empty());
        state.filter(|state| !state.contains("%|")).map(str::to_owned)
    };
    let lines: Vec<String> = log.lines().filter_map(shown).collect();
    lines.join("\n")
}

/// Whether `reply` is of the kind that answers `request`.
fn answers(request: &Request, reply: &Reply) -> bool {
    matches!(
        (request, reply),
        (Request::Load(_), Reply::Ready(_))
            | (Request::Forward(_), Reply::Forwarded(_))
            | (Request::Time(_), Reply::Timed(_))
            | (Request::Trace(_), Reply::Traced)
            | (Request::Capture(_), Reply::Captured(_))
            | (Request::Replay(_), Reply::Replayed(_))
            | (Request::Tokenize(_), Reply::Tokenized(_))
            | (Request::Prepare(_), Reply::Prepared(_))
            | (Request::Inputs(_), Reply::Taken(_))
            | (Request::Generate(_), Reply::Generated(_))
            | (Request::Make(_), Reply::Made)
    )
}

/// The first 200 bytes of a line that is not a reply.
fn excerpt(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(&line[..line.len().min(200)]);
    shown(text.trim_end(), 200).into_owned()
}

impl From<Failed> for WorkerEnd {
    fn from(failed: Failed) -> Self {
        match failed.kind {
            FailedKind::Unsupported => Self::Unsupported(failed),
            FailedKind::Exception => Self::Exception(failed),
            FailedKind::OutOfMemory => Self::OutOfMemory(failed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_quoted_from_the_cells_own_part_and_without_progress_bars() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("worker.log");
        let before = "an earlier cell\n";
        let bars =
            "\rLoading:   0%|          | 0/2 [00:00<?, ?it/s]\rLoading: 100%|██████████| 2/2 [00:00<00:00]\n";
        std::fs::write(&path, format!("{before}{bars}a warning\nold\rnew\nan error\n")).unwrap();
        assert_eq!(log_tail(&path, before.len() as u64, 30), "a warning\nnew\nan error");
        assert_eq!(log_tail(&path, 0, 1), "an error");
        assert_eq!(log_tail(&path, 1 << 40, 30), "");
        assert_eq!(log_tail(&folder.path().join("absent"), 0, 30), "");
    }
}
