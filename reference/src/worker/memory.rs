//! Detects kills by the kernel's out-of-memory killer.

use std::fs;
use std::path::PathBuf;

/// Number of out-of-memory kills, in this cgroup and on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OomKills {
    cgroup: Option<u64>,
    machine: Option<u64>,
}

impl OomKills {
    /// The current counters.
    pub(super) fn now() -> Self {
        Self {
            cgroup: cgroup_events()
                .and_then(|path| fs::read_to_string(path).ok())
                .and_then(|text| counter(&text)),
            machine: fs::read_to_string("/proc/vmstat").ok().and_then(|text| counter(&text)),
        }
    }

    /// Whether one of the counters has increased since.
    pub(super) fn have_risen(self) -> bool {
        let now = Self::now();
        let rose = |before: Option<u64>, now: Option<u64>| matches!((before, now), (Some(before), Some(now)) if now > before);
        rose(self.cgroup, now.cgroup) || rose(self.machine, now.machine)
    }
}

/// Parses the line `oom_kill N`, which memory.events, memory.oom_control and vmstat share.
fn counter(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")).and_then(|count| count.trim().parse().ok())
}

/// The events file of this process's memory cgroup, which its workers inherit.
fn cgroup_events() -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, group) = (fields.next()?, fields.next()?, fields.next()?);
        let group = group.trim_start_matches('/');
        let candidates = if controllers.is_empty() {
            // In a container, the cgroup's own path may be mounted as the root.
            [
                PathBuf::from("/sys/fs/cgroup").join(group).join("memory.events"),
                PathBuf::from("/sys/fs/cgroup/memory.events"),
            ]
        } else if controllers.split(',').any(|name| name == "memory") {
            [
                PathBuf::from("/sys/fs/cgroup/memory").join(group).join("memory.oom_control"),
                PathBuf::from("/sys/fs/cgroup/memory/memory.oom_control"),
            ]
        } else {
            return None;
        };
        candidates.into_iter().find(|path| path.is_file())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_is_read_from_either_kind_of_file() {
        let check = |text: &str, expect: Option<u64>| assert_eq!(counter(text), expect);
        check("low 0\noom 3\noom_kill 2\noom_group_kill 1\n", Some(2));
        check("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n", Some(7));
        check("nr_free_pages 1\n", None);
    }
}
