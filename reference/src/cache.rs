//! The cache folder: atomic writes, and locks shared between tfcheck processes.
//!
//! ```text
//! <cache>/uv/<version>/              a bootstrapped uv
//! <cache>/projects/<digest>/         pyproject.toml and uv.lock of one specification
//! <cache>/environments/<key>/        an installed environment; its stamp is written last
//! <cache>/stamps/<digest>.json       specification -> finished environment
//! <cache>/bridge/<digest>/           the bridge module
//! <cache>/locks/                     files that are locked, never read
//! ```

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

/// Writes `bytes` atomically: even after a kill, `path` holds either its previous content or all of `bytes`.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Holds `<cache>/locks/<name>` until dropped; the kernel releases it when the process dies.
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock; calls `waiting` first when another process (or thread) holds it.
    pub(crate) fn take(cache: &Path, name: &str, waiting: impl FnOnce()) -> io::Result<Self> {
        let folder = cache.join("locks");
        fs::create_dir_all(&folder)?;
        let file = File::create(folder.join(name))?;
        if file.try_lock().is_err() {
            waiting();
            file.lock()?;
        }
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_until_it_is_dropped() {
        let cache = tempfile::tempdir().unwrap();
        let held = Lock::take(cache.path(), "x", || panic!("nobody else holds it")).unwrap();
        let other = File::create(cache.path().join("locks/x")).unwrap();
        assert!(other.try_lock().is_err());
        drop(held);
        assert!(other.try_lock().is_ok());
    }

    #[test]
    fn a_write_replaces_the_whole_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/file");
        write_atomically(&path, b"a long first content").unwrap();
        write_atomically(&path, b"short").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"short");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
