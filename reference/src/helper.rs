//! Programs that tfcheck waits for: uv, git, nvidia-smi, Slurm's, and interpreters that describe themselves. They have a time
//! limit and an output limit, a request to stop ends the wait, and all of them end when tfcheck does.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bounds::limits::PROBE_BYTES;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// Between two looks at whether a program has ended; the longest is also how late a request to stop may be noticed.
const SHORTEST_PAUSE: Duration = Duration::from_micros(500);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// The programs that run; the flag tells those that lead a process group.
static RUNNING: Mutex<BTreeSet<(i32, bool)>> = Mutex::new(BTreeSet::new());

/// The flag that a request to stop raises.
static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on, every wait for a program ends when `stop` is raised.
pub fn heed(stop: &Arc<AtomicBool>) {
    // A process has one such flag; a second one, of a test, changes nothing.
    let _ = STOP.set(Arc::clone(stop));
}

/// Whether the user asked to stop.
pub fn is_stopped() -> bool {
    STOP.get().is_some_and(|stop| stop.load(Ordering::Relaxed))
}

/// While this exists, [`end_all`] ends the process.
pub(crate) struct Running((i32, bool));

impl Running {
    /// Registers a process, or the process group that it leads.
    pub(crate) fn new(id: u32, leads_group: bool) -> Self {
        let entry = (id.cast_signed(), leads_group);
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).insert(entry);
        Self(entry)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// Ends every program that this crate waits for, before the process exits. Workers end by themselves.
pub fn end_all() {
    for (id, leads_group) in RUNNING.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let Some(pid) = Pid::from_raw(*id) else { continue };
        // One that has just ended needs no signal.
        let _ = if *leads_group {
            kill_process_group(pid, Signal::KILL)
        } else {
            kill_process(pid, Signal::KILL)
        };
    }
}

/// What a program wrote before it ended, each stream up to [`PROBE_BYTES`].
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

/// Runs a program without input in a process group of its own, which has ended when this returns. [`Duration::MAX`] is no
/// limit.
///
/// # Errors
/// When it cannot be started, does not end within `limit`, or the user asks to stop ([`io::ErrorKind::Interrupted`]).
pub fn output(command: &mut Command, limit: Duration) -> io::Result<Output> {
    ended(command, limit, &is_stopped)
}

/// As [`output`], of a program that a request to stop itself makes necessary: only `limit` ends the wait.
///
/// # Errors
/// When it cannot be started or does not end within `limit`.
pub fn output_after_stop(command: &mut Command, limit: Duration) -> io::Result<Output> {
    ended(command, limit, &|| false)
}

fn ended(command: &mut Command, limit: Duration, is_stopped: &dyn Fn() -> bool) -> io::Result<Output> {
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = spawned.spawn()?;
    let id = child.id();
    let _running = Running::new(id, true);
    let (stdout, stderr) = (reading(child.stdout.take()), reading(child.stderr.take()));
    let begun = Instant::now();
    let ended = loop {
        match child.try_wait()? {
            Some(status) => break Ok(status),
            None if is_stopped() => break Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted")),
            None if begun.elapsed() >= limit => {
                let message = format!("it did not end within {} s", limit.as_secs());
                break Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            // A short program is not waited for longer than it runs, nor a long one looked at often.
            None => thread::sleep((begun.elapsed() / 8).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)),
        }
    };
    // What it started must not outlive it, nor keep its pipes open.
    if let Some(group) = Pid::from_raw(id.cast_signed()) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let status = match ended {
        Ok(status) => status,
        Err(error) => {
            child.wait()?;
            return Err(error);
        }
    };
    let whole = |pipe: Receiver<Vec<u8>>| pipe.recv_timeout(Duration::from_secs(2)).unwrap_or_default();
    Ok(Output { status, stdout: whole(stdout), stderr: whole(stderr) })
}

/// Reads a pipe in a thread of its own: everything up to the limit is kept, the rest is dropped.
fn reading(pipe: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut kept = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.by_ref().take(PROBE_BYTES.most).read_to_end(&mut kept);
            let _ = io::copy(&mut pipe, &mut io::sink());
        }
        let _ = sender.send(kept);
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_is_read_to_its_end_and_one_that_hangs_is_ended() {
        let found = output(&mut shell("echo out; echo err >&2; exit 3"), Duration::from_secs(10)).unwrap();
        assert_eq!(
            (found.status.code(), &*found.stdout, &*found.stderr),
            (Some(3), &b"out\n"[..], &b"err\n"[..])
        );
        let begun = Instant::now();
        let error = output(&mut shell("sleep 600 & sleep 600"), Duration::from_millis(200)).unwrap_err();
        assert_eq!(error.to_string(), "it did not end within 0 s");
        // A request to stop ends every wait but the one that it makes necessary.
        let stopped = ended(&mut shell("sleep 600"), Duration::MAX, &|| true).unwrap_err();
        assert_eq!(stopped.kind(), io::ErrorKind::Interrupted);
        // A grandchild that holds the pipes open delays nothing.
        output(&mut shell("sleep 600 & echo"), Duration::from_secs(10)).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}
