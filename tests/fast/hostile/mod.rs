//! Hostile input of each kind: a hub, a worker, a run folder, files and foreign parsers. docs/FAULTS.md lists them.

mod files;
mod folders;
mod fuzzed;
mod hub;
mod mutations;
mod programs;
mod tokenizers;
mod workers;

/// A message without the line ends and the marks that miette adds.
fn unwrapped(message: &str) -> String {
    message.replace('│', " ").split_whitespace().collect::<Vec<_>>().join(" ")
}
