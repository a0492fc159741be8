//! Slow tests of bisections over releases of transformers, and over commits of a small fork made for the test.

#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use crate::support::{Sandbox, fixture, stderr, stdout};
use serde_json::Value;

/// A sandbox whose config runs the synthetic mistral, with a window of eight keys, on one batch.
fn mistral() -> Sandbox {
    let sandbox = Sandbox::new();
    let config = "[[checkpoints]]\nsource = \"synthetic:mistral\"\n[inputs]\nlengths = [48]\n\
        [run]\nmodes = [\"eager\"]\nattention = [\"eager\"]\n";
    sandbox.write("tfcheck.toml", config);
    sandbox
}

/// Folder kept between runs of the tests, with forks and the environments of their commits.
static KEPT: LazyLock<PathBuf> = LazyLock::new(|| {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bisect");
    let (cache, uv) = (kept.join("cache"), tfcheck::app::cache_folder().unwrap().join("uv"));
    std::fs::create_dir_all(&uv).unwrap();
    std::fs::create_dir_all(&cache).unwrap();
    if !cache.join("uv").exists() {
        std::os::unix::fs::symlink(uv, cache.join("uv")).unwrap();
    }
    kept
});

/// Links a fork of transformers with a commit per letter of `history` (see `fork.py`) into the sandbox as `fork`. Its path
/// and commits are the same in every run of the tests, so that the environments of its commits are reused.
fn fork(sandbox: &Sandbox, history: &str) -> PathBuf {
    let script = fixture("bisect/fork.py");
    let mut hasher = DefaultHasher::new();
    (std::fs::read(&script).unwrap(), history).hash(&mut hasher);
    let fork = KEPT.join(format!("fork-{:016x}", hasher.finish()));
    if !fork.exists() {
        let begun = tempfile::tempdir_in(&*KEPT).unwrap();
        let made = begun.path().join("fork");
        let status = Command::new("python3").arg(script).arg(&made).arg(history).status().unwrap();
        assert!(status.success(), "the release that is forked could not be fetched from PyPI");
        std::fs::rename(made, &fork).unwrap();
    }
    std::os::unix::fs::symlink(&fork, sandbox.path().join("fork")).unwrap();
    fork
}

/// Runs `tfcheck bisect` with a separate cache, because only these tests use the environments of a fork's commits. uv's
/// cache is shared with the user's.
fn bisect(sandbox: &Sandbox, arguments: &[&str]) -> Output {
    let cache = KEPT.join("cache");
    sandbox.command(&[&["bisect"], arguments].concat()).env("TFCHECK_CACHE", cache).output().unwrap()
}

fn folder(sandbox: &Sandbox) -> PathBuf {
    std::fs::read_dir(sandbox.results()).unwrap().next().unwrap().unwrap().path()
}

fn log(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("bisect.json")).unwrap()).unwrap()
}

/// `[before, after, module]` of each change of a phase: names of the revisions, and the first diverging module.
fn changes(phase: &Value) -> Vec<[String; 3]> {
    let name = |index: &Value| {
        phase["revisions"][index.as_u64().unwrap() as usize]["name"].as_str().unwrap().to_owned()
    };
    let module = |change: &Value| {
        change["localization"]["localized"]["finding"]["path"].as_str().unwrap_or_default().to_owned()
    };
    let changes = phase["changes"].as_array().unwrap();
    changes.iter().map(|change| [name(&change["before"]), name(&change["after"]), module(change)]).collect()
}

