//! Targets that read a run: its records, its inputs and logits, a legacy run's logits, and the history of baselines.
//!
//! The run is `fuzz/run`, which `tfcheck run` wrote: a port that diverges from the native model, in one pass and through a cache.

use std::fs;
use std::path::{Path, PathBuf};

use compare::Positions;
use compare::logits::Logits;
use compare::mask::Mask;
use serde_json::Value;
use tfcheck::judge::details::{self, Details};
use tfcheck::judge::findings::findings;
use tfcheck::judge::history::{History, Known};
use tfcheck::judge::{assess, baseline, changes, gates};
use tfcheck::report::terminal::Terminal;
use tfcheck::report::{self, Report as _, Source};
use tfcheck::results::RunFolder;
use tfcheck::spec::checkpoint;
use tfcheck::spec::inputs::{self, Spec};

use super::{Parse, checkpoints, edits, write};

/// A cell's record and a record of relations, in the run.
pub(super) const CELL: &str = "mistral-12/candle/timing_20261201_041119_candle_eager.json";
pub(super) const RELATIONS: &str = "mistral-12/candle/relations_20261201_041119_candle_eager.json";
/// A case of the run.
const CASE: &str = "mistral-12";

/// A file of the run that is replaced by JSON, or by an edited copy of itself; the run is then judged and reported.
pub(super) fn record(folder: &Path, file: &str) -> Parse {
    let run = copy_of_the_run(folder);
    let path = run.join(file);
    let base = read_json(&path);
    let before = super::folder().join("run");
    Box::new(move |bytes| {
        write(&path, &edits::json(&base, bytes));
        judge(&run, &before);
    })
}

/// All that `tfcheck compare` does to a run, except that nothing is written.
fn judge(run: &Path, before: &Path) {
    let Ok(folder) = RunFolder::open(run) else { return };
    let _ = folder.environment();
    let Ok(manifest) = folder.manifest() else { return };
    if let Some(plan) = manifest.plan.as_ref().filter(|plan| plan.check(&manifest.config).is_ok()) {
        let _ = plan.text(&manifest.config, &vec![None; plan.cells.len()]);
    }
    let Ok(cells) = folder.all_cells(&manifest) else { return };
    let Ok(view) = assess::view(&folder, &manifest, &cells, &manifest.config.tolerances) else { return };
    let (found, judged) = (findings(&view), gates::of_run(&view, &manifest.config.run.fail_on, None));
    let details = details::of_run(&folder, &manifest, &view, &found).unwrap_or_else(|_| Details::default());
    let source = Source { run: &view, found: &found, judged: &judged, details: &details };
    for format in report::all() {
        let _ = format.render(&source);
    }
    let _ = report::overview::render(&source, 100, false);
    let _ = Terminal { width: 100, color: false }.render(&source);
    let _ = report::github::step_summary(&source);
    let _ = report::github::annotations(&view, &judged);
    for sides in [[before, run], [run, before]] {
        if let Ok(changed) = changes::between(sides[0], sides[1]) {
            let _ = report::changes::page(&changed);
        }
    }
}

/// `inputs.json` as JSON or edits, `inputs.safetensors` as anything else that does not begin as they do.
pub(super) fn inputs(folder: &Path) -> Parse {
    let case = copy_of_the_run(folder).join(CASE);
    let (json, tensors) = (case.join("inputs.json"), case.join("inputs.safetensors"));
    let (base, kept) = (read_json(&json), read(&tensors));
    Box::new(move |bytes| {
        let is_tensors = bytes.get(4..8) == Some(&[0; 4]);
        write(&tensors, if is_tensors { bytes } else { &kept });
        write(&json, &if is_tensors { base.to_string().into_bytes() } else { edits::json(&base, bytes) });
        let _ = inputs::load(&case);
        let _ = (Mask::of_inputs(&tensors), Mask::of_encoder(&tensors));
    })
}

