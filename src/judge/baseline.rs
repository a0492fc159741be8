//! Baselines: runs saved under a name, to compare later runs with.
//!
//! A baseline is a run folder under `<results>/baselines` with the files that a comparison needs: records, inputs and
//! logits, but no traces or reports. It outlives its run. Logits are hard-linked where the file system supports it;
//! they take extra space only after the run is deleted. tfcheck never writes into an existing file, and a digest
//! detects changes by other programs.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bounds::limits::{INPUTS_BYTES, LINE};
use miette::{Diagnostic, Result};
use thiserror::Error;

use crate::execute::cell::Outcome;
use crate::execute::written::{self, Check};
use crate::judge::history::{History, HistoryError, Known};
use crate::results::{Manifest, ResultsError, RunFolder};
use crate::spec::atomic;
use crate::spec::config::is_file_name;
use crate::spec::hash;
use crate::spec::inputs;
use crate::spec::machine::Machine;
use compare::units::{bytes, count};

/// Characters of a name in the list of baselines.
const MOST_SHOWN: u64 = 100;
/// Baselines that a hint lists.
const MOST_LISTED: usize = 20;
/// Folder of the baselines in a results folder.
const FOLDER: &str = "baselines";

/// Why a baseline cannot be saved or used.
#[derive(Debug, Error, Diagnostic)]
pub enum BaselineError {
    /// The name is not a valid folder name.
    #[error("`{name}` is not a valid baseline name")]
    #[diagnostic(help("start with a letter or digit and use at most 100 letters, digits and . _ + -"))]
    Name {
        /// The name that the user gave.
        name: String,
    },
    /// There is no baseline of that name.
    #[error("there is no baseline `{name}`")]
    #[diagnostic(help("{}", there_are(known)))]
    Unknown {
        /// The name that the user gave.
        name: String,
        /// The existing baselines.
        known: Vec<String>,
    },
    /// The results folder holds no run.
    #[error("{} holds no run to save", results.display())]
    #[diagnostic(help("`tfcheck run` makes one; name a run elsewhere: tfcheck baseline save NAME RUN"))]
    NoRun {
        /// The folder.
        results: PathBuf,
    },
    /// The run has no logits.
    #[error("no variant of {} has logits", run.display())]
    #[diagnostic(help("`tfcheck run --resume RUN` completes an interrupted run"))]
    Empty {
        /// The run.
        run: PathBuf,
    },
    /// A cell's logits are gone or damaged.
    #[error("{} is not saved: logits of {cell} are damaged: {problem}", run.display())]
    #[diagnostic(help("`tfcheck run --resume RUN` computes them again"))]
    Logits {
        /// The run.
        run: PathBuf,
        /// The variant.
        cell: String,
        /// What is wrong with the file.
        problem: String,
    },
    /// The inputs are gone or damaged.
    #[error("{} is not saved: its inputs are damaged: {problem}", run.display())]
    #[diagnostic(help("`tfcheck run --resume RUN` writes them again"))]
    Inputs {
        /// The run.
        run: PathBuf,
        /// What is wrong with them.
        problem: String,
    },
    /// The history names a folder that is not a baseline's.
    #[error("the history names `{folder}` as the folder of a baseline, which it cannot be")]
    #[diagnostic(help(
        "history.sqlite was changed or made by another program: move it away, and save the baselines again"
    ))]
    Folder {
        /// The folder, fit to be shown.
        folder: String,
    },
    /// A file of the baseline is missing or changed.
    #[error("baseline `{name}`: {} {problem}", path.display())]
    #[diagnostic(help("save the baseline again: tfcheck baseline save {name} RUN"))]
    Damaged {
        /// The baseline.
        name: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file operation failed.
    #[error("cannot {action} {}: {cause}", path.display())]
    #[diagnostic(help("{}", atomic::io_hint(cause)))]
    Io {
        /// `read`, `write`, `remove`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        cause: io::Error,
    },
    /// The run cannot be read.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Results(#[from] ResultsError),
    /// The history cannot be used.
    #[error(transparent)]
    #[diagnostic(transparent)]
    History(#[from] HistoryError),
}

fn there_are(known: &[String]) -> String {
    if known.is_empty() {
        return "`tfcheck baseline save NAME` saves the newest run as one".into();
    }
    let more = known.len().saturating_sub(MOST_LISTED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let listed: Vec<_> = known.iter().take(MOST_LISTED).map(|name| bounds::shown(name, MOST_SHOWN)).collect();
    format!("there are {}{more}", listed.join(", "))
}

/// A saved baseline whose files were verified.
#[derive(Debug)]
pub struct Saved {
    /// Its name.
    pub name: String,
    /// The run that it was saved from.
    pub run: String,
    /// Its files, in the layout of a run folder.
    pub folder: RunFolder,
    /// Its manifest.
    pub manifest: Manifest,
}

impl Saved {
    /// Opens the baseline `name` and checks that its logits are those that were saved.
    ///
    /// # Errors
    /// When there is none of that name, or a file is gone or changed.
    pub fn open(history: &History, results: &Path, name: &str) -> Result<Self, BaselineError> {
        let known = history.baseline(name)?.ok_or_else(|| unknown(history, name))?;
        let path = folder_of(results, &known)?;
        let damaged = |path: &Path, problem: String| BaselineError::Damaged {
            name: name.to_owned(),
            path: path.to_owned(),
            problem,
        };
        let files: BTreeMap<String, String> = serde_json::from_str(&known.files)
            .map_err(|error| damaged(&path, format!("has no list of files: {error}")))?;
        for (file, digest) in &files {
            if !atomic::is_inside(Path::new(file)) {
                let file = bounds::shown(file, LINE.most).into_owned();
                return Err(damaged(Path::new(&file), "is not a file of the baseline".into()));
            }
            let file = path.join(file);
            match sha256(&file) {
                Ok(found) if found == *digest => {}
                Ok(_) => return Err(damaged(&file, "is not what was saved".into())),
                Err(error) => return Err(damaged(&file, format!("cannot be read: {error}"))),
            }
        }
        let folder = RunFolder::open(&path)?;
        let manifest = folder.manifest()?;
        Ok(Self { name: name.to_owned(), run: known.run, folder, manifest })
    }
}

impl Saved {
    /// A run itself in place of a baseline: nothing was saved whose digests could be checked.
    ///
    /// # Errors
    /// When the folder holds no run.
    pub fn of_run(path: &Path) -> Result<Self, BaselineError> {
        let folder = RunFolder::open(path)?;
        let manifest = folder.manifest()?;
        let run = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name: run.clone(), run, folder, manifest })
    }
}

