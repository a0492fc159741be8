//! Bisections over the commits of Python and Rust ports made for the test, and over releases from a package index that the
//! test serves.

#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use crate::support::{Sandbox, fixture, stderr, stdout, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A sandbox with a port's repository, which has a commit per letter of `history` (see `port.py`), and a config with the
/// port.
fn port(history: &str, run: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    let script = fixture("bisect/port.py");
    let repository = sandbox.path().join("repository");
    let status = Command::new("python3").arg(script).args([&repository]).arg(history).status().unwrap();
    assert!(status.success());
    let config = format!(
        "versions = []\n[[checkpoints]]\nsource = \"synthetic:llama:tiny\"\n[inputs]\nlengths = [12]\n\
         [[commands]]\nname = \"port\"\nprogram = [\"python3\", \"built.py\"]\n[run]\n{run}\n"
    );
    sandbox.write("tfcheck.toml", &config);
    sandbox
}

fn bisect(sandbox: &Sandbox, good: &str, bad: &str, more: &[&str]) -> Output {
    bisection(sandbox, "sh build.sh", good, bad, more).output().unwrap()
}

fn bisection(sandbox: &Sandbox, build: &str, good: &str, bad: &str, more: &[&str]) -> Command {
    let fixed = ["bisect", "--command-repository", "repository/port", "--build", build];
    let sides = ["--good", good, "--bad", bad];
    let mut command = sandbox.command(&[&fixed[..], &sides[..], more].concat());
    command.env("TFCHECK_CACHE", sandbox.path().join("cache"));
    command
}

fn resume(sandbox: &Sandbox, folder: &Path) -> Output {
    let mut command = sandbox.command(&["bisect", "--resume", folder.to_str().unwrap()]);
    command.env("TFCHECK_CACHE", sandbox.path().join("cache")).output().unwrap()
}

fn folder(sandbox: &Sandbox) -> PathBuf {
    let found: Vec<_> =
        std::fs::read_dir(sandbox.results()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(found.len(), 1, "one bisection expected: {found:?}");
    found[0].clone()
}

fn log(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("bisect.json")).unwrap()).unwrap()
}

/// `(before, after, change)` of each change of the only phase.
fn changes(log: &Value) -> Vec<(u64, u64, String)> {
    let changes = log["phases"][0]["changes"].as_array().unwrap();
    let number = |change: &Value, key: &str| change[key].as_u64().unwrap();
    let word = |change: &Value| change["change"].as_str().unwrap().to_owned();
    changes.iter().map(|change| (number(change, "before"), number(change, "after"), word(change))).collect()
}

fn runs(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder.join("steps")).unwrap();
    entries.filter(|entry| entry.as_ref().unwrap().path().is_dir()).count()
}

/// 50 commits with the change at 31; the search tests the three that do not build.
fn fifty() -> String {
    let letter = |number| match number {
        31 => 'x',
        25 | 28 | 37 => '!',
        _ => '.',
    };
    (0..50).map(letter).collect()
}

