//! A run folder and a baseline that others wrote: nothing outside is written or removed, and damaged results are no results.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{told, unwrapped};
use crate::support::{Run, Sandbox, stderr, stdout, word};

/// A sandbox with one finished run of two equal workers.
pub(super) fn finished() -> (Sandbox, Run) {
    let sandbox = Sandbox::new();
    let config =
        sandbox.workers(&[("one", "good"), ("two", "good")], "iterations = 1\nrounds = 0\nnoise = false");
    let output = sandbox.run(&config, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let run = sandbox.only_run();
    (sandbox, run)
}

pub(super) fn path(run: &Run) -> &str {
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
fn no_link_in_a_run_or_to_the_baselines_is_followed() {
    let (sandbox, run) = finished();
    let outside = sandbox.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    symlink(&outside, sandbox.results().join("baselines")).unwrap();
    let (code, shown) = told(&sandbox, &["baseline", "save", "b"]);
    assert_eq!(code, Some(2), "{shown}");
    assert!(shown.contains("is a symbolic link"), "{shown}");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    std::fs::remove_file(sandbox.results().join("baselines")).unwrap();
    // The folder of a version leads elsewhere, and the commands only read.
    std::fs::rename(run.path().join("one"), outside.join("one")).unwrap();
    symlink(outside.join("one"), run.path().join("one")).unwrap();
    for arguments in [
        &["explain", path(&run), "one_eager..two_eager"][..],
        &["compare", path(&run), path(&run)],
        &["baseline", "save", "b"],
        &["bisect", "--run", path(&run), "--good", "4.54.0", "--bad", "5.23.0"],
    ] {
        let (code, shown) = told(&sandbox, arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {shown}");
        assert!(shown.contains("is a symbolic link"), "{arguments:?}: {shown}");
    }
}

#[test]
fn sizes_of_a_saved_run_are_checked_before_it_is_read_or_resumed() {
    let check = |change: &dyn Fn(&mut serde_json::Value), commands: &[&str], expected: &str| {
        let (sandbox, run) = finished();
        let file = run.path().join("run.json");
        let mut manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        change(&mut manifest);
        std::fs::write(&file, manifest.to_string()).unwrap();
        for command in commands {
            let all = match *command {
                "resume" => vec!["run", "--resume", path(&run)],
                "localize" => vec!["localize", "one_eager", "two_eager", "--run", path(&run)],
                _ => vec!["compare", path(&run)],
            };
            let (code, shown) = told(&sandbox, &all);
            assert_eq!(code, Some(2), "{all:?}: {shown}");
            assert!(shown.contains(expected) && shown.contains("start a new run"), "{shown}");
        }
    };
    let of_the_plan = ["resume", "localize"];
    let everywhere = ["compare", "resume", "localize"];
    let inputs = |key: &'static str, value: u64| {
        move |run: &mut serde_json::Value| run["plan"]["cases"][0]["inputs"][key] = value.into()
    };
    check(&inputs("length", 1 << 50), &of_the_plan, "tokens of a sequence");
    check(&inputs("batch", 1_000_000_000), &of_the_plan, "sequences of a batch");
    check(&inputs("prefill", 1 << 40), &of_the_plan, "no tokens to compute");
    let setting = |key: &'static str, value: u64| {
        move |run: &mut serde_json::Value| run["config"]["run"][key] = value.into()
    };
    check(&setting("threads", 1 << 62), &everywhere, "`run.threads`");
    check(&setting("timeout_s", u64::MAX), &everywhere, "`run.timeout_s`");
    check(&setting("diagnose_s", u64::MAX), &everywhere, "`run.diagnose_s`");
    check(
        &|run| run["config"]["tolerances"]["local_factor"] = (-1.0).into(),
        &everywhere,
        "`tolerances.local_factor`",
    );
}

#[test]
fn texts_of_a_record_are_fit_for_every_report() {
    let (sandbox, run) = finished();
    let record = std::fs::read_dir(run.path().join("one")).unwrap().map(|entry| entry.unwrap().path());
    let is_record = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("timing_");
    let record = record.into_iter().find(is_record).unwrap();
    let mut cell: serde_json::Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    let text = "\u{1b}[2J \u{ffff} \u{fffe} <script>alert(1)</script>";
    cell["outcome"] = serde_json::json!({
        "outcome": "failed", "kind": "exception", "reason": text, "detail": text, "log_tail": text,
    });
    std::fs::write(&record, cell.to_string()).unwrap();
    let (code, shown) = told(&sandbox, &["compare", path(&run)]);
    assert_eq!(code, Some(3), "{shown}");
    for name in ["report.html", "summary.md", "junit.xml", "matrix.csv"] {
        let report = run.text(name);
        assert!(!report.contains(['\u{1b}', '\u{ffff}', '\u{fffe}']), "{name}");
        // A fence of Markdown is no tag, and a table of values has none.
        if name == "matrix.csv" {
            continue;
        }
        let text = report.split("`````").step_by(2).collect::<String>();
        assert!(!text.contains("<script>alert"), "{name}: {text}");
    }
}

#[test]
fn a_folder_of_jobs_writes_nothing_outside() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("one", "good")], "rounds = 0");
    let output = sandbox.tfcheck(&["run", "--engine", "slurm", "--dry-run"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let jobs = std::fs::read_dir(sandbox.results()).unwrap().map(|entry| entry.unwrap().path());
    let jobs = jobs.into_iter().find(|path| path.join("plan.json").is_file()).unwrap();
    let resume = ["run", "--engine", "slurm", "--resume", jobs.to_str().unwrap()];
    let outside = sandbox.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    for name in ["logs", "units"] {
        std::fs::remove_dir(jobs.join(name)).unwrap();
        symlink(&outside, jobs.join(name)).unwrap();
        let (code, shown) = told(&sandbox, &resume);
        assert_eq!(code, Some(2), "{name}: {shown}");
        assert!(shown.contains("is a symbolic link"), "{shown}");
        std::fs::remove_file(jobs.join(name)).unwrap();
        std::fs::create_dir(jobs.join(name)).unwrap();
    }
    // The device of a unit becomes a part of a file's name.
    let plan = jobs.join("plan.json");
    let mut changed: serde_json::Value = serde_json::from_slice(&std::fs::read(&plan).unwrap()).unwrap();
    changed["units"][0]["device"] = "../../outside/x".into();
    std::fs::write(&plan, changed.to_string()).unwrap();
    let (code, shown) = told(&sandbox, &resume);
    assert_eq!(code, Some(2), "{shown}");
    assert!(shown.contains("which is not a file name"), "{shown}");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn a_changed_log_of_a_bisection_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("port", "good")], "rounds = 0\nnoise = false");
    let repository = sandbox.path().join("port");
    std::fs::create_dir(&repository).unwrap();
    let git = |arguments: &[&str]| {
        let identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"];
        let mut git = std::process::Command::new("git");
        let output = git.args(identity).args(arguments).current_dir(&repository).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        stdout(&output).trim().to_owned()
    };
    git(&["init", "-q"]);
    for subject in ["one", "two \u{1b}[2J", "three"] {
        git(&["commit", "-q", "--allow-empty", "-m", subject]);
    }
    let (good, bad) = (git(&["rev-parse", "HEAD~2"]), git(&["rev-parse", "HEAD"]));
    let port = repository.to_str().unwrap();
    let arguments =
        ["bisect", "--command-repository", port, "--good", &good, "--bad", &bad, "--test", "loads"];
    // Every commit loads, so the search ends with its first step; what it wrote is the log.
    let (_, shown) = told(&sandbox, &arguments);
    let folder = std::fs::read_dir(sandbox.results()).unwrap().map(|entry| entry.unwrap().path());
    let folder = folder.into_iter().find(|path| path.join("bisect.json").is_file()).expect(&shown);
    let file = folder.join("bisect.json");
    let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let step = serde_json::json!({
        "revision": 1, "answer": "bad", "departs": true, "reason": "", "pairs": [], "run": "run_1", "elapsed_ns": 1,
    });
    let check = |change: &dyn Fn(&mut serde_json::Value), expected: &str| {
        let mut log = kept.clone();
        change(&mut log);
        std::fs::write(&file, log.to_string()).unwrap();
        let (code, shown) = told(&sandbox, &["bisect", "--resume", folder.to_str().unwrap()]);
        assert_eq!(code, Some(2), "{shown}");
        assert!(shown.contains(expected), "{shown}");
    };
    let victim = repository.join("victim").display().to_string();
    check(
        &|log| log["phases"][0]["revisions"][0]["id"] = format!("--output={victim}").into(),
        "names a revision",
    );
    check(&|log| log["phases"][0]["revisions"][0]["name"] = "../../x".into(), "names a revision");
    check(&|log| log["phases"][0]["revisions"] = serde_json::json!([]), "a search has two ends");
    check(&|log| log["phases"] = serde_json::json!([]), "lists no search");
    check(&|log| log["stamp"] = "../x".into(), "not a file name");
    check(&|log| log["question"]["config"]["run"]["threads"] = (1_u64 << 62).into(), "`run.threads`");
    let with = |key: &'static str, value: serde_json::Value| {
        let mut step = step.clone();
        step[key] = value;
        move |log: &mut serde_json::Value| log["phases"][0]["steps"] = serde_json::json!([step])
    };
    check(&with("revision", u64::MAX.into()), "not one of its 3 revisions");
    check(&with("revision", 0.into()), "not one of its 3 revisions");
    check(&with("run", "../../x".into()), "not a file name");
    assert!(!std::path::Path::new(&victim).exists());
}

