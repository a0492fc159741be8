//! Injects faults into a running tfcheck: signals, full disks, broken files.

#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

use std::time::{Duration, Instant};

use crate::support::{Sandbox, is_alive, processes_with, stderr, wait_for, word};
use rustix::process::{Pid, Signal, kill_process};

const SOON: Duration = Duration::from_secs(20);

fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
}

/// Waits for a hanging worker to write its grandchild's process id, and returns it.
fn hanging_grandchild(sandbox: &Sandbox) -> u32 {
    wait_for("the worker's hang", SOON, || {
        let run = sandbox.runs().into_iter().next()?;
        let note = run.join("hang/logits_eager.safetensors.child");
        std::fs::read_to_string(note).ok()?.parse().ok()
    })
}

#[test]
fn a_timeout_ends_the_workers_own_children_too() {
    let sandbox = Sandbox::new();
    let config = sandbox.workers(&[("hang", "hang")], "timeout_s = 1");
    let output = sandbox.run(&config, &[]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let grandchild = hanging_grandchild(&sandbox);
    wait_for("the grandchild's end", Duration::from_secs(2), || (!is_alive(grandchild)).then_some(()));
}

#[test]
fn a_killed_tfcheck_leaves_no_worker_and_a_run_that_can_be_resumed() {
    let sandbox = Sandbox::new();
    let config = with_switchable_worker(&sandbox, "hang", "timeout_s = 60");
    let results = sandbox.results();
    let mut child = sandbox
        .command(&["run", config.to_str().unwrap(), "--results", results.to_str().unwrap()])
        .spawn()
        .unwrap();
    // Both load at the same time.
    wait_for("one worker's hang and the other's logits", SOON, || {
        let run = sandbox.runs().into_iter().next()?;
        let hangs = run.join("switched/logits_eager.safetensors.child").exists();
        (hangs && sandbox.only_run().cells().len() == 1).then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    // The good worker waits on its request pipe and exits at end of file. The hanging one sleeps without reading the pipe,
    // so the test has to end it.
    let workers = || workers_of(&sandbox);
    wait_for("the idle worker's end", SOON, || (workers().len() <= 1).then_some(()));
    for pid in workers() {
        kill(pid, Signal::KILL);
    }
    let run = sandbox.only_run();
    let words: Vec<String> = run.cells().iter().map(|cell| word(&cell.outcome)).collect();
    assert_eq!(words, ["unfinished"], "the good cell's logits had landed");
    sandbox.write("fault", "good");
    let output = sandbox.tfcheck(&["run", "--resume", run.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(run.cells().iter().all(|cell| word(&cell.outcome) == "completed"));
}

/// A config with a good worker and one that reads its fault from the file `fault` at each start.
fn with_switchable_worker(sandbox: &Sandbox, fault: &str, run: &str) -> std::path::PathBuf {
    let worker = std::fs::read_to_string(crate::support::fixture("worker.py")).unwrap();
    let switchable =
        worker.replace("fault = sys.argv[1]", "fault = open('fault').read().strip()\n_ = sys.argv[1]");
    assert_ne!(worker, switchable);
    sandbox.write("switchable_worker.py", &switchable);
    sandbox.write("fault", fault);
    let config = sandbox.workers(&[("good", "good")], run);
    let text = std::fs::read_to_string(&config).unwrap();
    let command =
        "[[commands]]\nname = \"switched\"\nprogram = [\"python3\", \"switchable_worker.py\", \"x\"]\n";
    std::fs::write(&config, text + command).unwrap();
    config
}

/// Process ids of the live workers in this sandbox.
fn workers_of(sandbox: &Sandbox) -> Vec<u32> {
    let marker = sandbox.path().to_str().unwrap().to_owned();
    processes_with("worker.py").into_iter().filter(|pid| cwd_is(*pid, &marker)).collect()
}

fn cwd_is(pid: u32, folder: &str) -> bool {
    std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.to_string_lossy().starts_with(folder))
}

#[test]
fn ctrl_c_ends_everything_within_ten_seconds_and_the_run_resumes_without_redoing_finished_cells() {
    let sandbox = Sandbox::new();
    let config = sandbox.workers(&[("good", "good"), ("hang", "hang")], "timeout_s = 60");
    let results = sandbox.results();
    let child = sandbox
        .command(&["run", config.to_str().unwrap(), "--results", results.to_str().unwrap()])
        .spawn()
        .unwrap();
    let grandchild = hanging_grandchild(&sandbox);
    let start = Instant::now();
    kill(child.id(), Signal::INT);
    let output = child.wait_with_output().unwrap();
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    wait_for("the grandchild's end", Duration::from_secs(2), || (!is_alive(grandchild)).then_some(()));
    let run = sandbox.only_run();
    assert!(run.text("summary.md").contains("good_eager"), "a stopped run is still reported");
    assert!(stderr(&output).contains("--resume"), "the message says how to go on: {}", stderr(&output));
}

#[test]
fn a_resumed_run_redoes_failed_cells_only() {
    let sandbox = Sandbox::new();
    let config = with_switchable_worker(&sandbox, "crash", "iterations = 2\nrounds = 1");
    assert_eq!(sandbox.run(&config, &[]).status.code(), Some(3));
    let run = sandbox.only_run();
    let before = run.cells();
    let good = run.path().join("good/logits_eager.safetensors");
    let written = std::fs::metadata(&good).unwrap().modified().unwrap();
    sandbox.write("fault", "good");
    let output = sandbox.tfcheck(&["run", "--resume", run.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let after = run.cells();
    assert_eq!(word(&after[1].outcome), "completed");
    assert_eq!(before[0], after[0], "the finished cell is as it was");
    assert_eq!(
        written,
        std::fs::metadata(&good).unwrap().modified().unwrap(),
        "its logits were not written again"
    );
}

#[test]
fn a_resumed_run_has_the_cells_of_its_kept_plan_and_an_older_run_those_that_it_lists() {
    let sandbox = Sandbox::new();
    let config = sandbox.workers(&[("one", "good"), ("two", "good")], "iterations = 1\nrounds = 1");
    assert_eq!(sandbox.run(&config, &["--only", "one*"]).status.code(), Some(0));
    let run = sandbox.only_run();
    let path = run.path().join("run.json");
    let manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let plan = &manifest["plan"];
    assert_eq!(plan["cells"].as_array().unwrap().len(), 1);
    assert_eq!(plan["cells"][0]["variant"]["version"], "one");
    assert_eq!(plan["cases"][0]["inputs"]["length"], manifest["cases"][0]["axes"]["length"]);

    let resume = || sandbox.tfcheck(&["run", "--resume", run.path().to_str().unwrap()]);
    assert_eq!(resume().status.code(), Some(0), "the config's other cell is not run");
    assert_eq!(run.cells().len(), 1);
    let mut older = manifest.clone();
    older.as_object_mut().unwrap().remove("plan");
    std::fs::write(&path, older.to_string()).unwrap();
    let output = resume();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(run.cells().len(), 1);
    let now: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(now["plan"], *plan, "the plan is kept from now on");

    let mut damaged = manifest.clone();
    damaged["plan"]["cells"][0]["case"] = 7.into();
    std::fs::write(&path, damaged.to_string()).unwrap();
    let output = resume();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("refers to case 8 of 1"), "{}", stderr(&output));
}

#[test]
fn a_worker_killed_from_outside_is_a_crash_and_not_a_timeout() {
    let sandbox = Sandbox::new();
    let config =
        sandbox.workers(&[("hang", "hang"), ("good", "good")], "timeout_s = 60\nfirst_passes_at_once = 1");
    let results = sandbox.results();
    let child = sandbox
        .command(&["run", config.to_str().unwrap(), "--results", results.to_str().unwrap()])
        .spawn()
        .unwrap();
    hanging_grandchild(&sandbox);
    let worker = workers_of(&sandbox)[0];
    kill(worker, Signal::KILL);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let words: Vec<String> = sandbox.only_run().cells().iter().map(|cell| word(&cell.outcome)).collect();
    assert_eq!(words, ["crashed", "completed"]);
}

#[test]
fn a_full_disk_is_reported_with_a_hint() {
    let sandbox = Sandbox::new();
    let results = sandbox.results();
    std::fs::create_dir(&results).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=48k", "tmpfs", results.to_str().unwrap()])
        .status()
        .is_ok_and(|status| status.success());
    assert!(mounted, "this test mounts a small tmpfs: run the tests as root");
    let config = sandbox.workers(&[("one", "good"), ("two", "good")], "iterations = 1\nrounds = 1");
    let output = sandbox.run(&config, &[]);
    let unmounted = std::process::Command::new("umount").arg(&results).status().unwrap();
    assert!(unmounted.success());
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{message}");
    assert!(message.contains("No space left on device"), "{message}");
    assert!(message.contains("free some space"), "{message}");
}

#[test]
fn two_runs_at_once_get_folders_of_their_own() {
    let sandbox = Sandbox::new();
    let config = sandbox.workers(&[("one", "good")], "iterations = 1\nrounds = 1");
    let results = sandbox.results();
    let arguments = ["run", config.to_str().unwrap(), "--results", results.to_str().unwrap()];
    let children: Vec<_> = (0..3).map(|_| sandbox.command(&arguments).spawn().unwrap()).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    }
    assert_eq!(sandbox.runs().len(), 3);
}

#[test]
fn a_config_with_a_wrong_key_names_the_line_and_the_nearest_key() {
    let sandbox = Sandbox::new();
    let config = sandbox.write("tfcheck.toml", "[run]\nitterations = 3\n");
    let output = sandbox.run(&config, &[]);
    assert_eq!(output.status.code(), Some(2));
    let message = stderr(&output);
    assert!(message.contains("itterations") && message.contains("iterations"), "{message}");
    assert!(!sandbox.results().exists(), "nothing is started on a bad config");
}

/// A checkpoint folder with the given config and dummy weights.
fn checkpoint(sandbox: &Sandbox, config: &str) -> std::path::PathBuf {
    sandbox.write("model/config.json", config);
    let tensors =
        [("w", candle_core::Tensor::zeros(4, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap())];
    candle_core::safetensors::save(&tensors.into(), sandbox.path().join("model/model.safetensors")).unwrap();
    sandbox.path().join("model")
}

fn run_on_checkpoint(sandbox: &Sandbox) -> (Option<i32>, String) {
    let config = sandbox.workers(&[("one", "good")], "iterations = 1\nrounds = 1");
    let text = std::fs::read_to_string(&config).unwrap().replace("synthetic:llama:tiny", "./model");
    std::fs::write(&config, text).unwrap();
    let output = sandbox.run(&config, &[]);
    (output.status.code(), stderr(&output))
}

#[test]
fn a_truncated_safetensors_is_refused_with_both_lengths() {
    let sandbox = Sandbox::new();
    let folder = checkpoint(&sandbox, r#"{"model_type": "llama", "vocab_size": 8}"#);
    let file = folder.join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 5]).unwrap();
    let (code, message) = run_on_checkpoint(&sandbox);
    assert_eq!(code, Some(2), "{message}");
    assert!(message.contains("model.safetensors"), "{message}");
    assert!(message.contains(&bytes.len().to_string()), "{message}");
    assert!(message.contains(&(bytes.len() - 5).to_string()), "{message}");
}

#[test]
fn a_checkpoint_that_brings_code_is_refused() {
    let sandbox = Sandbox::new();
    checkpoint(&sandbox, r#"{"model_type": "llama", "vocab_size": 8, "auto_map": {"AutoModel": "m.M"}}"#);
    let (code, message) = run_on_checkpoint(&sandbox);
    assert_eq!(code, Some(2), "{message}");
    assert!(message.contains("auto_map") && message.contains("allow_remote_code"), "{message}");
}