#[test]
fn a_window_moved_by_one_key_is_found_in_a_fork_of_fifty_commits() {
    let sandbox = mistral();
    // The commits that do not import are those that the search tests first, so that it must skip them.
    let letter = |number| match number {
        31 => 'x',
        25 | 28 | 37 => '!',
        _ => '.',
    };
    fork(&sandbox, &(0..50).map(letter).collect::<String>());
    let output = bisect(&sandbox, &["--repository", "fork", "--good", "c0", "--bad", "c49"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let folder = folder(&sandbox);
    let found = log(&folder);
    let phase = &found["phases"][0];
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
    // One key more in a window of eight changes the logits by a relative L2 of 0.3 or more; f32 rounding is 1e-6.
    assert!(bad["pairs"][0]["relative_l2"].as_f64().unwrap() > 0.1, "{bad}");
    let [_, _, module] = &changes(phase)[0];
    assert!(module.starts_with("model.layers.0.self_attn"), "{module}");
    assert_eq!(stderr(&output).matches("localising").count(), 1, "only the culprit is: {}", stderr(&output));
    let diagnosis = &change["diagnosis"];
    assert_eq!(diagnosis["finding"]["found"], "reproduced", "{diagnosis}");
    let sentence = diagnosis["sentence"].as_str().unwrap();
    assert!(sentence.contains("computes what") && sentence.contains("`sliding_window` 9"), "{sentence}");
    assert!(stdout(&output).contains(sentence), "{}", stdout(&output));
    // Resuming a finished bisection prints the saved result and localises nothing.
    let again = bisect(&sandbox, &["--resume", folder.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(1), "{}", stderr(&again));
    assert_eq!(stdout(&again), stdout(&output));
    assert!(!stderr(&again).contains("localising"), "{}", stderr(&again));
    assert_eq!(log(&folder), found);
}

#[test]
fn two_releases_are_followed_by_the_commits_between_their_tags_at_an_address() {
    let sandbox = mistral();
    let fork = fork(&sandbox, "..x.");
    for (tag, commit) in [("v4.41.2", "c1"), ("v4.42.0", "c3")] {
        let tagged =
            Command::new("git").args(["tag", "--force", tag, commit]).current_dir(&fork).status().unwrap();
        assert!(tagged.success());
    }
    let address = format!("file://{}", fork.display());
    let output = bisect(&sandbox, &["--repository", &address, "--good", "4.41.2", "--bad", "4.42.0"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let log = log(&folder(&sandbox));
    let phases = log["phases"].as_array().unwrap();
    let over: Vec<&Value> = phases.iter().map(|phase| &phase["over"]).collect();
    assert_eq!(over, ["releases", "commits"], "{}", stderr(&output));
    // The change between releases is not localised, because the change between commits is localised instead.
    assert_eq!(changes(&phases[0]), [["4.41.2", "4.42.0", ""]]);
    assert_eq!(phases[1]["revisions"].as_array().unwrap().len(), 3, "c1 to c3: {}", phases[1]["revisions"]);
    let change = &phases[1]["changes"][0];
    assert_eq!((&change["before"], &change["after"]), (&0.into(), &1.into()));
    assert_eq!(change["commits"][0]["subject"], "masks: tidy the window");
    let [_, _, module] = &changes(&phases[1])[0];
    assert!(module.starts_with("model.layers.0.self_attn"), "{module}");
    assert!(KEPT.join("cache/repositories").read_dir().unwrap().next().is_some(), "a clone");
    let text = stdout(&output);
    for part in
        ["the fault came with 4.42.0; 4.41.2 is the last one before", "first module that diverges", "M src/"]
    {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[test]
fn a_scan_of_a_fork_localises_a_change_and_its_revert() {
    let sandbox = mistral();
    fork(&sandbox, ".x.o.");
    let output = bisect(&sandbox, &["--scan", "--repository", "fork", "--good", "c0", "--bad", "c4"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let log = log(&folder(&sandbox));
    let phase = &log["phases"][0];
    let found = phase["changes"].as_array().unwrap();
    let found: Vec<_> =
        found.iter().map(|change| (&change["before"], &change["after"], &change["change"])).collect();
    let (came, went) = ("came".into(), "went".into());
    let numbers: Vec<Value> = (0..4).map(Value::from).collect();
    assert_eq!(found, [(&numbers[0], &numbers[1], &came), (&numbers[2], &numbers[3], &went)], "{log}");
    for [_, _, module] in changes(phase) {
        assert!(module.starts_with("model.layers.0.self_attn"), "{module} in {}", stdout(&output));
    }
}

/// The first example of docs/bisect.md, over every stable release from the good side to the bad side.
#[test]
fn the_release_that_changed_mistral_s_window_is_found_within_the_bound() {
    let sandbox = mistral();
    let output = sandbox.tfcheck(&["bisect", "--good", "4.40.2", "--bad", "5.23.0"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let log = log(&folder(&sandbox));
    let phase = &log["phases"][0];
    assert_eq!(
        changes(phase),
        [["4.41.2", "4.42.0", "model.layers.0.self_attn.mask"]],
        "{}",
        stdout(&output)
    );
    let (revisions, steps) = (phase["revisions"].as_array().unwrap(), phase["steps"].as_array().unwrap());
    let is_stable = |revision: &Value| {
        let name = revision["name"].as_str().unwrap();
        name.chars().all(|c| c.is_ascii_digit() || c == '.')
    };
    assert!(revisions.len() > 100 && revisions.iter().all(is_stable), "{revisions:?}");
    let most = (revisions.len() as f64).log2().ceil() as usize + 1;
    assert!(steps.len() <= most, "{} runs of {most}", steps.len());
    assert!(steps.iter().all(|step| step["answer"] != "skipped"), "every one of them runs: {steps:?}");
    is_in_the_documentation(&output);
}

#[test]
fn a_scan_of_releases_reports_what_the_documentation_shows() {
    let sandbox = mistral();
    let output = sandbox.tfcheck(&["bisect", "--scan", "--good", "4.41.1", "--bad", "4.42.1"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let log = log(&folder(&sandbox));
    let module = "model.layers.0.self_attn.mask";
    assert_eq!(changes(&log["phases"][0]), [["4.41.2", "4.42.0", module]], "{}", stdout(&output));
    let steps = log["phases"][0]["steps"].as_array().unwrap();
    let answers: Vec<&Value> = steps.iter().map(|step| &step["answer"]).collect();
    assert_eq!(answers, ["good", "bad", "bad"], "{}", stdout(&output));
    is_in_the_documentation(&output);
}

/// Asserts that `docs/bisect.md` shows the same steps and change.
fn is_in_the_documentation(output: &Output) {
    let docs = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/bisect.md")).unwrap();
    let is_finding =
        |line: &&str| line.contains("differs by") || line.starts_with("  4.") || line.starts_with("  5.");
    for line in stdout(output).lines().filter(is_finding) {
        // The name of a run contains its time, so the line is compared without it.
        let line = line.split(" (steps/").next().unwrap();
        assert!(docs.contains(line.trim_end()), "`{line}` is not in docs/bisect.md");
    }
}
