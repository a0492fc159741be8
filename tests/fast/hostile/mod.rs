//! Hostile input of each kind: a hub, a worker, a run folder, files and foreign parsers. docs/FAULTS.md lists them.

mod files;
mod folders;
mod hub;
mod tokenizers;
mod workers;
