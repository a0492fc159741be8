//! The files of a run folder: their paths, and writing them atomically.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use bounds::limits::RUN_JSON_BYTES;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::diagnosed::Diagnosed;
use super::environment::EnvironmentRecord;
use super::error::ResultsError;
use super::localized::Localized;
use super::relations::CellRelations;
use super::{Case, CaseEnvelope, Manifest, SCHEMA_VERSION};
use crate::execute::cell::Cell;
use crate::execute::written::{self, Check};
use crate::spec::atomic;
use crate::spec::variant::Variant;

const MANIFEST: &str = "run.json";
/// The record of machine and environments.
const ENVIRONMENT: &str = "environment.json";
const LOCALIZED: &str = "localized.json";
const DIAGNOSED: &str = "diagnosed.json";
const ENVELOPES: &str = "envelopes.json";
const LOCK: &str = ".lock";

/// A run folder. Any process may read it; only the process that holds its lock writes it.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// The lock, held while this process may write; the system releases it when the process ends.
    lock: Option<File>,
}

impl RunFolder {
    /// Creates `results/run_<stamp>`, or `run_<stamp>_2`, … if that exists; a folder is never reused.
    ///
    /// # Errors
    /// When the folder cannot be created or locked.
    pub fn create(results: &Path, stamp: &str) -> Result<Self, ResultsError> {
        fs::create_dir_all(results).map_err(|source| io_error("create", results, source))?;
        for attempt in 1.. {
            let name = match attempt {
                1 => format!("run_{stamp}"),
                _ => format!("run_{stamp}_{attempt}"),
            };
            let path = results.join(name);
            match fs::create_dir(&path) {
                Ok(()) => return Self::lock(path),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(io_error("create", &path, source)),
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// Opens and locks a run to complete it.
    ///
    /// # Errors
    /// When the folder holds no run or another tfcheck process writes to it.
    pub fn resume(path: &Path) -> Result<Self, ResultsError> {
        let folder = Self::open(path)?;
        Self::lock(folder.path)
    }

    /// Opens a run to read it.
    ///
    /// # Errors
    /// When the folder holds no run, cannot be listed, or contains a symbolic link, through which a file outside of it would
    /// be read.
    pub fn open(path: &Path) -> Result<Self, ResultsError> {
        if path.join(MANIFEST).symlink_metadata().is_err() {
            return Err(ResultsError::NotARun { path: path.to_owned() });
        }
        check_links(path, 0)?;
        Ok(Self { path: path.to_owned(), lock: None })
    }

    fn lock(path: PathBuf) -> Result<Self, ResultsError> {
        let file = path.join(LOCK);
        let lock = bounds::file::lockable(&file).map_err(|source| io_error("create", &file, source))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, lock: Some(lock) }),
            Err(fs::TryLockError::WouldBlock) => Err(ResultsError::Locked { path }),
            Err(fs::TryLockError::Error(source)) => Err(io_error("lock", &file, source)),
        }
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads `environment.json`; `None` if it is missing or invalid.
    pub fn environment(&self) -> Option<EnvironmentRecord> {
        read_json(&self.path.join(ENVIRONMENT)).ok()
    }

    /// Why `environment.json` cannot be read; `None` if it can, or is missing.
    pub fn environment_problem(&self) -> Option<String> {
        let path = self.path.join(ENVIRONMENT);
        let read = || read_json::<EnvironmentRecord>(&path);
        path.symlink_metadata().ok().and_then(|_| read().err()).map(|error| error.to_string())
    }

    /// Writes `environment.json`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_environment(&self, record: &EnvironmentRecord) -> Result<(), ResultsError> {
        self.write_json(&self.path.join(ENVIRONMENT), record)
    }

