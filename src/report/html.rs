//! `report.html`: one file without scripts or fetched parts, in light and dark.

mod matrix;
mod speed;

use std::fmt::Write;

use matrix::{class, first_divergence, heat_map, verdicts};
use speed::{decoding, timings};

use super::Report;
use super::gates::{change_rows, gate_rows, is_shown};
use super::sweep::Mark;
use crate::execute::cell::Outcome;
use crate::judge::gates::Judged;
use crate::judge::view::{CaseView, RunView};

/// The report as a page.
#[derive(Clone, Copy, Debug)]
pub struct Html;

const STYLE: &str = include_str!("html.css");

impl Report for Html {
    fn file_name(&self) -> &'static str {
        "report.html"
    }

    fn render(&self, run: &RunView, judged: &Judged) -> String {
        let mut page = String::new();
        let id = escape(&run.id);
        put(&mut page, "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
        put(&mut page, "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
        put(
            &mut page,
            &format!("<title>tfcheck {id}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"),
        );
        put(&mut page, &format!("<h1>tfcheck <span class=\"id\">{id}</span></h1>\n"));
        tally(&mut page, run);
        if is_shown(&judged) {
            let gates = gate_rows(&judged).into_iter();
            let gates: Vec<String> =
                gates.map(|[gate, word, found]| format!("{gate}: {word}. {found}")).collect();
            list(&mut page, "Gates", &gates);
        }
        if let Some(against) = &judged.against {
            let rows: Vec<String> = change_rows(against)
                .into_iter()
                .map(|row| row[..6].join(" · "))
                .chain(against.notes.clone())
                .collect();
            list(&mut page, &format!("Against baseline {}", escape(&against.baseline)), &rows);
        }
        sweep(&mut page, run);
        for case in &run.cases {
            put(&mut page, &format!("<section>\n<h2>{}</h2>\n", escape(&case.name)));
            put(
                &mut page,
                &format!("<p class=\"about\">{} · {}</p>\n", escape(&case.checkpoint), escape(&case.inputs)),
            );
            heat_map(&mut page, case);
            verdicts(&mut page, case);
            first_divergence(&mut page, case);
            timings(&mut page, case);
            decoding(&mut page, case);
            accuracies(&mut page, case);
            choices(&mut page, case);
            failures(&mut page, case);
            notes(&mut page, case);
            put(&mut page, "</section>\n");
        }
        preflight(&mut page, run);
        list(&mut page, "Notes", &run.notes);
        let environment: Vec<String> =
            run.environment.iter().map(|(key, value)| format!("{key}: {value}")).collect();
        list(&mut page, "Environment", &environment);
        put(&mut page, "</main>\n</body>\n</html>\n");
        page
    }
}

fn tally(page: &mut String, run: &RunView) {
    let tally = run.tally();
    let counts = [
        (tally.identical, "identical", "good"),
        (tally.same_mathematics, "same mathematics", "good"),
        (tally.worse_rounding, "worse rounding", "warn"),
        (tally.diverged, "diverged", "bad"),
        (tally.incomparable, "incomparable", "bad"),
        (tally.not_run, "pairs not run", "none"),
        (tally.failed, "cells failed", "bad"),
        (tally.unsupported, "cells unsupported", "none"),
    ];
    put(page, "<ul class=\"tally\">\n");
    for (count, word, class) in counts.into_iter().filter(|(count, ..)| *count > 0) {
        put(page, &format!("<li class=\"{class}\"><b>{count}</b> {word}</li>\n"));
    }
    put(page, "</ul>\n");
}

/// All cases' verdicts in one table.
fn sweep(page: &mut String, run: &RunView) {
    let Some(sweep) = super::sweep::sweep(run) else { return };
    let mark = |mark: &Mark| format!("<b class=\"{}\">{}</b>", class(&mark.decision), mark.text());
    let rows: Vec<Vec<String>> = sweep
        .rows
        .iter()
        .map(|row| {
            let marks = row.marks.iter().map(|entry| entry.as_ref().map_or_else(|| "—".to_owned(), mark));
            [escape(&row.a), escape(&row.b), mark(&row.worst)].into_iter().chain(marks).collect()
        })
        .collect();
    let titles: Vec<String> =
        sweep.columns.iter().map(|(axis, value)| escape(&format!("{axis} {value}"))).collect();
    let header: Vec<&str> =
        ["A", "B", "Worst"].into_iter().chain(titles.iter().map(String::as_str)).collect();
    table(page, "Sweep: the worst verdict for each value of an axis", &header, &rows);
}

/// What differed before anything was computed.
fn preflight(page: &mut String, run: &RunView) {
    let keys: Vec<Vec<String>> = super::preflight::partly_read(run)
        .iter()
        .map(|found| {
            let (ignored, read) = (found.ignored_by.join(", "), found.not_ignored_by.join(", "));
            [&found.checkpoint, &found.key, &ignored, &read].map(|cell| escape(cell)).to_vec()
        })
        .collect();
    table(
        page,
        "Config keys that one side ignores",
        &["Checkpoint", "Key", "Ignored by", "Not ignored by"],
        &keys,
    );
    let tokenizers: Vec<Vec<String>> = super::preflight::tokenizers(run)
        .iter()
        .map(|(checkpoint, version, found)| vec![escape(checkpoint), escape(version), escape(&found.said())])
        .collect();
    table(page, "Tokenizers", &["Checkpoint", "Version", "Its own tokenizer"], &tokenizers);
    let environments: Vec<Vec<String>> = super::preflight::environments(run)
        .iter()
        .map(|pair| {
            let share = pair.relative_l2.map_or_else(|| "—".to_owned(), |share| format!("{share:.3e}"));
            vec![escape(&pair.a), escape(&pair.b), share, escape(&pair.text())]
        })
        .collect();
    table(
        page,
        "Environments and their largest relative L2",
        &["A", "B", "Relative L2, the largest of one mode, attention and dtype", "Packages that differ"],
        &environments,
    );
}

fn accuracies(page: &mut String, case: &CaseView) {
    let names = &case.matrix.names;
    let rows: Vec<Vec<String>> = case
        .accuracies
        .iter()
        .map(|accuracy| {
            vec![
                escape(&names[accuracy.variant]),
                escape(&names[accuracy.oracle]),
                format!("{:.3e}", accuracy.rmse),
                format!("{:.3e}", accuracy.relative_l2),
                format!("{:.3e}", accuracy.max_abs),
            ]
        })
        .collect();
    table(page, "Error against float64", &["Variant", "Oracle", "RMSE", "Relative L2", "Max abs"], &rows);
}

fn choices(page: &mut String, case: &CaseView) {
    let Some(choices) = &case.choices else { return };
    let header: Vec<String> = ["Variant", "Row"]
        .into_iter()
        .map(str::to_owned)
        .chain(choices.tokens.iter().map(|token| escape(token)))
        .collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let probability = |p: &Option<f64>| p.map_or_else(|| "—".to_owned(), |p| format!("{p:.6}"));
    let rows: Vec<Vec<String>> = choices
        .rows
        .iter()
        .map(|row| {
            let start = [escape(&row.variant), row.row.to_string()];
            start.into_iter().chain(row.probabilities.iter().map(probability)).collect()
        })
        .collect();
    table(page, "Choices", &header, &rows);
}

fn failures(page: &mut String, case: &CaseView) {
    let absent: Vec<_> =
        case.cells.iter().filter(|cell| !matches!(cell.outcome, Outcome::Completed(_))).collect();
    if absent.is_empty() {
        return;
    }
    put(page, "<h3>Failed and unsupported cells</h3>\n");
    for cell in absent {
        put(
            page,
            &format!("<article><h4>{}</h4>\n<p>{}</p>\n", escape(&cell.name), escape(&cell.outcome.reason())),
        );
        if let Outcome::Failed(failure) = &cell.outcome {
            for (title, block) in [(failure.kind.words(), &failure.detail), ("worker.log", &failure.log_tail)]
            {
                if !block.trim().is_empty() {
                    put(
                        page,
                        &format!(
                            "<details open><summary>{title}</summary><pre>{}</pre></details>\n",
                            escape(block.trim_end())
                        ),
                    );
                }
            }
        }
        put(page, "</article>\n");
    }
}

fn notes(page: &mut String, case: &CaseView) {
    let mut notes = Vec::new();
    for cell in &case.cells {
        if let Outcome::Completed(completed) = &cell.outcome {
            notes.extend(completed.notes.iter().map(|note| format!("{}: {note}", cell.name)));
        }
    }
    list(page, "Notes of the variants", &notes);
}

/// A table of cells that are HTML already; nothing without rows.
fn table(page: &mut String, title: &str, header: &[&str], rows: &[Vec<String>]) {
    if rows.is_empty() {
        return;
    }
    put(page, &format!("<h3>{title}</h3>\n<div class=\"scroll\"><table>\n<thead><tr>"));
    for cell in header {
        put(page, &format!("<th>{cell}</th>"));
    }
    put(page, "</tr></thead>\n<tbody>\n");
    for row in rows {
        put(page, "<tr>");
        for cell in row {
            put(page, &format!("<td>{cell}</td>"));
        }
        put(page, "</tr>\n");
    }
    put(page, "</tbody></table></div>\n");
}

fn list(page: &mut String, title: &str, items: &[String]) {
    if items.is_empty() {
        return;
    }
    put(page, &format!("<h3>{title}</h3>\n<ul>\n"));
    for item in items {
        put(page, &format!("<li>{}</li>\n", escape(item)));
    }
    put(page, "</ul>\n");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn put(page: &mut String, text: &str) {
    page.write_str(text).expect("a String takes every write");
}
