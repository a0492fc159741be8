//! A plan that is computed in parts and merged: equal to the run of one machine, and refused or reported where a part is damaged.

use std::path::{Path, PathBuf};
use std::process::Output;

use crate::support::{Run, Sandbox, fixture, numeric_files, stderr, stdout, word};
use serde_json::Value;

/// Two checkpoints, four lengths and a prefill; native models and scripted workers.
fn config(sandbox: &Sandbox, fault: &str, run: &str) -> PathBuf {
    let worker = fixture("worker.py");
    let text = format!(
        "versions = []\n[[checkpoints]]\nsource = \"synthetic:llama:tiny\"\n[[checkpoints]]\nsource = \"synthetic:mistral\"\n\
         [inputs]\nlengths = [6, 12]\nprefill = [8]\n[candle]\nmodes = [\"eager\", \"fused\"]\n\
         [[commands]]\nname = \"one\"\nprogram = [\"python3\", \"{worker}\", \"good\"]\n\
         [[commands]]\nname = \"two\"\nprogram = [\"python3\", \"{worker}\", \"{fault}\"]\n\
         [run]\nthreads = 1\nfail_on = [\"loads\"]\n{run}\n",
        worker = worker.display()
    );
    sandbox.write("tfcheck.toml", &text)
}

const UNTIMED: &str = "rounds = 0\ntrace = false\nnoise = false\ndiagnose_s = 0";

/// Runs `tfcheck run` with these arguments and the folder `results`.
fn run(sandbox: &Sandbox, results: &str, arguments: &[&str]) -> Output {
    sandbox.tfcheck(&[&["run"], arguments, &["--results", results]].concat())
}

/// Computes all shards of the sandbox's config into `shard_1`, `shard_2`, …
fn run_shards(sandbox: &Sandbox, count: usize) -> Vec<String> {
    let shard = |index: usize| {
        let (folder, part) = (format!("shard_{index}"), format!("{index}/{count}"));
        let output = run(sandbox, &folder, &["--shard", &part]);
        assert!(matches!(output.status.code(), Some(0 | 1)), "{}", stderr(&output));
        folder
    };
    (1..=count).map(shard).collect()
}

/// Merges folders into `merged`; expects this exit code.
fn merge(sandbox: &Sandbox, folders: &[&str], code: i32) -> Output {
    let output = sandbox.tfcheck(&[&["merge"], folders, &["--results", "merged"]].concat());
    assert_eq!(output.status.code(), Some(code), "{}\n{}", stderr(&output), stdout(&output));
    output
}

/// The newest run in a folder of the sandbox.
fn newest(sandbox: &Sandbox, results: &str) -> Run {
    let entries = std::fs::read_dir(sandbox.path().join(results)).unwrap();
    let mut runs: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    runs.retain(|path| path.join("run.json").is_file());
    runs.sort();
    Run::open(runs.last().unwrap())
}

/// `summary.json` without times and without what names the run.
fn summary(run: &Run) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(entries) => {
                entries.retain(|key, _| {
                    let is_time = ["_ns", "_ms", "_s", "_bytes"].iter().any(|ending| key.ends_with(ending));
                    !is_time
                        && !["id", "run", "timing", "speed_up", "decoding", "peak", "overhead"]
                            .contains(&key.as_str())
                });
                for (_, value) in entries.iter_mut() {
                    strip(value);
                }
            }
            Value::Array(values) => values.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut value = run.json("summary.json");
    strip(&mut value);
    value
}

fn assert_equal(whole: &Run, merged: &Run) {
    let (expected, found) = (numeric_files(whole.path()), numeric_files(merged.path()));
    assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    assert!(expected.len() > 20, "{:?}", expected.keys());
    for (path, bytes) in &expected {
        assert!(found[path] == *bytes, "{} differs", path.display());
    }
    let found = first_difference("", &summary(whole), &summary(merged));
    assert!(found.is_none(), "{}", found.unwrap());
}

