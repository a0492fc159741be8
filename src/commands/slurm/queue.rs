//! Slurm's own programs: submits, cancels and lists jobs.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use bounds::limits::{LINES, PROGRAM_SECONDS};
use miette::{IntoDiagnostic, Result, WrapErr};

/// How long a program of Slurm may take to answer.
const LIMIT: Duration = Duration::from_secs(PROGRAM_SECONDS.most);
/// The same of the cancellation, for which the user who asked to stop waits.
const CANCEL: Duration = Duration::from_secs(5);
/// Digits of a job's id.
const ID_DIGITS: usize = 20;

/// Submits a job and returns its id.
pub(super) fn submit(arguments: &[String]) -> Result<String> {
    let output = reference::output(Command::new("sbatch").args(arguments), LIMIT)
        .into_diagnostic()
        .wrap_err("sbatch does not answer; is this a host of a Slurm cluster?")?;
    let text = String::from_utf8_lossy(&output.stdout);
    // `--parsable` prints the id, and the cluster after a semicolon where there are several.
    let id = text.trim().split(';').next().unwrap_or_default();
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        let error = if error.trim().is_empty() { output.status.to_string() } else { error.into_owned() };
        miette::bail!(
            help = "check the partition, account and options under [engine]",
            "Slurm refused the job: {}",
            bounds::lines(error.trim(), LINES.most)
        );
    }
    let is_id = (1..=ID_DIGITS).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_digit());
    if !is_id {
        miette::bail!(
            help = "the job may run: look for it with squeue",
            "sbatch printed `{}` where the id of the job belongs",
            bounds::shown(id, 100)
        );
    }
    Ok(id.to_owned())
}

/// Cancels jobs; those that have ended are ignored.
pub(super) fn cancel(ids: &[&str]) {
    if ids.is_empty() {
        return;
    }
    // Nothing can be done about a failure: the user sees the jobs in the queue.
    let _ = reference::output_after_stop(Command::new("scancel").args(ids), CANCEL);
}

/// States of submitted jobs, as Slurm names them.
pub(super) struct Queue {
    /// `(id of the job or of its array, state)`, a task each.
    tasks: Vec<(String, String)>,
}

impl Queue {
    /// The state of the jobs; `None` if the controller does not answer.
    pub(super) fn of(ids: &[&str]) -> Option<Self> {
        let mut squeue = Command::new("squeue");
        squeue.args(["--noheader", "--array", "--states=all", "--format=%F %T", "--jobs"]);
        let output = reference::output(squeue.arg(ids.join(",")), LIMIT).ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let parsed = Self::parse(&text);
        // The controller forgets jobs some minutes after they ended; then it knows none of the ids.
        let is_forgotten = String::from_utf8_lossy(&output.stderr).contains("Invalid job id");
        (output.status.success() || is_forgotten).then_some(parsed)
    }

    fn parse(text: &str) -> Self {
        let line =
            |line: &str| line.split_once(' ').map(|(id, state)| (id.to_owned(), state.trim().to_owned()));
        Self { tasks: text.lines().filter_map(line).collect() }
    }

    /// Whether the job is known and has not ended.
    pub(super) fn has(&self, id: &str) -> bool {
        self.tasks.iter().any(|(known, state)| known == id && !is_ended(state))
    }

    /// Tasks that have ended, without those of the job `merge`.
    pub(super) fn ended(&self, merge: &str) -> usize {
        self.tasks.iter().filter(|(id, state)| id != merge && is_ended(state)).count()
    }

    /// `2 running, 8 pending`, without the job `merge`.
    pub(super) fn words(&self, merge: &str) -> String {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for (_, state) in self.tasks.iter().filter(|(id, _)| id != merge) {
            *counts.entry(state.to_lowercase()).or_default() += 1;
        }
        counts.iter().map(|(state, count)| format!("{count} {state}")).collect::<Vec<_>>().join(", ")
    }
}

/// Whether a job of this state will not run again.
fn is_ended(state: &str) -> bool {
    ![
        "PENDING",
        "RUNNING",
        "CONFIGURING",
        "COMPLETING",
        "SUSPENDED",
        "REQUEUED",
        "REQUEUE_HOLD",
        "RESIZING",
        "STAGE_OUT",
    ]
    .contains(&state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_counts_tasks_by_state() {
        let queue = Queue::parse("7 RUNNING\n7 PENDING\n7 PENDING\n7 COMPLETED\n8 NODE_FAIL\n9 PENDING\n");
        assert_eq!(queue.words("9"), "1 completed, 1 node_fail, 2 pending, 1 running");
        assert_eq!(queue.ended("9"), 2);
        assert!(queue.has("9") && queue.has("7") && !queue.has("8"));
    }
}
