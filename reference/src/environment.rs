//! Turns a specification into an installed environment: a generated project, `uv lock`, `uv sync --frozen`.
//!
//! Finding a finished environment again reads one stamp and starts no process. The order of writes ensures
//! that after a kill at any moment an environment is either finished or installed again.

mod existing;
mod inspect;
mod model_types;
mod project;
mod stamp;
mod torch_backend;
mod working_copy;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use serde::{Deserialize, Serialize};

use crate::cache::{Lock, write_atomically};
use crate::digest::short;
use crate::failure::{EnvironmentError, tail};
use crate::uv::Uv;
use crate::{Source, Versions};
pub use existing::{interpreter, torch_cuda};
use inspect::Interpreter;
pub use model_types::lacks_model_type;
use project::Wheels;
use stamp::Stamp;
pub use torch_backend::TorchBackend;

/// The content of an environment to install.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Specification {
    /// Where transformers comes from.
    pub source: Source,
    /// The pinned torch, `2.15.0`.
    pub torch: String,
    /// Where torch's wheels come from.
    pub torch_backend: TorchBackend,
    /// Further requirements, as PEP 508 spells them.
    pub extra: Vec<String>,
    /// The interpreter.
    pub python: Python,
}

/// The Python interpreter of an environment.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Python {
    /// A request that uv resolves, `3.11` or `>=3.11,<3.13`.
    Request(String),
    /// An interpreter (or the folder of a virtual environment) that already has transformers and torch;
    /// nothing is installed into it. A pinned release must equal the installed one.
    Existing(PathBuf),
}

impl Specification {
    /// `source` with the defaults of [`Versions::known`].
    pub fn new(source: Source) -> Self {
        Self {
            source,
            torch: Versions::known().torch.clone(),
            torch_backend: TorchBackend::Auto,
            extra: Vec::new(),
            python: Python::Request(Versions::known().python.clone()),
        }
    }

    /// Digest that identifies the specification in the cache.
    fn digest(&self) -> Result<String, EnvironmentError> {
        let text = serde_json::to_vec(self).map_err(std::io::Error::other)?;
        let newest = Versions::known().newest.as_bytes();
        let schema = stamp::SCHEMA.to_le_bytes();
        let mut parts = vec![schema.as_slice(), &text, newest];
        let folder;
        if let Source::Editable(path) = &self.source {
            // The same relative path means a different working copy in a different current folder.
            folder = project::working_copy(path)?;
            parts.push(folder.as_os_str().as_encoded_bytes());
        }
        Ok(short(parts))
    }
}

/// An environment that is ready to run workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// The interpreter to start.
    pub python: PathBuf,
    /// Digest of everything that determines what is installed; part of every result's key.
    pub key: String,
    /// Text of `uv.lock`; for an existing interpreter, `name==version` of each installed package, one per
    /// line.
    pub lock: String,
    /// `{"transformers": "4.54.0", "torch": "2.15.0", "python": "3.11.7"}`.
    pub versions: BTreeMap<String, String>,
    /// Notes for the user: fall-backs, pinned refs, working copies.
    pub notes: Vec<String>,
}

/// Returns the environment of `specification` from `cache`, installing it first if necessary.
///
/// `progress` is called on this thread with lines for the user.
///
/// # Errors
/// [`EnvironmentError`] distinguishes a version that does not exist, an unreachable network, a conflict with
/// torch and other failures.
pub fn prepare(
    specification: &Specification,
    cache: &Path,
    progress: &dyn Fn(&str),
) -> Result<Environment, EnvironmentError> {
    match &specification.python {
        Python::Existing(path) => existing::adopt(specification, path, cache, progress),
        Python::Request(request) => {
            let cache = std::path::absolute(cache)?;
            install(specification, request, &cache, progress)
        }
    }
}

/// [`prepare`] for several specifications in parallel; results are in the order of the specifications.
///
/// `progress` is called with the index of the specification and a line for the user.
pub fn prepare_all(
    specifications: &[Specification],
    cache: &Path,
    progress: &(dyn Fn(usize, &str) + Sync),
) -> Vec<Result<Environment, EnvironmentError>> {
    thread::scope(|scope| {
        let running: Vec<_> = specifications
            .iter()
            .enumerate()
            .map(|(index, specification)| {
                scope.spawn(move || prepare(specification, cache, &|line: &str| progress(index, line)))
            })
            .collect();
        running
            .into_iter()
            .map(|thread| {
                thread.join().unwrap_or_else(|_| {
                    Err(std::io::Error::other("the thread that prepared it panicked").into())
                })
            })
            .collect()
    })
}

