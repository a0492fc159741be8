//! Hostile input of each kind: a hub, a worker, a run folder, files and foreign parsers. docs/FAULTS.md lists them.

mod files;
mod folders;
mod fuzzed;
mod history;
mod hub;
mod mutations;
mod programs;
mod tokenizers;
mod workers;

use crate::support::{Sandbox, stderr, stdout};

/// A message without the line ends and the marks that miette adds.
fn unwrapped(message: &str) -> String {
    message.replace('│', " ").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What `tfcheck` prints with these arguments within ten seconds.
fn told(sandbox: &Sandbox, arguments: &[&str]) -> (Option<i32>, String) {
    let begun = std::time::Instant::now();
    let output = sandbox.tfcheck(arguments);
    assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{arguments:?}");
    (output.status.code(), unwrapped(&(stdout(&output) + &stderr(&output))))
}
