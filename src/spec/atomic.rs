//! Atomic file writes: to a temporary name, synced, then renamed.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use bounds::file::is_component;

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A temporary name next to `path` that no other process or thread uses.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{name}.{}-{count}.tmp", std::process::id()))
}

/// Writes `bytes` to `path` atomically: a reader sees the old file or the new one.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = temporary(path);
    let written = (|| {
        // A new file: a link of that name is not followed.
        let mut file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        sync_folder(path.parent().unwrap_or(Path::new(".")))
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// Whether a relative path from a saved file stays in its folder.
pub(crate) fn is_inside(path: &Path) -> bool {
    let mut components = path.components().peekable();
    components.peek().is_some() && components.all(|part| matches!(part, Component::Normal(_)))
}

/// Syncs `folder`, so that a rename in it survives a power failure.
pub(crate) fn sync_folder(folder: &Path) -> std::io::Result<()> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder)?.sync_all()
}

/// The remedy of a file operation that failed.
pub(crate) fn io_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space there, then run again",
        io::ErrorKind::FileTooLarge if error.raw_os_error().is_none() => "name a smaller file",
        io::ErrorKind::FileTooLarge => "raise the limit on the size of a file (ulimit -f), then run again",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "check the owner and the mode of the file and its folder"
        }
        // `bounds::file` opens regular files only.
        io::ErrorKind::InvalidInput | io::ErrorKind::IsADirectory => "put a regular file in its place",
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "a file is where a folder belongs: name another folder (TFCHECK_CACHE and HF_HUB_CACHE name the caches)"
        }
        _ => "check the path and the disk",
    }
}
