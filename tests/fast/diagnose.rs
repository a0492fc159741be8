//! `tfcheck diagnose` and the diagnosis at the end of a run, on variants that need no Python.

use crate::support::{Sandbox, stderr, stdout};

/// The native model and candle-transformers' port, whose sliding window admits one key too many.
const CONFIG: &str = "versions = []\n[[checkpoints]]\nsource = \"synthetic:mistral\"\n[inputs]\nlengths = [6, 40]\n\
    [candle]\nmodes = [\"eager\"]\nupstream = true\n\
    [run]\ndtypes = [\"f32\"]\nrounds = 0\ntrace = false\n";
const PORT: &str = "candle-transformers_eager";
const NAMED: &str =
    "candle-transformers_eager computes what candle_eager computes with `sliding_window` 9 (relative L2 ";

#[test]
fn a_port_is_diagnosed_by_its_logits_alone() {
    let sandbox = Sandbox::new();
    sandbox.write("tfcheck.toml", CONFIG);
    let output = sandbox.tfcheck(&["diagnose", "candle_eager", PORT]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let said = stdout(&output);
    assert!(said.contains("mistral-6: candle_eager / candle-transformers_eager\n  candle_eager and candle-transformers_eager agree in f32"), "{said}");
    assert!(
        said.contains(&format!("mistral-40: candle_eager / candle-transformers_eager\n  {NAMED}")),
        "{said}"
    );
    for (arguments, words) in [
        (&[PORT, "candle_eager"][..], "cannot be made to commit mistakes"),
        (&["candle_eager", "candle_eager"], "the same on both sides"),
        (&["candle_eager", PORT, "--case", "mistral-41"], "did you mean `mistral-40`"),
    ] {
        let output = sandbox.tfcheck(&[&["diagnose"], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
    }
}

#[test]
fn a_run_diagnoses_each_group_that_diverges_and_every_report_has_it() {
    let sandbox = Sandbox::new();
    let config = sandbox.write("tfcheck.toml", CONFIG);
    let output = sandbox.run(&config, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let run = sandbox.only_run();
    let kept = run.json("diagnosed.json");
    assert_eq!(kept.as_array().unwrap().len(), 1, "one representative a group: {kept}");
    assert_eq!(kept[0]["case"], "mistral-40");
    assert_eq!(kept[0]["finding"]["mistakes"][0]["hypothesis"], "window-one-more");
    assert_eq!(run.json("summary.json")["cases"][1]["diagnosed"], kept);
    for file in ["summary.md", "report.html"] {
        assert!(run.text(file).contains("computes what candle_eager computes with"), "{file}");
    }
    assert!(
        stdout(&output).replace("\n    ", " ").contains("computes what candle_eager computes with"),
        "{}",
        stdout(&output)
    );

    let path = run.path().to_str().unwrap().to_owned();
    let story = |pair: &[&str]| stdout(&sandbox.tfcheck(&[&["explain", &path], pair].concat()));
    let told = story(&["mistral-40/candle_eager", PORT]);
    assert!(told.contains(&format!("Diagnosis\n  {NAMED}")), "{told}");
    assert!(!told.contains("tfcheck diagnose"), "what is known needs no looking for: {told}");

    // Without the diagnosis, the command that explain recommends gives it.
    std::fs::remove_file(run.path().join("diagnosed.json")).unwrap();
    let told = story(&["mistral-40/candle_eager", PORT]);
    let command = told
        .split('`')
        .find(|part| part.starts_with("tfcheck diagnose "))
        .unwrap_or_else(|| panic!("{told}"));
    assert!(!told.contains("tfcheck localize"), "a port shows no modules: {told}");
    let arguments: Vec<&str> = command.split(' ').skip(1).collect();
    let output = sandbox.tfcheck(&arguments);
    assert_eq!(output.status.code(), Some(1), "{command}: {}", stderr(&output));
    assert!(stdout(&output).contains(NAMED), "{}", stdout(&output));
    assert!(run.json("summary.json")["cases"][1]["diagnosed"][0].is_object());
}
