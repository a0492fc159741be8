//! Runs the whole pipeline on `fixtures/<case>/tfcheck.toml` and compares the results with the case's `expected.json`.

#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

use std::collections::BTreeMap;

use crate::support::{Sandbox, fixture, stderr, stdout, word};
use serde::Deserialize;

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
fn every_fault_has_its_own_outcome_and_stops_no_other_cell() {
    check("faults");
}

#[test]
fn saved_runs_are_compared_in_one_matrix() {
    let sandbox = Sandbox::new();
    for case in ["agree", "diverge"] {
        sandbox.run(&fixture(case).join("tfcheck.toml"), &[]);
    }
    let runs = sandbox.runs();
    let output = sandbox.tfcheck(&["compare", runs[0].to_str().unwrap(), runs[1].to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let text = crate::support::stdout(&output);
    for run in &runs {
        let name = format!("one@{}", run.file_name().unwrap().to_string_lossy());
        assert!(text.contains(&name), "{name} is not in {text}");
    }
}

#[test]
fn compare_regenerates_the_reports_of_a_run() {
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
fn the_command_of_a_cell_in_the_report_runs_that_cell_again() {
    let sandbox = Sandbox::new();
    sandbox.run(&fixture("agree").join("tfcheck.toml"), &[]);
    let run = sandbox.only_run();
    let page = run.text("report.html");
    let commands = page.split("<code>").skip(1).map(|rest| rest.split("</code>").next().unwrap());
    let command = commands.into_iter().find(|command| command.contains("two_eager")).unwrap();
    let words: Vec<&str> = command.split(' ').skip(1).collect();
    let output = sandbox.tfcheck(&[&words[..], &["--results", "again"]].concat());
    assert_eq!(output.status.code(), Some(0), "{command}: {}", stderr(&output));
    let again = std::fs::read_dir(sandbox.path().join("again")).unwrap();
    let folder = again.map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap();
    let repeated = crate::support::Run::open(&folder);
    let names: Vec<String> = repeated.cells().into_iter().map(|cell| cell.name).collect();
    assert_eq!(names, ["two_eager"]);
    let logits =
        |run: &crate::support::Run| std::fs::read(run.path().join("two/logits_eager.safetensors")).unwrap();
    assert!(logits(&run) == logits(&repeated), "the same cell gives the same logits");
}

#[test]
fn what_changed_between_two_runs_is_one_page() {
    let sandbox = Sandbox::new();
    for second in ["good", "good 0.01"] {
        let config = sandbox.workers(&[("one", "good"), ("two", second)], "rounds = 0\nnoise = false");
        sandbox.run(&config, &[]);
    }
    let runs = sandbox.runs();
    let [before, after] = [0, 1].map(|index| runs[index].to_str().unwrap());
    let output = sandbox.tfcheck(&["compare", before, after, "--html"]);
    let text = crate::support::stdout(&output);
    assert!(text.contains("compare.html: 1 worse, 0 better"), "{text} {}", stderr(&output));
    let page = std::fs::read_to_string(sandbox.path().join("compare.html")).unwrap();
    assert!(page.contains("script-src 'none'") && page.contains("class=\"worse\""), "{page}");
    let wrong = sandbox.tfcheck(&["compare", before, "--html"]);
    assert_eq!(wrong.status.code(), Some(2), "{}", stderr(&wrong));
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
    let text = crate::support::stdout(&output);
    assert!(text.contains("4.54.0") && text.contains("1 identical"), "{text}");
}

#[test]
fn a_dry_run_starts_nothing() {
    let sandbox = Sandbox::new();
    let config = fixture("agree").join("tfcheck.toml");
    let output = sandbox.run(&config, &["--dry-run", "--only", "*/one_eager"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = crate::support::stdout(&output);
    assert!(text.contains("one_eager") && !text.contains("two_eager"), "{text}");
    assert!(!sandbox.results().exists());
}

#[test]
fn a_nondeterministic_worker_is_reported_in_every_comparison() {
    let sandbox = Sandbox::new();
    let workers = [("still", "good"), ("drifter", "drifts"), ("reborn", "differs_by_process")];
    let config = sandbox.workers(&workers, "rounds = 1\niterations = 1\nwarm_up = 0\ntrace = false");
    let output = sandbox.run(&config, &[]);
    let run = sandbox.only_run();
    let summary = run.json("summary.json");
    let case = &summary["cases"][0];
    let noise = |name: &str| {
        let cells = case["cells"].as_array().unwrap();
        cells.iter().find(|cell| cell["name"] == format!("{name}_eager")).unwrap()["noise"].clone()
    };
    let place = |name: &str, place: &str| noise(name)[place]["bitwise"].as_bool().unwrap();
    assert!(place("still", "same_process") && place("still", "second_process"));
    assert!(!place("drifter", "same_process"));
    assert!(place("reborn", "same_process") && !place("reborn", "second_process"), "{}", noise("reborn"));
    let pair = case["pairs"].as_array().unwrap().iter();
    let multiple = |a: &str, b: &str| {
        let is_it = |pair: &&serde_json::Value| pair["a"] == a && pair["b"] == b;
        pair.clone().find(is_it).unwrap()["noise_multiple"].clone()
    };
    // The drifter's passes drift by 0.001 each. Its repetition is pass 3, because pass 2 is timed: the self difference is
    // 0.002, and the difference of its pass 1 from the worker without drift is 0.001.
    let times = multiple("still_eager", "drifter_eager").as_f64().unwrap();
    assert!((times - 0.5).abs() < 1e-3, "{times}");
    let verdicts = case["verdicts"].as_array().unwrap();
    for verdict in verdicts {
        let evidence = verdict["evidence"].as_str().unwrap();
        assert!(
            evidence.contains("is not deterministic") && evidence.contains("times that noise"),
            "{evidence}"
        );
    }
    let markdown = run.text("summary.md");
    assert!(markdown.contains("| bitwise") && markdown.contains("Units of the Noise"), "{markdown}");
    assert!(run.text("report.html").contains("2 of 3 variants do not repeat themselves"));
    let text = crate::support::stdout(&output);
    assert!(text.contains("do not repeat themselves bit for bit"), "{text}");
    assert!(run.cells().iter().all(|cell| word(&cell.outcome) == "completed"));
}

#[test]
fn a_sweep_finds_a_fault_of_the_cache_and_gives_one_table() {
    let sandbox = Sandbox::new();
    let workers = [("right", "good"), ("wrong", "cache"), ("old", "no_prefill")];
    let config = sandbox.workers(&workers, "rounds = 1\niterations = 1\nwarm_up = 0\nnoise = false");
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace("lengths = [12]", "lengths = [6, 12]\nbatch = [1, 2]\nprefill = [8]");
    std::fs::write(&config, text).unwrap();
    let output = sandbox.run(&config, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let run = sandbox.only_run();
    let summary = run.json("summary.json");
    let sweep = &summary["sweep"];
    let columns: Vec<String> = sweep["columns"]
        .as_array()
        .unwrap()
        .iter()
        .map(|column| format!("{} {}", column["axis"].as_str().unwrap(), column["value"].as_str().unwrap()))
        .collect();
    assert_eq!(columns, ["length 6", "length 12", "batch 1", "batch 2", "prefill one pass", "prefill 8"]);
    let row = |a: &str, b: &str| -> Vec<String> {
        let rows = sweep["rows"].as_array().unwrap();
        let found = rows.iter().find(|row| row["a"] == a && row["b"] == b).unwrap();
        let word = |mark: &serde_json::Value| match mark["verdict"]["verdict"].as_str() {
            Some(word) => format!("{word} {}/{}", mark["count"], mark["of"]),
            None => "-".to_owned(),
        };
        found["marks"].as_array().unwrap().iter().map(word).collect()
    };
    assert_eq!(
        row("right_eager", "wrong_eager"),
        ["identical 2/2", "diverged 2/4", "diverged 1/3", "diverged 1/3", "identical 4/4", "diverged 2/2"]
    );
    // Compared with its own full-sequence forward pass, only the wrong worker's cache diverges.
    assert_eq!(row("wrong_eager", "wrong_eager in one pass")[5], "diverged 2/2");
    assert_eq!(row("right_eager", "right_eager in one pass")[5], "identical 2/2");
    assert_eq!(row("right_eager", "old_eager")[5], "not_run 2/2");
    for text in [run.text("summary.md"), run.text("report.html")] {
        assert!(text.contains("diverged 2/4"), "{text}");
    }
    let text = crate::support::stdout(&output).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("cached decoding diverges from the full-sequence pass"), "{text}");
    let cells = run.cells();
    let timed = cells.iter().filter_map(|cell| match &cell.outcome {
        tfcheck::execute::cell::Outcome::Completed(completed) => Some(completed.rounds_ns.len()),
        _ => None,
    });
    assert_eq!(timed.filter(|rounds| *rounds == 0).count(), 4, "prefill and decoding is not timed");
}

#[test]
fn a_checkpoint_has_tolerances_of_its_own() {
    let sandbox = Sandbox::new();
    let check = |tolerances: &str, code: i32| {
        let workers = [("one", "good"), ("two", "good")];
        let config = sandbox.workers(&workers, "rounds = 0\nnoise = false");
        let text = std::fs::read_to_string(&config).unwrap();
        // A bias of 1e-3 per token exceeds f32's tolerance.
        let text = text.replacen("\"good\"]", "\"good\", \"0.001\"]", 1);
        let source = "source = \"synthetic:llama:tiny\"\n";
        std::fs::write(&config, text.replace(source, &format!("{source}{tolerances}"))).unwrap();
        let output = sandbox.run(&config, &[]);
        assert_eq!(output.status.code(), Some(code), "{tolerances}: {}", stderr(&output));
    };
    check("", 1);
    check("tolerances = { relative_l2 = { f32 = 0.1 } }\n", 0);
    check("tolerances = { relative_l2 = { bf16 = 0.1 } }\n", 1);
    check("tolerances = { relative_l3 = 1 }\n", 2);
}

#[test]
fn logits_of_another_shape_are_incomparable_with_the_reason_and_exit_1() {
    let sandbox = Sandbox::new();
    let workers = [("right", "good"), ("a", "vocabulary"), ("b", "positions"), ("c", "batch")];
    let config = sandbox.workers(&workers, "rounds = 0\nnoise = false");
    let output = sandbox.run(&config, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let summary = sandbox.only_run().json("summary.json");
    let reason = |other: &str| {
        let verdicts = summary["cases"][0]["verdicts"].as_array().unwrap();
        let is_it =
            |pair: &&serde_json::Value| pair["a"] == "right_eager" && pair["b"] == format!("{other}_eager");
        let found = verdicts.iter().find(is_it).unwrap();
        assert_eq!(found["verdict"], "incomparable", "{found}");
        found["reason"].as_str().unwrap().to_owned()
    };
    assert_eq!(reason("a"), "vocabulary sizes differ: 16 and 17");
    assert_eq!(reason("b"), "sequence lengths differ: 12 and 11");
    assert_eq!(reason("c"), "batch sizes differ: 1 and 2");
    let shown = stdout(&output);
    for wrong in ["B = a (eager)", "C = b (eager)", "D = c (eager)"] {
        assert!(shown.contains(&format!("{wrong}: cannot be compared with A: ")), "{wrong}: {shown}");
    }
}

/// Without float64 and float32, the rounding of a native model in bf16 is measured, and decides on it and on ports.
#[test]
fn rounding_in_bf16_is_measured_where_no_wider_result_decides() {
    let decided = |source: &str, more: &str| {
        let config = format!(
            "versions = []\n[[checkpoints]]\nsource = \"synthetic:{source}\"\n[inputs]\nlengths = [40]\n{more}\
             [candle]\nmodes = [\"eager\"]\nupstream = true\n\
             [run]\ndtypes = [\"bf16\"]\nrounds = 0\ntrace = false\nnoise = false\ndiagnose_s = 0\n"
        );
        let sandbox = Sandbox::new();
        let config = sandbox.write("tfcheck.toml", &config);
        sandbox.run(&config, &[]);
        let summary = sandbox.only_run().json("summary.json");
        summary["cases"][0]["verdicts"][0].clone()
    };
    let same = decided("llama:tiny", "");
    assert_eq!(same["verdict"], "same_mathematics", "{same}");
    assert_eq!(same["basis"]["measured"]["results"], 5, "{same}");
    assert_eq!(same["basis"]["measured"]["variant"], "candle_eager", "{same}");
    // candle-transformers admits one key too many.
    let window = decided("mistral", "");
    assert_eq!(window["verdict"], "diverged", "{window}");
    assert_eq!(window["basis"]["measured"]["results"], 5, "{window}");
    let stated = decided("llama:tiny", "[tolerances]\nrelative_l2 = { bf16 = 0.07 }\n");
    assert_eq!(stated["basis"]["measured"], serde_json::Value::Null, "{stated}");
}
