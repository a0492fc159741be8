//! The generated Python project whose lock file defines one environment.

use std::path::{Path, PathBuf};

use serde::Serialize;
use std::collections::BTreeMap;

use super::EnvironmentError;
use crate::{Source, Specification, Versions};

/// The source of an environment's torch wheels, once `auto` is resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wheels {
    Pypi,
    Index(&'static str),
}

#[derive(Serialize)]
struct Document {
    project: Project,
    tool: Tool,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Project {
    name: &'static str,
    version: &'static str,
    requires_python: String,
    dependencies: Vec<String>,
}

#[derive(Serialize)]
struct Tool {
    uv: Uv,
}

#[derive(Serialize)]
struct Uv {
    package: bool,
    environments: Vec<String>,
    sources: BTreeMap<&'static str, Origin>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    index: Vec<Index>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Origin {
    Editable { path: PathBuf, editable: bool },
    Index { index: &'static str },
}

#[derive(Serialize)]
struct Index {
    name: &'static str,
    url: String,
    explicit: bool,
}

/// The `pyproject.toml` of `specification` for Python `[major, minor]`.
pub(super) fn pyproject(
    specification: &Specification,
    wheels: Wheels,
    python: [u64; 2],
) -> Result<String, EnvironmentError> {
    let mut sources = BTreeMap::new();
    let transformers = match &specification.source {
        Source::Newest => format!("transformers=={}", Versions::known().newest),
        Source::Release(version) => format!("transformers=={version}"),
        git @ Source::Git { .. } => format!("transformers @ {git}"),
        Source::Editable(folder) => {
            let path = working_copy(folder)?;
            sources.insert("transformers", Origin::Editable { path, editable: true });
            "transformers".to_owned()
        }
    };
    let mut index = Vec::new();
    if let Wheels::Index(backend) = wheels {
        // With `explicit`, uv uses this index for torch only.
        sources.insert("torch", Origin::Index { index: "pytorch" });
        index.push(Index {
            name: "pytorch",
            url: format!("{}/{backend}", Versions::known().pytorch_index),
            explicit: true,
        });
    }
    let mut dependencies = vec![transformers, format!("torch=={}", specification.torch)];
    dependencies.extend(specification.extra.iter().cloned());
    let document = Document {
        project: Project {
            name: "tfcheck-environment",
            version: "0",
            requires_python: format!("=={}.{}.*", python[0], python[1]),
            dependencies,
        },
        tool: Tool { uv: Uv { package: false, environments: vec![platform_marker()], sources, index } },
    };
    toml::to_string(&document).map_err(|error| EnvironmentError::Uv {
        requirement: specification.source.to_string(),
        tail: error.to_string(),
    })
}

/// The absolute folder of an editable source, if it contains a package.
pub(super) fn working_copy(folder: &Path) -> Result<PathBuf, EnvironmentError> {
    let refuse = |reason: String| EnvironmentError::WorkingCopy { folder: folder.to_owned(), reason };
    let path = folder.canonicalize().map_err(|error| refuse(error.to_string()))?;
    if path.join("setup.py").is_file() || path.join("pyproject.toml").is_file() {
        Ok(path)
    } else {
        Err(refuse("it has neither setup.py nor pyproject.toml".into()))
    }
}

/// Restricts the lock to this platform, so that uv does not fetch wheel metadata of all others.
fn platform_marker() -> String {
    let system = match std::env::consts::OS {
        "macos" => "darwin",
        other => other,
    };
    let machine = match (std::env::consts::OS, std::env::consts::ARCH) {
        ("macos", "aarch64") => "arm64",
        (_, other) => other,
    };
    format!("sys_platform == '{system}' and platform_machine == '{machine}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_project_pins_transformers_torch_and_the_index() {
        let mut specification = Specification::new(Source::Release("4.54.0".into()));
        specification.extra = vec!["gguf>=0.10".into()];
        let text = pyproject(&specification, Wheels::Index("cpu"), [3, 11]).unwrap();
        for line in [
            "requires-python = \"==3.11.*\"",
            "\"transformers==4.54.0\"",
            "\"torch==2.15.0\"",
            "\"gguf>=0.10\"",
            "explicit = true",
            "package = false",
        ] {
            assert!(text.contains(line), "{line} is absent from\n{text}");
        }
        let plain = pyproject(&specification, Wheels::Pypi, [3, 11]).unwrap();
        assert!(!plain.contains("index"), "{plain}");
    }

    #[test]
    fn git_and_editable_sources_become_direct_references() {
        let git = Specification::new("git+https://host/x@main".parse().unwrap());
        let text = pyproject(&git, Wheels::Pypi, [3, 12]).unwrap();
        assert!(text.contains("transformers @ git+https://host/x@main"), "{text}");

        let folder = tempfile::tempdir().unwrap();
        let editable = Specification::new(Source::Editable(folder.path().to_owned()));
        let error = pyproject(&editable, Wheels::Pypi, [3, 12]).unwrap_err();
        assert!(error.to_string().contains("neither setup.py"), "{error}");
        std::fs::write(folder.path().join("setup.py"), "").unwrap();
        let text = pyproject(&editable, Wheels::Pypi, [3, 12]).unwrap();
        assert!(text.contains("editable = true"), "{text}");
    }
}
