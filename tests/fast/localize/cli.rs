//! `tfcheck localize` and the localisation at the end of a run, on variants that need no Python.

use crate::support::{Sandbox, stderr, stdout};

/// The native model and candle-transformers' port, whose sliding window admits one key too many.
const CONFIG: &str = "versions = []\n[[checkpoints]]\nsource = \"synthetic:mistral\"\n[inputs]\nlengths = [6, 40]\n\
    [candle]\nmodes = [\"eager\", \"fused\"]\nupstream = true\n\
    [run]\ndtypes = [\"f32\"]\nrounds = 0\ntrace = false\n";

#[test]
fn a_pair_of_a_config_or_of_a_run_is_localised() {
    let sandbox = Sandbox::new();
    let config = sandbox.write("tfcheck.toml", CONFIG);
    let localize = |arguments: &[&str]| sandbox.tfcheck(&[&["localize"], arguments].concat());

    let output = localize(&["candle_eager", "candle_fused"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("candle_eager and candle_fused agree in f32"), "{}", stdout(&output));
    assert_eq!(stdout(&output).lines().filter(|line| line.starts_with("mistral-")).count(), 2, "both cases");

    // The short case is within the window, so only the long one diverges.
    let port = "candle-transformers_eager";
    let output = localize(&["--config", "tfcheck.toml", "candle_eager", port, "--case", "mistral-6"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let output = localize(&["candle_eager", port, "--case", "mistral-40", "--max-disk", "1MiB"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stdout(&output).contains("it exposes no modules"), "{}", stdout(&output));

    for (arguments, words) in [
        (&["candle_eager", "candle_fuse"][..], "did you mean `candle_fused`"),
        (&["candle_eager", "candle_eager"], "the same on both sides"),
        (&["candle_eager", "candle_fused", "--case", "mistral-41"], "did you mean `mistral-40`"),
        (&["candle_eager", "candle_fused", "--modules", "encoder.*", "--dtype", "bf16"], ""),
        (&["--config", "none.toml", "candle_eager", "candle_fused"], "none.toml"),
        (&["tfcheck.toml", "candle_eager", "candle_fused"], "unexpected argument"),
        (&["candle_eager"], "<B>"),
    ] {
        let output = localize(arguments);
        let said = stderr(&output);
        let expected = if words.is_empty() { 0 } else { 2 };
        assert_eq!(output.status.code(), Some(expected), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
    }

    let output = sandbox.run(&config, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let run = sandbox.only_run();
    // candle-transformers' ports expose no modules, so a run does not try to localise.
    assert!(!run.path().join("localized.json").exists());
    let path = run.path().to_str().unwrap().to_owned();
    let output = localize(&["--run", &path, "candle_eager", port, "--case", "mistral-40"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let kept = run.json("localized.json");
    assert_eq!(kept[0]["finding"]["found"], "logits", "{kept}");
    assert_eq!(run.json("summary.json")["cases"][1]["localized"], kept);
    for file in ["summary.md", "report.html"] {
        assert!(run.text(file).contains("First divergence"), "{file}");
    }
    let output = sandbox.tfcheck(&["explain", &path, "mistral-40/candle_eager", port]);
    let story = stdout(&output);
    assert!(story.contains("First divergence\n  the logits differ by "), "{story}");
    assert!(!story.contains("`tfcheck localize"), "what is known needs no looking for: {story}");
}

#[test]
fn a_variant_with_a_prefill_is_localised_against_its_own_full_sequence_pass() {
    let sandbox = Sandbox::new();
    let config = CONFIG.replace("lengths = [6, 40]", "lengths = [12]\nprefill = [4]");
    sandbox.write("tfcheck.toml", &config.replace("upstream = true", "upstream = false"));
    let output = sandbox.tfcheck(&["localize", "candle_eager", "candle_eager in one pass"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let said = stdout(&output);
    assert!(said.contains("candle_eager in one pass / candle_eager\n"), "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("mistral-")).count(), 1, "{said}");
    for (arguments, words) in [
        (&["candle_fused", "candle_eager in one pass"][..], "only against the full-sequence pass of"),
        (&["candle_eager", "candle_eager in one pass", "--case", "mistral-12"], "no case has a prefill"),
    ] {
        let output = sandbox.tfcheck(&[&["localize"], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        let said = stderr(&output).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(words), "{said}");
    }
}
