//! A hostile hub writes nowhere, learns no token of another host, and delays nothing beyond its limits.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::checkpoint_files::{config, safetensors};
use crate::hub_server::{COMMIT, Hub};
use tfcheck::spec::checkpoint::hub::Environment;
use tfcheck::spec::checkpoint::{self, Checkpoint, Error, Settings};

fn hub() -> Hub {
    Hub::new(&[("config.json", config().into_bytes()), ("model.safetensors", safetensors(&[("a", 5000)]))])
}

fn resolve(root: &Path, hub: &Hub, stop: &Arc<AtomicBool>) -> Result<Checkpoint, Error> {
    let hub = Environment {
        cache: root.join("hub"),
        endpoint: hub.endpoint.clone(),
        token: Some("hf_secret".to_owned()),
        offline: false,
    };
    let settings = Settings { hub, stop: Arc::clone(stop), ..Settings::new(root.join("cache")) };
    checkpoint::resolve("owner/model", &settings, &mut |_| ())
}

/// Every file below a folder, relative to it.
fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                open.push(path);
            } else {
                found.push(path.strip_prefix(folder).unwrap().to_string_lossy().into_owned());
            }
        }
    }
    found
}

#[test]
fn no_etag_and_no_commit_becomes_a_path_outside_of_the_cache() {
    let root = tempfile::tempdir().unwrap();
    let victim = root.path().join("victim");
    std::fs::write(&victim, "precious").unwrap();
    std::fs::write(root.path().join("victim.lock"), "precious").unwrap();
    let absolute = victim.to_str().unwrap().to_owned();
    for etag in [absolute.clone(), "../../../../../victim".to_owned(), "..".to_owned(), "a".repeat(5000)] {
        let hub = hub();
        let (bytes, sent) = (config().into_bytes(), etag.clone());
        hub.state().hostile = Some(Box::new(move |path, range| {
            if !path.ends_with("/config.json") {
                return None;
            }
            let body = if range == Some("bytes=0-0") { &bytes[..1] } else { &bytes[..] };
            let headers = vec![
                ("ETag", format!("\"{sent}\"")),
                ("X-Repo-Commit", "../../../../victim".to_owned()),
                ("Content-Range", format!("bytes 0-{}/{}", body.len() - 1, bytes.len())),
            ];
            Some((206, headers, body.to_vec()))
        }));
        let cache = root.path().join("hub");
        let _ = std::fs::remove_dir_all(&cache);
        resolve(root.path(), &hub, &Arc::default()).unwrap();
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious", "{etag}");
        assert_eq!(std::fs::read(root.path().join("victim.lock")).unwrap(), b"precious", "{etag}");
        for file in files(root.path()).iter().filter(|file| !file.starts_with("victim")) {
            assert!(file.starts_with("hub/models--owner--model/") || file.starts_with("cache/"), "{file}");
        }
    }
    let hub = hub();
    hub.state().hostile = Some(Box::new(|path, _| {
        let body = br#"{"sha": "../../../../../victim", "siblings": [{"rfilename": "config.json"}]}"#;
        path.starts_with("/api/").then(|| (200, Vec::new(), body.to_vec()))
    }));
    let error = resolve(root.path(), &hub, &Arc::default()).unwrap_err();
    assert!(error.to_string().contains("is not a commit hash"), "{error}");
}

#[test]
fn the_token_does_not_follow_a_redirect_to_another_port() {
    let root = tempfile::tempdir().unwrap();
    let (first, second) = (hub(), hub());
    let elsewhere = second.endpoint.clone();
    first.state().hostile = Some(Box::new(move |path, _| {
        let is_weights = path.ends_with("/model.safetensors");
        is_weights.then(|| (302, vec![("Location", format!("{elsewhere}{path}"))], Vec::new()))
    }));
    resolve(root.path(), &first, &Arc::default()).unwrap();
    assert!(first.take_log().iter().all(|line| line.ends_with("Bearer hf_secret")));
    let log = second.take_log();
    assert!(!log.is_empty());
    // The second hub redirects to a path of its own, so that two kinds of redirect were followed.
    assert!(log.iter().all(|line| line.ends_with(" -")), "{log:#?}");
}

#[test]
fn redirects_that_lead_nowhere_are_errors() {
    let check = |location: Option<&'static str>, expected: &str| {
        let (root, hub) = (tempfile::tempdir().unwrap(), hub());
        hub.state().hostile = Some(Box::new(move |path, _| {
            let location = location.map(|location| location.replace("SELF", path));
            let headers = location.map(|location| ("Location", location)).into_iter().collect();
            path.starts_with("/api/").then(|| (302, headers, Vec::new()))
        }));
        let error = resolve(root.path(), &hub, &Arc::default()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(None, "a redirect without a location");
    check(Some("SELF"), "more than 5 redirects");
    check(Some("file:///etc/passwd"), "no HTTP address");
    check(Some("relative"), "no HTTP address");
    check(Some("http://hub.invalid:80@elsewhere.invalid/x"), "the name of a user");
    check(Some("/\u{ff}\u{fe}"), "not printable");
}

#[test]
fn sizes_that_a_hub_states_are_checked() {
    let check = |total: u64, body: usize, expected: &str| {
        let (root, hub) = (tempfile::tempdir().unwrap(), hub());
        hub.state().hostile = Some(Box::new(move |path, range| {
            let is_weights = path.ends_with("/model.safetensors");
            let length = if range == Some("bytes=0-0") { 1 } else { body };
            let headers =
                vec![("ETag", "\"abc\"".to_owned()), ("Content-Range", format!("bytes 0-0/{total}"))];
            is_weights.then(|| (206, headers, vec![b'x'; length]))
        }));
        let error = resolve(root.path(), &hub, &Arc::default()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(1 << 63, 10, "tfcheck accepts at most");
    check(5, 100_000, "more than the 5 bytes that the hub states");
    // What arrived is kept, and the rest is not what was asked for.
    check(100_000, 10, "another part");
}

#[test]
fn a_hub_that_hangs_is_left_within_two_seconds_of_a_request_to_stop() {
    let (root, hub) = (tempfile::tempdir().unwrap(), hub());
    hub.state().pause = Duration::from_mins(1);
    let stop = Arc::new(AtomicBool::new(false));
    let raised = Arc::clone(&stop);
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        raised.store(true, Ordering::Relaxed);
    });
    let begun = Instant::now();
    let error = resolve(root.path(), &hub, &stop).unwrap_err();
    assert!(matches!(error, Error::Interrupted), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert!(COMMIT.len() == 40);
}
