//! Tests gates, baselines and `explain` through the built program.

#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

use std::path::Path;

use tfcheck::execute::cell::Outcome;

use crate::support::{Sandbox, fixture, stderr, stdout};

const FAST: &str = "iterations = 2\nrounds = 5\ntrace = false\n";

/// Runs `tfcheck run CONFIG --results …` with more arguments; returns exit code, stdout and stderr.
fn run(sandbox: &Sandbox, config: &Path, more: &[&str]) -> (Option<i32>, String, String) {
    let output = sandbox.run(config, more);
    (output.status.code(), stdout(&output), stderr(&output))
}

fn newest(sandbox: &Sandbox) -> crate::support::Run {
    // By creation time, because `run_X_2` is created after `run_X`.
    let newest = sandbox.runs().into_iter().max_by_key(|path| path.metadata().unwrap().created().unwrap());
    crate::support::Run::open(&newest.unwrap())
}

#[test]
fn a_gate_decides_in_place_of_the_verdicts() {
    let sandbox = Sandbox::new();
    let config = fixture("diverge").join("tfcheck.toml");
    let check = |gates: &[&str], code: i32, said: &str| {
        let arguments: Vec<&str> = gates.iter().flat_map(|gate| ["--fail-on", gate]).collect();
        let (found, out, err) = run(&sandbox, &config, &arguments);
        assert_eq!(found, Some(code), "{gates:?}: {out}{err}");
        assert!(out.contains(said), "{gates:?}: {said} is not in {out}");
    };
    check(&[], 1, "diverged");
    check(&["max_abs>1e9"], 0, "gate max_abs>1e9: passed");
    check(&["max_abs>1e9", "rel_l2>1e-3"], 1, "gate rel_l2>1e-3: failed");
    check(&["loads", "verdict>diverged"], 0, "gate loads: passed");
    let last = newest(&sandbox);
    assert!(last.text("summary.md").contains("## Gates"));
    assert!(last.text("config.toml").contains("[[commands]]"));
}

