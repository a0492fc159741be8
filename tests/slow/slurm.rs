//! `run --engine slurm` on a real cluster of three nodes on this host (`tests/fixtures/slurm_cluster.sh`): twelve units, of which one
//! loses its node, one runs out of memory and one is requeued. The merged run equals the local one byte for byte, and a scan of
//! releases equals the local scan.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::{Run, Sandbox, fixture, numeric_files, stderr, stdout, wait_for};

/// Nothing in these tests takes longer, a node that is given up included.
const SOON: Duration = Duration::from_mins(3);

/// A cluster, which is stopped when it is dropped.
struct Cluster {
    folder: tempfile::TempDir,
}

impl Cluster {
    /// Starts a cluster; `None` if this host cannot have one, with the reason on standard error.
    fn start() -> Option<Self> {
        let cluster = Self { folder: tempfile::tempdir().unwrap() };
        let output = cluster.script(&["start"]);
        if output.status.code() == Some(77) {
            let reason = stderr(&output);
            let shown = format!("SKIPPED: the tests of Slurm: {}\n", reason.trim());
            // Not by a macro, whose output the test harness keeps to itself.
            let _ = std::io::stderr().write_all(shown.as_bytes());
            // `.ci/run` prints this file after its table.
            if let Some(summary) = std::env::var_os("TFCHECK_SKIPPED") {
                let _ = std::fs::write(summary, &shown);
            }
            return None;
        }
        assert!(output.status.success(), "{}", stderr(&output));
        Some(cluster)
    }

    fn script(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(fixture("slurm_cluster.sh"));
        command.arg(arguments[0]).arg(self.folder.path()).args(&arguments[1..]);
        // The daemons keep the pipes of their parent open.
        let log = self.folder.path().join("script.log");
        let file = std::fs::File::create(&log).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        let status = command.status().unwrap();
        Output { status, stdout: Vec::new(), stderr: std::fs::read(log).unwrap() }
    }

    /// A command of Slurm or tfcheck that uses this cluster.
    fn with<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("SLURM_CONF", self.folder.path().join("slurm.conf"))
    }

    fn slurm(&self, program: &str, arguments: &[&str]) -> String {
        stdout(&self.with(&mut Command::new(program)).args(arguments).output().unwrap())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.script(&["stop"]);
    }
}

/// A config of twelve units, whose worker has a fault where a file of the sandbox asks for it.
fn config(sandbox: &Sandbox) -> PathBuf {
    let worker = std::fs::read_to_string(fixture("worker.py")).unwrap();
    let faults = format!(
        r#"    if do == "forward":
        folder = {:?}
        def asked(name, length):
            return len(rows[0]) == length and os.path.exists(os.path.join(folder, name))
        for planned, length in (("lose_node", 6), ("requeue", 10), ("hang", 4)):
            if asked(planned, length):
                try:
                    os.rename(os.path.join(folder, planned), os.path.join(folder, planned + ".begun"))
                except FileNotFoundError:
                    continue
                # A worker does not inherit what Slurm sets; tfcheck, its parent, does.
                environment = open("/proc/%d/environ" % os.getppid()).read().split("\0")
                known = dict(entry.split("=", 1) for entry in environment if "=" in entry)
                place = known["SLURMD_NODENAME"] + " " + known["SLURM_JOB_ID"]
                with open(os.path.join(folder, planned + ".new"), "w") as file:
                    file.write(place)
                os.rename(os.path.join(folder, planned + ".new"), os.path.join(folder, planned + ".at"))
                time.sleep(600)
        if asked("hungry", 8):
            hog = bytearray(1 << 30)
            time.sleep(600)
"#,
        sandbox.path().to_str().unwrap()
    );
    let changed = worker.replacen("    if do == \"forward\":\n", &faults, 1);
    assert_ne!(worker, changed);
    let worker = sandbox.write("faulty_worker.py", &changed);
    let text = format!(
        "versions = []\n[[checkpoints]]\nsource = \"synthetic:llama:tiny\"\n[[checkpoints]]\nsource = \"synthetic:mistral\"\n\
         [inputs]\nlengths = [4, 6, 8, 10, 12, 14]\n[candle]\nmodes = [\"eager\", \"fused\"]\n\
         [[commands]]\nname = \"one\"\nprogram = [\"python3\", \"{}\", \"good\"]\n\
         [run]\nthreads = 1\nrounds = 0\ntrace = false\nnoise = false\ndiagnose_s = 0\nfail_on = [\"l2>1e9\"]\n\
         [engine]\nmemory_mb = 500\noptions = [\"--comment=a test\"]\nenvironment = {{ TFCHECK_TEST = \"it's set\" }}\n",
        worker.display()
    );
    sandbox.write("tfcheck.toml", &text)
}

fn newest(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    let named = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(prefix);
    entries.map(|entry| entry.unwrap().path()).filter(named).max()
}

