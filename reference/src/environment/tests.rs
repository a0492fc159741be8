use super::*;

/// Writes a finished environment into `cache` without uv.
fn finished(cache: &Path, specification: &Specification) -> PathBuf {
    let folder = cache.join("environments/abc");
    fs::create_dir_all(folder.join("bin")).unwrap();
    fs::write(folder.join("bin/python"), "").unwrap();
    stamp::complete(&folder).unwrap();
    let environment = Environment {
        python: folder.join("bin/python"),
        key: "abc".into(),
        lock: "version = 1".into(),
        versions: BTreeMap::from([("torch".into(), "2.15.0".into())]),
        notes: vec!["a note".into()],
    };
    let name = specification.digest().unwrap();
    Stamp::keep(cache, &name, &environment, Some(&folder)).unwrap();
    folder
}

#[test]
fn a_finished_environment_is_found_without_starting_a_process() {
    let cache = tempfile::tempdir().unwrap();
    let specification = Specification::new(Source::Release("4.54.0".into()));
    let folder = finished(cache.path(), &specification);
    let silent = |line: &str| panic!("nothing is to be done, but: {line}");
    let found = prepare(&specification, cache.path(), &silent).unwrap();
    assert_eq!(found.python, folder.join("bin/python"));
    assert_eq!(found.lock, "version = 1");
    assert_eq!(found.notes, ["a note"]);
}

#[test]
fn an_interrupted_installation_is_not_found() {
    let cache = tempfile::tempdir().unwrap();
    let specification = Specification::new(Source::Newest);
    let name = specification.digest().unwrap();
    let folder = finished(cache.path(), &specification);
    assert!(Stamp::find(cache.path(), &name).is_some());
    fs::remove_file(folder.join("tfcheck-complete")).unwrap();
    assert!(Stamp::find(cache.path(), &name).is_none());
}

#[test]
fn every_part_of_a_specification_changes_its_digest() {
    let base = Specification::new(Source::Newest);
    let digest = |change: fn(&mut Specification)| {
        let mut changed = base.clone();
        change(&mut changed);
        changed.digest().unwrap()
    };
    let digests = [
        digest(|_| ()),
        digest(|s| s.source = Source::Release("4.54.0".into())),
        digest(|s| s.torch = "2.14.0".into()),
        digest(|s| s.torch_backend = TorchBackend::Cpu),
        digest(|s| s.extra = vec!["gguf".into()]),
        digest(|s| s.python = Python::Request("3.12".into())),
    ];
    let distinct: std::collections::BTreeSet<_> = digests.iter().collect();
    assert_eq!(distinct.len(), digests.len());
}

#[test]
fn uv_messages_map_to_distinct_errors() {
    let sort = |message: &str| EnvironmentError::from_uv("transformers==9.9.9", "2.15.0", message);
    let missing = sort(
        "  × No solution found when resolving dependencies:\n  ╰─▶ Because there is no version of\n      transformers==9.9.9 and your project depends on transformers==9.9.9, …",
    );
    assert!(matches!(missing, EnvironmentError::NoSuchVersion { .. }), "{missing}");
    let network = sort("error: Failed to fetch: `https://host/simple/transformers/`\n  Caused by: dns error");
    assert!(matches!(network, EnvironmentError::Network { .. }), "{network}");
    let conflict = sort(
        "  × No solution found when resolving dependencies:\n  ╰─▶ Because x==1 depends on torch<2 and your project depends on torch==2.15.0, …",
    );
    assert!(matches!(conflict, EnvironmentError::Conflict { .. }), "{conflict}");
    assert!(conflict.to_string().contains("depends on torch<2"));
    let other = sort("error: disk quota exceeded");
    assert!(matches!(other, EnvironmentError::Uv { .. }), "{other}");
}

#[test]
fn a_git_source_reports_its_commit() {
    let lock = "version = 1\n[[package]]\nname = \"transformers\"\nversion = \"5.0\"\nsource = { git = \"https://host/x?rev=main#0123abcd\" }\n";
    assert_eq!(pinned_ref(lock).unwrap(), "transformers pinned to commit 0123abcd");
    let release = lock.replace("git = \"https://host/x?rev=main#0123abcd\"", "registry = \"https://host\"");
    assert_eq!(pinned_ref(&release), None);
}

#[test]
fn a_missing_interpreter_is_unusable() {
    let cache = tempfile::tempdir().unwrap();
    let mut specification = Specification::new(Source::Newest);
    specification.python = Python::Existing(cache.path().join("nowhere"));
    let error = prepare(&specification, cache.path(), &|_| ()).unwrap_err();
    assert!(error.to_string().contains("no such file"), "{error}");
}
