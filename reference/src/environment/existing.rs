//! An existing interpreter named by the user: it is checked and described, but never changed.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bounds::limits::{CONFIG_BYTES, IMPORT_SECONDS};

use super::inspect::{self, Interpreter};
use super::stamp::{SCHEMA, Stamp};
use super::{Environment, EnvironmentError, Specification, working_copy};
use crate::Source;
use crate::digest::short;

/// Describes the interpreter at `path` as an environment, after checking that it can import the packages a
/// worker needs.
pub(super) fn adopt(
    specification: &Specification,
    path: &Path,
    cache: &Path,
    progress: &dyn Fn(&str),
) -> Result<Environment, EnvironmentError> {
    let python = interpreter(path)?;
    let refuse = |reason: String| EnvironmentError::Unusable { python: python.clone(), reason };
    let found = Interpreter::inspect(&python)?;
    if crate::release(&found.version) < [3, 10, 0] {
        return Err(refuse(format!("it is Python {}, and workers need 3.10 or later", found.version)));
    }
    for name in ["transformers", "torch"] {
        if !found.packages.contains_key(name) {
            return Err(refuse(format!("it has no {name}")));
        }
    }
    if let Source::Release(asked) = &specification.source
        && found.packages["transformers"] != *asked
    {
        return Err(refuse(format!(
            "it has transformers {}, and {asked} is asked for",
            found.packages["transformers"]
        )));
    }
    let state =
        found.editable().map(|folder| format!("{} at {}", folder.display(), working_copy::state(folder)));
    let lock = found.listing();
    let schema = SCHEMA.to_le_bytes();
    let key = short([
        schema.as_slice(),
        python.as_os_str().as_encoded_bytes(),
        lock.as_bytes(),
        found.build.as_bytes(),
        found.platform.as_bytes(),
        state.as_deref().unwrap_or_default().as_bytes(),
    ]);
    if let Some(known) = Stamp::find(cache, &key) {
        return Ok(known);
    }
    progress(&format!("importing transformers with {}", python.display()));
    let script = "import torch, transformers; from transformers import AutoModelForCausalLM";
    inspect::run(&python, script, Duration::from_secs(IMPORT_SECONDS.most))?;
    let mut notes = vec![format!("existing environment {}: what it contains is not locked", path.display())];
    notes.extend(state.map(|state| format!("working copy {state}")));
    let environment = Environment { versions: found.versions(), python, key: key.clone(), lock, notes };
    Stamp::keep(cache, &key, &environment, None)?;
    Ok(environment)
}

/// Resolves `path`: an interpreter, a virtual environment's folder (`path/bin/python`), or a bare name on
/// PATH. Symbolic links are kept, because Python finds its environment through them.
///
/// # Errors
/// When there is no such file.
pub fn interpreter(path: &Path) -> Result<PathBuf, EnvironmentError> {
    let path = match on_path(path, std::env::var_os("PATH").as_deref()) {
        Some(found) => found,
        None => std::path::absolute(path)?,
    };
    let python = if path.is_dir() { path.join("bin/python") } else { path };
    if python.is_file() {
        Ok(python)
    } else {
        Err(EnvironmentError::Unusable { python, reason: "there is no such file".to_owned() })
    }
}

/// The program on PATH that a name without a folder refers to.
fn on_path(name: &Path, path: Option<&OsStr>) -> Option<PathBuf> {
    let is_bare = name.components().count() == 1 && !name.is_dir();
    let folders = path.filter(|_| is_bare).map(std::env::split_paths);
    folders.into_iter().flatten().map(|folder| folder.join(name)).find(|program| program.is_file())
}

/// The CUDA version that an interpreter's torch was built for (`13.0`), from torch's `version.py`; `None` for
/// a CPU build, or if torch is not installed in the interpreter's environment.
pub fn torch_cuda(python: &Path) -> Option<String> {
    let environment = python.parent()?.parent()?;
    let folders =
        |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut packages = folders(environment.join("lib"))
        .flat_map(|version| ["site-packages", "dist-packages"].map(|packages| version.join(packages)));
    let text = packages.find_map(|packages| {
        bounds::file::read_text(&packages.join("torch/version.py"), CONFIG_BYTES).ok()
    })?;
    built_for(&text)
}

/// Parses a line such as `cuda: Optional[str] = '13.0'`.
fn built_for(version_py: &str) -> Option<String> {
    let line = version_py.lines().find(|line| line.starts_with("cuda"))?;
    let (_, value) = line.split_once('=')?;
    let value = value.trim();
    let version = value.trim_matches(['\'', '"']);
    (version.len() + 2 == value.len() && !version.is_empty()).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_is_looked_up_and_anything_else_is_a_path() {
        let root = tempfile::tempdir().unwrap();
        let program = root.path().join("python3-of-a-test");
        fs::write(&program, "").unwrap();
        let path = std::env::join_paths([Path::new("/nowhere"), root.path()]).unwrap();
        let check = |name: &str, expect: Option<&PathBuf>| {
            assert_eq!(on_path(Path::new(name), Some(&path)).as_ref(), expect, "{name}");
        };
        check("python3-of-a-test", Some(&program));
        check("./python3-of-a-test", None);
        check("bin/python3-of-a-test", None);
        check("python3-of-another-test", None);
    }

    #[test]
    fn torchs_cuda_is_read_without_importing_it() {
        let check =
            |text: &str, expect: Option<&str>| assert_eq!(built_for(text).as_deref(), expect, "{text}");
        check(
            "__version__ = '2.15.0+cu130'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n",
            Some("13.0"),
        );
        check("cuda = \"12.8\"\n", Some("12.8"));
        check("cuda: Optional[str] = None\n", None);
        check("hip = '6.0'\n", None);

        let root = tempfile::tempdir().unwrap();
        let torch = root.path().join("lib/python3.12/site-packages/torch");
        fs::create_dir_all(&torch).unwrap();
        fs::write(torch.join("version.py"), "cuda = '13.0'\n").unwrap();
        assert_eq!(torch_cuda(&root.path().join("bin/python3")).as_deref(), Some("13.0"));
        assert_eq!(torch_cuda(Path::new("/nowhere/bin/python3")), None);
    }
}