#[test]
fn the_changing_commit_is_found_despite_commits_that_do_not_build() {
    let sandbox = port(&fifty(), "trace = false");
    let output = bisect(&sandbox, "c0", "c49", &[]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let folder = folder(&sandbox);
    let log = log(&folder);
    assert_eq!(changes(&log), [(30, 31, "came".to_owned())], "{}", stderr(&output));
    let steps = log["phases"][0]["steps"].as_array().unwrap();
    let skipped: Vec<u64> = steps
        .iter()
        .filter(|step| step["answer"] == "skipped")
        .map(|step| step["revision"].as_u64().unwrap())
        .collect();
    assert_eq!(skipped, [25, 37, 28], "the search meets all three");
    assert!(steps[1]["reason"].as_str().unwrap().contains("planted"), "{}", steps[1]);
    // At most ceil(log2 50) + 1 = 7 steps besides the commits that do not build, which are not run.
    assert!(steps.len() - skipped.len() <= 7 && runs(&folder) <= 7, "{steps:?}");
    let commit = &log["phases"][0]["changes"][0]["commits"][0];
    assert_eq!(commit["subject"], "change 31");
    assert_eq!(commit["files"], serde_json::json!(["M\tport/number", "M\tport/worker.py"]));
    let text = stdout(&output);
    for part in [
        "the fault came with",
        "change 31",
        "diverged",
        "M port/worker.py",
        "3 revisions could not be tested",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let report = std::fs::read_to_string(folder.join("bisect.md")).unwrap();
    assert!(report.contains("change 31") && report.contains("| skipped |"), "{report}");
    // Both possible next commits are built while a step runs, so more commits are built than tested.
    let builds = std::fs::read_dir(folder.join("builds")).unwrap().count();
    assert!(builds > steps.len() + 1, "{builds} builds of {} steps and the good side", steps.len());
    let place = &log["phases"][0]["changes"][0]["localization"];
    assert_eq!(place["not_localized"], "an external program has no modules to capture");
    // No worktree is left, neither on disk nor in git's list.
    assert!(!sandbox.path().join("cache/worktrees").read_dir().is_ok_and(|mut left| left.next().is_some()));
    let listed = Command::new("git")
        .args(["worktree", "list"])
        .current_dir(sandbox.path().join("repository"))
        .output();
    assert_eq!(stdout(&listed.unwrap()).lines().count(), 1);
}

#[test]
fn a_stopped_bisection_resumes_at_its_next_step() {
    let sandbox = port("......x...", "trace = false");
    let output = bisect(&sandbox, "c0", "c9", &[]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let folder = folder(&sandbox);
    let whole = log(&folder);
    assert_eq!(changes(&whole), [(5, 6, "came".to_owned())]);
    let before = runs(&folder);
    // Restores the log to its state before the last two steps.
    let mut stopped = whole.clone();
    stopped["phases"][0]["changes"] = Value::Null;
    let steps = stopped["phases"][0]["steps"].as_array_mut().unwrap();
    steps.truncate(steps.len() - 2);
    std::fs::write(folder.join("bisect.json"), stopped.to_string()).unwrap();
    // A commit that cannot be checked out was not tried: it is neither good nor bad nor skipped.
    let trees = sandbox.path().join("cache/worktrees");
    drop(std::fs::remove_dir_all(&trees));
    std::fs::write(&trees, "").unwrap();
    let output = resume(&sandbox, &folder);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("was not tried"), "{}", stderr(&output));
    assert_eq!(log(&folder), stopped);
    std::fs::remove_file(&trees).unwrap();
    let output = resume(&sandbox, &folder);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_eq!(runs(&folder), before + 2, "what was done is not done again");
    assert_eq!(changes(&log(&folder)), changes(&whole));
}

#[test]
fn ctrl_c_keeps_finished_steps_and_leaves_no_worktree() {
    let sandbox = port("......x...", "trace = false");
    let results = sandbox.results();
    // The build is slow, so that more than one step remains when the first one is in the log.
    let build = "sleep 0.5; sh build.sh";
    let child = bisection(&sandbox, build, "c0", "c9", &[]).spawn().unwrap();
    let steps = |log: &Value| log["phases"][0]["steps"].as_array().unwrap().clone();
    let read = || {
        let found = std::fs::read_dir(&results).ok()?.next()?.ok()?.path().join("bisect.json");
        let log = serde_json::from_slice::<Value>(&std::fs::read(found).ok()?).ok()?;
        (!steps(&log).is_empty()).then_some(())
    };
    wait_for("the first step", Duration::from_mins(1), read);
    kill_process(Pid::from_raw(child.id().try_into().unwrap()).unwrap(), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    let folder = folder(&sandbox);
    assert!(stderr(&output).contains("tfcheck bisect --resume"), "{}", stderr(&output));
    let stopped = log(&folder);
    assert!(stopped["phases"][0]["changes"].is_null(), "{stopped}");
    let before = steps(&stopped);
    assert!((1..4).contains(&before.len()), "{before:?}");
    let trees = || std::fs::read_dir(sandbox.path().join("cache/worktrees")).into_iter().flatten().count();
    assert_eq!(trees(), 0);
    let output = resume(&sandbox, &folder);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let whole = log(&folder);
    assert_eq!(changes(&whole), [(5, 6, "came".to_owned())], "{whole}");
    assert_eq!(steps(&whole)[..before.len()], before, "what was done is as it was");
    assert_eq!(trees(), 0);
}

#[test]
fn a_scan_reports_a_change_and_its_revert_and_nothing_else() {
    let sandbox = port("...x..!o....", "trace = false");
    let output = bisect(&sandbox, "c0", "c11", &["--scan"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let found = changes(&log(&folder(&sandbox)));
    assert_eq!(found, [(2, 3, "came".to_owned()), (5, 7, "went".to_owned())], "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.contains("the fault came with") && text.contains("the fault went with"), "{text}");
}

#[test]
fn a_scan_distinguishes_a_second_fault_from_the_first() {
    let sandbox = port(".x.y.", "trace = false");
    bisect(&sandbox, "c0", "c4", &["--scan"]);
    let found = changes(&log(&folder(&sandbox)));
    assert_eq!(found, [(0, 1, "came".to_owned()), (2, 3, "another".to_owned())]);
    let quiet = port("......", "trace = false");
    let output = bisect(&quiet, "c0", "c5", &["--scan"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(changes(&log(&folder(&quiet))).is_empty());
}

#[test]
fn a_slow_down_and_a_port_that_stops_loading_are_found() {
    // The port sleeps 10 ms, then 30 ms: a limit of 60 % is between 0 and the planted 200 %.
    let sandbox = port("....s...", "rounds = 4\niterations = 3\nwarm_up = 0");
    let output = bisect(&sandbox, "c0", "c7", &["--test", "p50>60%"]);
    let slow = log(&folder(&sandbox));
    assert_eq!(changes(&slow), [(3, 4, "came".to_owned())], "{}", stderr(&output));
    let time = &slow["phases"][0]["steps"][0]["pairs"][0]["time"];
    assert!(time[1].as_f64().unwrap() > 1.0, "the interval leaves out no change: {time}");

    let sandbox = port("..l...", "trace = false");
    let output = bisect(&sandbox, "c0", "c5", &["--test", "loads"]);
    assert_eq!(changes(&log(&folder(&sandbox))), [(1, 2, "came".to_owned())], "{}", stderr(&output));

    let output = bisect(&port(".x", "trace = false"), "c0", "c1", &["--test", "rel_l2>1e-5"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
}

#[test]
fn a_bisection_without_an_answer_reports_the_reason() {
    let check = |history: &str, good: &str, bad: &str, more: &[&str], expected: &[&str]| {
        let output = bisect(&port(history, "trace = false"), good, bad, more);
        assert_eq!(output.status.code(), Some(2), "{expected:?}: {}", stdout(&output));
        let said =
            stderr(&output).split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ");
        for part in expected {
            assert!(said.contains(part), "{part} is not in {said}");
        }
    };
    check("!.x", "c0", "c2", &[], &["the good side", "cannot be tested", "planted"]);
    check("!.x", "c0", "c2", &["--test", "loads"], &["the good side", "already fails `loads`", "planted"]);
    check("l..", "c0", "c2", &["--test", "loads"], &["already fails `loads`"]);
    check("...", "c0", "c2", &[], &["the bad side", "passes `verdict>=diverged`", "--scan"]);
    check("..!", "c0", "c2", &[], &["the bad side", "cannot be tested", "planted"]);
    check("..x", "c2", "c0", &[], &["the good side c2 is newer than the bad side c0"]);
    check("..x", "c1", "c1", &[], &["the same revision"]);
    check("..x", "c0", "v9.9.9", &[], &["has no commit `v9.9.9`"]);
    check("..x", "c0", "c2", &["--command", "other"], &["no command `other`"]);

    let sandbox = port("..x", "trace = false");
    let arguments = ["bisect", "--command-repository", "repository/port", "--good", "c0", "--bad", "c2"];
    let output = sandbox.command(&arguments).env("PATH", sandbox.path()).output().unwrap();
    assert!(stderr(&output).contains("git cannot be started"), "{}", stderr(&output));
    let arguments = ["bisect", "--command-repository", ".", "--good", "c0", "--bad", "c2"];
    let output = sandbox.tfcheck(&arguments);
    assert!(stderr(&output).contains("not a git repository"), "{}", stderr(&output));
}

#[test]
fn a_cluster_is_refused_where_it_cannot_compute_the_revisions() {
    let check = |sandbox: &Sandbox, more: &[&str], expected: &[&str]| {
        let arguments = ["bisect", "--engine", "slurm", "--good", "4.41.1", "--bad", "4.42.1"];
        let output = sandbox.tfcheck(&[&arguments[..], more].concat());
        assert_eq!(output.status.code(), Some(2), "{expected:?}: {}", stdout(&output));
        let said =
            stderr(&output).split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ");
        for part in expected {
            assert!(said.contains(part), "{part} is not in {said}");
        }
        assert!(!sandbox.results().exists());
    };
    let sandbox = port("..x", "trace = false");
    check(&sandbox, &[], &["--engine without --scan", "each test depends on the last one", "add --scan"]);
    check(
        &sandbox,
        &["--scan", "--test", "p50>5%"],
        &["`--test p50>5%`", "times of different machines do not enter one ratio", "leave --engine out"],
    );
    check(
        &sandbox,
        &["--scan", "--command-repository", "repository/port"],
        &["--command-repository", "the port is built on this host"],
    );
    check(&sandbox, &["--resume", "results"], &["cannot be used with"]);
}

fn git(folder: &Path, arguments: &[&str]) {
    let identity = ["-c", "user.name=Port", "-c", "user.email=port@example.org", "-c", "gc.auto=0"];
    let output = Command::new("git").args(identity).args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn a_rust_port_is_built_by_cargo_at_each_commit() {
    let sandbox = Sandbox::new();
    let repository = sandbox.path().join("port");
    std::fs::create_dir_all(&repository).unwrap();
    git(&repository, &["init", "--quiet", "--initial-branch=main"]);
    let right = std::fs::read_to_string(fixture("bisect/rust_port.rs")).unwrap();
    let wrong = right.replace("SHIFT: f64 = 0.0", "SHIFT: f64 = 1.0");
    assert_ne!(right, wrong);
    let broken = format!("{wrong}\nfn planted() -> usize {{ \"no number\" }}\n");
    // The commit that does not compile is the one that the search tests first.
    let history = [&right, &right, &wrong, &broken, &wrong, &wrong];
    for (number, source) in history.into_iter().enumerate() {
        let version = if number < 2 { "0.1.0" } else { "0.2.0" };
        let package = format!("name = \"port\"\nversion = \"{version}\"\n");
        let manifest = format!("[package]\n{package}edition = \"2024\"\n[workspace]\n");
        sandbox.write("port/Cargo.toml", &manifest);
        sandbox.write("port/Cargo.lock", &format!("version = 4\n\n[[package]]\n{package}"));
        sandbox.write("port/src/main.rs", &format!("{source}\n// Commit {number}.\n"));
        sandbox.write("port/.gitignore", "target\n");
        git(&repository, &["add", "--all"]);
        git(&repository, &["commit", "--quiet", "--message", &format!("change {number}")]);
        git(&repository, &["tag", &format!("c{number}")]);
    }
    let config = "versions = []\n[[checkpoints]]\nsource = \"synthetic:llama:tiny\"\n[inputs]\nlengths = [12]\n\
        [[commands]]\nname = \"port\"\nprogram = [\"target/release/port\"]\n";
    sandbox.write("tfcheck.toml", config);
    let build = "cargo build --release --locked --offline";
    let arguments = ["bisect", "--command", "port", "--command-repository", "port", "--build", build];
    let output = sandbox
        .command(&[&arguments[..], &["--good", "c0", "--bad", "c5"]].concat())
        .env("TFCHECK_CACHE", sandbox.path().join("cache"))
        // A target folder from the user's environment would be shared by all commits.
        .env_remove("CARGO_TARGET_DIR")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let log = log(&folder(&sandbox));
    assert_eq!(changes(&log), [(1, 2, "came".to_owned())], "{}", stderr(&output));
    let steps = log["phases"][0]["steps"].as_array().unwrap();
    let skipped: Vec<&Value> = steps.iter().filter(|step| step["answer"] == "skipped").collect();
    assert!(skipped.len() == 1 && skipped[0]["revision"] == 3, "{steps:?}");
    let reason = skipped[0]["reason"].as_str().unwrap();
    assert!(reason.contains("cargo build") && reason.contains("could not compile"), "{reason}");
    let packages = &log["phases"][0]["changes"][0]["packages"];
    assert_eq!(*packages, serde_json::json!({"port": ["0.1.0", "0.2.0"]}));
}

/// Serves a PEP 691 index of fictitious transformers releases without files, of which 9.41.1 is yanked; returns its address.
/// As the releases do not exist, no environment of them can be cached.
fn index() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/simple", listener.local_addr().unwrap());
    let answer = |mut stream: TcpStream| -> std::io::Result<()> {
        let mut request = [0; 4096];
        let length = stream.read(&mut request)?;
        let asked = String::from_utf8_lossy(&request[..length]).to_lowercase();
        if !asked.starts_with("get /simple/transformers/ ") {
            return write!(
                stream,
                "HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            );
        }
        assert!(asked.contains("application/vnd.pypi.simple.v1+json"), "{asked}");
        let files = ["9.40.0", "9.41.0", "9.41.1", "9.42.0rc1", "9.42.0"].map(|version| {
            let yanked = version == "9.41.1";
            format!("{{\"filename\": \"transformers-{version}.tar.gz\", \"yanked\": {yanked}}}")
        });
        let body = format!("{{\"files\": [{}]}}", files.join(", "));
        let head =
            "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.pypi.simple.v1+json\r\nConnection: close";
        write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    // A client that disconnects is not an error.
    std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| drop(answer(stream))));
    address
}

#[test]
fn pre_releases_and_yanked_releases_are_listed_only_on_request() {
    let address = index();
    let check = |more: &[&str], expected: &[&str]| {
        let sandbox = Sandbox::new();
        let output = sandbox
            .command(&[&["bisect", "--good", "9.40.0", "--bad", "9.42.0"], more].concat())
            .env("UV_DEFAULT_INDEX", &address)
            .output()
            .unwrap();
        // The index has no file to install, so the bisection is saved and reports that the sides cannot be tested.
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        let log = log(&folder(&sandbox));
        let revisions = log["phases"][0]["revisions"].as_array().unwrap();
        let names: Vec<&str> = revisions.iter().map(|revision| revision["name"].as_str().unwrap()).collect();
        assert_eq!(names, expected, "{more:?}");
    };
    check(&[], &["9.40.0", "9.41.0", "9.42.0"]);
    check(&["--pre"], &["9.40.0", "9.41.0", "9.42.0rc1", "9.42.0"]);
    check(&["--yanked"], &["9.40.0", "9.41.0", "9.41.1", "9.42.0"]);
    check(&["--pre", "--yanked"], &["9.40.0", "9.41.0", "9.41.1", "9.42.0rc1", "9.42.0"]);
}

#[test]
fn releases_are_listed_from_the_index_that_uv_uses() {
    let address = index();
    let check = |good: &str, bad: &str, expected: &str| {
        let sandbox = Sandbox::new();
        let output = sandbox
            .command(&["bisect", "--good", good, "--bad", bad])
            .env("UV_DEFAULT_INDEX", &address)
            .output()
            .unwrap();
        let said =
            stderr(&output).split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ");
        assert!(said.contains(expected), "{expected} is not in {said}");
        assert_eq!(output.status.code(), Some(2));
        assert!(!sandbox.results().exists(), "nothing is left of a question that has no answer");
    };
    check("9.40.5", "9.42.0", "the package index has no transformers release 9.40.5; the nearest is 9.41.0");
    check("9.42.0", "9.41.0", "the good side 9.42.0 is newer than the bad side 9.41.0");
    check("9.41.0", "9.41", "the same revision");
    check("main", "9.42.0", "the package index has no transformers release main");
}