#[test]
fn every_report_format_and_github_list_a_failed_gate() {
    let sandbox = Sandbox::new();
    let config = sandbox.workers(
        &[("one", "good"), ("two", "good"), ("three", "exception")],
        "iterations = 1\nrounds = 1\ntrace = false\nfail_on = [\"loads\", \"l2>=0\", \"verdict>=diverged\"]\n",
    );
    let summary = sandbox.path().join("step.md");
    std::fs::write(&summary, "before\n").unwrap();
    let results = sandbox.results();
    let output = sandbox
        .command(&["run", config.to_str().unwrap(), "--results", results.to_str().unwrap()])
        .env("GITHUB_ACTIONS", "true")
        .env("GITHUB_STEP_SUMMARY", &summary)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let out = stdout(&output);
    assert!(
        out.lines().any(|line| line.starts_with("::error title=tfcheck%3A loads::1 of 3 failed: ")),
        "{out}"
    );
    assert!(
        out.lines().any(|line| line.starts_with("::error title=tfcheck%3A l2>=0::1 of 3 failed: ")),
        "{out}"
    );
    assert!(
        out.lines()
            .any(|line| line.starts_with("::warning title=tfcheck%3A verdict>=diverged::2 of 3 unknown")),
        "{out}"
    );
    let step = std::fs::read_to_string(&summary).unwrap();
    assert!(step.starts_with("before\n## ❌ tfcheck run_") && step.contains("| l2>=0"), "{step}");

    let run = sandbox.only_run();
    let gates = &run.json("summary.json")["gates"];
    let outcomes: Vec<&str> = gates[1]["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| finding["outcome"].as_str().unwrap())
        .collect();
    assert_eq!((gates[1]["gate"].as_str(), outcomes), (Some("l2>=0"), vec!["failed", "unknown", "unknown"]));
    let junit = run.text("junit.xml");
    assert!(junit.contains("<testsuite name=\"gates\" tests=\"3\""), "{junit}");
    assert!(junit.contains("failures=\"2\""), "{junit}");
}

#[test]
fn an_invalid_gate_is_refused_before_anything_runs() {
    let sandbox = Sandbox::new();
    let config = fixture("agree").join("tfcheck.toml");
    let (code, _, err) = run(&sandbox, &config, &["--fail-on", "pp50>5%"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("did you mean `p50`"), "{err}");
    let config = sandbox.workers(&[("one", "good")], "fail_on = [\"l2>5%\"]\n");
    let (code, _, err) = run(&sandbox, &config, &[]);
    assert_eq!(code, Some(2));
    assert!(err.contains("not a share") && err.contains("tfcheck.toml:"), "{err}");
    let config = fixture("agree").join("tfcheck.toml");
    let (code, _, err) = run(&sandbox, &config, &["--against", "nobody"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("there is no baseline `nobody`"), "{err}");
    assert!(!sandbox.results().join("run.json").exists());
}

#[test]
fn a_baseline_outlives_its_run_and_finds_what_changed() {
    let sandbox = Sandbox::new();
    let steady = |more: &str| sandbox.workers(&[("one", &format!("steady {more}")), ("two", "good")], FAST);
    let (code, _, err) = run(&sandbox, &steady("0.0"), &[]);
    assert_eq!(code, Some(0), "{err}");
    let first = sandbox.only_run().path().to_owned();
    let output = sandbox.tfcheck(&["baseline", "save", "main"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("as baseline `main`: 2 variants with logits"), "{}", stdout(&output));
    std::fs::remove_dir_all(&first).unwrap();
    let listed = stdout(&sandbox.tfcheck(&["baseline", "list"]));
    assert!(listed.contains("main") && listed.contains("this machine"), "{listed}");

    // The same run again: nothing changed. Only the steady worker reports constant times.
    let only = ["--against", "main", "--only", "*/one_eager"];
    let (code, out, err) = run(&sandbox, &steady("0.0"), &only);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(
        out.contains("one_eager: identical, L2 0.000000") && out.contains("gate p50>3%: passed"),
        "{out}"
    );
    assert!(out.contains("two_eager is in the baseline only"), "{out}");

    // 10 % slower, with the same logits.
    let (code, out, err) = run(&sandbox, &steady("0.1"), &only);
    assert_eq!(code, Some(1), "{out}{err}");
    assert!(out.contains("gate p50>3%: failed") && out.contains("p50 rose by 10.0 %"), "{out}");
    let (code, out, _) = run(&sandbox, &steady("0.1"), &[&only[..], &["--fail-on", "p50>15%"]].concat());
    assert_eq!(code, Some(0), "{out}");

    // A variant of the same name with other logits.
    let changed = sandbox.workers(&[("two", "good 0.5")], FAST);
    let (code, out, _) = run(&sandbox, &changed, &["--against", "main", "--fail-on", "verdict>=diverged"]);
    assert_eq!(code, Some(1), "{out}");
    let summary = newest(&sandbox).json("summary.json");
    assert_eq!(summary["against"]["rows"][0]["verdict"]["verdict"], "diverged");
    assert_eq!(summary["against"]["baseline"], "main");

    let output = sandbox.tfcheck(&["baseline", "remove", "main"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(std::fs::read_dir(sandbox.results().join("baselines")).unwrap().count(), 0);
    let output = sandbox.tfcheck(&["baseline", "remove", "main"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_baseline_of_another_machine_is_compared_by_its_numbers_only() {
    let sandbox = Sandbox::new();
    let config = sandbox.workers(&[("one", "steady 0.0")], FAST);
    run(&sandbox, &config, &[]);
    let environment = sandbox.only_run().path().join("environment.json");
    let text = std::fs::read_to_string(&environment).unwrap();
    let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
    record["fingerprint"] = "0123456789abcdef".into();
    std::fs::write(&environment, record.to_string()).unwrap();
    sandbox.tfcheck(&["baseline", "save", "main"]);
    let slower = sandbox.workers(&[("one", "steady 0.5")], FAST);
    let (code, out, err) = run(&sandbox, &slower, &["--against", "main"]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("one_eager: identical") && out.contains("another machine"), "{out}");
    assert!(out.contains("gate p50>3%: unknown"), "{out}");
}

#[test]
fn a_baseline_whose_logits_changed_is_refused() {
    let sandbox = Sandbox::new();
    let config = sandbox.workers(&[("one", "good")], FAST);
    run(&sandbox, &config, &[]);
    sandbox.tfcheck(&["baseline", "save", "main"]);
    let saved =
        std::fs::read_dir(sandbox.results().join("baselines")).unwrap().next().unwrap().unwrap().path();
    let logits = saved.join("one").join("logits_eager.safetensors");
    let mut bytes = std::fs::read(&logits).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&logits, bytes).unwrap();
    let (code, _, err) = run(&sandbox, &config, &["--against", "main"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("baseline `main`") && err.contains("is not what was saved"), "{err}");
}

#[test]
fn a_pair_is_explained_from_its_folder() {
    let sandbox = Sandbox::new();
    run(&sandbox, &fixture("diverge").join("tfcheck.toml"), &[]);
    let folder = sandbox.only_run();
    let names: Vec<String> = folder.cells().into_iter().map(|cell| cell.name).collect();
    let pair = format!("{}..{}", names[0], names[1]);
    let path = folder.path().to_str().unwrap().to_owned();
    let told = |arguments: &[&str]| {
        let output = sandbox.tfcheck(&[&["explain", &path], arguments].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stdout(&output)
    };
    let text = told(&[&pair]);
    for part in [
        "Verdict\n  diverged: relative L2",
        "  RMSE  ",
        "Worst positions\n  row 0, position ",
        "input token ",
        "Error against float64\n  unknown",
        "What differs in the environment",
        "Time and memory",
        "`oracle = true`",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert_eq!(told(&[&names[0], &names[1]]), text, "two names are the same pair");
    assert!(!text.contains("tfcheck localize"), "programs show no modules:\n{text}");
    let output = sandbox.tfcheck(&["explain", &path, "nobody..one"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("no variant `nobody`"), "{}", stderr(&output));
}

/// Runs what `explain` recommends for a cell that failed: the command completes the run.
#[test]
fn a_command_that_explain_prints_runs() {
    let sandbox = Sandbox::new();
    run(&sandbox, &fixture("faults").join("tfcheck.toml"), &[]);
    let folder = sandbox.only_run();
    let path = folder.path().to_str().unwrap().to_owned();
    let cells = folder.cells();
    let failed = cells.iter().find(|cell| matches!(cell.outcome, Outcome::Failed(_))).unwrap();
    let other = cells.iter().find(|cell| cell.name != failed.name).unwrap();
    let output = sandbox.tfcheck(&["explain", &path, &failed.name, &other.name]);
    let text = stdout(&output);
    let command = text.split('`').find(|span| span.starts_with("tfcheck ")).expect("it recommends a command");
    let words: Vec<&str> = command.split_whitespace().skip(1).map(|word| word.trim_matches('\'')).collect();
    let output = sandbox.tfcheck(&words);
    assert_ne!(output.status.code(), Some(2), "{command}: {}", stderr(&output));
    assert_eq!(sandbox.only_run().path(), folder.path(), "{command} completes the run and begins no other");
}
