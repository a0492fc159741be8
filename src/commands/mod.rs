//! One module per subcommand.

pub mod bench;
pub mod bisect;
pub mod check_worker;
pub mod compare;
pub mod explain;
pub mod gpu_check;
pub mod list;
pub mod merge;
pub mod record;
pub mod run;
pub mod scoreboard;
pub mod slurm;

/// A new folder for the files of one command, which is removed with the value.
///
/// # Errors
/// When the system's temporary folder is missing, full or not writable.
pub(crate) fn scratch() -> miette::Result<tempfile::TempDir> {
    tempfile::tempdir().map_err(|error| {
        let parent = std::env::temp_dir();
        miette::miette!(
            help = "set TMPDIR to a folder that exists, can be written and has free space",
            "cannot create a temporary folder in {}: {}",
            parent.display(),
            error.kind()
        )
    })
}
