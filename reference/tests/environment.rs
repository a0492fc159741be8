//! Environments through the real uv: slow, and in need of PyPI (or of uv's cache).

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use reference::{EnvironmentError, Source, Specification, TorchBackend, Versions, prepare, prepare_all};

/// Kept between runs of the tests.
fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache")
}

#[test]
fn two_versions_prepare_side_by_side_and_are_found_again_at_once() {
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
    // The promise is 100 ms for two; reading two stamps takes one.
    assert!(elapsed < Duration::from_millis(100), "{elapsed:?}");
    for (again, first) in again.into_iter().zip(&first) {
        assert_eq!(again.unwrap(), *first);
    }
    // `transformers` is the newest release by another name: the same environment.
    let newest = prepare(&Specification::new(Source::Newest), &cache(), &|_| ()).unwrap();
    assert_eq!(newest.key, first[1].key);
}

#[test]
fn what_cannot_be_installed_says_why() {
    let cache = tempfile::tempdir().unwrap();
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
