//! The scheduler with scripted workers: which requests it sends, in which order, and which records it keeps.

mod fake;

use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor};
use reference::protocol::{Dtype, LOGITS, Mode, Positions};

use super::*;
use fake::{FakeRunner, Journal, Script};

struct Stage {
    results: tempfile::TempDir,
    journal: Journal,
    runners: Vec<FakeRunner>,
    settings: Settings,
    prefill: Option<usize>,
    texts: Option<Texts>,
    stop: AtomicBool,
    quiet_ns: Option<u64>,
    /// The mode of each cell; eager if there is none.
    modes: Vec<Mode>,
    /// Whether the first runner serves every cell.
    one_runner: bool,
    expected_bytes: u64,
}

impl Stage {
    fn new(scripts: Vec<(&str, Script)>) -> Self {
        let journal: Journal = Arc::new(Mutex::new(Vec::new()));
        let runners = scripts
            .into_iter()
            .map(|(name, script)| FakeRunner { name: name.into(), script, journal: journal.clone() })
            .collect();
        Self {
            results: tempfile::tempdir().unwrap(),
            journal,
            runners,
            settings: Settings {
                warm_up: 1,
                iterations: 2,
                decode: 3,
                rounds: 2,
                patience: Duration::ZERO,
                first_passes_at_once: 1,
                trace: true,
                noise: false,
                timeout: Duration::from_secs(1),
                memory_budget: 1 << 30,
            },
            prefill: None,
            texts: None,
            stop: AtomicBool::new(false),
            quiet_ns: None,
            modes: Vec::new(),
            one_runner: false,
            expected_bytes: 0,
        }
    }

    /// Runs every scripted worker as one case; returns the result and the records that were kept.
    fn run(&self) -> (Ran, Vec<Cell>) {
        let mode = |at: usize| self.modes.get(at).copied().unwrap_or(Mode::Eager);
        let variants: Vec<Variant> = (self.runners.iter().enumerate())
            .map(|(at, runner)| Variant { mode: mode(at), ..variant(&runner.name) })
            .collect();
        let kept: Mutex<Vec<Cell>> = Mutex::default();
        let keep = |cell: &Cell| {
            let mut kept = kept.lock().unwrap();
            kept.retain(|known| known.name != cell.name);
            kept.push(cell.clone());
            Ok(())
        };
        let progress = Progress::new(true);
        let schedule = Schedule {
            case: "case",
            folder: self.results.path().to_owned(),
            stamp: "20260801_150000",
            keep: &keep,
            settings: &self.settings,
            progress: &progress,
            stop: &self.stop,
            turn: None,
            quiet_ns: self.quiet_ns,
        };
        let order = variants.clone();
        let jobs = variants
            .into_iter()
            .zip(&self.runners)
            .map(|(variant, runner)| {
                std::fs::create_dir_all(self.results.path().join(&variant.version)).unwrap();
                let runner = if self.one_runner { &self.runners[0] } else { runner };
                Job {
                    load: load(&variant),
                    variant,
                    key: "key".into(),
                    runner: Ok(runner as &dyn Runner),
                    is_timed: true,
                    prefill: self.prefill,
                    texts: self.texts.as_ref(),
                    processed: None,
                    notes: vec![],
                    expected_bytes: self.expected_bytes,
                }
            })
            .collect();
        let ran = schedule.run(jobs, 0);
        let mut cells = kept.into_inner().unwrap();
        cells.sort_by_key(|cell| order.iter().position(|variant| *variant == cell.variant));
        (ran, cells)
    }

    fn journal(&self) -> Vec<String> {
        self.journal.lock().unwrap().clone()
    }
}

fn variant(name: &str) -> Variant {
    Variant {
        runner: crate::spec::variant::Runner::Command,
        version: name.into(),
        mode: Mode::Eager,
        attention: None,
        dtype: Dtype::F32,
        device: "cpu".into(),
        auto_dtype: false,
        qualified: false,
    }
}

fn load(variant: &Variant) -> Load {
    Load {
        mode: variant.mode,
        attention: variant.attention,
        dtype: variant.dtype,
        device: variant.device.clone(),
        ..Load::new("checkpoint".into(), "inputs".into())
    }
}

