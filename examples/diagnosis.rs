//! Writes results/diagnosis.md: what `tfcheck run` says about each reproduction of results/findings, with the native model as
//! the trusted side. `cargo run --release --example diagnosis`, after `cargo build --release`.

#![expect(clippy::print_stdout, reason = "it shows each diagnosis as it is made")]

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tfcheck::results::diagnosed::{Diagnosed, Diagnosis};

/// The port of each reproduction and the native model.
const PAIR: [&str; 2] = ["candle_eager", "candle-transformers_eager"];

struct Row {
    name: String,
    /// How it ended, in the words of the table.
    outcome: &'static str,
    sentence: String,
    seconds: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // Examples lie in a folder beside the program.
    let program =
        std::env::current_exe()?.ancestors().nth(2).ok_or("no folder of the program")?.join("tfcheck");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(root.join("results/findings"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_, std::io::Error>>()?;
    paths.sort();
    let mut rows = Vec::new();
    for path in paths {
        let row = row(&program, &path)?;
        println!("{}: {} ({:.1} s) {}", row.name, row.outcome, row.seconds, row.sentence);
        rows.push(row);
    }
    let count = |outcome: &str| rows.iter().filter(|row| row.outcome == outcome).count();
    let judged: Vec<&Row> = rows.iter().filter(|row| ![FAILS, AGREES].contains(&row.outcome)).collect();
    let mut times: Vec<f64> = judged.iter().map(|row| row.seconds).collect();
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    let mut page = format!(
        "# Diagnoses of candle-transformers' ports\n\n`cargo run --release --example diagnosis` wrote this page: `tfcheck run` on each \
         [reproduction](findings.md), with the native model as the trusted side and logits alone ([how](../docs/diagnose.md)). Seconds \
         are those of the diagnosis.\n\n{} reproductions have wrong numbers in f32 or f64: {} are named with proof, {} are localised \
         by surgery, {} are not explained; the median takes {median:.1} s. {} ports do not run, {} agree in f32.\n\n\
         | Finding | Outcome | s | What tfcheck reports |\n|---|---|--:|---|\n",
        judged.len(),
        count(NAMED),
        count(LOCALISED),
        count(UNEXPLAINED),
        count(FAILS),
        count(AGREES),
    );
    for Row { name, outcome, sentence, seconds } in &rows {
        let sentence = sentence.replace('|', "\\|").replace('\n', " ");
        writeln!(page, "| [{name}](findings/{name}.toml) | {outcome} | {seconds:.1} | {sentence} |")?;
    }
    std::fs::write(root.join("results/diagnosis.md"), page)?;
    Ok(())
}

const NAMED: &str = "named";
const LOCALISED: &str = "localised";
const UNEXPLAINED: &str = "not found";
const AGREES: &str = "agrees in f32";
const FAILS: &str = "does not run";

/// Diagnoses one reproduction.
fn row(program: &Path, path: &Path) -> Result<Row, Box<dyn Error>> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let results = tempfile::tempdir()?;
    let output = Command::new(program)
        .args(["-q", "run", "--only", "*/candle*", "--results"])
        .arg(results.path())
        .arg(path)
        .output()?;
    let run = std::fs::read_dir(results.path())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.join("run.json").is_file())
        .ok_or_else(|| format!("{name}: no run: {}", String::from_utf8_lossy(&output.stderr)))?;
    let summary: serde_json::Value = serde_json::from_slice(&std::fs::read(run.join("summary.json"))?)?;
    let diagnosed = std::fs::read(run.join("diagnosed.json")).ok();
    let diagnosed: Vec<Diagnosed> =
        diagnosed.map(|bytes| serde_json::from_slice(&bytes)).transpose()?.unwrap_or_default();
    let cell = |name: &str| {
        let cells = summary["cases"][0]["cells"].as_array().cloned().unwrap_or_default();
        cells.into_iter().find(|cell| cell["name"] == name)
    };
    let Some(found) = diagnosed.iter().find(|found| found.suspect.starts_with("candle-transformers")) else {
        let port = cell(PAIR[1]).unwrap_or_default();
        let is_run = port["status"] == "completed";
        let outcome = if is_run { AGREES } else { FAILS };
        return Ok(Row { name, outcome, sentence: String::new(), seconds: 0.0 });
    };
    let outcome = match &found.finding {
        Diagnosis::Reproduced { .. } => NAMED,
        Diagnosis::Parts { .. } => LOCALISED,
        Diagnosis::Unexplained => UNEXPLAINED,
        Diagnosis::Nothing => AGREES,
    };
    Ok(Row { name, outcome, sentence: found.sentence.clone(), seconds: found.elapsed_ns as f64 / 1e9 })
}
