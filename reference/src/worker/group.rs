//! A child process that leads its own process group and is killed with the group.

use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process_group, waitid, waitpgid, waitpid,
};

/// How long adopted processes of a killed group may take to end.
const ORPHANS: Duration = Duration::from_millis(50);

/// A child that leads a process group.
#[derive(Debug)]
pub(super) struct Group {
    pid: Pid,
    /// Set once the child was reaped; its process group was killed before that.
    ended: Option<ExitStatus>,
}

impl Group {
    pub(super) fn spawn(command: &mut Command) -> io::Result<Self> {
        let child = command.process_group(0).spawn()?;
        Ok(Self::of(Pid::from_child(&child)))
    }

    /// The group that a child of this process leads.
    pub(super) fn of(pid: Pid) -> Self {
        Self { pid, ended: None }
    }

    pub(super) fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Whether the leader has exited. It is not reaped here: while it is a zombie, the kernel cannot reuse
    /// its process id, which is also the group's.
    pub(super) fn has_exited(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        self.ended.is_some()
            || !matches!(waitid(WaitId::Pid(self.pid), options), Ok(None) | Err(rustix::io::Errno::INTR))
    }

    /// Waits for the leader's exit; returns false after `limit`.
    pub(super) fn wait(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while !self.has_exited() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        true
    }

    /// Ends the whole group: SIGTERM, then SIGKILL after at most `grace`. Returns the leader's exit status.
    pub(super) fn kill(&mut self, grace: Duration) -> Option<ExitStatus> {
        if self.ended.is_none() {
            if !grace.is_zero() && !self.has_exited() {
                let _ = kill_process_group(self.pid, Signal::TERM);
                self.wait(grace);
            }
            // SIGKILL ends grandchildren that ignored SIGTERM or outlived the leader.
            let _ = kill_process_group(self.pid, Signal::KILL);
            self.ended = self.reap();
            self.reap_orphans();
        }
        self.ended
    }

    fn reap(&self) -> Option<ExitStatus> {
        loop {
            match waitpid(Some(self.pid), WaitOptions::empty()) {
                Ok(Some((_, status))) => return Some(ExitStatus::from_raw(status.as_raw())),
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// Reaps what the leader left behind, if this process adopts orphans ([`super::Template`]).
    fn reap_orphans(&self) {
        let deadline = Instant::now() + ORPHANS;
        while let Ok(reaped) = waitpgid(self.pid, WaitOptions::NOHANG) {
            if reaped.is_none() {
                if Instant::now() >= deadline {
                    return;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill(Duration::from_millis(100));
    }
}
