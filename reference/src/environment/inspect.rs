//! Asks an interpreter for its version and installed packages without importing any of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bounds::limits::PROBE_SECONDS;
use serde::Deserialize;

use super::{EnvironmentError, tail};
use crate::helper;

/// Reads metadata only (tens of milliseconds); importing torch takes seconds.
const SCRIPT: &str = r#"
import json, platform, sys, sysconfig
from importlib import metadata
found, direct = {}, None
for distribution in metadata.distributions():
    name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
    found.setdefault(name, distribution.version)
    if name == "transformers":
        direct = distribution.read_text("direct_url.json")
json.dump({
    "version": platform.python_version(),
    "build": sys.version + " " + str(sysconfig.get_config_var("SOABI")) + " " + sys.implementation.name,
    "platform": sysconfig.get_platform() + " " + "-".join(platform.libc_ver()),
    "packages": found,
    "direct": json.loads(direct) if direct else None,
}, sys.stdout)
"#;

/// An interpreter's description of itself.
#[derive(Debug, Deserialize)]
pub(super) struct Interpreter {
    /// `3.11.7`.
    pub(super) version: String,
    /// Compiler, build date and ABI.
    pub(super) build: String,
    /// Operating system, architecture and C library.
    pub(super) platform: String,
    /// Installed distributions, name to version.
    pub(super) packages: BTreeMap<String, String>,
    /// `direct_url.json` of transformers (PEP 610), if it was not installed from an index.
    pub(super) direct: Option<serde_json::Value>,
}

impl Interpreter {
    /// Starts `python` in isolated mode and reads its description.
    pub(super) fn inspect(python: &Path) -> Result<Self, EnvironmentError> {
        let text = run(python, SCRIPT, Duration::from_secs(PROBE_SECONDS.most))?;
        serde_json::from_str(&text).map_err(|error| EnvironmentError::Unusable {
            python: python.to_owned(),
            reason: format!("its description of itself could not be read: {error}"),
        })
    }

    /// `[major, minor]`, such as `[3, 11]`.
    pub(super) fn release(&self) -> [u64; 2] {
        let [major, minor, _] = crate::release(&self.version);
        [major, minor]
    }

    /// The versions that affect a result: transformers, torch and Python.
    pub(super) fn versions(&self) -> BTreeMap<String, String> {
        let mut versions: BTreeMap<String, String> = ["transformers", "torch"]
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), self.packages.get(name)?.clone())))
            .collect();
        versions.insert("python".to_owned(), self.version.clone());
        versions
    }

    /// The working copy that transformers is imported from, if it is installed editable.
    pub(super) fn editable(&self) -> Option<&Path> {
        let direct = self.direct.as_ref()?;
        let editable = direct.pointer("/dir_info/editable")?.as_bool()?;
        let url = direct.get("url")?.as_str()?;
        editable.then(|| url.strip_prefix("file://").map(Path::new)).flatten()
    }

    /// `name==version` of every installed distribution, one per line.
    pub(super) fn listing(&self) -> String {
        let lines: Vec<String> =
            self.packages.iter().map(|(name, version)| format!("{name}=={version}")).collect();
        lines.join("\n")
    }
}

/// Runs `script` in isolated mode for at most `limit`; returns its standard output.
pub(super) fn run(python: &Path, script: &str, limit: Duration) -> Result<String, EnvironmentError> {
    let refuse = |reason: String| EnvironmentError::Unusable { python: python.to_owned(), reason };
    let mut command = Command::new(python);
    command.args(["-I", "-c", script]).env_remove("PYTHONHOME");
    let output = helper::output(&mut command, limit).map_err(|error| refuse(error.to_string()))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(refuse(format!(
            "it ended with {}: {}",
            output.status,
            tail(&String::from_utf8_lossy(&output.stderr), 4)
        )))
    }
}
