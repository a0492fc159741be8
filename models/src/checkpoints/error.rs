//! Errors of synthetic checkpoints.

use std::path::PathBuf;

/// Why a synthetic checkpoint was not written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No entry of the catalogue has this name.
    #[error("no synthetic checkpoint `{name}`; there are: {known}")]
    Unknown {
        /// The requested `model_type` or `model_type:variant`.
        name: String,
        /// The available names, separated by commas.
        known: String,
    },
    /// A line of a table that cannot be read.
    #[error("synthetic {model_type}: {reason} in `{line}`")]
    Table {
        /// The architecture that the table belongs to.
        model_type: &'static str,
        /// The line, or the JSON text.
        line: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file or folder cannot be written.
    #[error("cannot write {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}