/// Removes the cached environment of `specification`, so that [`prepare`] locks and installs it again. An
/// existing interpreter is not changed.
///
/// # Errors
/// When the cache cannot be changed.
pub fn forget(specification: &Specification, cache: &Path) -> Result<(), EnvironmentError> {
    let name = specification.digest()?;
    let _lock = Lock::take(cache, &format!("project-{name}"), || ())?;
    let stamp = stamp_name(&name, working_copy_state(specification).as_deref());
    Stamp::forget(cache, &stamp)?;
    let project = cache.join("projects").join(&name);
    if project.exists() {
        fs::remove_dir_all(project)?;
    }
    Ok(())
}

/// Looks for the stamp first; otherwise locks and syncs while holding the specification's lock file.
fn install(
    specification: &Specification,
    request: &str,
    cache: &Path,
    progress: &dyn Fn(&str),
) -> Result<Environment, EnvironmentError> {
    let name = specification.digest()?;
    let state = working_copy_state(specification);
    let stamp = stamp_name(&name, state.as_deref());
    if let Some(found) = Stamp::find(cache, &stamp) {
        return Ok(found);
    }
    let _lock = Lock::take(cache, &format!("project-{name}"), || {
        progress("waiting for another tfcheck that prepares the same environment");
    })?;
    if let Some(found) = Stamp::find(cache, &stamp) {
        return Ok(found);
    }
    let build = Build {
        specification,
        uv: Uv::find(cache, progress)?,
        cache,
        project: cache.join("projects").join(&name),
        progress,
    };
    let (mut environment, folder) = build.run(request)?;
    if let Some(state) = state {
        environment.key = short([environment.key.as_bytes(), state.as_bytes()]);
        environment.notes.push(format!("working copy {} at {state}", specification.source));
    }
    Stamp::keep(cache, &stamp, &environment, Some(&folder))?;
    Ok(environment)
}

/// State of a working copy; `None` for any other source.
fn working_copy_state(specification: &Specification) -> Option<String> {
    match &specification.source {
        Source::Editable(folder) => Some(working_copy::state(folder)),
        _ => None,
    }
}

/// The stamp's name; a working copy has one stamp per state.
fn stamp_name(name: &str, state: Option<&str>) -> String {
    match state {
        Some(state) => short([name.as_bytes(), state.as_bytes()]),
        None => name.to_owned(),
    }
}

/// One run of uv's commands for one specification.
struct Build<'a> {
    specification: &'a Specification,
    uv: Uv,
    cache: &'a Path,
    project: PathBuf,
    progress: &'a dyn Fn(&str),
}

