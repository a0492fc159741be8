//! What a run tells GitHub Actions: a step summary, and an annotation for each gate that failed.

use std::fmt::Write as _;
use std::io::Write as _;

use super::gates::{CHANGE_HEADER, change_rows, gate_rows};
use super::markdown::{line, table};
use super::speed_up_text;
use crate::execute::progress::Progress;
use crate::judge::gates::Judged;
use crate::judge::view::RunView;

/// Subjects that an annotation names; GitHub shows a few lines of it.
const NAMED: usize = 3;

/// Appends to the file that `GITHUB_STEP_SUMMARY` names, and annotates where `GITHUB_ACTIONS` is `true`.
pub fn publish(run: &RunView, judged: &Judged, progress: &Progress) {
    if let Some(path) = std::env::var_os("GITHUB_STEP_SUMMARY").filter(|path| !path.is_empty()) {
        let file = std::fs::File::options().create(true).append(true).open(&path);
        if let Err(error) = file.and_then(|mut file| file.write_all(step_summary(run, judged).as_bytes())) {
            progress.line(&format!("no step summary: {}: {error}", path.display()));
        }
    }
    if std::env::var_os("GITHUB_ACTIONS").is_some_and(|value| value == "true") {
        progress.result(&annotations(run, judged));
    }
}

/// A short Markdown: gates, what changed, verdicts that are not agreement, and times.
pub fn step_summary(run: &RunView, judged: &Judged) -> String {
    let tally = run.tally();
    let failed = judged.has_failed();
    let mark = if failed || tally.failed > 0 { "❌" } else { "✅" };
    let mut text = format!("## {mark} tfcheck {}\n\n", run.id);
    let rows: Vec<Vec<String>> = gate_rows(judged).into_iter().map(Vec::from).collect();
    table(&mut text, &["Gate", "Outcome", "Findings"], &rows);
    if let Some(against) = &judged.against {
        line(&mut text, &format!("\n### Against baseline `{}` ({})\n", against.baseline, against.run));
        let rows: Vec<Vec<String>> = change_rows(against).into_iter().map(Vec::from).collect();
        table(&mut text, &CHANGE_HEADER, &rows);
        for note in &against.notes {
            line(&mut text, &format!("\n{note}"));
        }
    }
    for case in &run.cases {
        line(&mut text, &format!("\n### {}\n\n{}; {}\n", case.name, case.checkpoint, case.inputs));
        let rows: Vec<Vec<String>> = case
            .cells
            .iter()
            .map(|cell| match case.performance(cell) {
                Ok(performance) => {
                    let p50 = performance.timing.map(|timing| format!("{:.2}", timing.p50_ms));
                    let p50 = p50.unwrap_or_else(|| "not timed".to_owned());
                    vec![cell.name.clone(), p50, speed_up_text(&performance)]
                }
                Err(reason) => vec![cell.name.clone(), reason],
            })
            .collect();
        table(&mut text, &["Variant", "p50 (ms)", "Speed-up"], &rows);
    }
    line(&mut text, &format!("\nPairs: {}.\n", tally.pairs()));
    text
}

/// Workflow commands: `::error` for a gate that failed or a cell that did, `::warning` for a gate of which
/// nothing can be said.
pub fn annotations(run: &RunView, judged: &Judged) -> String {
    let mut text = String::new();
    let mut say = |level: &str, title: &str, message: &str| {
        writeln!(text, "::{level} title={}::{}", property(title), data(message))
            .expect("a String takes every write");
    };
    for gate in &judged.gates {
        match gate.word() {
            "failed" => say("error", &format!("tfcheck: {}", gate.gate), &gate.text(NAMED)),
            "unknown" if judged.is_named || judged.against.is_some() => {
                say("warning", &format!("tfcheck: {}", gate.gate), &gate.text(NAMED));
            }
            _ => {}
        }
    }
    for case in &run.cases {
        for cell in &case.cells {
            if let crate::execute::cell::Outcome::Failed(_) = &cell.outcome {
                let title = format!("tfcheck: {}: {}", case.name, cell.name);
                say("error", &title, &cell.outcome.reason());
            }
        }
    }
    text
}

/// As GitHub's toolkit escapes a message (`@actions/core`, command.ts, `escapeData`).
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// As it escapes a property.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}