#[test]
fn logits_that_take_long_to_compare_are_left_within_ten_seconds_of_a_request_to_stop() {
    let (sandbox, run) = finished();
    for version in ["one", "two"] {
        let folder = run.path().join(version);
        let entries = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let is_record = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("timing_");
        let file = entries.into_iter().find(is_record).unwrap();
        let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let outcome = &mut record["outcome"];
        // 64 GiB that take no space on the disk.
        let values: u64 = 16 << 30;
        let positions = outcome["shape"][1].as_u64().unwrap();
        let shape = serde_json::json!([1, positions, values / positions]);
        let bytes = values / positions * positions * 4;
        let header = serde_json::json!({
            "logits": {"dtype": "F32", "shape": shape, "data_offsets": [0, bytes]}
        })
        .to_string();
        let logits = run.path().join(outcome["logits"].as_str().unwrap());
        outcome["shape"] = shape;
        outcome["written"] = serde_json::Value::Null;
        std::fs::write(&file, record.to_string()).unwrap();
        let start = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
        std::fs::write(&logits, &start).unwrap();
        let sparse = std::fs::OpenOptions::new().write(true).open(&logits).unwrap();
        sparse.set_len(start.len() as u64 + bytes).unwrap();
    }
    let child = sandbox.command(&["run", "--resume", path(&run)]).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(2));
    let begun = std::time::Instant::now();
    let pid = rustix::process::Pid::from_raw(child.id().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let shown = unwrapped(&stderr(&output));
    assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{:?}: {shown}", begun.elapsed());
    assert_eq!(output.status.code(), Some(130), "{shown}");
    assert!(shown.contains("interrupted while results were compared"), "{shown}");
}