/// Where two JSON values differ first.
fn first_difference(path: &str, a: &Value, b: &Value) -> Option<String> {
    match (a, b) {
        (Value::Object(one), Value::Object(other)) if one.keys().eq(other.keys()) => {
            one.iter().find_map(|(key, value)| first_difference(&format!("{path}.{key}"), value, &other[key]))
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            let mut pairs = one.iter().zip(other).enumerate();
            pairs.find_map(|(at, (a, b))| first_difference(&format!("{path}[{at}]"), a, b))
        }
        (a, b) if a == b => None,
        (a, b) => Some(format!("{path}: {a} and {b}").chars().take(2000).collect()),
    }
}

#[test]
fn shards_merge_into_the_run_of_one_machine_byte_for_byte() {
    let sandbox = Sandbox::new();
    config(&sandbox, "good", UNTIMED);
    let output = run(&sandbox, "whole", &[]);
    let code = output.status.code().unwrap();
    assert!(matches!(code, 0 | 1), "{}", stderr(&output));
    let shards = run_shards(&sandbox, 3);
    // Each shard has work, and no two have the same unit.
    let units = |folder: &String| newest(&sandbox, folder).manifest.share.unwrap().units;
    let mut all: Vec<String> = shards.iter().flat_map(units).collect();
    assert!(shards.iter().all(|folder| !units(folder).is_empty()), "{all:?}");
    all.sort_unstable();
    let distinct = all.len();
    all.dedup();
    assert_eq!((all.len(), distinct), (6, 6), "{all:?}");
    let folders: Vec<&str> = shards.iter().map(String::as_str).collect();
    merge(&sandbox, &folders, code);
    assert_equal(&newest(&sandbox, "whole"), &newest(&sandbox, "merged"));
    // The order of the folders plays no part, nor does a part that is given twice.
    merge(&sandbox, &["shard_3", "shard_1", "shard_2", "shard_1"], code);
    assert_equal(&newest(&sandbox, "whole"), &newest(&sandbox, "merged"));
}

