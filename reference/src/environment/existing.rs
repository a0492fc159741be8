//! An interpreter that the user names and keeps: checked, described, never changed.

use std::path::{Path, PathBuf};

use super::inspect::{self, Interpreter};
use super::stamp::{SCHEMA, Stamp};
use super::{Environment, EnvironmentError, Specification, working_copy};
use crate::Source;
use crate::digest::short;

/// Describes the interpreter at `path` as an environment, after seeing it import what workers need.
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
    inspect::run(&python, "import torch, transformers; from transformers import AutoModelForCausalLM")?;
    let mut notes = vec![format!("existing environment {}: what it contains is not locked", path.display())];
    notes.extend(state.map(|state| format!("working copy {state}")));
    let environment = Environment { versions: found.versions(), python, key: key.clone(), lock, notes };
    Stamp::keep(cache, &key, &environment, None)?;
    Ok(environment)
}

/// `path`, or `path/bin/python` of a virtual environment. Links are kept: through them Python finds
/// the environment that it belongs to.
fn interpreter(path: &Path) -> Result<PathBuf, EnvironmentError> {
    let path = std::path::absolute(path)?;
    let python = if path.is_dir() { path.join("bin/python") } else { path };
    if python.is_file() {
        Ok(python)
    } else {
        Err(EnvironmentError::Unusable { python, reason: "there is no such file".to_owned() })
    }
}
