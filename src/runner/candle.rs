//! tfcheck's own native models: this very program as a worker process.

use std::io;

use super::ProcessRunner;

/// The runner of tfcheck's own models.
///
/// # Errors
/// When this program's own path cannot be found.
pub fn runner(threads: usize) -> io::Result<ProcessRunner> {
    let program = std::env::current_exe()?;
    Ok(ProcessRunner { command: vec![program.into(), "worker".into()], folder: None, threads })
}
