//! A child process that leads its own process group and is killed with the group.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

/// A child that leads a process group.
#[derive(Debug)]
pub(super) struct Group {
    child: Child,
    pid: Pid,
    /// Set once the child was reaped; its process group was killed before that.
    ended: Option<ExitStatus>,
}

impl Group {
    pub(super) fn spawn(command: &mut Command) -> io::Result<Self> {
        let child = command.process_group(0).spawn()?;
        let pid = Pid::from_child(&child);
        Ok(Self { child, pid, ended: None })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
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
            std::thread::sleep(Duration::from_millis(2));
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
            self.ended = self.child.wait().ok();
        }
        self.ended
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill(Duration::from_millis(100));
    }
}