fn good() -> Script {
    Script { logits: vec![1.0, 2.0], peak_bytes: 1000, ..Script::default() }
}

fn completed(cell: &Cell) -> &Completed {
    match &cell.outcome {
        Outcome::Completed(completed) => completed,
        other => panic!("{} did not complete: {other:?}", cell.name),
    }
}

#[test]
fn rounds_interleave_and_rotate_the_order() {
    let stage = Stage::new(vec![("a", good()), ("b", good())]);
    let (_, cells) = stage.run();
    let timed: Vec<_> = stage.journal().into_iter().filter(|line| line.ends_with("time")).collect();
    assert_eq!(timed, ["a time", "b time", "b time", "a time"]);
    for cell in &cells {
        assert_eq!(completed(cell).round_numbers, [0, 1]);
        assert_eq!(completed(cell).rounds_ns, [[1_000_000, 1_000_000], [1_000_000, 1_000_000]]);
        assert_eq!(completed(cell).decode_rounds_ns, [[100_000; 3], [100_000; 3]]);
        assert!(completed(cell).unfinished.is_none() && completed(cell).trace.is_some());
    }
}

#[test]
fn first_passes_run_in_parallel_on_request() {
    let slow = Script { pause: Duration::from_millis(200), ..good() };
    let boom = NoResult::failed(FailureKind::Crashed, "killed by signal 11");
    let scripts = vec![("a", slow.clone()), ("b", Script { load: Some(boom), ..slow.clone() }), ("c", slow)];
    let mut stage = Stage::new(scripts);
    stage.settings.first_passes_at_once = 3;
    let (_, cells) = stage.run();
    let mut first = stage.journal()[..3].to_vec();
    first.sort_unstable();
    assert_eq!(first, ["a load", "b load", "c load"], "before any of them has made its pass");
    assert!(matches!(cells[1].outcome, Outcome::Failed(_)));
    // The rounds are unchanged: one worker computes at a time.
    let timed: Vec<_> = stage.journal().into_iter().filter(|line| line.ends_with("time")).collect();
    assert_eq!(timed[2..], ["a time", "c time", "c time", "a time"], "after one of each that warmed up");
    assert!([0, 2].iter().all(|&at| completed(&cells[at]).unfinished.is_none()));
}

#[test]
fn one_bad_cell_never_stops_the_others() {
    let boom = NoResult::failed(FailureKind::Crashed, "killed by signal 11");
    let stage = Stage::new(vec![
        ("a", good()),
        ("b", Script { start: Some(boom.clone()), ..good() }),
        ("c", Script { load: Some(NoResult::Unsupported("no such model_type".into())), ..good() }),
        ("d", Script { forward: Some(NoResult::failed(FailureKind::TimedOut, "no answer")), ..good() }),
        ("e", Script { forget_logits: true, ..good() }),
        ("f", good()),
    ]);
    let (ran, cells) = stage.run();
    assert!(!ran.interrupted);
    let words: Vec<_> = cells
        .iter()
        .map(|cell| match &cell.outcome {
            Outcome::Completed(_) => "completed".to_owned(),
            Outcome::Unsupported { .. } => "unsupported".to_owned(),
            Outcome::Failed(failure) => format!("{:?}", failure.kind),
        })
        .collect();
    assert_eq!(words, ["completed", "Crashed", "unsupported", "TimedOut", "MissingResult", "completed"]);
}

#[test]
fn logits_of_a_cell_whose_timing_fails_are_kept_and_the_cell_is_unfinished() {
    let boom = NoResult::failed(FailureKind::Crashed, "killed by signal 11");
    let stage = Stage::new(vec![("a", good()), ("b", Script { time: [None, Some(boom)].into(), ..good() })]);
    let (_, cells) = stage.run();
    let b = completed(&cells[1]);
    assert_eq!(b.rounds_ns.len(), 1);
    assert_eq!(b.unfinished.as_ref().map(|failure| failure.kind), Some(FailureKind::Crashed));
    assert_eq!(completed(&cells[0]).rounds_ns.len(), 2);
}

