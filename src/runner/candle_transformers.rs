//! The ports that candle-transformers ships: this very program as a worker process.

use std::io;

use super::{ProcessRunner, candle};

/// The runner of candle-transformers' ports.
///
/// # Errors
/// When this program's own path cannot be found.
pub fn runner(threads: usize) -> io::Result<ProcessRunner> {
    let mut runner = candle::runner(threads)?;
    runner.command.push("--upstream".into());
    Ok(runner)
}
