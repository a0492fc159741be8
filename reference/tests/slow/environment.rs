//! Environments installed by the real uv: slow, and needs PyPI or uv's cache.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::tiny::cache;
use reference::{EnvironmentError, Source, Specification, TorchBackend, Versions, prepare, prepare_all};

/// A separate cache for environments that no other test uses; only uv comes from the shared cache.
fn own_cache() -> tempfile::TempDir {
    let uv = cache().join("uv");
    fs::create_dir_all(&uv).unwrap();
    let own = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::os::unix::fs::symlink(uv, own.path().join("uv")).unwrap();
    own
}

#[test]
fn two_versions_prepare_in_parallel_and_are_found_within_100_ms() {
    let specifications: Vec<_> = (Versions::known().default.iter())
        .map(|version| Specification::new(Source::Release(version.clone())))
        .collect();
    let lines = Mutex::new(Vec::new());
    let first: Vec<_> = prepare_all(&specifications, &cache(), &|index, line| {
        lines.lock().unwrap().push(format!("{index}: {line}"));
    })
    .into_iter()
    .map(Result::unwrap)
    .collect();
    for (environment, version) in first.iter().zip(&Versions::known().default) {
        assert_eq!(environment.versions["transformers"], *version);
        assert!(environment.versions["torch"].starts_with(&Versions::known().torch));
        assert!(environment.lock.contains("name = \"transformers\""));
        assert!(environment.python.is_file());
    }
    assert_ne!(first[0].key, first[1].key);
    let begun = Instant::now();
    let again = prepare_all(&specifications, &cache(), &|_, line| panic!("nothing is to be done: {line}"));
    let elapsed = begun.elapsed();
    // The documented limit for finding two environments is 100 ms; reading two stamps takes about 1 ms.
    assert!(elapsed < Duration::from_millis(100), "{elapsed:?}");
    for (again, first) in again.into_iter().zip(&first) {
        assert_eq!(again.unwrap(), *first);
    }
    // `transformers` without a version is the newest release, so its environment is the same.
    let newest = prepare(&Specification::new(Source::Newest), &cache(), &|_| ()).unwrap();
    assert_eq!(newest.key, first[1].key);
}

#[test]
fn a_failed_installation_has_a_reason() {
    let cache = own_cache();
    let fail = |source: &str, change: fn(&mut Specification)| {
        let mut specification = Specification::new(source.parse().unwrap());
        specification.torch_backend = TorchBackend::Pypi;
        change(&mut specification);
        prepare(&specification, cache.path(), &|_| ()).unwrap_err()
    };
    let missing = fail("transformers==4.99.99", |_| ());
    assert!(matches!(missing, EnvironmentError::NoSuchVersion { .. }), "{missing:?}");
    assert!(missing.to_string().contains("4.99.99"), "{missing}");
    let conflict = fail("transformers==4.54.0", |specification| {
        specification.extra = vec!["torch<2".into()];
    });
    assert!(matches!(conflict, EnvironmentError::Conflict { .. }), "{conflict:?}");
    let unreachable = fail("git+https://localhost:1/no/such@main", |_| ());
    assert!(matches!(unreachable, EnvironmentError::Network { .. }), "{unreachable:?}");
    let no_python = fail("transformers==4.54.0", |specification| {
        specification.python = reference::Python::Request("2.1".into());
    });
    assert!(matches!(no_python, EnvironmentError::NoPython { .. }), "{no_python:?}");
}

/// Writes a minimal package named transformers.
fn package(folder: &Path) {
    fs::create_dir_all(folder.join("transformers")).unwrap();
    let project = "[project]\nname = \"transformers\"\nversion = \"99.1\"\n";
    fs::write(folder.join("pyproject.toml"), project).unwrap();
    fs::write(folder.join("transformers/__init__.py"), "said = 1\n").unwrap();
}

fn git(folder: &Path, arguments: &[&str]) -> String {
    let identity = ["-c", "user.name=t", "-c", "user.email=t@t"];
    let output = Command::new("git").current_dir(folder).args(identity).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn ask(python: &Path) -> String {
    let script = "import transformers; print(transformers.said)";
    let output = Command::new(python).args(["-I", "-c", script]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_working_copy_is_run_as_it_is_and_every_edit_changes_the_key() {
    let (folder, cache) = (tempfile::tempdir().unwrap(), own_cache());
    package(folder.path());
    git(folder.path(), &["init", "-q"]);
    git(folder.path(), &["add", "."]);
    git(folder.path(), &["commit", "-qm", "a"]);
    let specification = Specification::new(Source::Editable(folder.path().to_owned()));
    let prepare = || prepare(&specification, cache.path(), &|_| ()).unwrap();
    let clean = prepare();
    assert_eq!(clean.versions["transformers"], "99.1");
    assert_eq!(ask(&clean.python), "1");
    // Installing the working copy leaves no file that counts as an edit.
    assert_eq!(prepare().key, clean.key);
    let commit = git(folder.path(), &["rev-parse", "HEAD"]);
    let says = |notes: &[String], end: &str| notes.iter().any(|note| note.ends_with(end));
    assert!(says(&clean.notes, &commit), "{:?}", clean.notes);
    fs::write(folder.path().join("transformers/__init__.py"), "said = 2\n").unwrap();
    let edited = prepare();
    assert_ne!(edited.key, clean.key);
    assert_eq!(ask(&edited.python), "2");
    fs::write(folder.path().join("transformers/__init__.py"), "said = 1\n").unwrap();
    assert_eq!(prepare().key, clean.key);
}

#[test]
fn a_git_reference_is_pinned_to_the_commit_that_it_names() {
    let (folder, cache) = (tempfile::tempdir().unwrap(), own_cache());
    package(folder.path());
    git(folder.path(), &["init", "-q"]);
    git(folder.path(), &["add", "."]);
    git(folder.path(), &["commit", "-qm", "a"]);
    git(folder.path(), &["branch", "fix"]);
    let commit = git(folder.path(), &["rev-parse", "HEAD"]);
    fs::write(folder.path().join("transformers/__init__.py"), "said = 2\n").unwrap();
    git(folder.path(), &["commit", "-qam", "b"]);
    let source = format!("git+file://{}@fix", folder.path().display());
    let specification = Specification::new(source.parse().unwrap());
    let found = prepare(&specification, cache.path(), &|_| ()).unwrap();
    assert_eq!(ask(&found.python), "1");
    assert!(found.lock.contains(&commit), "{}", found.lock);
    assert!(found.notes.iter().any(|note| note.ends_with(&commit)), "{:?}", found.notes);
    // When the branch moves, the environment stays the same until it is forgotten.
    git(folder.path(), &["branch", "-f", "fix", "HEAD"]);
    assert_eq!(prepare(&specification, cache.path(), &|_| ()).unwrap(), found);
    reference::forget(&specification, cache.path()).unwrap();
    let moved = prepare(&specification, cache.path(), &|_| ()).unwrap();
    assert_ne!(moved.key, found.key);
    assert_eq!(ask(&moved.python), "2");
}
