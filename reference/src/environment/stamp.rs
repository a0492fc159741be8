//! What is remembered of a finished environment, so that finding it again costs one file read.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Environment;
use crate::cache::write_atomically;

/// Counts changes of the cache's layout and of how environments are made.
pub(super) const SCHEMA: u32 = 1;
/// Written into an environment's folder after everything else.
const COMPLETE: &str = "tfcheck-complete";

/// A finished environment as it is kept in `<cache>/stamps`.
#[derive(Serialize, Deserialize)]
pub(super) struct Stamp {
    schema: u32,
    key: String,
    /// The environment's folder in the cache; absent where the interpreter is somebody else's.
    folder: Option<PathBuf>,
    python: PathBuf,
    lock: String,
    versions: BTreeMap<String, String>,
    notes: Vec<String>,
}

impl Stamp {
    /// The environment that the stamp `name` remembers, if it is still there and complete.
    pub(super) fn find(cache: &Path, name: &str) -> Option<Environment> {
        let text = fs::read(path(cache, name)).ok()?;
        let stamp: Self = serde_json::from_slice(&text).ok()?;
        let whole = stamp.schema == SCHEMA
            && stamp.python.exists()
            && stamp.folder.as_deref().is_none_or(is_complete);
        whole.then_some(Environment {
            python: stamp.python,
            key: stamp.key,
            lock: stamp.lock,
            versions: stamp.versions,
            notes: stamp.notes,
        })
    }

    /// Forgets the environment that the stamp `name` remembers, and that its folder is complete.
    pub(super) fn forget(cache: &Path, name: &str) -> io::Result<()> {
        let stamp = path(cache, name);
        let Ok(text) = fs::read(&stamp) else { return Ok(()) };
        if let Ok(Self { folder: Some(folder), .. }) = serde_json::from_slice(&text) {
            match fs::remove_file(folder.join(COMPLETE)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::remove_file(stamp)
    }

    /// Remembers `environment` under `name`.
    pub(super) fn keep(
        cache: &Path,
        name: &str,
        environment: &Environment,
        folder: Option<&Path>,
    ) -> io::Result<()> {
        let stamp = Self {
            schema: SCHEMA,
            key: environment.key.clone(),
            folder: folder.map(Path::to_owned),
            python: environment.python.clone(),
            lock: environment.lock.clone(),
            versions: environment.versions.clone(),
            notes: environment.notes.clone(),
        };
        write_atomically(&path(cache, name), &serde_json::to_vec_pretty(&stamp)?)
    }
}

fn path(cache: &Path, name: &str) -> PathBuf {
    cache.join("stamps").join(format!("{name}.json"))
}

/// Whether the environment at `folder` was installed to its end.
pub(super) fn is_complete(folder: &Path) -> bool {
    folder.join(COMPLETE).exists() && folder.join("bin/python").exists()
}

/// Says that the environment at `folder` is installed to its end.
pub(super) fn complete(folder: &Path) -> io::Result<()> {
    write_atomically(&folder.join(COMPLETE), b"")
}