    /// Writes the run's summary as `NAME.json` and `NAME.md`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_folded(
        &self,
        name: &str,
        folded: &impl Serialize,
        markdown: &str,
    ) -> Result<(), ResultsError> {
        self.write_json(&self.path.join(format!("{name}.json")), folded)?;
        self.write(format!("{name}.md"), markdown.as_bytes())
    }

    /// Writes `run.json`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_manifest(&self, manifest: &Manifest) -> Result<(), ResultsError> {
        self.write_json(&self.path.join(MANIFEST), manifest)
    }

    /// Reads `run.json`.
    ///
    /// # Errors
    /// When it is absent, malformed or newer than this tfcheck.
    pub fn manifest(&self) -> Result<Manifest, ResultsError> {
        let path = self.path.join(MANIFEST);
        let manifest: Manifest = read_json(&path)?;
        if manifest.schema_version > SCHEMA_VERSION {
            return Err(ResultsError::Newer { path, found: manifest.schema_version });
        }
        check_names(&path, &manifest)?;
        Ok(manifest)
    }

    /// The folder of a case's files: the run folder itself if it has only one case.
    pub fn case_folder(&self, manifest: &Manifest, case: &str) -> PathBuf {
        if manifest.cases.len() == 1 { self.path.clone() } else { self.path.join(case) }
    }

    /// [`RunFolder::case_folder`], which exists then.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn make_case_folder(&self, manifest: &Manifest, case: &str) -> Result<PathBuf, ResultsError> {
        let folder = self.case_folder(manifest, case);
        fs::create_dir_all(&folder).map_err(|source| io_error("create", &folder, source))?;
        Ok(folder)
    }

    /// The path of a cell's record.
    pub fn record_path(&self, manifest: &Manifest, case: &str, variant: &Variant) -> PathBuf {
        let file = format!("timing_{}_{}.json", manifest.stamp, variant.name());
        self.case_folder(manifest, case).join(&variant.version).join(file)
    }

    /// Writes a cell's record, the last file of the cell.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_cell(&self, manifest: &Manifest, case: &str, cell: &Cell) -> Result<(), ResultsError> {
        self.write_json(&self.record_path(manifest, case, &cell.variant), cell)
    }

    /// The finished cells of every case.
    ///
    /// # Errors
    /// As [`RunFolder::cells`].
    pub fn all_cells(&self, manifest: &Manifest) -> Result<Vec<Vec<Cell>>, ResultsError> {
        manifest.cases.iter().map(|case| self.cells(manifest, case)).collect()
    }

    /// The finished cells of a case, in the manifest's order. A cell whose logits are gone, damaged or replaced is a failed
    /// one.
    ///
    /// # Errors
    /// As [`RunFolder::records`].
    pub fn cells(&self, manifest: &Manifest, case: &Case) -> Result<Vec<Cell>, ResultsError> {
        let files = self.case_folder(manifest, &case.name);
        let records = self.records(manifest, case)?;
        Ok(records.into_iter().map(|cell| written::checked(cell, &files, Check::Content)).collect())
    }

    /// The cells of a case as they were recorded, whatever became of their logits.
    ///
    /// # Errors
    /// When a record is malformed or newer than this tfcheck.
    pub fn records(&self, manifest: &Manifest, case: &Case) -> Result<Vec<Cell>, ResultsError> {
        let mut cells = Vec::new();
        for variant in &case.variants {
            let path = self.record_path(manifest, &case.name, variant);
            if path.is_file() {
                let cell: Cell = read_json(&path)?;
                if cell.schema_version > SCHEMA_VERSION {
                    return Err(ResultsError::Newer { path, found: cell.schema_version });
                }
                cells.push(cell);
            }
        }
        Ok(cells)
    }

    /// How a checkpoint's tokenizer spells each token id; nothing where it has none, or in runs of a tfcheck that did not
    /// keep it.
    pub fn vocabulary(&self, checkpoint_digest: &str) -> Vec<String> {
        read_json(&self.vocabulary_path(checkpoint_digest)).unwrap_or_default()
    }

    /// Keeps how a checkpoint's tokenizer spells each token id.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_vocabulary(&self, checkpoint_digest: &str, texts: &[String]) -> Result<(), ResultsError> {
        let bytes = serde_json::to_vec(texts)
            .map_err(|cause| ResultsError::Record { path: self.vocabulary_path(checkpoint_digest), cause })?;
        write_file(&self.vocabulary_path(checkpoint_digest), &bytes)
    }

    /// A digest of a run that was written by others is no path.
    fn vocabulary_path(&self, checkpoint_digest: &str) -> PathBuf {
        let name: String = checkpoint_digest.chars().filter(char::is_ascii_alphanumeric).take(16).collect();
        self.path.join(format!("vocabulary_{name}.json"))
    }

    /// What was localised in the run; nothing where nothing was.
    ///
    /// # Errors
    /// When the file is malformed.
    pub fn localized(&self) -> Result<Vec<Localized>, ResultsError> {
        self.list(LOCALIZED)
    }

    /// Writes `localized.json`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_localized(&self, all: &[Localized]) -> Result<(), ResultsError> {
        self.write_json(&self.path.join(LOCALIZED), &all)
    }

    /// What was diagnosed in the run; nothing where nothing was.
    ///
    /// # Errors
    /// When the file is malformed.
    pub fn diagnosed(&self) -> Result<Vec<Diagnosed>, ResultsError> {
        self.list(DIAGNOSED)
    }

    /// Writes `diagnosed.json`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_diagnosed(&self, all: &[Diagnosed]) -> Result<(), ResultsError> {
        self.write_json(&self.path.join(DIAGNOSED), &all)
    }

    /// What rounding was measured to do; nothing where nothing was measured.
    ///
    /// # Errors
    /// When the file is malformed.
    pub fn envelopes(&self) -> Result<Vec<CaseEnvelope>, ResultsError> {
        self.list(ENVELOPES)
    }

    /// Writes `envelopes.json`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_envelopes(&self, all: &[CaseEnvelope]) -> Result<(), ResultsError> {
        self.write_json(&self.path.join(ENVELOPES), &all)
    }

    /// The list in a file of the run; empty where there is no such file.
    fn list<T: DeserializeOwned>(&self, name: &str) -> Result<Vec<T>, ResultsError> {
        let path = self.path.join(name);
        if path.is_file() { read_json(&path) } else { Ok(Vec::new()) }
    }

    fn relations_path(&self, manifest: &Manifest, case: &str, variant: &Variant) -> PathBuf {
        let file = format!("relations_{}_{}.json", manifest.stamp, variant.name());
        self.case_folder(manifest, case).join(&variant.version).join(file)
    }

    /// Writes what the relations of a cell showed.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_relations(&self, manifest: &Manifest, found: &CellRelations) -> Result<(), ResultsError> {
        self.write_json(&self.relations_path(manifest, &found.case, &found.variant), found)
    }

    /// What the relations of the plan's cells showed, in its order; nothing of cells that were not checked.
    ///
    /// # Errors
    /// When a record is malformed or newer than this tfcheck.
    pub fn relations(&self, manifest: &Manifest) -> Result<Vec<CellRelations>, ResultsError> {
        let Some(plan) = &manifest.plan else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for cell in &plan.cells {
            let Some(case) = plan.cases.get(cell.case) else { continue };
            let path = self.relations_path(manifest, &case.name, &cell.variant);
            if path.is_file() {
                let record: CellRelations = read_json(&path)?;
                if record.schema_version > SCHEMA_VERSION {
                    return Err(ResultsError::Newer { path, found: record.schema_version });
                }
                found.push(record);
            }
        }
        Ok(found)
    }

    /// Writes a file of the run whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, relative: impl AsRef<Path>, bytes: &[u8]) -> Result<(), ResultsError> {
        write_file(&self.path.join(relative), bytes)
    }

    fn write_json(&self, path: &Path, value: &impl Serialize) -> Result<(), ResultsError> {
        debug_assert!(self.lock.is_some(), "a run is written under its lock");
        let mut bytes = serde_json::to_vec_pretty(value)
            .map_err(|cause| ResultsError::Record { path: path.to_owned(), cause })?;
        bytes.push(b'\n');
        write_file(path, &bytes)
    }
}

