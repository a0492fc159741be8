//! A child in a process group of its own, killed as a group.

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
    /// Set once the child was reaped; its process group was killed before.
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

    /// Whether the leader has exited. It is left unreaped: as long as it is, its number, which names
    /// the group too, cannot pass to a stranger.
    pub(super) fn has_exited(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        self.ended.is_some()
            || !matches!(waitid(WaitId::Pid(self.pid), options), Ok(None) | Err(rustix::io::Errno::INTR))
    }

    /// Waits for the leader's exit; false after `limit`.
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

    /// Ends the whole group: SIGTERM, up to `grace`, SIGKILL. The leader's exit status.
    pub(super) fn kill(&mut self, grace: Duration) -> Option<ExitStatus> {
        if self.ended.is_none() {
            if !grace.is_zero() && !self.has_exited() {
                let _ = kill_process_group(self.pid, Signal::TERM);
                self.wait(grace);
            }
            // Grandchildren that ignored SIGTERM or outlived the leader end here.
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
