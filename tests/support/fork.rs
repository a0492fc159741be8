//! An editable fork of transformers, into which bugs are planted.

// Each of the test binary and the example uses a part of this module.
#![allow(dead_code, reason = "shared by a test binary and an example")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use reference::{Environment, Source, Specification, prepare};
use tfcheck::app::cache_folder;

use crate::plants::fork::Plant;

pub(crate) const NEWEST: &str = "5.23.0";
pub(crate) fn newest() -> Environment {
    let specification = Specification::new(Source::Release(NEWEST.to_owned()));
    prepare(&specification, &cache_folder().unwrap(), &|line| eprintln!("{line}")).unwrap()
}

/// A git working copy of the release: its installed files with a project file. It is made once and kept.
pub(crate) struct Fork(pub(crate) PathBuf);

impl Fork {
    /// The working copy of `test`; no other test uses it.
    pub(crate) fn new(test: &str) -> Self {
        let made = made_folder();
        let fork = made.join(format!("fork-{test}-{NEWEST}"));
        if !fork.exists() {
            fs::create_dir_all(&made).unwrap();
            let begun = tempfile::tempdir_in(&made).unwrap();
            let copy = Self(begun.path().join("fork"));
            copy.fill();
            fs::rename(&copy.0, &fork).unwrap();
        }
        let fork = Self(fork);
        fork.reset();
        fork
    }

    pub(crate) fn environment(&self) -> Environment {
        let specification = Specification::new(Source::Editable(self.0.clone()));
        prepare(&specification, &cache_folder().unwrap(), &|line| eprintln!("{line}")).unwrap()
    }

    fn fill(&self) {
        let packages = site_packages(&newest().python);
        copy(&packages.join("transformers"), &self.0.join("src/transformers"));
        let metadata = packages.join(format!("transformers-{NEWEST}.dist-info/METADATA"));
        let metadata = fs::read_to_string(metadata).unwrap();
        let required = metadata.lines().filter_map(|line| line.strip_prefix("Requires-Dist: "));
        let required: Vec<&str> = required.filter(|line| !line.contains("extra ==")).collect();
        let project = format!(
            "[project]\nname = \"transformers\"\nversion = \"{NEWEST}\"\ndependencies = {required:?}\n\
             [tool.setuptools.packages.find]\nwhere = [\"src\"]\n"
        );
        fs::write(self.0.join("pyproject.toml"), project).unwrap();
        fs::write(self.0.join(".gitignore"), "__pycache__/\n*.egg-info/\n").unwrap();
        self.git(&["init", "--quiet"]);
        self.git(&["-c", "core.compression=0", "add", "."]);
        self.git(&["-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", NEWEST]);
    }

    fn git(&self, arguments: &[&str]) -> String {
        let output = Command::new("git").current_dir(&self.0).args(arguments).output().unwrap();
        assert!(output.status.success(), "git {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub(crate) fn reset(&self) {
        self.git(&["checkout", "--quiet", "--force", "HEAD"]);
    }

    /// Resets the working copy, plants the bugs in it and returns its commit.
    pub(crate) fn plant<'a>(&self, branch: impl IntoIterator<Item = &'a Plant>) -> String {
        self.reset();
        for plant in branch {
            let name = plant.file;
            let path = self.0.join(format!("src/transformers/models/{name}/modeling_{name}.py"));
            let mut text = fs::read_to_string(&path).unwrap();
            for (old, new) in plant.edits {
                assert!(text.contains(old), "{}: {name} does not have: {old}", plant.class);
                text = text.replace(old, new);
            }
            fs::write(&path, text).unwrap();
        }
        self.git(&["rev-parse", "HEAD"])
    }
}

/// The folder of the build for what tests make; cargo does not tell examples.
fn made_folder() -> PathBuf {
    let beside = || std::env::current_exe().unwrap().ancestors().nth(3).unwrap().join("tmp");
    option_env!("CARGO_TARGET_TMPDIR").map_or_else(beside, PathBuf::from)
}

fn site_packages(python: &Path) -> PathBuf {
    let lib = python.parent().unwrap().parent().unwrap().join("lib");
    let mut versions = fs::read_dir(lib).unwrap().map(|entry| entry.unwrap().path());
    versions.find(|path| path.join("site-packages").is_dir()).unwrap().join("site-packages")
}

/// Copies a folder with its times, so that compiled modules stay valid.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
            let times = entry.metadata().unwrap().modified().unwrap();
            fs::File::options().write(true).open(&target).unwrap().set_modified(times).unwrap();
        }
    }
}
