//! The record of a finished environment, so that finding it again costs one file read.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bounds::limits::CHECKPOINT_JSON_BYTES;
use serde::{Deserialize, Serialize};

use crate::Environment;
use crate::cache::write_atomically;

/// Raised with every change of the cache's layout or of how environments are installed.
pub(super) const SCHEMA: u32 = 1;
/// Name of the file that is written into an environment's folder last.
const COMPLETE: &str = "tfcheck-complete";

/// A finished environment as stored in `<cache>/stamps`.
#[derive(Serialize, Deserialize)]
pub(super) struct Stamp {
    schema: u32,
    key: String,
    /// The environment's folder in the cache; absent for an existing interpreter of the user's.
    folder: Option<PathBuf>,
    python: PathBuf,
    lock: String,
    versions: BTreeMap<String, String>,
    notes: Vec<String>,
}

impl Stamp {
    /// The environment recorded in the stamp `name`, if its folder still exists and is complete.
    pub(super) fn find(cache: &Path, name: &str) -> Option<Environment> {
        let text = bounds::file::read(&path(cache, name), CHECKPOINT_JSON_BYTES).ok()?;
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

    /// Removes the stamp `name` and the completion mark of its folder.
    pub(super) fn forget(cache: &Path, name: &str) -> io::Result<()> {
        let stamp = path(cache, name);
        let Ok(text) = bounds::file::read(&stamp, CHECKPOINT_JSON_BYTES) else { return Ok(()) };
        if let Ok(Self { folder: Some(folder), .. }) = serde_json::from_slice(&text) {
            match fs::remove_file(folder.join(COMPLETE)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::remove_file(stamp)
    }

    /// Records `environment` under `name`.
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

/// Whether the installation of the environment at `folder` was completed.
pub(super) fn is_complete(folder: &Path) -> bool {
    folder.join(COMPLETE).exists() && folder.join("bin/python").exists()
}

/// Marks the installation of the environment at `folder` as complete.
pub(super) fn complete(folder: &Path) -> io::Result<()> {
    write_atomically(&folder.join(COMPLETE), b"")
}