fn unknown(history: &History, name: &str) -> BaselineError {
    let known = history.baselines().unwrap_or_default().into_iter().map(|known| known.name).collect();
    BaselineError::Unknown { name: name.to_owned(), known }
}

/// Checks that the baseline `name` exists and is complete.
///
/// # Errors
/// When there is none, or a file of it is gone or changed.
pub fn check(results: &Path, name: &str) -> Result<(), BaselineError> {
    Saved::open(&History::open(results)?, results, name).map(drop)
}

/// Saves a run (the newest of `results` by default) and returns a one-line message.
///
/// # Errors
/// When the run cannot be read or its files cannot be kept.
pub fn save(results: &Path, name: &str, run: Option<&Path>) -> Result<String, BaselineError> {
    if !is_file_name(name) {
        return Err(BaselineError::Name { name: name.to_owned() });
    }
    let run = run.map_or_else(|| newest(results), |run| Ok(run.to_owned()))?;
    let folder = RunFolder::open(&run)?;
    let manifest = folder.manifest()?;
    let mut history = History::open(results)?;
    let run_name = run.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let relative = Path::new(FOLDER).join(format!("{name}-{}", manifest.stamp));
    let (relative, target) = vacant(results, &relative)?;
    let mut copy = Copy { from: run.clone(), to: target.clone(), bytes: 0, logits: BTreeMap::new() };
    let kept = copy.run(&folder, &manifest);
    if let Err(error) = kept {
        // An incomplete copy is useless; the first error is the one to report.
        let _ = fs::remove_dir_all(&target);
        return Err(error);
    }
    let known = Known {
        name: name.to_owned(),
        run: run_name.clone(),
        folder: relative.to_string_lossy().into_owned(),
        saved: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        fingerprint: folder.environment().map(|record| record.fingerprint).unwrap_or_default(),
        bytes: copy.bytes,
        files: serde_json::to_string(&copy.logits).unwrap_or_default(),
    };
    let before = history.put_baseline(&known)?;
    if let Some(before) = before {
        remove_unless_used(&history, results, &before)?;
    }
    let cells = count(copy.logits.len(), "variant");
    Ok(format!("saved {run_name} as baseline `{name}`: {cells} with logits, {}", bytes(copy.bytes)))
}