impl Build<'_> {
    fn run(&self, request: &str) -> Result<(Environment, PathBuf), EnvironmentError> {
        fs::create_dir_all(&self.project)?;
        let base = self.interpreter(request)?;
        let interpreter = Interpreter::inspect(&base)?;
        let (lock, mut notes) = self.lock(&base, interpreter.release())?;
        let schema = stamp::SCHEMA.to_le_bytes();
        let key = short([
            schema.as_slice(),
            lock.as_bytes(),
            interpreter.build.as_bytes(),
            interpreter.platform.as_bytes(),
        ]);
        let folder = self.cache.join("environments").join(&key);
        self.sync(&base, &folder, &key)?;
        let python = folder.join("bin/python");
        let installed = Interpreter::inspect(&python)?;
        notes.extend(pinned_ref(&lock));
        let environment = Environment { python, key, lock, versions: installed.versions(), notes };
        Ok((environment, folder))
    }

    /// The interpreter that uv chooses for `request`.
    fn interpreter(&self, request: &str) -> Result<PathBuf, EnvironmentError> {
        let arguments = ["python", "find", "--no-project", "--system", request];
        if let Ok(found) = self.uv.run(&self.project, &arguments, &[], self.progress) {
            return Ok(PathBuf::from(found.trim()));
        }
        (self.progress)(&format!("installing a Python for {request}"));
        let install = ["python", "install", request];
        self.uv
            .run(&self.project, &install, &[], self.progress)
            .and_then(|_| self.uv.run(&self.project, &arguments, &[], self.progress))
            .map(|found| PathBuf::from(found.trim()))
            .map_err(|failure| EnvironmentError::NoPython {
                request: request.to_owned(),
                tail: tail(&failure.message, 4),
            })
    }

    /// Selects the wheels and writes `uv.lock`; returns its text and notes.
    fn lock(&self, base: &Path, release: [u64; 2]) -> Result<(String, Vec<String>), EnvironmentError> {
        let fallen_back = || vec!["torch from PyPI: PyTorch's own index cannot be reached".to_owned()];
        let wheels = match self.specification.torch_backend {
            TorchBackend::Pypi => Wheels::Pypi,
            TorchBackend::Cpu => Wheels::Index("cpu"),
            TorchBackend::Cu130 => Wheels::Index("cu130"),
            TorchBackend::Auto if !torch_backend::pytorch_index_answers() => {
                return Ok((self.lock_for(base, release, Wheels::Pypi)?, fallen_back()));
            }
            TorchBackend::Auto => {
                let backend = if torch_backend::gpu_found() { "cu130" } else { "cpu" };
                return match self.lock_for(base, release, Wheels::Index(backend)) {
                    Ok(lock) => Ok((lock, vec![format!("torch from PyTorch's index, {backend}")])),
                    // The unreachable host may be any; if PyPI is unreachable too, the next error reports it.
                    Err(EnvironmentError::Network { .. }) => {
                        Ok((self.lock_for(base, release, Wheels::Pypi)?, fallen_back()))
                    }
                    Err(error) => Err(error),
                };
            }
        };
        Ok((self.lock_for(base, release, wheels)?, Vec::new()))
    }

    fn lock_for(&self, base: &Path, release: [u64; 2], wheels: Wheels) -> Result<String, EnvironmentError> {
        let text = project::pyproject(self.specification, wheels, release)?;
        write_atomically(&self.project.join("pyproject.toml"), text.as_bytes())?;
        (self.progress)(&format!("locking {}", self.specification.source));
        let base = base.to_string_lossy();
        self.offline_first(&["lock", "--python", &base], &[])?;
        Ok(fs::read_to_string(self.project.join("uv.lock"))?)
    }

    /// Installs the locked packages into `folder`, unless the installation is complete.
    fn sync(&self, base: &Path, folder: &Path, key: &str) -> Result<(), EnvironmentError> {
        // Two specifications can have the same lock (`transformers` and its newest release).
        let _lock = Lock::take(self.cache, &format!("environment-{key}"), || {
            (self.progress)("waiting for another tfcheck that installs the same environment");
        })?;
        if stamp::is_complete(folder) {
            return Ok(());
        }
        // An interrupted sync may have left metadata of files that are missing.
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        (self.progress)(&format!("installing {}", self.specification.source));
        let base = base.to_string_lossy();
        self.offline_first(
            &["sync", "--frozen", "--python", &base],
            &[("UV_PROJECT_ENVIRONMENT", folder.as_os_str())],
        )?;
        Ok(stamp::complete(folder)?)
    }

    /// Runs uv on its cache only, and with the network if that fails.
    fn offline_first(
        &self,
        arguments: &[&str],
        variables: &[(&str, &OsStr)],
    ) -> Result<(), EnvironmentError> {
        let offline: Vec<&str> = arguments.iter().copied().chain(["--offline"]).collect();
        if self.uv.run(&self.project, &offline, variables, &|_| ()).is_ok() {
            return Ok(());
        }
        self.uv.run(&self.project, arguments, variables, self.progress).map(|_| ()).map_err(|failure| {
            EnvironmentError::from_uv(
                &self.specification.source.to_string(),
                &self.specification.torch,
                &failure.message,
            )
        })
    }
}

/// A note with the commit to which a git source is pinned, from the text of `uv.lock`.
fn pinned_ref(lock: &str) -> Option<String> {
    let document: toml::Table = lock.parse().ok()?;
    let transformers = document
        .get("package")?
        .as_array()?
        .iter()
        .find(|package| package.get("name").and_then(toml::Value::as_str) == Some("transformers"))?;
    let git = transformers.get("source")?.get("git")?.as_str()?;
    let (_, commit) = git.split_once('#')?;
    Some(format!("transformers pinned to commit {commit}"))
}

#[cfg(test)]
mod tests;
