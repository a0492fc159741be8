//! Any program that speaks the worker protocol.

use std::path::Path;

use super::ProcessRunner;

/// The runner of a user's program, started in `folder`.
pub fn runner(program: &[String], folder: &Path, threads: usize) -> ProcessRunner {
    let folder = (!folder.as_os_str().is_empty()).then(|| folder.to_owned());
    ProcessRunner {
        command: program.iter().map(Into::into).collect(),
        folder,
        threads,
        reusable: false,
        templates: None,
        keeps_memory: false,
    }
}
