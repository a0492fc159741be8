//! SHA-256 of files, cached by path, size and times, so that a second run does not read the weights again.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bounds::limits::RUN_JSON_BYTES;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Error, Progress, Step};
use crate::spec::machine::hex;
use crate::spec::{atomic, hash};

/// Digests of files that were read before.
pub(crate) struct Digests {
    file: PathBuf,
    known: BTreeMap<PathBuf, Known>,
    changed: bool,
    /// Set when the user asks to stop.
    stop: Arc<AtomicBool>,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Known {
    size: u64,
    modified_ns: i64,
    // The change time reveals an edit after which the modification time was reset.
    changed_ns: i64,
    sha256: String,
}

impl Digests {
    /// Reads the digests in `cache`; a damaged or missing file counts as empty.
    pub(crate) fn open(cache: &Path, stop: &Arc<AtomicBool>) -> Self {
        let file = cache.join("digests.json");
        let known = bounds::file::read(&file, RUN_JSON_BYTES)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Self { file, known, changed: false, stop: Arc::clone(stop) }
    }

    /// Lower-case hex SHA-256 of `path`'s content.
    pub(crate) fn of(&mut self, path: &Path, progress: Progress<'_>) -> Result<String, Error> {
        let path = path.canonicalize().map_err(Error::io("read", path))?;
        let metadata = path.metadata().map_err(Error::io("read", &path))?;
        let mut known = Known {
            size: metadata.size(),
            modified_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
            sha256: String::new(),
        };
        if let Some(before) = self.known.get(&path) {
            known.sha256.clone_from(&before.sha256);
            if known == *before {
                return Ok(known.sha256);
            }
        }
        known.sha256 = sha256(&path, metadata.size(), &self.stop, progress)?;
        let digest = known.sha256.clone();
        self.known.insert(path, known);
        self.changed = true;
        Ok(digest)
    }

    /// Saves new digests. A failure to save costs only time, so it is not an error.
    pub(crate) fn keep(self) {
        if !self.changed {
            return;
        }
        // Another run may have added digests in the meantime; those of deleted files are dropped.
        let mut all = Self::open(self.file.parent().unwrap_or(Path::new(".")), &self.stop).known;
        all.extend(self.known);
        all.retain(|path, _| path.exists());
        if let Ok(bytes) = serde_json::to_vec(&all) {
            let _ = self.file.parent().map(std::fs::create_dir_all);
            let _ = atomic::write(&self.file, &bytes);
        }
    }
}

/// One digest over the names and digests of many files, ordered by name.
pub(crate) fn combine<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let ordered: BTreeMap<_, _> = files.into_iter().collect();
    let mut hasher = Sha256::new();
    hasher.update(b"tfcheck checkpoint 1\n");
    for (name, digest) in ordered {
        hasher.update(format!("{digest}  {name}\n"));
    }
    hex(&hasher.finalize())
}

fn nanoseconds(seconds: i64, nanoseconds: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

fn sha256(path: &Path, size: u64, stop: &AtomicBool, progress: Progress<'_>) -> Result<String, Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut file = bounds::file::open(path).map_err(Error::io("read", path))?;
    let mut done = 0;
    let read = hash::sha256(&mut file, |bytes| {
        done += bytes;
        progress(Step::Hash { file: &name, done, total: size });
        let is_stopped = stop.load(Ordering::Relaxed);
        if is_stopped { Err(std::io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    });
    read.map_err(|error| match error.kind() {
        std::io::ErrorKind::Interrupted => Error::Interrupted,
        _ => Error::io("read", path)(error),
    })
}
