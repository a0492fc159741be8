//! The whole pipeline in miniature: `fixtures/<case>/tfcheck.toml` in, what `expected.json` says out.

#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

mod support;

use std::collections::BTreeMap;

use serde::Deserialize;
use support::{Sandbox, fixture, stderr, word};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    exit: i32,
    cells: BTreeMap<String, String>,
    verdicts: BTreeMap<String, String>,
}

fn check(case: &str) {
    let sandbox = Sandbox::new();
    let output = sandbox.run(&fixture(case).join("tfcheck.toml"), &[]);
    let expected: Expected =
        serde_json::from_slice(&std::fs::read(fixture(case).join("expected.json")).unwrap()).unwrap();
    assert_eq!(output.status.code(), Some(expected.exit), "{case}: {}", stderr(&output));
    let run = sandbox.only_run();
    let found: BTreeMap<String, String> =
        run.cells().into_iter().map(|cell| (cell.name, word(&cell.outcome))).collect();
    assert_eq!(found, expected.cells, "{case}: {}", stderr(&output));
    let summary = run.text("summary.md");
    for name in expected.cells.keys() {
        assert!(summary.contains(name.as_str()), "{case}: {name} is not in summary.md");
    }
    let verdicts = verdicts(&run.json("summary.json"));
    for (pair, verdict) in &expected.verdicts {
        assert_eq!(verdicts.get(pair), Some(verdict), "{case}: {pair} in {verdicts:?}");
    }
}

/// `a/b` (names in order) -> verdict, over all cases of a summary.
fn verdicts(summary: &serde_json::Value) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for case in summary["cases"].as_array().unwrap() {
        for pair in case["verdicts"].as_array().unwrap() {
            let mut names = [pair["a"].as_str().unwrap(), pair["b"].as_str().unwrap()];
            names.sort_unstable();
            let verdict = pair["verdict"].as_str().unwrap().to_owned();
            found.insert(names.join("/"), verdict);
        }
    }
    found
}

#[test]
fn equal_programs_agree() {
    check("agree");
}

#[test]
fn a_bias_in_one_program_is_found() {
    check("diverge");
}

#[test]
fn every_fault_has_its_own_word_and_stops_nobody_else() {
    check("faults");
}

#[test]
fn saved_runs_lie_side_by_side_in_one_matrix() {
    let sandbox = Sandbox::new();
    for case in ["agree", "diverge"] {
        sandbox.run(&fixture(case).join("tfcheck.toml"), &[]);
    }
    let runs = sandbox.runs();
    let output = sandbox.tfcheck(&["compare", runs[0].to_str().unwrap(), runs[1].to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let text = support::stdout(&output);
    for run in &runs {
        let name = format!("one_eager@{}", run.file_name().unwrap().to_string_lossy());
        assert!(text.contains(&name), "{name} is not in {text}");
    }
}

#[test]
fn a_compared_run_has_its_reports_written_anew() {
    let sandbox = Sandbox::new();
    sandbox.run(&fixture("agree").join("tfcheck.toml"), &[]);
    let run = sandbox.only_run();
    let before = run.text("summary.md");
    std::fs::remove_file(run.path().join("summary.md")).unwrap();
    let output = sandbox.tfcheck(&["compare", run.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(run.text("summary.md"), before);
}

#[test]
fn logits_of_the_framework_before_are_read_into_a_matrix() {
    let sandbox = Sandbox::new();
    let saved = fixture("logits_f32.pt");
    for (version, note) in [("4.54.0", "eager_sdpa"), ("5.23.0", "eager_sdpa")] {
        let folder = sandbox.path().join("old").join(version);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::copy(&saved, folder.join(format!("logits_{note}.pt"))).unwrap();
    }
    let output = sandbox.tfcheck(&["compare", "old"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = support::stdout(&output);
    assert!(text.contains("4.54.0_eager_sdpa") && text.contains("1 identical"), "{text}");
}

#[test]
fn a_dry_run_starts_nothing() {
    let sandbox = Sandbox::new();
    let config = fixture("agree").join("tfcheck.toml");
    let output = sandbox.run(&config, &["--dry-run", "--only", "*/one_eager"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = support::stdout(&output);
    assert!(text.contains("one_eager") && !text.contains("two_eager"), "{text}");
    assert!(!sandbox.results().exists());
}