#[test]
fn units_of_one_version_merge_into_the_run_of_one_machine_byte_for_byte() {
    let sandbox = Sandbox::new();
    config(&sandbox, "good", &format!("{UNTIMED}\n[engine]\nunit = \"version\""));
    let code = run(&sandbox, "whole", &[]).status.code().unwrap();
    let text = stdout(&sandbox.tfcheck(&["plan", "--json"]));
    let plan: Value = serde_json::from_str(&text).unwrap();
    let units = plan["units"].as_array().unwrap();
    // Six cases, each natively, by `one` and by `two`.
    assert_eq!(units.len(), 18, "{text}");
    sandbox.write("plan.json", &text);
    let of_the_plan = ["--plan", "plan.json"];
    for index in 1..=3 {
        let shard = format!("{index}/3");
        let output =
            run(&sandbox, &format!("shard_{index}"), &[&of_the_plan[..], &["--shard", &shard]].concat());
        assert!(matches!(output.status.code(), Some(0 | 1)), "{}", stderr(&output));
    }
    let output =
        run(&sandbox, "unit", &[&of_the_plan[..], &["--unit", "llama-tiny-12.two.cpu.numeric"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let unit = newest(&sandbox, "unit");
    let names: Vec<String> = unit.cells().iter().map(|cell| cell.variant.name()).collect();
    assert_eq!(names, ["two_eager"], "the unit has one version");
    let parts = ["shard_1", "shard_2", "shard_3", "unit"];
    let owners = |case: &str| {
        let has = |part: &&&str| {
            let share = newest(&sandbox, part).manifest.share.unwrap();
            share.units.iter().any(|unit| unit.starts_with(case))
        };
        parts[..3].iter().filter(has).count()
    };
    assert!(owners("mistral-12.") > 1, "the logits of a case come from several shards");
    merge(&sandbox, &[&of_the_plan[..], &parts].concat(), code);
    assert_equal(&newest(&sandbox, "whole"), &newest(&sandbox, "merged"));
}

#[test]
fn localising_the_merged_run_finds_what_the_run_of_one_machine_finds() {
    let sandbox = Sandbox::new();
    let program = crate::ports::program("gelu");
    let text = format!(
        "versions = []\n[[checkpoints]]\nsource = \"synthetic:llama:tiny\"\n[inputs]\nlengths = [12, 24]\n\
         [candle]\nmodes = [\"eager\"]\n[[commands]]\nname = \"gelu\"\nprogram = {program:?}\nfloat64 = true\n\
         [run]\noracle = true\n{UNTIMED}\n"
    );
    sandbox.write("tfcheck.toml", &text);
    run(&sandbox, "whole", &[]);
    run_shards(&sandbox, 2);
    merge(&sandbox, &["shard_1", "shard_2", "--localize"], 1);
    let found = |results: &str| -> Value {
        let mut all = newest(&sandbox, results).json("localized.json");
        for one in all.as_array_mut().unwrap() {
            one.as_object_mut().unwrap().retain(|key, _| !["elapsed_ns", "overhead"].contains(&key.as_str()));
        }
        all
    };
    let expected = found("whole");
    assert_eq!(expected[0]["finding"]["path"], "model.layers.0.mlp.act_fn", "{expected}");
    let difference = first_difference("", &expected, &found("merged"));
    assert!(difference.is_none(), "{}", difference.unwrap());
    let [whole, merged] = ["whole", "merged"].map(|results| newest(&sandbox, results));
    assert_eq!(whole.text("matrix.csv"), merged.text("matrix.csv"));
    let difference = first_difference("", &summary(&whole), &summary(&merged));
    assert!(difference.is_none(), "{}", difference.unwrap());
}

#[test]
fn units_of_a_frozen_plan_are_computed_one_by_one() {
    let sandbox = Sandbox::new();
    config(
        &sandbox,
        "good",
        "rounds = 2\niterations = 2\nwarm_up = 0\ntrace = false\nnoise = false\noracle = true\ndiagnose_s = 0",
    );
    let whole = run(&sandbox, "whole", &[]);
    let code = whole.status.code().unwrap();
    let output = sandbox.tfcheck(&["plan", "--json", "--results", "whole"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    sandbox.write("plan.json", &text);
    let plan: Value = serde_json::from_str(&text).unwrap();
    let units = plan["units"].as_array().unwrap();
    let timing: Vec<&Value> = units.iter().filter(|unit| unit["kind"] == "timing").collect();
    // Cases with a prefill are not timed, and neither is a float64 reference.
    assert_eq!(timing.len(), 4, "{text}");
    assert!(timing.iter().all(|unit| unit["exclusive"] == true && unit["needs"]["cpus"] == 1));
    assert!(units.len() > timing.len() && units.iter().any(|unit| unit["exclusive"] == false));
    assert!(units.iter().all(|unit| unit["needs"]["estimated_from"] == "history"), "{text}");
    for (at, unit) in units.iter().enumerate() {
        // By name and by number.
        let number = (at + 1).to_string();
        let wanted = if at % 2 == 0 { unit["name"].as_str().unwrap() } else { &number };
        let output = run(&sandbox, &format!("units/{number}"), &["--plan", "plan.json", "--unit", wanted]);
        assert!(matches!(output.status.code(), Some(0 | 1)), "{}", stderr(&output));
    }
    let folders: Vec<String> = (1..=units.len()).map(|number| format!("units/{number}")).collect();
    let folders: Vec<&str> = folders.iter().map(String::as_str).collect();
    merge(&sandbox, &[&["--plan", "plan.json"], &folders[..]].concat(), code);
    let merged = newest(&sandbox, "merged");
    assert_equal(&newest(&sandbox, "whole"), &merged);
    let timed = merged.cells().into_iter().filter(|cell| match &cell.outcome {
        tfcheck::execute::cell::Outcome::Completed(completed) => completed.round_numbers == [0, 1],
        _ => false,
    });
    assert_eq!(timed.count(), 16);
}

#[test]
fn a_missing_shard_is_not_run_with_exit_3() {
    let sandbox = Sandbox::new();
    config(&sandbox, "good", UNTIMED);
    run_shards(&sandbox, 3);
    sandbox.write("reasons.tsv", "mistral-12.cpu.numeric\tits node burned\nunknown\tignored\n");
    let lost = newest(&sandbox, "shard_2").manifest.share.unwrap().units;
    let output =
        merge(&sandbox, &["shard_1", "shard_3", "--reasons", "reasons.tsv", "--fail-on", "l2>1e9"], 3);
    let merged = newest(&sandbox, "merged");
    let cells: Vec<_> = merged.cells();
    assert_eq!(cells.len(), 24);
    let lost_cells = cells.iter().filter(|cell| cell.is_not_started()).count();
    assert_eq!(lost_cells, lost.len() * 4, "{}", stderr(&output));
    let summary = merged.text("summary.md");
    for unit in &lost {
        let reason =
            if unit.starts_with("mistral-12.") { "its node burned" } else { "no merged folder has it" };
        assert!(summary.contains(&format!("unit {unit}: {reason}")), "{unit}: {summary}");
    }
    // The part can be added later.
    merge(&sandbox, &["shard_1", "shard_2", "shard_3", "--fail-on", "l2>1e9"], 0);
}

#[test]
fn a_changed_part_is_refused_or_reported() {
    let sandbox = Sandbox::new();
    config(&sandbox, "good", UNTIMED);
    run_shards(&sandbox, 2);
    let part = newest(&sandbox, "shard_1");
    let manifest = part.path().join("run.json");
    let original = std::fs::read_to_string(&manifest).unwrap();
    let folders = ["shard_1", "shard_2"];
    let change = |path: &Path, edit: &dyn Fn(&mut Value)| {
        let mut value: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        edit(&mut value);
        std::fs::write(path, value.to_string()).unwrap();
    };
    let refused = |expected: &str| {
        let output = merge(&sandbox, &folders, 2);
        let text = stderr(&output).split_whitespace().collect::<Vec<_>>().join(" ").replace(" │ ", " ");
        assert!(text.contains(expected), "{expected}: {text}");
        std::fs::write(&manifest, &original).unwrap();
    };
    change(&manifest, &|run| run["cases"][0]["checkpoint_digest"] = "0123".into());
    refused("the digest of the checkpoint is 0123");
    change(&manifest, &|run| run["cases"][0]["inputs_digest"] = "0123".into());
    refused("the digest of the inputs is 0123");
    change(&manifest, &|run| run["share"]["plan"] = "0123".into());
    refused("it is a part of another plan");
    change(&manifest, &|run| run["share"]["units"][0] = "../../etc".into());
    refused("the plan has no unit");
    change(&manifest, &|run| run["cases"][0]["name"] = "../../etc".into());
    refused("is not a file name");
    change(&manifest, &|run| drop(run.as_object_mut().unwrap().remove("share")));
    refused("is a whole run");
    let plan = part.path().join("plan.json");
    let text = std::fs::read_to_string(&plan).unwrap();
    change(&plan, &|plan| plan["tfcheck"]["version"] = "0.0.1".into());
    refused("does not have the digest that it states");
    std::fs::write(&plan, text).unwrap();
    let link = part.path().join("link");
    std::os::unix::fs::symlink("/", &link).unwrap();
    refused("is a symbolic link");
    std::fs::remove_file(link).unwrap();

    // Logits that are not those the worker wrote are a failed cell.
    let logits =
        numeric_files(part.path()).into_keys().find(|path| path.ends_with("one/logits_eager.safetensors"));
    let logits = part.path().join(logits.unwrap());
    let mut bytes = std::fs::read(&logits).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&logits, bytes).unwrap();
    merge(&sandbox, &[&folders[..], &["--fail-on", "l2>1e9"]].concat(), 3);
    let merged = newest(&sandbox, "merged");
    let failed: Vec<_> =
        merged.cells().into_iter().filter(|cell| word(&cell.outcome) != "completed").collect();
    assert_eq!(failed.len(), 1);
    assert!(failed[0].outcome.reason().contains("does not have the content that the worker wrote"));
}

#[test]
fn parts_of_other_plans_and_unequal_duplicates_are_refused() {
    let sandbox = Sandbox::new();
    config(&sandbox, "differs_by_process", UNTIMED);
    run_shards(&sandbox, 2);
    // The same shard again, whose numbers differ from process to process.
    run(&sandbox, "again", &["--shard", "1/2"]);
    let output = merge(&sandbox, &["shard_1", "shard_2", "again"], 2);
    let text = stderr(&output).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("two_eager differs between") && text.contains("in its logits"), "{text}");
    config(&sandbox, "differs_by_process", "rounds = 0\ntrace = false\nnoise = false\nseed = 7");
    run(&sandbox, "other", &["--shard", "1/2"]);
    let output = merge(&sandbox, &["shard_1", "shard_2", "other"], 2);
    let text = stderr(&output).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("is a part of another plan, which differs in"), "{text}");
    let output = merge(&sandbox, &["nowhere"], 2);
    assert!(stderr(&output).contains("cannot read nowhere"), "{}", stderr(&output));
}

#[test]
fn an_interrupted_shard_is_resumed_as_the_same_shard() {
    let sandbox = Sandbox::new();
    config(&sandbox, "good", UNTIMED);
    run_shards(&sandbox, 2);
    let part = newest(&sandbox, "shard_1");
    let cell = part.cells().remove(0);
    let case = &part.manifest.cases[0].name;
    std::fs::remove_file(part.folder.record_path(&part.manifest, case, &cell.variant)).unwrap();
    merge(&sandbox, &["shard_1", "shard_2", "--fail-on", "l2>1e9"], 3);
    let output = sandbox.tfcheck(&["run", "--resume", part.path().to_str().unwrap()]);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", stderr(&output));
    assert_eq!(Run::open(part.path()).manifest.share, part.manifest.share);
    merge(&sandbox, &["shard_1", "shard_2", "--fail-on", "l2>1e9"], 0);
}

#[test]
fn shards_of_different_machines_are_named_and_leave_no_times_in_the_history() {
    let sandbox = Sandbox::new();
    config(&sandbox, "good", UNTIMED);
    run_shards(&sandbox, 2);
    let record = newest(&sandbox, "shard_2").path().join("environment.json");
    let text = std::fs::read_to_string(&record).unwrap();
    let mut value: Value = serde_json::from_str(&text).unwrap();
    value["fingerprint"] = "0123456789abcdef".into();
    value["machine"]["cpu"] = "Another CPU".into();
    std::fs::write(&record, value.to_string()).unwrap();
    merge(&sandbox, &["shard_1", "shard_2", "--fail-on", "l2>1e9"], 0);
    let merged = newest(&sandbox, "merged");
    let note = merged.json("summary.json")["notes"][0].as_str().unwrap().to_owned();
    assert!(note.contains("different machines") && note.contains("shard 2/2 on Another CPU"), "{note}");
    let fingerprint = merged.json("environment.json")["fingerprint"].clone();
    assert_eq!(fingerprint.as_str().unwrap().len(), 16);
    assert!(fingerprint != value["fingerprint"]);
    assert!(!sandbox.path().join("merged/history.sqlite").exists());
    let origin = merged.json("merged.json");
    assert_eq!(origin["parts"].as_array().unwrap().len(), 2, "{origin}");
    assert_eq!(origin["missing"], serde_json::json!({}));
}

#[test]
fn a_folder_that_cannot_be_read_is_refused_with_the_remedy() {
    let sandbox = Sandbox::new();
    sandbox.write("file", "");
    for folder in ["nowhere", "file", "/dev/zero"] {
        let shown = stderr(&merge(&sandbox, &[folder], 2));
        assert!(shown.contains(&format!("cannot read {folder}")) && shown.contains("--shard 1/4"), "{shown}");
    }
}

#[test]
fn a_shard_without_units_ends_without_a_run() {
    let sandbox = Sandbox::new();
    let config = sandbox.workers(&[("one", "good")], UNTIMED);
    let output = run(&sandbox, "empty", &[config.to_str().unwrap(), "--shard", "2/2"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("shard 2/2 has nothing to compute"), "{}", stderr(&output));
    assert!(!sandbox.path().join("empty").exists());
}