/// The baselines as a table.
///
/// # Errors
/// When the history cannot be read.
pub fn list(results: &Path) -> Result<String, BaselineError> {
    let baselines = History::open(results)?.baselines()?;
    if baselines.is_empty() {
        return Ok("no baselines; `tfcheck baseline save NAME` saves the newest run as one".into());
    }
    let here = Machine::detect().fingerprint();
    let rows = baselines.iter().map(|known| {
        let place = if known.fingerprint == here { "this machine" } else { "another machine" };
        // The history is a file that others may have written.
        let short = |text: &str| bounds::shown(text, MOST_SHOWN).into_owned();
        [short(&known.name), short(&known.run), short(&known.saved), bytes(known.bytes), place.to_owned()]
    });
    let header = ["name", "run", "saved", "size", "timed on"].map(str::to_owned);
    let rows: Vec<[String; 5]> = std::iter::once(header).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let line = |row: &[String; 5]| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    Ok(rows.iter().map(line).collect::<Vec<_>>().join("\n"))
}

/// Removes a baseline and its files.
///
/// # Errors
/// When there is none of that name, or its files cannot be removed.
pub fn remove(results: &Path, name: &str) -> Result<String, BaselineError> {
    let mut history = History::open(results)?;
    // A row that names another folder stays, so that it can be looked at.
    if let Some(known) = history.baseline(name)? {
        folder_of(results, &known)?;
    }
    let known = history.take_baseline(name)?.ok_or_else(|| unknown(&history, name))?;
    remove_unless_used(&history, results, &known)?;
    Ok(format!("removed baseline `{name}`, {}", bytes(known.bytes)))
}

/// The folder of a baseline. The history is a file that others may have written: it names a folder right below
/// `baselines`, which is no link, or nothing is opened or removed.
fn folder_of(results: &Path, known: &Known) -> Result<PathBuf, BaselineError> {
    let refused = || BaselineError::Folder { folder: bounds::shown(&known.folder, LINE.most).into_owned() };
    let name = known.folder.strip_prefix(FOLDER).and_then(|rest| rest.strip_prefix('/'));
    let name = name.filter(|name| atomic::is_component(name)).ok_or_else(refused)?;
    let folder = results.join(FOLDER);
    let path = folder.join(name);
    if is_link(&folder) || is_link(&path) { Err(refused()) } else { Ok(path) }
}

fn is_link(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink())
}

/// Removes the folder of a baseline that the history has no more, unless another baseline is in it.
fn remove_unless_used(history: &History, results: &Path, known: &Known) -> Result<(), BaselineError> {
    let is_used = history.baselines()?.iter().any(|other| other.folder == known.folder);
    if is_used { Ok(()) } else { remove_folder(results, known) }
}

fn remove_folder(results: &Path, known: &Known) -> Result<(), BaselineError> {
    let path = folder_of(results, known)?;
    match fs::remove_dir_all(&path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            Err(BaselineError::Io { action: "remove", path, cause })
        }
        _ => Ok(()),
    }
}

