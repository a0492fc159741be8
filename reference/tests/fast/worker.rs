//! All ways in which a worker can end, tested with a small fake worker.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reference::protocol::{Load, Ready, Request};
use reference::{Launch, Worker, WorkerEnd};

/// Far above the time of a reply on a loaded machine, far below the fake worker's 60 s of sleep.
const AMPLE: Duration = Duration::from_secs(20);
static GO_ON: AtomicBool = AtomicBool::new(false);

struct Fake {
    worker: Worker,
    log: PathBuf,
    _folder: tempfile::TempDir,
}

fn start(behaviour: &[&str]) -> Fake {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("logs/worker.log");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_worker.py");
    let mut command = vec!["python3".into(), script.into()];
    command.extend(behaviour.iter().map(Into::into));
    let worker = Worker::start(&Launch::program(command, log.clone(), 2)).unwrap();
    Fake { worker, log, _folder: folder }
}

fn load() -> Load {
    Load { threads: 2, ..Load::new("checkpoint".into(), "inputs".into()) }
}

impl Fake {
    fn ask(&mut self, timeout: Duration) -> Result<Ready, WorkerEnd> {
        self.worker.load(load(), timeout, &GO_ON)
    }

    /// The `/proc` folder of the grandchild whose process id the log contains.
    fn grandchild(&self) -> PathBuf {
        let log = std::fs::read_to_string(&self.log).unwrap();
        let line = log.lines().find_map(|line| line.strip_prefix("grandchild ")).unwrap();
        Path::new("/proc").join(line)
    }
}

/// Whether the process of a `/proc` folder is gone, or a zombie that init has not reaped, within a second.
fn is_gone(process: &Path) -> bool {
    (0..100).any(|_| {
        let state = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
        let gone = state.is_empty() || state.contains(") Z ");
        if !gone {
            std::thread::sleep(Duration::from_millis(10));
        }
        gone
    })
}

#[test]
fn a_reply_arrives_and_noise_goes_to_the_log() {
    let mut fake = start(&["answer"]);
    let ready = fake.ask(AMPLE).unwrap();
    assert_eq!(ready.libraries["fake"], "1");
    assert!(fake.worker.log_tail(5).contains("asked to load"));
    fake.ask(AMPLE).unwrap();
    fake.worker.exit(AMPLE);
}

