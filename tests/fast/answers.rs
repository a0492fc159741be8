//! `--format json`: every answer follows its schema, has the exit code of the process, and is all that standard output holds.

use crate::support::{Sandbox, fixture, stderr, stdout};
use serde_json::Value;

/// The answer of a command line, which must be valid against the schema that tfcheck prints.
fn answer(sandbox: &Sandbox, arguments: &[&str]) -> Value {
    let output = sandbox.tfcheck(&[arguments, &["--format", "json"]].concat());
    let text = stdout(&output);
    let answer: Value =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{}", stderr(&output)));
    assert_eq!(answer["exit_code"].as_i64(), output.status.code().map(i64::from), "{}", stderr(&output));
    assert!(!text.contains('\u{1b}'), "{text}");
    let schema: Value = serde_json::from_str(&stdout(&sandbox.tfcheck(&["schema", "answer"]))).unwrap();
    check(&schema, &answer);
    answer
}

fn check(schema: &Value, value: &Value) {
    let (mut schemas, mut compiler) = (boon::Schemas::new(), boon::Compiler::new());
    compiler.add_resource("schema.json", schema.clone()).unwrap();
    let index = compiler.compile("schema.json", &mut schemas).unwrap();
    let valid = schemas.validate(value, index);
    assert!(valid.is_ok(), "{}", valid.unwrap_err());
}

#[test]
fn runs_answer_with_their_folder_and_summary() {
    let sandbox = Sandbox::new();
    let config =
        sandbox.workers(&[("one", "good"), ("two", "good 0.5")], "rounds = 0\nnoise = false\ndiagnose_s = 0");
    let config = config.to_str().unwrap();
    let ran = answer(&sandbox, &["run", config]);
    assert_eq!(ran["exit_code"], 1);
    assert_eq!(ran["summary"]["tally"]["diverged"], 1);
    assert!(ran["error"].is_null() && ran["data"].is_null());
    let run = ran["run"].as_str().unwrap();
    let written: Value = serde_json::from_str(
        &std::fs::read_to_string(sandbox.path().join(run).join("summary.json")).unwrap(),
    )
    .unwrap();
    assert_eq!(ran["summary"], written);
    let again = answer(&sandbox, &["compare", run]);
    assert_eq!(
        (&again["exit_code"], &again["summary"]["tally"]),
        (&ran["exit_code"], &ran["summary"]["tally"])
    );
    let other = answer(&sandbox, &["run", config]);
    let both = answer(&sandbox, &["compare", run, other["run"].as_str().unwrap()]);
    assert!(both["run"].is_null() && both["summary"]["cases"].is_array());
    let explained = answer(&sandbox, &["explain", run, "one..two"]);
    assert!(explained["text"].as_str().unwrap().contains("one_eager"), "{explained}");
}

#[test]
fn plans_and_lists_answer_with_data_or_text() {
    let sandbox = Sandbox::new();
    let config = sandbox.workers(&[("one", "good")], "rounds = 0\nnoise = false");
    let config = config.to_str().unwrap();
    let plan = answer(&sandbox, &["plan", config]);
    assert_eq!(plan["data"]["cells"].as_array().unwrap().len(), 1);
    let frozen = answer(&sandbox, &["plan", config, "--json"]);
    let schema: Value = serde_json::from_str(&stdout(&sandbox.tfcheck(&["schema", "plan"]))).unwrap();
    check(&schema, &frozen["data"]);
    assert_eq!(frozen["data"]["units"][0]["kind"], "numeric");
    for (arguments, expected) in [
        (&["list", "models"][..], "llama: decoder"),
        (&["baseline", "list"], "no baselines"),
        (&["schema"], "\"checkpoints\""),
        (&["completions", "bash"], "_tfcheck()"),
        (&["man"], ".TH tfcheck"),
        (&["init", "new.toml"], "wrote new.toml"),
        (&["run", config, "--dry-run"], "one_eager"),
    ] {
        let answer = answer(&sandbox, arguments);
        assert_eq!(answer["exit_code"], 0, "{arguments:?}");
        assert!(answer["text"].as_str().unwrap().contains(expected), "{arguments:?}: {answer}");
    }
    let worker = fixture("worker.py");
    let output = sandbox.tfcheck(&[
        "check-worker",
        "--format",
        "json",
        "--",
        "python3",
        worker.to_str().unwrap(),
        "good",
    ]);
    let checked: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(checked["text"].as_str().unwrap().contains("0 wrong"), "{checked}");
}

#[test]
fn errors_answer_with_message_causes_and_hint() {
    let sandbox = Sandbox::new();
    let failed = answer(&sandbox, &["compare", "nowhere"]);
    assert_eq!(failed["exit_code"], 2);
    assert_eq!(failed["error"]["message"], "nowhere holds no run: it has no run.json");
    assert!(failed["error"]["hint"].as_str().unwrap().contains("name a folder"), "{failed}");
    let failed = answer(&sandbox, &["run", "no.toml"]);
    assert!(failed["error"]["message"].as_str().unwrap().contains("no.toml"), "{failed}");
    let missing = answer(&sandbox, &["merge", "nowhere"]);
    assert!(!missing["error"]["causes"].as_array().unwrap().is_empty(), "{missing}");
}

#[test]
fn man_pages_and_completions_cover_every_command() {
    let sandbox = Sandbox::new();
    let output = sandbox.tfcheck(&["man", "--out", "man"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let page = |name: &str| std::fs::read_to_string(sandbox.path().join("man").join(name)).unwrap();
    assert!(page("tfcheck.1").contains("tfcheck\\-run(1)"), "{}", page("tfcheck.1"));
    assert!(page("tfcheck-merge.1").contains(".TH tfcheck-merge 1"), "{}", page("tfcheck-merge.1"));
    assert!(!sandbox.path().join("man/tfcheck-worker.1").exists(), "hidden commands have no page");
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&sandbox.tfcheck(&["completions", shell]));
        assert!(script.contains("merge") && script.contains("shard"), "{shell}");
    }
    let build = stdout(&sandbox.tfcheck(&["--version", "--verbose"]));
    for part in ["sources: ", "compiler: rustc", "worker protocol: ", "features: "] {
        assert!(build.contains(part), "{build}");
    }
}
