//! Output for GitHub Actions: a step summary, and an annotation for each gate that failed.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use super::Source;
use super::document::Medium;
use super::markdown::{paragraph, plain, section};
use super::sections::{Part, document};
use crate::execute::progress::Progress;
use crate::judge::gates::Judged;
use crate::judge::view::RunView;

/// Maximum number of subjects in an annotation; GitHub shows only a few lines of it.
const NAMED: usize = 3;

/// Appends to the file that `GITHUB_STEP_SUMMARY` names, and annotates where `GITHUB_ACTIONS` is `true`.
pub fn publish(source: &Source<'_>, progress: &Progress) {
    if let Some(path) = std::env::var_os("GITHUB_STEP_SUMMARY").filter(|path| !path.is_empty()) {
        let file = bounds::file::append(Path::new(&path));
        if let Err(error) = file.and_then(|mut file| file.write_all(step_summary(source).as_bytes())) {
            progress.line(&format!("no step summary: {}: {error}", path.display()));
        }
    }
    if std::env::var_os("GITHUB_ACTIONS").is_some_and(|value| value == "true") {
        progress.result(&annotations(source.run, source.judged));
    }
}

/// A short Markdown: gates, what changed, and times.
pub fn step_summary(source: &Source<'_>) -> String {
    let Source { run, judged, .. } = *source;
    let tally = run.tally();
    let failed = judged.has_failed();
    let mark = if failed || tally.failed > 0 { "❌" } else { "✅" };
    let mut text = format!("## {mark} tfcheck {}\n", run.id);
    for part in document(source, Medium::Step) {
        match part {
            Part::Run(content) => section(&mut text, "###", &content),
            Part::Case(case, contents) => {
                paragraph(&mut text, &format!("### {}", case.name));
                paragraph(&mut text, &format!("{}; {}", plain(&case.checkpoint), plain(&case.inputs)));
                for content in &contents {
                    section(&mut text, "####", content);
                }
            }
        }
    }
    paragraph(&mut text, &format!("Pairs: {}.\n", tally.pairs()));
    text
}

/// Workflow commands: `::error` for a failed gate or cell, `::warning` for a gate that is unknown.
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

/// Escapes a message as GitHub's toolkit does (`@actions/core`, command.ts, `escapeData`).
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// Escapes a property as GitHub's toolkit does (`escapeProperty`).
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}
