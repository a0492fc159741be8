//! tfcheck's own native models: the `tfcheck` program itself as a worker process.

use std::io;
use std::path::{Path, PathBuf};

use super::ProcessRunner;

/// The runner of tfcheck's own models. On a GPU its workers also search the environments of `pythons` for the CUDA
/// libraries, and keep compiled kernels in `cache`.
///
/// # Errors
/// When this program's own path cannot be found.
pub fn runner(threads: usize, pythons: &[PathBuf], cache: &Path) -> io::Result<ProcessRunner> {
    let program = std::env::current_exe()?;
    let mut command = vec![program.into(), "worker".into(), "--cubins".into(), cache.join("cubins").into()];
    for python in pythons {
        command.extend(["--python".into(), python.into()]);
    }
    Ok(ProcessRunner { command, folder: None, threads, reusable: true, templates: None, keeps_memory: true })
}