/// Writes `bytes` to a temporary name next to `path`, syncs them and renames the file, so that a reader sees the old file
/// or the new one and never a part.
///
/// # Errors
/// When the file system refuses; the temporary file is then removed.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), ResultsError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|source| io_error("create", folder, source))?;
    atomic::write(path, bytes).map_err(|source| io_error("write", path, source))
}

pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ResultsError> {
    let bytes =
        bounds::file::read_unlinked(path, RUN_JSON_BYTES).map_err(|source| io_error("read", path, source))?;
    serde_json::from_slice(&bytes).map_err(|cause| ResultsError::Record { path: path.to_owned(), cause })
}

/// Refuses a manifest whose config is beyond the limits, or whose names lead out of the run: they become files and folders.
pub(super) fn check_names(path: &Path, manifest: &Manifest) -> Result<(), ResultsError> {
    if let Some(problem) = manifest.config.beyond_limits() {
        return Err(ResultsError::Config { path: path.to_owned(), problem });
    }
    let variants = manifest.cases.iter().flat_map(|case| &case.variants);
    let names = std::iter::once(("the time stamp", manifest.stamp.clone()))
        .chain(manifest.cases.iter().map(|case| ("the case", case.name.clone())))
        .chain(variants.clone().map(|variant| ("the version", variant.version.clone())))
        .chain(variants.map(|variant| ("the variant", variant.name())));
    for (what, name) in names {
        if !atomic::is_component(&name) {
            let name = bounds::shown(&name, 200).into_owned();
            return Err(ResultsError::Name { path: path.to_owned(), what, name });
        }
    }
    let twice = |what, name: Option<String>| match name {
        Some(name) => Err(ResultsError::Twice { path: path.to_owned(), what, name }),
        None => Ok(()),
    };
    twice("the case", repeated(manifest.cases.iter().map(|case| case.name.clone())))?;
    let of_a_case = |case: &Case| repeated(case.variants.iter().map(Variant::name));
    twice("the variant", manifest.cases.iter().find_map(of_a_case))
}

