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
