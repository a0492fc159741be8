//! Programs that tfcheck waits for and that do not answer: a request to stop ends the wait.

use std::os::unix::fs::PermissionsExt;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::unwrapped;
use crate::support::{Sandbox, stderr, wait_for};

/// A sandbox in which these programs come first on PATH and note their start in `started`.
fn with_programs(programs: &[(&str, &str)]) -> (Sandbox, String) {
    let sandbox = Sandbox::new();
    let folder = sandbox.path().join("bin");
    let started = sandbox.path().join("started");
    for (name, body) in programs {
        let text = format!("#!/bin/sh\necho {name} >>{}\n{body}\n", started.display());
        let path = sandbox.write(&format!("bin/{name}"), &text);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = std::env::var("PATH").unwrap();
    (sandbox, format!("{}:{path}", folder.display()))
}

/// Interrupts tfcheck once `program` has started; it ends within two seconds, with code 130.
fn interrupted(sandbox: &Sandbox, child: Child, program: &str) {
    let started = sandbox.path().join("started");
    let has_started = || std::fs::read_to_string(&started).ok()?.contains(program).then_some(());
    wait_for("the start of the program", Duration::from_secs(20), has_started);
    let begun = Instant::now();
    let pid = Pid::from_raw(child.id().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let shown = unwrapped(&stderr(&output));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}: {shown}", begun.elapsed());
    assert_eq!(output.status.code(), Some(130), "{shown}");
}

#[test]
fn a_program_of_the_gpu_that_hangs_is_left_within_two_seconds_of_a_request_to_stop() {
    let (sandbox, path) = with_programs(&[("nvidia-smi", "exec sleep 600")]);
    sandbox.workers(&[("one", "good")], "rounds = 0");
    let child = sandbox.command(&["run", "tfcheck.toml"]).env("PATH", path).spawn().unwrap();
    interrupted(&sandbox, child, "nvidia-smi");
}

#[test]
fn a_cluster_that_hangs_is_left_within_two_seconds_of_a_request_to_stop() {
    for program in ["sbatch", "squeue"] {
        let answer =
            |name: &str, answer: &'static str| if name == program { "exec sleep 600" } else { answer };
        let (sandbox, path) = with_programs(&[
            ("sbatch", answer("sbatch", "echo 7")),
            ("squeue", answer("squeue", "")),
            ("scancel", ""),
        ]);
        sandbox.workers(&[("one", "good")], "rounds = 0");
        let child = sandbox.command(&["run", "--engine", "slurm"]).env("PATH", path).spawn().unwrap();
        interrupted(&sandbox, child, program);
    }
}

#[test]
fn a_repository_or_a_build_that_hangs_is_left_within_two_seconds_of_a_request_to_stop() {
    let (sandbox, path) = with_programs(&[("git", "exec sleep 600")]);
    sandbox.workers(&[("one", "good")], "rounds = 0");
    let arguments = ["bisect", "--repository", "https://host.invalid/x", "--good", "a", "--bad", "b"];
    let child = sandbox.command(&arguments).env("PATH", path).spawn().unwrap();
    interrupted(&sandbox, child, "git");
}

#[test]
fn a_history_that_another_process_holds_is_left_within_two_seconds_of_a_request_to_stop() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("one", "good")], "rounds = 0\nnoise = false");
    let output = sandbox.tfcheck(&["run", "tfcheck.toml"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let holder = rusqlite::Connection::open(sandbox.results().join("history.sqlite")).unwrap();
    holder.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let child = sandbox.command(&["run", "tfcheck.toml"]).spawn().unwrap();
    // The reports are written before the history.
    let has_ended =
        || (sandbox.runs().len() == 2 && sandbox.runs()[1].join("junit.xml").is_file()).then_some(());
    wait_for("the report", Duration::from_secs(20), has_ended);
    std::thread::sleep(Duration::from_millis(300));
    let begun = Instant::now();
    kill_process(Pid::from_raw(child.id().try_into().unwrap()).unwrap(), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let shown = unwrapped(&stderr(&output));
    assert!(begun.elapsed() < Duration::from_secs(2), "{shown}");
    assert!(shown.contains("database is locked"), "{shown}");
}

#[test]
fn a_package_index_that_hangs_is_left_within_two_seconds_of_a_request_to_stop() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("one", "good")], "rounds = 0");
    let index = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/simple", index.local_addr().unwrap());
    let mut command = sandbox.command(&["bisect", "--good", "4.54.0", "--bad", "5.23.0"]);
    let child = command.env("UV_DEFAULT_INDEX", address).spawn().unwrap();
    let (_connection, _) = index.accept().unwrap();
    sandbox.write("started", "index");
    interrupted(&sandbox, child, "index");
}
