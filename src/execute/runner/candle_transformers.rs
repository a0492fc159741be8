//! The ports that candle-transformers ships: the `tfcheck` program itself as a worker process.

use std::io;

use super::ProcessRunner;

/// The runner of candle-transformers' ports.
///
/// # Errors
/// When this program's own path cannot be found.
pub fn runner(threads: usize) -> io::Result<ProcessRunner> {
    let program = std::env::current_exe()?;
    let command = vec![program.into(), "worker".into(), "--upstream".into()];
    Ok(ProcessRunner { command, folder: None, threads, reusable: true, templates: None, keeps_memory: true })
}
