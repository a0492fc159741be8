//! A bisection over commits of transformers itself: a small fork, made for the test. One of the slow ones.

#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

mod support;

use std::process::Command;

use serde_json::Value;
use support::{Sandbox, fixture, stderr};

#[test]
fn a_window_moved_by_one_key_is_found_in_a_fork_of_fifty_commits() {
    let sandbox = Sandbox::new();
    let fork = sandbox.path().join("fork");
    let status = Command::new("python3").arg(fixture("bisect/fork.py")).arg(&fork).status().unwrap();
    assert!(status.success(), "the release that is forked could not be fetched from PyPI");
    let config = "[[checkpoints]]\nsource = \"synthetic:mistral\"\n[inputs]\nlengths = [48]\n\
        [run]\nmodes = [\"eager\"]\nattention = [\"eager\"]\n";
    sandbox.write("tfcheck.toml", config);
    // A cache of its own, for the environments of these commits are of no use to anyone; uv is the usual one's.
    let cache = sandbox.path().join("cache");
    let uv = tfcheck::app::cache_folder().unwrap().join("uv");
    std::fs::create_dir_all(&uv).unwrap();
    std::fs::create_dir_all(&cache).unwrap();
    std::os::unix::fs::symlink(uv, cache.join("uv")).unwrap();
    let arguments = ["bisect", "--repository", "fork", "--good", "c0", "--bad", "c49"];
    let output = sandbox.command(&arguments).env("TFCHECK_CACHE", cache).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let folder = std::fs::read_dir(sandbox.results()).unwrap().next().unwrap().unwrap().path();
    let log: Value = serde_json::from_slice(&std::fs::read(folder.join("bisect.json")).unwrap()).unwrap();
    let phase = &log["phases"][0];
    let change = &phase["changes"][0];
    assert_eq!((&change["before"], &change["after"]), (&30.into(), &31.into()), "{}", stderr(&output));
    assert_eq!(change["commits"][0]["subject"], "masks: tidy the window");
    let files = change["commits"][0]["files"].to_string();
    assert!(files.contains("masking_utils.py"), "{files}");
    let steps = phase["steps"].as_array().unwrap();
    let of = |answer: &str| steps.iter().filter(|step| step["answer"] == answer).count();
    assert_eq!(of("skipped"), 3, "{steps:?}");
    // ceil(log2 50) + 1 = 7 runs.
    assert!(of("good") + of("bad") <= 7, "{steps:?}");
    let bad = steps.iter().find(|step| step["revision"] == 31).unwrap();
    // A key more in a window of eight: 0.3 and above, where rounding in f32 is 1e-6.
    assert!(bad["pairs"][0]["relative_l2"].as_f64().unwrap() > 0.1, "{bad}");
    let module = bad["pairs"][0]["module"].as_str().unwrap();
    assert!(module.starts_with("model.layers.0.self_attn"), "{module}");
}
