//! `summary.md`: the tables that people know, then what is new.

mod numbers;
mod speed;

use std::fmt::Write;

use numbers::{accuracies, choices, first_divergence, matrices, verdicts};
use speed::{decoding, performance};

use super::Report;
use super::gates::{CHANGE_HEADER, change_rows, gate_rows, is_shown};
use super::sweep::Mark;
use crate::execute::cell::{Cell, Outcome};
use crate::judge::gates::Judged;
use crate::judge::view::{CaseView, RunView};

/// The summary for people.
#[derive(Clone, Copy, Debug)]
pub struct Markdown;

/// Lines of a failed cell's log that the summary shows; worker.log has all.
const LOG_LINES: usize = 20;

impl Report for Markdown {
    fn file_name(&self) -> &'static str {
        "summary.md"
    }

    fn render(&self, run: &RunView, judged: &Judged) -> String {
        let mut text = format!("# tfcheck {}\n\n", run.id);
        for (key, value) in &run.environment {
            line(&mut text, &format!("- {key}: {value}"));
        }
        gates(&mut text, &judged);
        sweep(&mut text, run);
        for case in &run.cases {
            line(&mut text, &format!("\n## {}\n", case.name));
            line(&mut text, &format!("Checkpoint {}; inputs {}.\n", case.checkpoint, case.inputs));
            performance(&mut text, case);
            decoding(&mut text, case);
            matrices(&mut text, case);
            verdicts(&mut text, case);
            first_divergence(&mut text, case);
            accuracies(&mut text, case);
            choices(&mut text, case);
            failures(&mut text, case);
            notes(&mut text, case);
        }
        preflight(&mut text, run);
        if !run.notes.is_empty() {
            line(&mut text, "\n## Notes\n");
            for note in &run.notes {
                line(&mut text, &format!("- {note}"));
            }
        }
        text
    }
}

/// First, because they are what decides.
fn gates(text: &mut String, judged: &Judged) {
    if !is_shown(judged) {
        return;
    }
    line(text, "\n## Gates\n");
    let rows: Vec<Vec<String>> = gate_rows(judged).into_iter().map(Vec::from).collect();
    table(text, &["Gate", "Outcome", "Findings"], &rows);
    let Some(against) = &judged.against else { return };
    line(text, &format!("\n## Against baseline `{}`\n\nSaved from {}.\n", against.baseline, against.run));
    let rows: Vec<Vec<String>> = change_rows(against).into_iter().map(Vec::from).collect();
    table(text, &CHANGE_HEADER, &rows);
    line(
        text,
        "\nThe change of the median is this run's over the baseline's; its 95 % bootstrap interval resamples whole rounds. The two runs were not interleaved.",
    );
    for note in &against.notes {
        line(text, &format!("- {note}"));
    }
}

/// All cases' verdicts in one table.
fn sweep(text: &mut String, run: &RunView) {
    let Some(sweep) = super::sweep::sweep(run) else { return };
    line(
        text,
        "\n## Sweep\n\nThe worst verdict of each pair for each value of an axis; 1/4 means that one of four cells has it.\n",
    );
    let titles: Vec<String> = sweep.columns.iter().map(|(axis, value)| format!("{axis} {value}")).collect();
    let header: Vec<&str> =
        ["A", "B", "Worst"].into_iter().chain(titles.iter().map(String::as_str)).collect();
    let rows: Vec<Vec<String>> = sweep
        .rows
        .iter()
        .map(|row| {
            let marks = row.marks.iter().map(|mark| mark.as_ref().map_or_else(|| "—".to_owned(), Mark::text));
            [row.a.clone(), row.b.clone(), row.worst.text()].into_iter().chain(marks).collect()
        })
        .collect();
    table(text, &header, &rows);
}