/// The first name that occurs twice.
fn repeated(names: impl Iterator<Item = String>) -> Option<String> {
    let mut known = HashSet::new();
    names.into_iter().find_map(|name| known.replace(name))
}

/// Refuses symbolic links in a run folder. Its files lie at most three folders deep.
pub(crate) fn check_links(folder: &Path, depth: usize) -> Result<(), ResultsError> {
    let entries = fs::read_dir(folder).map_err(|source| io_error("read", folder, source))?;
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_symlink() {
            return Err(ResultsError::Link { path });
        }
        if kind.is_dir() && depth < 4 {
            check_links(&path, depth + 1)?;
        }
    }
    Ok(())
}

fn io_error(action: &'static str, path: &Path, cause: io::Error) -> ResultsError {
    ResultsError::Io { action, path: path.to_owned(), cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_runs_never_share_a_folder() {
        let results = tempfile::tempdir().unwrap();
        let first = RunFolder::create(results.path(), "20260801_150000").unwrap();
        let second = RunFolder::create(results.path(), "20260801_150000").unwrap();
        assert_ne!(first.path(), second.path());
    }

    #[test]
    fn a_run_that_is_being_written_cannot_be_resumed() {
        let results = tempfile::tempdir().unwrap();
        let run = RunFolder::create(results.path(), "20260801_150000").unwrap();
        let manifest = Manifest {
            schema_version: SCHEMA_VERSION,
            stamp: "20260801_150000".into(),
            config: crate::spec::config::Config::default(),
            folder: PathBuf::new(),
            baseline: None,
            plan: None,
            share: None,
            cases: vec![],
            notes: vec![],
        };
        run.write_manifest(&manifest).unwrap();
        assert!(matches!(RunFolder::resume(run.path()), Err(ResultsError::Locked { .. })));
        let path = run.path().to_owned();
        drop(run);
        // A process that another test forks holds the lock too, until its exec.
        let resumed = (0..500).find_map(|_| {
            let resumed = RunFolder::resume(&path).ok();
            if resumed.is_none() {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            resumed
        });
        assert_eq!(resumed.unwrap().manifest().unwrap(), manifest);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_litter() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record.json");
        write_file(&path, b"old").unwrap();
        // A file cannot replace a directory: the rename fails after the bytes were written.
        let target = folder.path().join("taken");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("inside"), b"x").unwrap();
        write_file(&target, b"new").unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_folder_without_a_manifest_is_not_a_run() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(RunFolder::open(folder.path()), Err(ResultsError::NotARun { .. })));
    }
}