#[test]
fn a_failed_trace_is_a_note() {
    let boom = NoResult::failed(FailureKind::Exception, "profiler missing");
    let stage = Stage::new(vec![("a", Script { trace: Some(boom), ..good() })]);
    let (_, cells) = stage.run();
    assert_eq!(completed(&cells[0]).notes, ["no trace: profiler missing"]);
    assert!(completed(&cells[0]).unfinished.is_none());
}

#[test]
fn past_the_memory_budget_groups_share_the_first_cell_as_anchor() {
    let mut stage = Stage::new(vec![("a", good()), ("b", good()), ("c", good()), ("d", good())]);
    stage.settings.memory_budget = 2500;
    stage.settings.rounds = 1;
    let (_, cells) = stage.run();
    let numbers: Vec<_> = cells.iter().map(|cell| completed(cell).round_numbers.clone()).collect();
    assert_eq!(numbers, [vec![0, 1, 2], vec![0], vec![1], vec![2]]);
    let journal = stage.journal();
    let at = |line: &str| journal.iter().position(|found| found == line).unwrap();
    assert!(at("b end") < at("c load"), "b makes room before c is loaded: {journal:?}");
    assert!(at("a end") > at("d time"), "the anchor stays: {journal:?}");
}

#[test]
fn workers_load_at_the_same_time_only_where_all_of_them_fit() {
    let slow = Script { pause: Duration::from_millis(50), ..good() };
    let mut stage = Stage::new(["a", "b", "c", "d"].map(|name| (name, slow.clone())).into());
    stage.settings = Settings { memory_budget: 2500, rounds: 1, first_passes_at_once: 4, ..stage.settings };
    stage.expected_bytes = 1000;
    let (_, cells) = stage.run();
    assert!(cells.iter().all(|cell| completed(cell).unfinished.is_none()));
    let (mut live, mut most) = (0, 0);
    for line in stage.journal() {
        live += i32::from(line.ends_with("load")) - i32::from(line.ends_with("end"));
        most = most.max(live);
    }
    assert_eq!(most, 2, "{:?}", stage.journal());
}

#[test]
fn several_variants_are_timed_in_more_rounds_on_a_loaded_machine() {
    let reads = |readings: &[u64]| Script { yardstick_ns: readings.iter().copied().collect(), ..good() };
    let mut stage = Stage::new(vec![("a", reads(&[100, 130])), ("b", reads(&[100, 100, 150]))]);
    let times = |stage: &Stage| stage.journal().iter().filter(|line| line.ends_with("time")).count();
    // Without patience no reading is requested, and two workers are timed in two rounds.
    let (_, cells) = stage.run();
    assert_eq!(times(&stage), 4);
    assert!(completed(&cells[0]).yardstick_ns.is_empty());

    stage.settings.patience = Duration::from_mins(1);
    let (_, cells) = stage.run();
    assert_eq!(times(&stage), 4 + 8, "two more rounds, for one was busy beside a and one beside b");
    for (cell, readings) in cells.iter().zip([[100, 130, 100, 100], [100, 100, 150, 100]]) {
        let completed = completed(cell);
        assert_eq!(completed.yardstick_ns, readings);
        assert_eq!(completed.round_numbers, [0, 1, 2, 3], "it was busy for both: all of them count");
        assert_eq!([completed.rounds_ns.len(), completed.decode_rounds_ns.len()], [4, 4]);
    }

    // No reading is as good as the best of an earlier run, so patience sets the end: the third round uses it up.
    stage.quiet_ns = Some(1);
    stage.settings.patience = Duration::from_nanos(1);
    let (_, cells) = stage.run();
    assert_eq!(completed(&cells[0]).round_numbers, [0, 1, 2]);
}

#[test]
fn a_single_worker_waits_for_a_quiet_machine() {
    // The first round is timed because no reading exists yet, and is later replaced by a quieter one.
    let readings = [130, 100, 130, 140, 100].into_iter().collect();
    let mut stage = Stage::new(vec![("a", Script { yardstick_ns: readings, ..good() })]);
    stage.settings.patience = Duration::from_mins(1);
    let (_, cells) = stage.run();
    let completed = completed(&cells[0]);
    assert_eq!(completed.yardstick_ns, [100, 100]);
    assert_eq!(completed.round_numbers, [1, 2], "what was not timed is no round");
    assert!(completed.rounds_ns.iter().all(|round| round.len() == stage.settings.iterations));
}