/// What differed before anything was computed.
fn preflight(text: &mut String, run: &RunView) {
    let keys = super::preflight::partly_read(run);
    let tokenizers = super::preflight::tokenizers(run);
    let environments = super::preflight::environments(run);
    if keys.is_empty() && tokenizers.is_empty() && environments.is_empty() {
        return;
    }
    line(text, "\n## Preflight");
    if !keys.is_empty() {
        line(text, "\n### Config keys that one side ignores\n");
        let rows: Vec<Vec<String>> = keys
            .into_iter()
            .map(|found| {
                vec![
                    found.checkpoint,
                    found.key,
                    found.ignored_by.join(", "),
                    found.not_ignored_by.join(", "),
                ]
            })
            .collect();
        table(text, &["Checkpoint", "Key", "Ignored by", "Not ignored by"], &rows);
    }
    if !tokenizers.is_empty() {
        line(text, "\n### Tokenizers\n");
        let rows: Vec<Vec<String>> = tokenizers
            .into_iter()
            .map(|(checkpoint, version, found)| vec![checkpoint.to_owned(), version.to_owned(), found.said()])
            .collect();
        table(text, &["Checkpoint", "Version", "Its own tokenizer"], &rows);
    }
    if !environments.is_empty() {
        line(
            text,
            "\n### Environments\n\nThe relative L2 is the largest between variants of one mode, attention and dtype.\n",
        );
        let rows: Vec<Vec<String>> = environments
            .iter()
            .map(|pair| {
                let share = pair.relative_l2.map_or_else(|| "—".to_owned(), |share| format!("{share:.3e}"));
                vec![pair.a.clone(), pair.b.clone(), share, pair.text()]
            })
            .collect();
        table(text, &["A", "B", "Relative L2", "Packages that differ"], &rows);
    }
}

fn failures(text: &mut String, case: &CaseView) {
    let absent: Vec<&Cell> =
        case.cells.iter().filter(|cell| !matches!(cell.outcome, Outcome::Completed(_))).collect();
    if absent.is_empty() {
        return;
    }
    line(text, "\n### Failed and unsupported cells");
    for cell in absent {
        match &cell.outcome {
            Outcome::Completed(_) => {}
            Outcome::Unsupported { reason } => {
                line(text, &format!("\n**{}** — unsupported: {reason}", cell.name));
            }
            Outcome::Failed(failure) => {
                line(text, &format!("\n**{}** — {}: {}", cell.name, failure.kind.words(), failure.reason));
                for block in
                    [&failure.detail, &failure.log_tail].into_iter().filter(|block| !block.trim().is_empty())
                {
                    let lines: Vec<&str> = block.trim_end().lines().collect();
                    let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
                    // A fence longer than any in the log cannot be closed by it.
                    line(text, &format!("\n`````text\n{}\n`````", tail.join("\n")));
                }
            }
        }
    }
}

fn notes(text: &mut String, case: &CaseView) {
    let mut notes = Vec::new();
    for cell in &case.cells {
        if let Outcome::Completed(completed) = &cell.outcome {
            notes.extend(completed.notes.iter().map(|note| format!("- {}: {note}", cell.name)));
        }
    }
    if !notes.is_empty() {
        line(text, "\n### Notes of the variants\n");
        line(text, &notes.join("\n"));
    }
}

/// A pipe table, padded so that the source reads as a table too. A short row is completed with dashes.
pub(super) fn table(text: &mut String, header: &[&str], rows: &[Vec<String>]) {
    let clean = |cell: &str| cell.replace('|', "\\|").replace(['\n', '\r'], " ");
    let header: Vec<String> = header.iter().map(|cell| clean(cell)).collect();
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let mut row: Vec<String> = row.iter().map(|cell| clean(cell)).collect();
            row.resize(header.len(), "—".to_owned());
            row
        })
        .collect();
    // Reasons and evidence may be long; they do not widen the other rows.
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count()).filter(|&width| width <= 40);
        cells.chain([header[column].chars().count(), 3]).max().unwrap_or(3)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut write = |cells: &[String]| {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        line(text, &format!("| {} |", padded.join(" | ")));
    };
    write(&header);
    write(&widths.iter().map(|&width| "-".repeat(width)).collect::<Vec<_>>());
    for row in &rows {
        write(row);
    }
}

pub(super) fn line(text: &mut String, content: &str) {
    writeln!(text, "{content}").expect("a String takes every write");
}
