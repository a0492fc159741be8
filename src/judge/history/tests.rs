//! The history's records, concurrent writers, and refused files.

use super::*;
use crate::execute::cell::{Completed, Failure, FailureKind};
use crate::spec::variant::{Runner, Variant};
use reference::protocol::{Dtype, Mode};

fn baseline(name: &str) -> Known {
    Known {
        name: name.into(),
        run: "run_20260801_150000".into(),
        folder: format!("baselines/{name}"),
        saved: "2026-08-01T15:00:00Z".into(),
        fingerprint: "f".into(),
        bytes: 7,
        files: "{}".into(),
    }
}

fn case() -> Case {
    Case {
        name: "llama-12".into(),
        checkpoint: "synthetic:llama".into(),
        checkpoint_digest: "c".into(),
        inputs: "batch 1, 12 tokens".into(),
        inputs_digest: "i".into(),
        choices: vec![],
        pooling: None,
        questions: None,
        axes: None,
        tolerances: None,
        variants: vec![],
        notes: vec![],
    }
}

fn cell(p50_ms: Option<u64>) -> Cell {
    let variant = Variant {
        runner: Runner::Command,
        version: "one".into(),
        mode: Mode::Eager,
        attention: None,
        dtype: Dtype::F32,
        device: "cpu".into(),
        auto_dtype: false,
        qualified: false,
    };
    let outcome = match p50_ms {
        Some(ms) => Outcome::Completed(Completed {
            logits: "l".into(),
            shape: vec![1, 1, 1],
            libraries: [].into(),
            notes: vec![],
            load_ns: 0,
            first_call_ns: 0,
            rounds_ns: vec![vec![ms * 1_000_000; 3]],
            decode_rounds_ns: vec![],
            round_numbers: vec![0],
            peak_bytes: Some(1),
            ..Completed::default()
        }),
        None => Outcome::Failed(Failure {
            kind: FailureKind::Crashed,
            reason: "signal 11".into(),
            detail: String::new(),
            log_tail: String::new(),
        }),
    };
    Cell::new(&variant, "key", outcome)
}

#[test]
fn the_last_medians_of_one_variant_on_one_machine_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let mut history = History::open(folder.path()).unwrap();
    for (run, machine, p50) in [
        ("run_1", "here", Some(10)),
        ("run_2", "there", Some(99)),
        ("run_3", "here", None),
        ("run_4", "here", Some(12)),
    ] {
        history.record(run, &run[4..], (machine, 2), &[(&case(), &[cell(p50)])]).unwrap();
    }
    // A resumed run replaces its earlier record.
    history.record("run_4", "4", ("here", 2), &[(&case(), &[cell(Some(13))])]).unwrap();
    let found = |threads, run: &str, most| {
        history.p50s("here", threads, &case(), &cell(None), Path::new(run), most).unwrap()
    };
    assert_eq!(found(2, "results/run_5", 9), [13.0, 10.0]);
    assert_eq!(found(2, "results/run_4", 9), [10.0], "a run is not its own history");
    assert_eq!(found(2, "results/run_5", 1), [13.0]);
    assert_eq!(found(4, "results/run_5", 9), [0.0; 0]);
}

#[test]
fn a_baseline_replaces_and_returns_one_of_the_same_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut history = History::open(folder.path()).unwrap();
    assert_eq!(history.put_baseline(&baseline("main")).unwrap(), None);
    let newer = Known { run: "run_2".into(), ..baseline("main") };
    assert_eq!(history.put_baseline(&newer).unwrap(), Some(baseline("main")));
    history.put_baseline(&baseline("before")).unwrap();
    // Another process reads the written rows.
    let mut other = History::open(folder.path()).unwrap();
    assert_eq!(other.baselines().unwrap(), [baseline("before"), newer.clone()]);
    assert_eq!(other.take_baseline("main").unwrap(), Some(newer));
    assert_eq!((other.take_baseline("main").unwrap(), history.baseline("main").unwrap()), (None, None));
}

#[test]
fn the_best_calibration_time_is_of_the_last_runs_on_one_machine() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::open(folder.path()).unwrap();
    // The state that a tfcheck without the `yardstick` table leaves.
    history.connection.execute_batch("DROP TABLE yardstick").unwrap();
    drop(history);
    let mut history = History::open(folder.path()).unwrap();
    assert_eq!(history.yardstick_ns("m", 1).unwrap(), None);
    let mut record = |number: usize, best: u64, machine: &str| {
        let mut cell = cell(Some(1));
        if let Outcome::Completed(completed) = &mut cell.outcome {
            completed.yardstick_ns = vec![best + 5, best];
        }
        let stamp = format!("{number:03}");
        history.record(&format!("run_{stamp}"), &stamp, (machine, 1), &[(&case(), &[cell])]).unwrap();
    };
    record(0, 100, "m");
    record(1, 90, "other");
    for number in 2..=20 {
        record(number, 120, "m");
    }
    assert_eq!(history.yardstick_ns("m", 1).unwrap(), Some(100));
    assert_eq!(history.yardstick_ns("m", 2).unwrap(), None);
    let cells = [cell(Some(1))];
    history.record("run_021", "021", ("m", 1), &[(&case(), &cells)]).unwrap();
    assert_eq!(history.yardstick_ns("m", 1).unwrap(), Some(100), "a run without readings says nothing");
    let mut slower = cell(Some(1));
    if let Outcome::Completed(completed) = &mut slower.outcome {
        completed.yardstick_ns = vec![120];
    }
    history.record("run_022", "022", ("m", 1), &[(&case(), &[slower])]).unwrap();
    assert_eq!(history.yardstick_ns("m", 1).unwrap(), Some(120), "the machine has become slower");
}

#[test]
fn concurrent_writers_lose_no_row() {
    let folder = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for writer in 0..6 {
            let folder = folder.path();
            scope.spawn(move || {
                for number in 0..5 {
                    let mut history = History::open(folder).unwrap();
                    history.put_baseline(&baseline(&format!("{writer}-{number}"))).unwrap();
                }
            });
        }
    });
    assert_eq!(History::open(folder.path()).unwrap().baselines().unwrap().len(), 30);
}

#[test]
fn a_foreign_file_is_refused_and_left_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    let garbage = b"this is a text, and not a short one: more than the hundred bytes of a header, so that it is read as one".repeat(3);
    std::fs::write(&path, &garbage).unwrap();
    assert!(matches!(History::open(folder.path()), Err(HistoryError::Damaged { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), garbage);

    std::fs::remove_file(&path).unwrap();
    let foreign = Connection::open(&path).unwrap();
    foreign.execute_batch("CREATE TABLE theirs (x)").unwrap();
    drop(foreign);
    let error = History::open(folder.path()).unwrap_err();
    assert!(error.to_string().contains("not a tfcheck history"), "{error}");

    std::fs::remove_file(&path).unwrap();
    drop(History::open(folder.path()).unwrap());
    Connection::open(&path).unwrap().pragma_update(None, "user_version", SCHEMA_VERSION + 1).unwrap();
    assert!(matches!(History::open(folder.path()), Err(HistoryError::Newer { found: 2, .. })));
}

#[test]
fn a_truncated_file_is_reported_as_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let mut history = History::open(folder.path()).unwrap();
    history.put_baseline(&baseline("main")).unwrap();
    drop(history);
    let path = folder.path().join(FILE_NAME);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let read = History::open(folder.path()).and_then(|history| history.baselines());
    assert!(matches!(read, Err(HistoryError::Damaged { .. })), "{read:?}");
}
