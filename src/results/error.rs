//! Why a run folder cannot be read or written, and what to do.

use std::io;
use std::path::{Path, PathBuf};

use miette::Diagnostic;
use thiserror::Error;

use super::SCHEMA_VERSION;

/// Why a run folder cannot be read or written.
#[derive(Debug, Error, Diagnostic)]
pub enum ResultsError {
    /// The file system refused.
    #[error("cannot {action} {}: {cause}", path.display())]
    #[diagnostic(help("{}", io_hint(cause)))]
    Io {
        /// The operation that failed: `write`, `read`, `create`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error, which the message quotes.
        cause: io::Error,
    },
    /// A file of the run does not follow the format.
    #[error("{} is not a readable record: {cause}", path.display())]
    #[diagnostic(help("{}", record_hint(path)))]
    Record {
        /// The file.
        path: PathBuf,
        /// Where it violates the format.
        cause: serde_json::Error,
    },
    /// The run was written by a newer tfcheck.
    #[error("{} has schema version {found}, this tfcheck reads up to {SCHEMA_VERSION}", path.display())]
    #[diagnostic(help("use the tfcheck that wrote the run, or a newer one"))]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema version.
        found: u32,
    },
    /// The folder is not a run.
    #[error("{} holds no run: it has no run.json", path.display())]
    #[diagnostic(help("name a folder such as results/run_20260801_150000"))]
    NotARun {
        /// The folder.
        path: PathBuf,
    },
    /// A name in the run's files leads out of the folder.
    #[error("{} names {what} `{name}`, which is not a file name", path.display())]
    #[diagnostic(help("the run was changed or made by another program: do not use it"))]
    Name {
        /// The file.
        path: PathBuf,
        /// What has the name: `the case`.
        what: &'static str,
        /// The name, fit to be shown.
        name: String,
    },
    /// The config in the run's files has a size or a tolerance beyond its limit.
    #[error("the config in {} cannot be used: {problem}", path.display())]
    #[diagnostic(help("the run was changed or made by another program: start a new run"))]
    Config {
        /// The file.
        path: PathBuf,
        /// Where and what.
        problem: String,
    },
    /// Two cases, or two variants of a case, have one name.
    #[error("{} names {what} `{name}` twice", path.display())]
    #[diagnostic(help("the run was changed or made by another program: do not use it"))]
    Twice {
        /// The file.
        path: PathBuf,
        /// What has the name: `the case`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A frozen plan cannot be used.
    #[error("{} {problem}", path.display())]
    #[diagnostic(help("name a plan that `tfcheck plan --json` printed, or make a new one"))]
    Plan {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, as a predicate.
        problem: String,
    },
    /// The folder holds a symbolic link, through which something outside would be read or written.
    #[error("{} is a symbolic link, and tfcheck follows no link of a run", path.display())]
    #[diagnostic(help("remove the link: a run folder holds files and folders only"))]
    Link {
        /// The link.
        path: PathBuf,
    },
    /// Another tfcheck process writes to the folder.
    #[error("{} is being written by another tfcheck", path.display())]
    #[diagnostic(help("wait until it ends, or start a new run"))]
    Locked {
        /// The folder.
        path: PathBuf,
    },
}

/// Only the record of a cell can be made again by a resumed run.
fn record_hint(path: &Path) -> &'static str {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match &*name {
        "run.json" => "the run cannot be read without it: start a new run",
        _ => "remove the file and resume the run: what it records is then computed again",
    }
}

fn io_hint(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free some space, then complete the run with `tfcheck run --resume RUN`: finished cells are kept"
        }
        io::ErrorKind::FileTooLarge if cause.raw_os_error().is_some() => {
            "raise the limit on the size of a file (ulimit -f), then complete the run with `tfcheck run --resume RUN`"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "check the folder's owner and mode, or name another folder"
        }
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "a file is in the way of a folder: name another folder"
        }
        // `bounds::file` opens regular files only.
        io::ErrorKind::InvalidInput | io::ErrorKind::IsADirectory => {
            "put a regular file in its place, or remove it"
        }
        _ => "check the path and the disk",
    }
}
