//! Workers that are forked from a process with the libraries imported.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use reference::protocol::{Attention, Forward, Mode};
use reference::{Environment, Launch, Template, Worker, WorkerEnd};
use rustix::process::{Pid, Signal, kill_process};

use super::tiny::{self, LIMIT};
use super::{case, newest};

fn launch(log: PathBuf) -> Launch {
    Launch::transformers(newest(), &tiny::cache(), log, 1).unwrap()
}

/// The fields of `/proc/<id>/stat` after the name: state, parent, group, …
fn stat(id: u32) -> Vec<String> {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    text.rsplit_once(") ").unwrap().1.split(' ').map(ToOwned::to_owned).collect()
}

#[test]
fn a_forked_worker_computes_and_ends_as_one_that_was_started() {
    let case = case(|_| ());
    let _turn = tiny::turn();
    let folder = case.folder.path();
    let stop = AtomicBool::new(false);
    // Workers are forked on Linux without a GPU.
    let Some(template) = Template::of(newest(), &tiny::cache(), 1).unwrap() else { return };
    let load = case.cell(newest(), Mode::Eager, Attention::Sdpa).load();
    let logits = |worker: &mut Worker, name: &str| {
        let path = folder.join(name);
        worker.load(load.clone(), LIMIT, &stop).unwrap();
        worker.forward(Forward::new(path.clone()), LIMIT, &stop).unwrap();
        std::fs::read(path).unwrap()
    };
    let mut started = Worker::start(&launch(folder.join("started.log"))).unwrap();
    let expected = logits(&mut started, "started");
    let fork = |name: &str| {
        let mut launch = launch(folder.join(name));
        launch.variables.push(("TORCH_OF_THE_TEST".into(), name.into()));
        Worker::fork(&template, &launch, &stop).unwrap()
    };
    let [mut one, mut two] = ["one.log", "two.log"].map(fork);
    assert!(logits(&mut one, "one") == expected && logits(&mut two, "two") == expected);

    for (worker, name) in [(&one, "one.log"), (&two, "two.log")] {
        let stat = stat(worker.id());
        assert_eq!(stat[1], std::process::id().to_string(), "this process is its parent");
        assert_eq!(stat[2], worker.id().to_string(), "it leads a group of its own");
        let log = std::fs::read_link(format!("/proc/{}/fd/1", worker.id())).unwrap();
        assert_eq!(log, folder.join(name));
    }
    let id = one.id();
    kill_process(Pid::from_raw(id as i32).unwrap(), Signal::KILL).unwrap();
    let ended = one.load(load.clone(), LIMIT, &stop).unwrap_err();
    assert!(matches!(ended, WorkerEnd::Signalled { signal: 9, .. }), "{ended}");
    assert!(!PathBuf::from(format!("/proc/{id}")).exists(), "it was reaped");
    // Neither the other worker nor the template's process depends on it.
    assert!(logits(&mut two, "again") == expected);
    let mut three = fork("three.log");
    drop(template);
    assert!(logits(&mut three, "three") == expected);
    for worker in [two, three, started] {
        let id = worker.id();
        worker.exit(Duration::from_secs(10));
        assert!(!PathBuf::from(format!("/proc/{id}")).exists());
    }
}

#[test]
fn where_the_libraries_cannot_be_imported_the_worker_says_why() {
    let case = case(|_| ());
    let _turn = tiny::turn();
    let stop = AtomicBool::new(false);
    // This Python has no packages.
    let bare = Environment { python: "/usr/bin/python3".into(), ..newest().clone() };
    let Some(template) = Template::of(&bare, &tiny::cache(), 1).unwrap() else { return };
    let launch =
        Launch::transformers(&bare, &tiny::cache(), case.folder.path().join("worker.log"), 1).unwrap();
    let mut worker = Worker::fork(&template, &launch, &stop).unwrap();
    let load = case.cell(newest(), Mode::Eager, Attention::Sdpa).load();
    let ended = worker.load(load, LIMIT, &stop).unwrap_err();
    assert!(ended.to_string().contains("No module named 'torch'"), "{ended}");
}

#[test]
fn a_request_to_stop_does_not_wait_for_imports() {
    let folder = tempfile::tempdir().unwrap();
    let Some(template) = Template::of(newest(), &tiny::cache(), 1).unwrap() else { return };
    let stop = AtomicBool::new(true);
    let error = Worker::fork(&template, &launch(folder.path().join("worker.log")), &stop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
}