/// The node and the job that a fault has reached.
fn reached(sandbox: &Sandbox, child: &mut Child, fault: &str) -> (String, String) {
    let place = sandbox.path().join(format!("{fault}.at"));
    let text = wait_for(fault, SOON, || {
        if let Some(status) = child.try_wait().unwrap() {
            panic!("{fault} was not reached: tfcheck ended with {status}");
        }
        std::fs::read_to_string(&place).ok()
    });
    let (node, job) = text.split_once(' ').unwrap();
    (node.to_owned(), job.to_owned())
}

fn spawn(cluster: &Cluster, sandbox: &Sandbox, arguments: &[&str]) -> Child {
    let mut command = sandbox.command(&[&["run", "--engine", "slurm"], arguments].concat());
    // A signal of the test reaches tfcheck alone.
    cluster.with(&mut command).process_group(0).spawn().unwrap()
}

#[test]
fn twelve_units_survive_a_lost_node_a_full_memory_and_a_requeue() {
    let Some(cluster) = Cluster::start() else { return };
    let sandbox = Sandbox::new();
    config(&sandbox);
    let local = sandbox.tfcheck(&["run", "--results", "local"]);
    let code = local.status.code().unwrap();
    assert!(matches!(code, 0 | 1), "{}", stderr(&local));
    for fault in ["lose_node", "requeue", "hungry"] {
        sandbox.write(fault, "");
    }
    let mut child = spawn(&cluster, &sandbox, &["--results", "results"]);
    let (node, _) = reached(&sandbox, &mut child, "lose_node");
    cluster.script(&["kill_node", &node]);
    let (_, job) = reached(&sandbox, &mut child, "requeue");
    cluster.slurm("scontrol", &["requeue", &job]);
    let output = child.wait_with_output().unwrap();
    let told = format!("{}\n{}", stderr(&output), stdout(&output));
    assert_eq!(output.status.code(), Some(3), "{told}");
    let results = sandbox.path().join("results");
    let partial = Run::open(&newest(&results, "run_").unwrap());
    let lost = partial.cells().iter().filter(|cell| cell.is_not_started()).count();
    let summary = partial.text("summary.md");
    // Both checkpoints have a unit of this length; the worker of each took too much memory.
    assert!((1..=2).contains(&lost), "{lost} of the cells are missing: {told}\n{summary}");
    assert!(summary.contains("out of memory"), "{summary}");
    let log = cluster.slurm("sinfo", &["--noheader", "--format=%n %T"]);
    assert!(log.contains("down"), "{log}");

    std::fs::remove_file(sandbox.path().join("hungry")).unwrap();
    let jobs = newest(&results, "slurm_").unwrap();
    let child = spawn(&cluster, &sandbox, &["--resume", jobs.to_str().unwrap()]);
    let output = child.wait_with_output().unwrap();
    let told = stderr(&output);
    assert!(told.contains(" 2 of 12 units to compute"), "{told}");
    assert_eq!(output.status.code(), Some(code), "{told}");
    let merged = numeric_files(&newest(&results, "run_").unwrap());
    let local = numeric_files(&newest(&sandbox.path().join("local"), "run_").unwrap());
    assert_eq!(local.keys().collect::<Vec<_>>(), merged.keys().collect::<Vec<_>>());
    assert!(local.len() > 48);
    for (path, bytes) in &local {
        assert!(merged[path] == *bytes, "{} differs", path.display());
    }
}

#[test]
fn an_interrupt_cancels_every_job_that_was_submitted() {
    let Some(cluster) = Cluster::start() else { return };
    let sandbox = Sandbox::new();
    config(&sandbox);
    sandbox.write("hang", "");
    let mut child = spawn(&cluster, &sandbox, &["--results", "results"]);
    reached(&sandbox, &mut child, "hang");
    kill_process(Pid::from_raw(child.id().try_into().unwrap()).unwrap(), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(130), "{told}");
    assert!(told.contains("complete them with: tfcheck run --engine slurm --resume"), "{told}");
    wait_for("the end of all jobs", SOON, || {
        let active = cluster.slurm("squeue", &["--noheader", "--array", "--states=PENDING,RUNNING"]);
        active.trim().is_empty().then_some(())
    });
}

/// The rows of a scoreboard without what only a machine that localises knows.
fn rows(run: &Path) -> Value {
    let text = std::fs::read_to_string(run.join("scoreboard.json")).unwrap();
    let mut rows = serde_json::from_str::<Value>(&text).unwrap()["rows"].take();
    let scores = |row: &mut Value| row["scores"].as_array_mut().unwrap().clone();
    for row in rows.as_array_mut().unwrap() {
        let bare = scores(row).into_iter().map(|mut score| {
            for name in ["module", "diagnosis"] {
                score.as_object_mut().map(|score| score.remove(name));
            }
            score
        });
        row["scores"] = bare.collect();
    }
    rows
}