#[test]
fn a_stop_keeps_finished_logits_as_an_unfinished_cell() {
    let stage =
        Stage::new(vec![("a", good()), ("b", Script { forward: Some(NoResult::Interrupted), ..good() })]);
    let (ran, cells) = stage.run();
    assert!(ran.interrupted);
    assert_eq!(cells.len(), 1, "the interrupted cell has no record and will be redone");
    assert_eq!(cells[0].name, "a_eager");
}

#[test]
fn truncated_logits_are_a_missing_result() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("logits.safetensors");
    let tensor = Tensor::zeros((1, 2, 3), DType::F32, &Device::Cpu).unwrap();
    candle_core::safetensors::save(&[(LOGITS, tensor)].into(), &path).unwrap();
    assert_eq!(verify_logits(&path, &[1, 2, 3], Positions::All).map(drop), Ok(()));
    assert!(verify_logits(&path, &[1, 2, 4], Positions::All).is_err());
    let bytes = std::fs::read(&path).unwrap();
    for kept in [bytes.len() - 1, 20, 4, 0] {
        std::fs::write(&path, &bytes[..kept]).unwrap();
        let Err(NoResult::Failed(failure)) = verify_logits(&path, &[1, 2, 3], Positions::All) else {
            panic!("{kept} bytes passed")
        };
        assert_eq!(failure.kind, FailureKind::MissingResult);
    }
}

fn noisy(scripts: Vec<(&str, Script)>) -> Stage {
    let mut stage = Stage::new(scripts);
    stage.settings = Settings { noise: true, rounds: 1, trace: false, ..stage.settings };
    stage
}

#[test]
fn a_timed_cell_repeats_its_forward_in_the_same_and_in_a_second_process() {
    let stage = noisy(vec![("a", good())]);
    let (_, cells) = stage.run();
    let expected = ["load", "forward", "time", "forward", "end", "load", "forward", "end"];
    assert_eq!(stage.journal(), expected.map(|what| format!("a {what}")));
    let a = completed(&cells[0]);
    let noise = a.noise.as_ref().unwrap();
    assert_eq!(noise.same_process.map(|repeat| repeat.bitwise), Some(true));
    assert_eq!(noise.second_process.map(|repeat| repeat.bitwise), Some(true));
    assert!(a.notes.is_empty() && noise.elapsed_ns > 0 && noise.l2() == Some(0.0));
    let folder = stage.results.path().join("a");
    let left: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("again")), "{left:?}");
}

#[test]
fn eager_cells_of_one_runner_share_a_second_process_and_a_compiled_one_is_its_last() {
    use Mode::{Compiled, Eager, Frozen};
    let check = |reusable: bool, one_runner: bool, expected: &[usize]| {
        let script = Script { reusable, ..good() };
        let mut stage = noisy(["a", "b", "c", "d"].map(|name| (name, script.clone())).into());
        (stage.modes, stage.one_runner) = (vec![Eager, Compiled, Frozen, Eager], one_runner);
        let (_, cells) = stage.run();
        for cell in &cells {
            let noise = completed(cell).noise.as_ref().unwrap();
            assert!(noise.second_process.is_some_and(|repeat| repeat.bitwise));
            assert!(completed(cell).unfinished.is_none());
        }
        // Loads of each process that is no first process.
        let mut loads = vec![0];
        for line in stage.journal() {
            match line.rsplit(' ').next() {
                Some("load") => *loads.last_mut().unwrap() += 1,
                Some("end") => loads.push(0),
                _ => {}
            }
        }
        assert_eq!(loads[4..loads.len() - 1], *expected, "{:?}", stage.journal());
        assert!(
            stage.journal().iter().filter(|line| line.ends_with("with caches")).count() == 4,
            "both processes of both compiled cells"
        );
    };
    check(true, true, &[3, 1]);
    check(false, true, &[1, 1, 1, 1]);
    check(true, false, &[1, 1, 1, 1]);
}