/// A file that a config names as `inputs.tensors`.
pub(super) fn tensors(folder: &Path) -> Parse {
    let (path, model) = (folder.join("named.safetensors"), folder.join("model"));
    models::synthetic::write("llama", "", 0, &model).expect("llama has a synthetic checkpoint");
    let settings = checkpoints::settings(folder);
    let source = model.to_str().expect("temporary folders have names of letters");
    let checkpoint =
        checkpoint::resolve(source, &settings, &mut |_| ()).expect("a synthetic checkpoint is valid");
    Box::new(move |bytes| {
        write(&path, bytes);
        let Ok(source) = inputs::Source::open(&checkpoint) else { return };
        let Ok(all) = source.make(&Spec::Tensors(path.clone())) else { return };
        for made in all {
            let saved = path.with_extension("saved");
            fs::create_dir_all(&saved).expect("the folder can be made");
            if made.save(&saved).is_ok() {
                let loaded = inputs::load(&saved).expect("inputs that were just saved can be loaded");
                assert_eq!(loaded.digest, made.digest);
            }
        }
    })
}

pub(super) fn logits(folder: &Path) -> Parse {
    let path = folder.join("logits.safetensors");
    Box::new(move |bytes| {
        write(&path, bytes);
        for positions in [Positions::All, Positions::Last] {
            if let Ok(logits) = Logits::open(&path, positions) {
                read_all(&logits);
            }
        }
        if let Ok(logits) = Logits::open_output(&path, "logits") {
            read_all(&logits);
        }
    })
}

pub(super) fn torch_zip(folder: &Path) -> Parse {
    let path = folder.join("logits.pt");
    Box::new(move |bytes| {
        write(&path, bytes);
        if let Ok(logits) = tfcheck::results::torch_zip::open(&path) {
            read_all(&logits);
        }
    })
}

/// Bytes that begin as a database does replace the file; others are edits of a baseline's row.
pub(super) fn history(folder: &Path) -> Parse {
    let run = copy_of_the_run(folder);
    let results = folder.join("results");
    let kept = folder.join("kept");
    fs::create_dir_all(&results).expect("the folder can be made");
    write(&kept, b"kept");
    let base = serde_json::json!({
        "name": "a", "run": "run_1", "folder": "baselines/a-1", "saved": "2026-08-01T15:00:00Z", "fingerprint": "f",
        "bytes": 3, "files": r#"{"candle/logits.safetensors": "00"}"#,
    });
    Box::new(move |bytes| {
        let file = results.join("history.sqlite");
        for end in ["", "-journal", "-wal", "-shm"] {
            let _ = fs::remove_file(results.join(format!("history.sqlite{end}")));
        }
        if bytes.starts_with(b"SQLite") {
            write(&file, bytes);
        } else {
            let Ok(row) = serde_json::from_slice::<Value>(&edits::json(&base, bytes)) else { return };
            let text = |key: &str| row.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            let known = Known {
                name: text("name"),
                run: text("run"),
                folder: text("folder"),
                saved: text("saved"),
                fingerprint: text("fingerprint"),
                bytes: row.get("bytes").and_then(Value::as_u64).unwrap_or_default(),
                files: text("files"),
            };
            if let Ok(mut history) = History::open(&results) {
                let _ = history.put_baseline(&known);
            }
        }
        let _ = baseline::list(&results);
        let names = History::open(&results).and_then(|history| history.baselines()).unwrap_or_default();
        for name in names.iter().map(|known| known.name.as_str()).take(4).chain(["a"]) {
            let _ = baseline::check(&results, name);
            let _ = baseline::remove(&results, name);
        }
        let _ = History::open(&results).and_then(|history| history.yardstick_ns("f", 2));
        assert!(
            kept.is_file() && run.is_dir() && results.is_dir(),
            "a file outside of the baselines was removed"
        );
    })
}

/// Reads every row, in float64.
fn read_all(logits: &Logits) {
    let [batch, rows, _] = logits.shape();
    for index in 0..batch.saturating_mul(rows).min(1 << 12) {
        let _ = logits.row(index);
    }
    let _ = logits.value(0, 0);
}

fn copy_of_the_run(folder: &Path) -> PathBuf {
    let target = folder.join("run_20261201_041119");
    copy(&super::folder().join("run"), &target);
    target
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the folder can be made");
    for entry in fs::read_dir(from).expect("the run is in the repository") {
        let entry = entry.expect("the folder can be read");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            write(&target, &read(&entry.path()));
        }
    }
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&read(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
