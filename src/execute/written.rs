//! What a worker wrote: the size and the digest of a logits file when the worker replied, so that a file that is damaged,
//! truncated or replaced later is recognised.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use compare::logits::Logits;
use reference::protocol::Positions;

use super::cell::{Cell, Completed, Failure, FailureKind, Outcome, Written};
use crate::spec::atomic::is_inside;
use crate::spec::hash::sha256;
use crate::spec::variant::measured_positions;

/// How thoroughly a file is compared with its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// By its digest.
    Content,
    /// By its digest, unless its size and time of change are those of the record: enough for files that this process saw
    /// being written.
    Times,
}

/// The record of the file at `path`.
///
/// # Errors
/// If it cannot be read, or is no regular file; of kind `Interrupted` once `stop` is set.
pub fn written(path: &Path, stop: &AtomicBool) -> io::Result<Written> {
    let mut file = bounds::file::open_unlinked(path)?;
    let sha256 = sha256(&mut file, |_| {
        let is_stopped = stop.load(Ordering::Relaxed);
        if is_stopped { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    })?;
    let metadata = file.metadata()?;
    Ok(Written { bytes: metadata.len(), modified_ns: modified_ns(&metadata), sha256 })
}

/// The logits in a file.
///
/// # Errors
/// What is wrong with it, as a predicate of the file.
pub fn open(path: &Path, positions: Positions) -> Result<Logits, String> {
    Logits::open(path, measured_positions(positions)).map_err(|error| {
        let problem = error.to_string();
        problem.strip_prefix(&format!("{} ", path.display())).unwrap_or(&problem).to_owned()
    })
}

/// Whether the logits of a completed cell in the case folder `files` are those that the worker wrote.
///
/// # Errors
/// What is wrong with them, as a predicate of the file.
pub fn check(completed: &Completed, files: &Path, how: Check) -> Result<(), String> {
    let Completed { logits, positions, shape, written: record, .. } = completed;
    if !is_inside(logits) || completed.trace.as_ref().is_some_and(|trace| !is_inside(trace)) {
        return Err("is not a file of the run".to_owned());
    }
    let path = files.join(logits);
    let metadata = path.symlink_metadata().map_err(|error| format!("cannot be read: {error}"))?;
    if !metadata.is_file() {
        return Err("is not a regular file".to_owned());
    }
    // Memory is asked for by the recorded shape, of which each element takes bytes of the file.
    let fits = || {
        let elements =
            shape.iter().try_fold(1_u64, |product, length| product.checked_mul((*length).max(1) as u64));
        let found = metadata.len();
        match elements {
            Some(elements) if elements <= found => Ok(()),
            _ => Err(format!("has {found} bytes, too few for the recorded shape {shape:?}")),
        }
    };
    let Some(record) = record else {
        // A run of a tfcheck that kept no record of it.
        fits()?;
        return open(&path, *positions).map(drop);
    };
    if metadata.len() != record.bytes {
        let found = metadata.len();
        return Err(format!("has {found} bytes, and the worker wrote {}", record.bytes));
    }
    fits()?;
    if how == Check::Times && modified_ns(&metadata) == record.modified_ns {
        return Ok(());
    }
    let found =
        written(&path, &AtomicBool::new(false)).map_err(|error| format!("cannot be read: {error}"))?;
    if found.sha256 == record.sha256 {
        Ok(())
    } else {
        Err("does not have the content that the worker wrote".to_owned())
    }
}

/// The cell, or the failed cell that it is if its logits are gone or damaged.
pub fn checked(cell: Cell, files: &Path, how: Check) -> Cell {
    let Outcome::Completed(completed) = &cell.outcome else { return cell };
    let Err(problem) = check(completed, files, how) else { return cell };
    let reason = format!("{} {problem}", completed.logits.display());
    let failure = Failure {
        kind: FailureKind::MissingResult,
        reason: bounds::shown(&reason, bounds::limits::LINE.most).into_owned(),
        detail: String::new(),
        log_tail: String::new(),
    };
    Cell { outcome: Outcome::Failed(failure), ..cell }
}

fn modified_ns(metadata: &std::fs::Metadata) -> i64 {
    metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A completed cell in a folder with its logits, changed by `damage`; the problem that is found.
    fn problem(damage: impl FnOnce(&Path, &mut Completed)) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logits.safetensors");
        std::fs::write(&path, [1; 100]).unwrap();
        let mut completed = Completed {
            logits: "logits.safetensors".into(),
            written: Some(written(&path, &AtomicBool::new(false)).unwrap()),
            ..Completed::default()
        };
        damage(&path, &mut completed);
        check(&completed, folder.path(), Check::Content).err()
    }

    #[test]
    fn logits_that_are_not_those_the_worker_wrote_are_recognised() {
        assert_eq!(problem(|_, _| ()), None);
        assert_eq!(problem(|_, completed| completed.shape = vec![1, 4, 5]), None);
        let check = |damage: fn(&Path, &mut Completed), expected: &str| {
            let found = problem(damage).unwrap_or_default();
            assert!(found.contains(expected), "{found}");
        };
        check(|_, completed| completed.shape = vec![1 << 40, 1, 1], "too few for the recorded shape");
        check(|_, completed| completed.shape = vec![1 << 40, 1 << 40, 0], "too few for the recorded shape");
        check(|path, _| std::fs::write(path, [2; 100]).unwrap(), "the content");
        check(|path, _| std::fs::write(path, [1; 99]).unwrap(), "has 99 bytes, and the worker wrote 100");
        check(|path, _| std::fs::remove_file(path).unwrap(), "cannot be read");
        check(
            |path, _| {
                std::fs::rename(path, path.with_extension("kept")).unwrap();
                std::os::unix::fs::symlink(path.with_extension("kept"), path).unwrap();
            },
            "is not a regular file",
        );
        check(|_, completed| completed.logits = "../x".into(), "is not a file of the run");
        check(|_, completed| completed.logits = "/etc/passwd".into(), "is not a file of the run");
        check(|_, completed| completed.written = None, "header");
    }
}
