//! A run folder, a baseline and a history that others wrote: nothing outside is written or removed, and damaged results are
//! no results.

use std::os::unix::fs::symlink;
use std::path::Path;

use super::unwrapped;
use crate::support::{Run, Sandbox, stderr, stdout, word};

/// A sandbox with one finished run of two equal workers.
fn finished() -> (Sandbox, Run) {
    let sandbox = Sandbox::new();
    let config =
        sandbox.workers(&[("one", "good"), ("two", "good")], "iterations = 1\nrounds = 0\nnoise = false");
    let output = sandbox.run(&config, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let run = sandbox.only_run();
    (sandbox, run)
}

fn path(run: &Run) -> &str {
    run.path().to_str().unwrap()
}

#[test]
fn damaged_logits_are_a_failed_cell_that_a_resumed_run_redoes_and_no_baseline() {
    let truncate = |path: &Path| {
        let bytes = std::fs::read(path).unwrap();
        std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    };
    let flip = |path: &Path| {
        let mut bytes = std::fs::read(path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    let remove = |path: &Path| std::fs::remove_file(path).unwrap();
    let damages: [&dyn Fn(&Path); 3] = [&truncate, &flip, &remove];
    for damage in damages {
        let (sandbox, run) = finished();
        damage(&run.path().join("one/logits_eager.safetensors"));
        let output = sandbox.tfcheck(&["baseline", "save", "b"]);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(unwrapped(&stderr(&output)).contains("one_eager are damaged"), "{}", stderr(&output));
        let output = sandbox.tfcheck(&["compare", path(&run)]);
        assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
        let words: Vec<String> = run.cells().iter().map(|cell| word(&cell.outcome)).collect();
        assert_eq!(words, ["missing_result", "completed"]);
        let output = sandbox.tfcheck(&["run", "--resume", path(&run)]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let words: Vec<String> = run.cells().iter().map(|cell| word(&cell.outcome)).collect();
        assert_eq!(words, ["completed", "completed"]);
    }
}

#[test]
fn names_in_a_run_that_lead_out_of_it_are_refused() {
    let check = |change: &dyn Fn(&mut serde_json::Value)| {
        let (sandbox, run) = finished();
        let file = run.path().join("run.json");
        let mut manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        change(&mut manifest);
        std::fs::write(&file, manifest.to_string()).unwrap();
        for arguments in
            [&["compare", path(&run)][..], &["run", "--resume", path(&run)], &["baseline", "save", "b"]]
        {
            let output = sandbox.tfcheck(arguments);
            assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
            assert!(unwrapped(&stderr(&output)).contains("not a file name"), "{}", stderr(&output));
        }
        let left: Vec<_> = std::fs::read_dir(sandbox.path()).unwrap().flatten().collect();
        assert!(left.iter().all(|entry| !entry.file_name().to_string_lossy().contains("EVIL")));
    };
    check(&|run| run["stamp"] = "../../../EVIL".into());
    check(&|run| run["cases"][0]["name"] = "/tmp/EVIL".into());
    check(&|run| run["cases"][0]["variants"][0]["version"] = "../EVIL".into());
    check(&|run| run["cases"][0]["variants"][0]["version"] = "\u{1b}[2J".into());
}

#[test]
fn names_that_a_run_holds_twice_are_refused() {
    let check = |change: &dyn Fn(&mut serde_json::Value), expected: &str| {
        let (sandbox, run) = finished();
        let file = run.path().join("run.json");
        let mut manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        change(&mut manifest);
        std::fs::write(&file, manifest.to_string()).unwrap();
        let output = sandbox.tfcheck(&["compare", path(&run)]);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(unwrapped(&stderr(&output)).contains(expected), "{}", stderr(&output));
    };
    let twice = |list: &mut serde_json::Value| {
        let first = list[0].clone();
        list.as_array_mut().unwrap().push(first);
    };
    check(&|run| twice(&mut run["cases"]), "the case `llama-tiny-12` twice");
    check(&|run| twice(&mut run["cases"][0]["variants"]), "the variant `one_eager` twice");
}

#[test]
fn a_run_without_variants_is_not_said_to_compute_the_same() {
    let (sandbox, run) = finished();
    let file = run.path().join("run.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    manifest["cases"][0]["variants"] = serde_json::json!([]);
    std::fs::write(&file, manifest.to_string()).unwrap();
    let output = sandbox.tfcheck(&["compare", path(&run)]);
    let shown = stdout(&output) + &stderr(&output);
    assert!(shown.contains("No variant has logits") && !shown.contains("compute the same"), "{shown}");
}

#[test]
fn a_damaged_environment_record_is_noted() {
    let (sandbox, run) = finished();
    std::fs::write(run.path().join("environment.json"), "{").unwrap();
    let output = sandbox.tfcheck(&["compare", path(&run)]);
    let shown = unwrapped(&(stdout(&output) + &stderr(&output)));
    assert_eq!(output.status.code(), Some(0), "{shown}");
    assert!(shown.contains("environment.json is not a readable record"), "{shown}");
}

#[test]
fn a_run_without_its_environment_record_becomes_a_baseline() {
    let (sandbox, run) = finished();
    for name in ["environment.json", "config.toml"] {
        std::fs::remove_file(run.path().join(name)).unwrap();
    }
    for arguments in [&["baseline", "save", "b"][..], &["compare", path(&run)], &["baseline", "remove", "b"]]
    {
        let output = sandbox.tfcheck(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn a_run_without_cases_and_a_damaged_history_come_with_what_to_do() {
    let (sandbox, run) = finished();
    std::fs::write(run.path().parent().unwrap().join("history.sqlite"), "{".repeat(4096)).unwrap();
    let shown = unwrapped(&stderr(&sandbox.tfcheck(&["run", "--resume", path(&run)])));
    assert!(shown.contains("not in the history") && shown.contains("move it away"), "{shown}");
    let file = run.path().join("run.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    manifest["cases"] = serde_json::json!([]);
    std::fs::write(&file, manifest.to_string()).unwrap();
    let output = sandbox.tfcheck(&["explain", path(&run), "one_eager..two_eager"]);
    let shown = unwrapped(&stderr(&output));
    assert_eq!(output.status.code(), Some(2), "{shown}");
    assert!(shown.contains("the run has no cases") && shown.contains("--resume RUN"), "{shown}");
}

#[test]
fn nothing_is_written_through_a_link_in_a_run() {
    for name in [".lock", "summary.md", "one/worker.log", "one/logits_eager.safetensors", "run.log"] {
        let (sandbox, run) = finished();
        let victim = sandbox.write("victim", "precious");
        let link = run.path().join(name);
        let _ = std::fs::remove_file(&link);
        symlink(&victim, &link).unwrap();
        for arguments in [&["compare", path(&run)][..], &["run", "--resume", path(&run)]] {
            let output = sandbox.tfcheck(arguments);
            assert_eq!(output.status.code(), Some(2), "{name} {arguments:?}: {}", stderr(&output));
            assert!(unwrapped(&stderr(&output)).contains("is a symbolic link"), "{}", stderr(&output));
        }
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious", "{name}");
    }
}

#[test]
fn a_history_removes_no_folder_but_a_baselines_own() {
    let (sandbox, _run) = finished();
    let output = sandbox.tfcheck(&["baseline", "save", "b"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let kept = sandbox.write("outside/file", "precious");
    symlink(sandbox.path().join("outside"), sandbox.results().join("baselines/link")).unwrap();
    let history = sandbox.results().join("history.sqlite");
    for folder in
        ["../outside", "../../outside", "baselines/../../outside", "baselines/link", "baselines", ""]
    {
        let connection = rusqlite::Connection::open(&history).unwrap();
        connection.execute("UPDATE baselines SET folder = ?1", [folder]).unwrap();
        drop(connection);
        let output = sandbox.tfcheck(&["baseline", "remove", "b"]);
        assert_eq!(output.status.code(), Some(2), "{folder}: {}", stderr(&output));
        assert!(unwrapped(&stderr(&output)).contains("which it cannot be"), "{}", stderr(&output));
        assert_eq!(std::fs::read(&kept).unwrap(), b"precious", "{folder}");
        assert!(sandbox.results().join("baselines").is_dir(), "{folder}");
    }
}
