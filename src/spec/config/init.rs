//! `tfcheck init`: writes a commented `tfcheck.toml` with the defaults.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use reference::Versions;

/// Why no file was written.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum InitError {
    /// The file already exists.
    #[error("{} exists already", .0.display())]
    #[diagnostic(help("it was not changed; give another file name, or remove it first"))]
    Exists(PathBuf),
    /// The file cannot be written.
    #[error("cannot write {}", path.display())]
    #[diagnostic(help("make its folder first, or name a file in a folder that can be written"))]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

/// Writes the commented file to `path` and returns a message for the user.
///
/// # Errors
/// When the file exists or cannot be written.
pub fn init(path: &Path) -> Result<String, InitError> {
    let write = || {
        let mut file = File::create_new(path)?;
        file.write_all(init_text().as_bytes())?;
        file.sync_all()
    };
    match write() {
        Ok(()) => Ok(format!(
            "wrote {} with all default values; edit it, then `tfcheck plan` lists its cells\n",
            path.display()
        )),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(InitError::Exists(path.to_owned())),
        Err(source) => Err(InitError::Write { path: path.to_owned(), source }),
    }
}

/// The commented file, which parses to [`super::Config::default`].
pub fn init_text() -> String {
    let known = Versions::known();
    let versions: Vec<String> = known
        .default
        .iter()
        .map(|number| format!("[[versions]]\nname = \"{number}\"\nsource = \"transformers=={number}\"\n"))
        .collect();
    include_str!("init.toml")
        .replace("{VERSIONS}", &versions.join("\n"))
        .replace("{TORCH}", &known.torch)
        .replace("{NEWEST}", &known.newest)
}