#[test]
fn the_environment_of_a_worker_is_scrubbed() {
    let ready = start(&["answer"]).ask(AMPLE).unwrap();
    let variables: std::collections::BTreeMap<String, String> =
        serde_json::from_str(&ready.notes[0]).unwrap();
    for (name, value) in [
        ("HF_HUB_OFFLINE", "1"),
        ("TRANSFORMERS_OFFLINE", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("OMP_NUM_THREADS", "2"),
        ("MKL_NUM_THREADS", "2"),
    ] {
        assert_eq!(variables[name], value);
    }
    // cargo's variables in this test process are examples of variables that must not be inherited.
    assert!(!variables.keys().any(|name| name.starts_with("CARGO")));
    assert!(!variables.contains_key("HF_TOKEN") && !variables.contains_key("PYTHONPATH"));
}

#[test]
fn a_reported_failure_keeps_its_kind_and_traceback() {
    let check = |kind: &str, expect: fn(&WorkerEnd) -> bool| {
        let mut fake = start(&[kind]);
        let ended = fake.ask(AMPLE).unwrap_err();
        assert!(expect(&ended), "{kind}: {ended:?}");
        assert_eq!(ended.traceback(), Some("Traceback: no luck"));
        assert!(ended.to_string().contains("no luck"));
        // The worker still runs and accepts an exit request.
        assert!(fake.ask(AMPLE).is_err_and(|again| expect(&again)));
        fake.worker.exit(AMPLE);
    };
    check("exception", |ended| matches!(ended, WorkerEnd::Exception(_)));
    check("unsupported", |ended| matches!(ended, WorkerEnd::Unsupported(_)));
    check("out_of_memory", |ended| matches!(ended, WorkerEnd::OutOfMemory(_)));
}

#[test]
fn a_crash_reports_its_signal() {
    let check = |signal: &str, words: &[&str]| {
        let ended = start(&["signal", signal]).ask(AMPLE).unwrap_err();
        assert!(matches!(ended, WorkerEnd::Signalled { .. }), "{ended:?}");
        for word in words {
            assert!(ended.to_string().contains(word), "{ended}");
        }
    };
    check("11", &["signal 11", "SIGSEGV"]);
    check("6", &["signal 6", "SIGABRT"]);
    // The out-of-memory counter has not risen, so the message only gives the usual cause.
    check("9", &["signal 9", "SIGKILL", "often the out-of-memory killer"]);
}

#[test]
fn an_exit_reports_its_code() {
    let check = |code: i32| {
        let ended = start(&["exit", &code.to_string()]).ask(AMPLE).unwrap_err();
        assert_eq!(ended, WorkerEnd::Exited { code, written: String::new() });
    };
    check(0);
    check(7);
    let ended = start(&["half a line"]).ask(AMPLE).unwrap_err();
    assert_eq!(ended, WorkerEnd::Exited { code: 3, written: "{\"is\": \"rea".into() });
}

#[test]
fn a_timeout_kills_the_whole_group() {
    let mut fake = start(&["hang"]);
    let begun = Instant::now();
    // The limit covers the start of the fake worker and of its grandchild.
    let limit = Duration::from_secs(3);
    let ended = fake.ask(limit).unwrap_err();
    assert_eq!(ended, WorkerEnd::TimedOut { after: limit });
    assert!(begun.elapsed() >= limit && begun.elapsed() < AMPLE);
    assert!(is_gone(&fake.grandchild()), "the grandchild outlived its group");
}

#[test]
fn a_raised_flag_interrupts_the_wait() {
    let mut fake = start(&["hang"]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| (fake.worker.load(load(), AMPLE, &stop), Instant::now()));
        std::thread::sleep(Duration::from_secs(2));
        let raised = Instant::now();
        stop.store(true, Ordering::Relaxed);
        let (result, ended) = asking.join().unwrap();
        assert_eq!(result.unwrap_err(), WorkerEnd::Interrupted);
        // One interval of 20 ms, the grace of 300 ms, and a margin for a loaded machine.
        assert!(ended - raised < Duration::from_secs(3));
    });
    assert!(is_gone(&fake.grandchild()));
}

#[test]
fn an_invalid_reply_is_quoted() {
    let check = |behaviour: &str, word: &str| {
        let ended = start(&[behaviour]).ask(AMPLE).unwrap_err();
        assert!(matches!(ended, WorkerEnd::NoReply { .. }), "{ended:?}");
        assert!(ended.to_string().contains(word), "{ended}");
    };
    check("garbage", "Loading weights");
    check("unknown fields only", "is this");
    check("another reply", "the reply `traced` does not answer `load`");
    check("close", "closed its pipes");
}

#[test]
fn a_reply_written_before_death_still_counts() {
    let mut fake = start(&["reply and die"]);
    assert!(fake.ask(AMPLE).is_ok());
    let ended = fake.ask(AMPLE).unwrap_err();
    assert!(matches!(ended, WorkerEnd::Signalled { signal: 9, .. }), "{ended:?}");
}

#[test]
fn dropping_and_exiting_kill_the_whole_group() {
    for drop_it in [true, false] {
        let mut fake = start(&["answer and leave a child"]);
        fake.ask(AMPLE).unwrap();
        let grandchild = fake.grandchild();
        assert!(grandchild.exists());
        if drop_it {
            drop(fake.worker);
        } else {
            fake.worker.exit(AMPLE);
        }
        assert!(is_gone(&grandchild), "dropped: {drop_it}");
    }
}

#[test]
fn a_missing_program_is_reported_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let launch = Launch::program(vec!["no-such-program".into()], folder.path().join("log"), 1);
    let error = Worker::start(&launch).unwrap_err();
    assert!(error.to_string().contains("no-such-program"), "{error}");
}

#[test]
fn a_request_to_a_dead_worker_reports_the_same_ending() {
    let mut fake = start(&["exit", "5"]);
    let first = fake.worker.ask(&Request::Load(load()), AMPLE, &GO_ON).unwrap_err();
    let second = fake.worker.ask(&Request::Load(load()), AMPLE, &GO_ON).unwrap_err();
    assert_eq!(first, second);
}
