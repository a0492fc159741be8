//! Makes a checkpoint in the environment of one release, once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bounds::limits::CHECKPOINT_JSON_BYTES;
use reference::protocol::{Make, Request};
use reference::{Environment, Launch, Source, Specification, Worker};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::super::{Error, Progress, Settings, Step, complete_folder};
use super::{Tiny, fill, merge};
use crate::spec::machine::hex;

/// Longest time for a model to be constructed and saved, most of which is the import of transformers.
const TIMEOUT: Duration = Duration::from_mins(5);
/// Lines of the worker's log that an error keeps.
const TAIL: usize = 5;
/// A change of this code makes every checkpoint anew.
const CODE: [&str; 2] = [include_str!("fill.rs"), reference::MAKER_CODE];

/// The workers that make checkpoints, by interpreter: importing transformers takes longer than making one. The lock also
/// ensures that runs in parallel in this process make a checkpoint once.
static WORKERS: Mutex<BTreeMap<PathBuf, (Worker, NamedTempFile)>> = Mutex::new(BTreeMap::new());

/// The checkpoint's folder in the cache.
pub(super) fn folder(tiny: &Tiny, settings: &Settings, progress: Progress<'_>) -> Result<PathBuf, Error> {
    let target = settings.cache.join("synthetic").join(key(tiny, settings.seed));
    let mut workers = WORKERS.lock().unwrap_or_else(PoisonError::into_inner);
    complete_folder(&target, |folder| make(tiny, settings, folder, progress, &mut workers))?;
    Ok(target)
}

/// Ends the workers that made checkpoints.
pub(super) fn end() {
    let workers = std::mem::take(&mut *WORKERS.lock().unwrap_or_else(PoisonError::into_inner));
    for (worker, _) in workers.into_values() {
        worker.exit(Duration::from_secs(2));
    }
}

/// The folder's name: model type, variant, seed and a digest of everything else that determines the files.
fn key(tiny: &Tiny, seed: u64) -> String {
    let mut hasher = Sha256::new();
    let config = Value::Object(tiny.config()).to_string();
    let (rules, saved) = (format!("{:?}", tiny.fill()), Value::Object(tiny.saved()).to_string());
    for part in [tiny.class, tiny.maker(), &config, &rules, &saved].into_iter().chain(CODE) {
        hasher.update(part.len().to_le_bytes());
        hasher.update(part);
    }
    let variant = if tiny.variant.is_empty() { "default" } else { tiny.variant };
    format!("{}-{variant}-{seed}-{}", tiny.model_type, &hex(&hasher.finalize())[..12])
}

fn make(
    tiny: &Tiny,
    settings: &Settings,
    folder: &Path,
    progress: Progress<'_>,
    workers: &mut BTreeMap<PathBuf, (Worker, NamedTempFile)>,
) -> Result<(), Error> {
    let given = format!("synthetic:{}", tiny.name());
    let failed =
        |reason: String, help: &str| Error::Tiny { given: given.clone(), reason, help: help.to_owned() };
    let release = tiny.maker();
    progress(Step::Line(&format!("transformers {release} makes {given}")));
    let specification =
        Specification { source: Source::Release(release.to_owned()), ..settings.maker.clone() };
    // `reference` calls its progress through a shared reference.
    let shown = Mutex::new(progress);
    let show = |line: &str| {
        let line = format!("transformers {release} for {given}: {line}");
        (shown.lock().unwrap_or_else(PoisonError::into_inner))(Step::Line(&line));
    };
    let environment = reference::prepare(&specification, &settings.cache, &show).map_err(|error| {
        failed(format!("the environment of transformers {release}: {error}"), error.hint())
    })?;
    // A worker that fails is not used again.
    let (mut worker, log) = match workers.remove(&environment.python) {
        Some(running) => running,
        None => start(&environment, settings)?,
    };
    let request = Request::Make(Make {
        class: tiny.row.is_listed().then(|| tiny.class.to_owned()),
        config: Value::Object(tiny.config()).to_string(),
        seed: settings.seed,
        folder: folder.to_owned(),
    });
    worker.ask(&request, TIMEOUT, &settings.stop).map_err(|ended| {
        if matches!(ended, reference::WorkerEnd::Interrupted) {
            return Error::Interrupted;
        }
        let log = worker.log_tail(TAIL);
        let help = if log.trim().is_empty() {
            "`tfcheck list models` lists every synthetic checkpoint".to_owned()
        } else {
            format!("the end of the worker's log: {log}")
        };
        failed(format!("transformers {release}: {ended}"), &help)
    })?;
    workers.insert(environment.python, (worker, log));
    edit(&folder.join("config.json"), &tiny.saved())?;
    fill::fill(&folder.join("model.safetensors"), &tiny.fill(), settings.seed)
        .map_err(|reason| failed(reason, "tfcheck's table of synthetic checkpoints lacks a rule; report it"))
}

/// Sets values of the saved config.json.
fn edit(path: &Path, saved: &Map<String, Value>) -> Result<(), Error> {
    if saved.is_empty() {
        return Ok(());
    }
    let bad =
        |error: &dyn std::fmt::Display| Error::BadJson { path: path.to_owned(), reason: error.to_string() };
    let text = bounds::file::read(path, CHECKPOINT_JSON_BYTES).map_err(Error::io("read", path))?;
    let mut config: Map<String, Value> = serde_json::from_slice(&text).map_err(|error| bad(&error))?;
    merge(&mut config, saved);
    std::fs::write(path, format!("{:#}\n", Value::Object(config))).map_err(Error::io("write", path))
}

/// A worker of the environment, with its log.
fn start(environment: &Environment, settings: &Settings) -> Result<(Worker, NamedTempFile), Error> {
    let log = NamedTempFile::new().map_err(Error::io("create", &std::env::temp_dir()))?;
    let launch = Launch::transformers(environment, &settings.cache, log.path().to_owned(), 1)
        .map_err(Error::io("write", &settings.cache))?;
    let worker = Worker::start(&launch).map_err(Error::io("start", &environment.python))?;
    Ok((worker, log))
}
