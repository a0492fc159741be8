//! Workers that write escape codes, times that cannot be, and logits that they damage later.

use crate::support::{Sandbox, stderr, stdout, word};

fn run(fault: &str) -> (Option<i32>, String, Vec<String>, Sandbox) {
    let sandbox = Sandbox::new();
    let config = sandbox.workers(
        &[("good", "good"), ("bad", fault)],
        "iterations = 2\nrounds = 1\nnoise = false\ntimeout_s = 20",
    );
    let output = sandbox.run(&config, &[]);
    let words = sandbox.only_run().cells().iter().map(|cell| word(&cell.outcome)).collect();
    (output.status.code(), stdout(&output) + &stderr(&output), words, sandbox)
}

#[test]
fn escape_codes_of_a_worker_reach_neither_the_terminal_nor_a_report() {
    let (code, shown, words, sandbox) = run("escapes");
    assert_eq!((code, words), (Some(3), vec!["completed".to_owned(), "exception".to_owned()]));
    assert!(shown.contains("\\u{1b}[2J"), "{shown}");
    let summary = sandbox.only_run().text("summary.md");
    for text in [shown, summary] {
        assert!(!text.contains(['\u{1b}', '\u{7}', '\u{9b}']), "{text}");
        assert!(text.len() < 20_000, "{} bytes", text.len());
    }
}

#[test]
fn times_that_cannot_be_are_a_failed_cell() {
    for fault in ["no_times", "absurd"] {
        let (code, shown, words, _sandbox) = run(fault);
        assert_eq!(code, Some(3), "{shown}");
        assert_ne!(words[1], "completed", "{fault}: {shown}");
    }
}

#[test]
fn forward_passes_keep_their_times_if_decoding_fails() {
    let sandbox = Sandbox::new();
    let settings = "iterations = 2\nrounds = 2\ndecode = 3\nnoise = false";
    let config = sandbox.workers(&[("bad", "no_decode")], settings);
    assert_eq!(sandbox.run(&config, &[]).status.code(), Some(0));
    let run = sandbox.only_run();
    let summary = run.json("summary.json");
    assert!(summary["cases"][0]["cells"][0]["timing"].is_object(), "{}", summary["cases"][0]["cells"][0]);
    assert_eq!(run.text("summary.md").matches("no token was decoded: planted").count(), 1);
}

#[test]
fn logits_that_a_worker_damages_after_its_reply_are_a_failed_cell() {
    let (code, shown, words, sandbox) = run("damages_logits");
    assert_eq!((code, &*words[1]), (Some(3), "missing_result"), "{shown}");
    let summary = sandbox.only_run().text("summary.md");
    assert!(summary.contains("has 100 bytes, and the worker wrote"), "{summary}");
}

#[test]
fn each_kind_of_failure_comes_with_what_to_do() {
    for (fault, expected) in [
        ("escapes", "help: exception: what the worker wrote is in summary.md"),
        ("damages_logits", "help: missing result: `tfcheck run --resume RUN`"),
        ("exit", "help: crashed: "),
    ] {
        let (_, shown, _, sandbox) = run(fault);
        let shown = super::unwrapped(&shown);
        assert!(shown.contains(expected), "{fault}: {shown}");
        assert!(!sandbox.only_run().text("summary.md").contains("()"), "{fault}");
    }
}

#[test]
fn logits_of_another_shape_are_not_diagnosed() {
    let sandbox = Sandbox::new();
    let config = sandbox.workers(&[("other", "good")], "iterations = 1\nrounds = 0\nnoise = false");
    let text = std::fs::read_to_string(&config).unwrap().replace("modes = []", "modes = [\"eager\"]");
    std::fs::write(&config, text).unwrap();
    let output = sandbox.run(&config, &[]);
    let shown = stdout(&output) + &stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{shown}");
    assert!(shown.contains("vocabulary sizes differ") && !shown.contains("diagnosing"), "{shown}");
}

#[test]
fn logits_that_are_not_finite_are_noted_even_of_one_variant() {
    let sandbox = Sandbox::new();
    let config = sandbox.workers(&[("alone", "nan")], "iterations = 1\nrounds = 0\nnoise = false");
    let output = sandbox.run(&config, &[]);
    let shown = stdout(&output) + &stderr(&output);
    assert!(shown.contains("logits of alone_eager are not finite"), "{shown}");
}

#[test]
fn names_without_number_take_seconds_and_not_minutes() {
    let begun = std::time::Instant::now();
    let (code, shown, _, _sandbox) = run("names");
    assert_eq!(code, Some(0), "{shown}");
    // It takes a second; a comparison of each name with each other takes minutes.
    assert!(begun.elapsed() < std::time::Duration::from_secs(30), "{:?}", begun.elapsed());
    assert!(shown.len() < 100_000, "{} bytes", shown.len());
}

#[test]
fn ids_and_positions_that_do_not_fit_are_a_failed_cell() {
    let check = |name: &str, value: i64| {
        let sandbox = Sandbox::new();
        let tensor = |values: Vec<i64>| {
            candle_core::Tensor::from_vec(values, (1, 4), &candle_core::Device::Cpu).unwrap()
        };
        let mut tensors = std::collections::HashMap::new();
        for known in ["input_ids", "position_ids"] {
            let first = if known == name { value } else { 0 };
            tensors.insert(known.to_owned(), tensor(vec![first, 1, 2, 3]));
        }
        candle_core::safetensors::save(&tensors, sandbox.path().join("inputs.safetensors")).unwrap();
        let config = sandbox.write(
            "tfcheck.toml",
            "versions = []\n[inputs]\ntensors = \"inputs.safetensors\"\n[run]\nrounds = 0\ntrace = false\nnoise = false\n",
        );
        let output = sandbox.run(&config, &[]);
        let shown = super::unwrapped(&(stdout(&output) + &stderr(&output)));
        assert_eq!(output.status.code(), Some(3), "{shown}");
        assert!(shown.contains(&format!("`{name}` of the inputs holds {value}")), "{shown}");
    };
    check("input_ids", 1 << 40);
    check("input_ids", -5);
    check("input_ids", i64::from(u32::MAX));
    check("position_ids", 1 << 50);
}