/// The run with the latest time stamp.
fn newest(results: &Path) -> Result<PathBuf, BaselineError> {
    let entries = fs::read_dir(results).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let runs = entries.filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("run_") && path.join("run.json").is_file()
    });
    // Of runs of the same second, `_10` comes after `_9`.
    let order = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (name.get(.."run_20260801_150000".len()).map(str::to_owned), name.len(), name)
    };
    runs.max_by_key(order).ok_or_else(|| BaselineError::NoRun { results: results.to_owned() })
}

/// Creates a folder that no other process uses.
fn vacant(results: &Path, relative: &Path) -> Result<(PathBuf, PathBuf), BaselineError> {
    let io = |path: &Path, cause| BaselineError::Io { action: "create", path: path.to_owned(), cause };
    let parent = results.join(FOLDER);
    if is_link(&parent) {
        return Err(ResultsError::Link { path: parent }.into());
    }
    fs::create_dir_all(&parent).map_err(|source| io(&parent, source))?;
    for attempt in 1.. {
        let relative = match attempt {
            1 => relative.to_owned(),
            _ => PathBuf::from(format!("{}_{attempt}", relative.display())),
        };
        let target = results.join(&relative);
        match fs::create_dir(&target) {
            Ok(()) => return Ok((relative, target)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(io(&target, source)),
        }
    }
    unreachable!("the loop ends by returning")
}

struct Copy {
    from: PathBuf,
    to: PathBuf,
    bytes: u64,
    /// SHA-256 by path.
    logits: BTreeMap<String, String>,
}

impl Copy {
    fn run(&mut self, folder: &RunFolder, manifest: &Manifest) -> Result<(), BaselineError> {
        for name in ["run.json", "environment.json", "config.toml"] {
            let path = self.from.join(name);
            // A run without these two can be judged; its times are then compared with no other machine.
            if name == "run.json" || path.exists() {
                self.file(&path, false)?;
            }
        }
        for case in &manifest.cases {
            let files = folder.case_folder(manifest, &case.name);
            let digest = inputs::load(&files).map(|inputs| inputs.digest);
            if digest.as_ref().ok() != Some(&case.inputs_digest) {
                let problem =
                    digest.err().map_or_else(|| "they are another run's".to_owned(), |e| e.to_string());
                return Err(BaselineError::Inputs { run: self.from.clone(), problem });
            }
            for name in ["inputs.json", "inputs.safetensors"] {
                self.file(&files.join(name), false)?;
            }
            for cell in folder.records(manifest, case)? {
                self.file(&folder.record_path(manifest, &case.name, &cell.variant), false)?;
                if let Outcome::Completed(completed) = &cell.outcome {
                    written::check(completed, &files, Check::Content).map_err(|problem| {
                        let run = self.from.clone();
                        let cell = bounds::shown(&cell.name, LINE.most).into_owned();
                        BaselineError::Logits { run, cell, problem }
                    })?;
                    self.file(&files.join(&completed.logits), true)?;
                }
            }
        }
        if self.logits.is_empty() {
            return Err(BaselineError::Empty { run: self.from.clone() });
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, is_logits: bool) -> Result<(), BaselineError> {
        let relative = path.strip_prefix(&self.from).unwrap_or(path);
        let target = self.to.join(relative);
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |cause| BaselineError::Io { action, path, cause }
        };
        let folder = target.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(io("create", folder))?;
        if is_logits {
            let digest = sha256(path).map_err(io("read", path))?;
            self.logits.insert(relative.to_string_lossy().into_owned(), digest);
            // Copies on another file system, or one without hard links.
            if fs::hard_link(path, &target).is_err() {
                fs::copy(path, &target).map_err(io("write", &target))?;
            }
            self.bytes += fs::metadata(&target).map_err(io("read", &target))?.len();
            return Ok(());
        }
        let content = bounds::file::read_unlinked(path, INPUTS_BYTES).map_err(io("read", path))?;
        self.bytes += content.len() as u64;
        atomic::write(&target, &content).map_err(io("write", &target))
    }
}

fn sha256(path: &Path) -> io::Result<String> {
    hash::sha256(&mut bounds::file::open_unlinked(path)?, |_| Ok(()))
}