#[test]
fn a_second_process_that_fails_is_not_asked_again() {
    // The first two loads are those of the first processes.
    let script = Script { reusable: true, lost_at: Some(2), ..good() };
    let mut stage = noisy(vec![("a", script.clone()), ("b", script)]);
    stage.one_runner = true;
    let (_, cells) = stage.run();
    assert_eq!(completed(&cells[0]).notes, ["no pass in a second process: killed by signal 11"]);
    assert!(completed(&cells[0]).noise.as_ref().unwrap().second_process.is_none());
    assert!(
        completed(&cells[1]).noise.as_ref().unwrap().is_bitwise() && completed(&cells[1]).notes.is_empty()
    );
    // A failed worker is dropped and gets no request to end.
    let count = |what: &str| stage.journal().iter().filter(|line| line.ends_with(what)).count();
    assert_eq!((count("load"), count("end")), (4, 3), "{:?}", stage.journal());
}

#[test]
fn a_nondeterministic_worker_is_reported_with_its_difference() {
    let stage = noisy(vec![("a", Script { drift: 0.25, ..good() })]);
    let (_, cells) = stage.run();
    let a = completed(&cells[0]);
    let noise = a.noise.as_ref().unwrap();
    // The first of two logits grows by 0.25 with each forward pass.
    assert_eq!(noise.same_process, Some(compare::repeat::Repeat::new(1, 0.25)));
    assert_eq!(noise.second_process, Some(compare::repeat::Repeat::new(1, 0.5)));
    assert!(
        a.notes[0].starts_with("not deterministic: 1 logit differs in the same process"),
        "{:?}",
        a.notes
    );
    assert!(a.unfinished.is_none());
}

#[test]
fn a_repetition_that_fails_is_a_note_and_the_cell_is_kept() {
    let boom = NoResult::failed(FailureKind::Crashed, "killed by signal 11");
    let stage = noisy(vec![("a", Script { again: Some(boom), ..good() }), ("b", good())]);
    let (ran, cells) = stage.run();
    assert!(!ran.interrupted);
    let a = completed(&cells[0]);
    assert_eq!(
        a.notes,
        [
            "no second pass in the same process: killed by signal 11",
            "no pass in a second process: killed by signal 11"
        ]
    );
    assert!(a.unfinished.is_none() && a.noise.as_ref().unwrap().l2().is_none());
    assert!(completed(&cells[1]).noise.as_ref().unwrap().is_bitwise());
}

#[test]
fn a_stop_during_a_repetition_leaves_the_cell_to_be_redone() {
    let stage = noisy(vec![("a", Script { again: Some(NoResult::Interrupted), ..good() })]);
    let (_, cells) = stage.run();
    let unfinished = completed(&cells[0]).unfinished.as_ref();
    assert_eq!(unfinished.map(|failure| failure.kind), Some(FailureKind::Interrupted));
}

#[test]
fn a_tokenizer_that_differs_is_reported_with_position_and_token() {
    let texts = Texts {
        texts: vec!["a b c".into()],
        ids: vec![vec![5, 6, 7]],
        tokens: vec![vec!["a".into(), " b".into(), " c".into()]],
        add_special_tokens: false,
    };
    let check = |ids: Option<Vec<i64>>, expected: &[&str]| {
        let script = Script { ids: ids.map(|ids| vec![ids]), ..good() };
        let mut stage = Stage::new(vec![("a", script)]);
        stage.settings.trace = false;
        stage.texts = Some(texts.clone());
        let (_, cells) = stage.run();
        assert_eq!(completed(&cells[0]).notes, expected);
    };
    check(Some(vec![5, 6, 7]), &[]);
    let parts = "FakeTokenizer gives other token ids than the run's inputs: text 0, position";
    check(Some(vec![5, 9, 7]), &[&format!("{parts} 1: 9 instead of 6 (` b`)")]);
    check(Some(vec![5, 6]), &[&format!("{parts} 2: no token instead of 7 (` c`)")]);
    check(Some(vec![5, 6, 7, 2]), &[&format!("{parts} 3: 2 instead of no token")]);
    check(None, &["its tokenizer was not compared: no tokenizer"]);
}
