//! transformers in its own environment: the environment's Python with the bridge on its import path.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reference::{Environment, Launch};

use super::ProcessRunner;
use super::process::Templates;

/// The runner of one environment; the bridge is written to `cache` if it is not there yet. If `forks`, two processes that have imported
/// its libraries stay until the runner is dropped.
///
/// # Errors
/// When the cache cannot be written.
pub fn runner(
    environment: &Environment,
    cache: &Path,
    threads: usize,
    forks: bool,
) -> io::Result<ProcessRunner> {
    let launch = Launch::transformers(environment, cache, PathBuf::new(), threads)?;
    let templates = if forks { Templates::new(environment, cache, threads)?.map(Arc::new) } else { None };
    Ok(ProcessRunner {
        command: launch.command,
        folder: launch.folder,
        threads,
        reusable: true,
        templates,
        keeps_memory: false,
    })
}