#[test]
fn the_units_of_a_scoreboard_give_the_table_of_one_machine() {
    let Some(cluster) = Cluster::start() else { return };
    let sandbox = Sandbox::new();
    sandbox.write("tfcheck.toml", "[engine]\nmemory_mb = 3000\n[run]\ndiagnose_s = 0\n");
    let arguments = ["scoreboard", "--only", "starcoder2"];
    let local = sandbox.tfcheck(&[&arguments[..], &["--results", "local"]].concat());
    let mut command =
        sandbox.command(&[&arguments[..], &["--engine", "slurm", "--results", "results"]].concat());
    let merged = cluster.with(&mut command).output().unwrap();
    let told = format!("{}\n{}", stderr(&merged), stdout(&merged));
    assert_eq!(merged.status.code(), local.status.code(), "{told}");
    assert!(stdout(&merged).contains("| starcoder2"), "{told}");
    let run = |folder: &str| newest(&sandbox.path().join(folder), "run_").unwrap();
    let expected = rows(&run("local"));
    assert!(expected.as_array().unwrap().len() >= 5);
    assert_eq!(rows(&run("results")), expected);
}

fn json_in(path: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// The steps and changes of a bisection, without times and names of runs.
fn answers(bisection: &Path) -> Value {
    let log = json_in(&bisection.join("bisect.json")).unwrap();
    let phase = &log["phases"][0];
    let of = |value: &Value, keys: &[&str]| keys.iter().map(|key| value[key].clone()).collect::<Value>();
    let step = |step| of(step, &["revision", "answer", "departs", "reason", "pairs"]);
    let change = |change: &Value| {
        let module = &change["localization"]["localized"]["finding"]["path"];
        json!([of(change, &["before", "after", "change", "packages"]), module])
    };
    let steps: Value = phase["steps"].as_array().unwrap().iter().map(step).collect();
    let changes: Value = phase["changes"].as_array().unwrap().iter().map(change).collect();
    json!({ "steps": steps, "changes": changes })
}

/// The files below a folder whose names begin with `prefix`.
fn files(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, prefix));
        } else if path.file_name().unwrap().to_string_lossy().starts_with(prefix) {
            found.push(path);
        }
    }
    found
}

#[test]
fn a_scan_of_releases_equals_the_local_one_once_lost_units_are_submitted_again() {
    let Some(cluster) = Cluster::start() else { return };
    let sandbox = Sandbox::new();
    // One unit at a time, so that the others are pending when they are cancelled.
    sandbox.write(
        "tfcheck.toml",
        "[[checkpoints]]\nsource = \"synthetic:mistral\"\n[inputs]\nlengths = [48]\n\
         [run]\nmodes = [\"eager\"]\nattention = [\"eager\"]\ndiagnose_s = 0\n\
         [engine]\nmemory_mb = 3000\nat_once = 1\n",
    );
    let scan = ["bisect", "--scan", "--good", "4.41.2", "--bad", "4.42.1", "--results"];
    let local = sandbox.tfcheck(&[&scan[..], &["local"]].concat());
    assert_eq!(local.status.code(), Some(1), "{}", stderr(&local));
    let results = sandbox.results();
    let mut command = sandbox.command(&[&scan[..], &["results", "--engine", "slurm"]].concat());
    let child = cluster.with(&mut command).spawn().unwrap();
    let array = wait_for("the submission", SOON, || {
        let jobs = newest(&newest(&results, "bisect_")?.join("cluster"), "slurm_")?;
        let submitted = json_in(&jobs.join("submitted.json"))?;
        submitted["merge"].as_str().and(submitted["arrays"][0].as_str()).map(ToOwned::to_owned)
    });
    cluster.slurm("scancel", &[&format!("{array}_[2-3]")]);
    let output = child.wait_with_output().unwrap();
    let told = stderr(&output);
    // Without a result of the later revisions there is no change to find, and none to localise.
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(told.contains("no result of 2 revisions") && told.contains("tfcheck bisect --resume"), "{told}");
    let bisection = newest(&results, "bisect_").unwrap();
    let log = json_in(&bisection.join("bisect.json")).unwrap();
    let lost = log["phases"][0]["steps"].as_array().unwrap();
    assert!(lost.len() == 2 && lost.iter().all(|step| step["answer"] == "skipped"), "{lost:?}");
    let reason = lost[0]["reason"].as_str().unwrap();
    assert!(reason.contains(&format!("its job {array}_2 ended without a result")), "{reason}");

    let mut command = sandbox.command(&["bisect", "--resume", bisection.to_str().unwrap()]);
    let output = cluster.with(&mut command).output().unwrap();
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains(" 2 of 3 units to compute"), "{told}");
    let expected = answers(&newest(&sandbox.path().join("local"), "bisect_").unwrap());
    assert_eq!(expected["changes"].as_array().unwrap().len(), 1, "{expected}");
    assert_eq!(answers(&bisection), expected);
    // The logits of the steps are the files that the units wrote, and a worker that ran here would have left its log.
    let number = |path: &PathBuf| std::fs::metadata(path).unwrap().ino();
    let of_units: BTreeSet<u64> = files(&bisection.join("cluster"), "logits_").iter().map(number).collect();
    let of_steps: BTreeSet<u64> = files(&bisection.join("steps"), "logits_").iter().map(number).collect();
    assert_eq!((of_units.len(), &of_steps), (3, &of_units));
    assert!(files(&bisection.join("steps"), "worker.log").is_empty());
}
