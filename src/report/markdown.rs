//! `summary.md`: the tables that people know, then what is new.

use std::fmt::Write;

use super::gates::{CHANGE_HEADER, change_rows, gate_rows, is_shown};
use super::sweep::Mark;
use super::{CaseView, Performance, Report, RunView, bytes, entry, kind, ms, reason, speed_up_text};
use crate::compare::metrics::Side;
use crate::compare::repeat::times;
use crate::gates::Judged;
use crate::results::{Cell, Outcome};

/// The summary for people.
#[derive(Clone, Copy, Debug)]
pub struct Markdown;

/// Lines of a failed cell's log that the summary shows; worker.log has all.
const LOG_LINES: usize = 20;

impl Report for Markdown {
    fn file_name(&self) -> &'static str {
        "summary.md"
    }

    fn render(&self, run: &RunView) -> String {
        let mut text = format!("# tfcheck {}\n\n", run.id);
        for (key, value) in &run.environment {
            line(&mut text, &format!("- {key}: {value}"));
        }
        gates(&mut text, &run.judged);
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
        "\nThe change of the median is this run's over the baseline's; its 95 % bootstrap interval resamples whole rounds. The two were timed at different times.",
    );
    for note in &against.notes {
        line(text, &format!("- {note}"));
    }
}

fn performance(text: &mut String, case: &CaseView) {
    line(text, "### Performance Results\n");
    let header = [
        "Variant",
        "Note",
        "p50 (ms)",
        "p90 (ms)",
        "p99 (ms)",
        "Average (ms)",
        "First call (ms)",
        "Load (ms)",
        "Peak memory",
        "Speed-up",
        "n",
    ];
    let rows: Vec<Vec<String>> = case.cells.iter().map(|cell| performance_row(case, cell)).collect();
    table(text, &header, &rows);
    line(
        text,
        "\nPercentiles are interpolated (Hyndman–Fan type 7). The speed-up is the baseline's median over the variant's, with its 95 % bootstrap interval over interleaved rounds.",
    );
}

/// Nothing where no variant decoded.
fn decoding(text: &mut String, case: &CaseView) {
    let timed = case.decoding();
    if timed.is_empty() {
        return;
    }
    line(text, "\n### Decoding\n\nOne token of every row, through the KV cache that holds the inputs.\n");
    let row = |(cell, performance): &(&Cell, Performance<'_>)| {
        let mut row = vec![cell.variant.version.clone(), cell.variant.note()];
        row.extend(percentiles(performance));
        row.extend([speed_up_text(performance), performance.timing.map_or(0, |timing| timing.n).to_string()]);
        row
    };
    let rows: Vec<Vec<String>> = timed.iter().map(row).collect();
    let header = ["Variant", "Note", "p50 (ms)", "p90 (ms)", "p99 (ms)", "Average (ms)", "Speed-up", "n"];
    table(text, &header, &rows);
}

fn performance_row(case: &CaseView, cell: &Cell) -> Vec<String> {
    let names = [cell.variant.version.clone(), cell.variant.note()];
    let numbers = match case.performance(cell) {
        Err(reason) => vec![reason],
        Ok(performance) => {
            let mut numbers = percentiles(&performance);
            numbers.extend([
                format!("{:.2}", ms(performance.completed.first_call_ns)),
                format!("{:.2}", ms(performance.completed.load_ns)),
                performance.completed.peak_bytes.map_or_else(|| "unknown".to_owned(), bytes),
                speed_up_text(&performance),
                performance.timing.map_or(0, |timing| timing.n).to_string(),
            ]);
            numbers
        }
    };
    names.into_iter().chain(numbers).collect()
}

fn percentiles(performance: &Performance<'_>) -> Vec<String> {
    match &performance.timing {
        Some(timing) => {
            [timing.p50_ms, timing.p90_ms, timing.p99_ms, timing.mean_ms].map(|x| format!("{x:.2}")).to_vec()
        }
        None => vec!["not timed".to_owned(); 4],
    }
}

fn matrices(text: &mut String, case: &CaseView) {
    let matrix = &case.matrix;
    let positions = matrix.positions.len();
    line(
        text,
        &format!("\n### Logit L2 Differences (N×N)\n\n‖row − column‖ over {positions} real positions.\n"),
    );
    square(text, case, |row, column| {
        if let Some(itself) = case.diagonal(row).filter(|_| row == column) {
            return itself;
        }
        entry(matrix, row, column, |pair| {
            let mark = if pair.last_positions_only { "†" } else { "" };
            format!("{:.6}{mark}", pair.l2)
        })
    });
    let last_only = (0..matrix.len())
        .any(|a| (0..=a).any(|b| matrix.compared(a, b).is_some_and(|pair| pair.last_positions_only)));
    if last_only {
        line(text, "\n† compared at last positions only, because one of the files holds no others.");
    }
    noise(text, case);
    line(text, "\n### Relative L2 Differences (N×N)\n\n‖row − column‖ / ‖row‖: the row is the reference.\n");
    square(text, case, |row, column| {
        entry(matrix, row, column, |pair| format!("{:.3e}", pair.relative_l2(Side::A)))
    });
}

/// What the repetitions showed, and where there is noise, every pair in units of it.
fn noise(text: &mut String, case: &CaseView) {
    let Some(said) = case.noise_said() else { return };
    line(text, &format!("\nOn the diagonal a variant meets its own repetitions; {said}."));
    let count = case.matrix.len();
    if !(0..count).any(|a| (0..a).any(|b| case.multiple(a, b).is_some())) {
        return;
    }
    line(
        text,
        "\n### L2 Differences in Units of the Noise (N×N)\n\n‖row − column‖ over the larger self L2 of the two; — where neither has any.\n",
    );
    square(text, case, |row, column| {
        case.multiple(row, column).map_or_else(|| "—".to_owned(), |multiple| format!("{}×", times(multiple)))
    });
}

/// All cases' verdicts in one table.
fn sweep(text: &mut String, run: &RunView) {
    let Some(sweep) = super::sweep::sweep(run) else { return };
    line(
        text,
        "\n## Sweep\n\nThe worst verdict of each pair for each value of an axis; 1/4 where one of four is that bad.\n",
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

/// A table of all variants by all variants.
fn square(text: &mut String, case: &CaseView, entry: impl Fn(usize, usize) -> String) {
    let names = &case.matrix.names;
    let header: Vec<&str> = std::iter::once("").chain(names.iter().map(String::as_str)).collect();
    let rows: Vec<Vec<String>> = names
        .iter()
        .enumerate()
        .map(|(row, name)| {
            let absent = case.cells.iter().find(|cell| cell.name == *name).map(|cell| reason(&cell.outcome));
            let label = match absent.filter(|reason| !reason.is_empty()) {
                Some(reason) => format!("{name} ({reason})"),
                None => name.clone(),
            };
            std::iter::once(label).chain((0..names.len()).map(|column| entry(row, column))).collect()
        })
        .collect();
    table(text, &header, &rows);
}

fn verdicts(text: &mut String, case: &CaseView) {
    line(text, "\n### Verdicts\n");
    let rows: Vec<Vec<String>> = case
        .verdicts
        .iter()
        .map(|verdict| {
            vec![
                verdict.a.clone(),
                verdict.b.clone(),
                verdict.decision.word().to_owned(),
                verdict.evidence.clone(),
            ]
        })
        .collect();
    table(text, &["A", "B", "Verdict", "Evidence"], &rows);
    distributions(text, case);
}

fn first_divergence(text: &mut String, case: &CaseView) {
    if case.localized.is_empty() {
        return;
    }
    line(text, "\n### First divergence\n");
    for found in &case.localized {
        line(text, &format!("- **{} / {}**: {}.", found.a, found.b, found.sentence));
        line(text, &format!("  ({})", found.effort()));
        for note in &found.notes {
            line(text, &format!("  - {note}"));
        }
    }
}

fn distributions(text: &mut String, case: &CaseView) {
    line(text, "\n### Metrics per pair\n");
    let matrix = &case.matrix;
    let mut rows = Vec::new();
    for a in 0..matrix.len() {
        for b in a + 1..matrix.len() {
            let Some(pair) = matrix.compared(a, b) else {
                continue;
            };
            let mut row = vec![
                matrix.names[a].clone(),
                matrix.names[b].clone(),
                pair.max_abs_at.map_or_else(
                    || format!("{:.3e}", pair.max_abs),
                    |at| format!("{:.3e} at ({}, {}, {})", pair.max_abs, at.at.row, at.at.position, at.token),
                ),
                pair.max_ulp.map_or_else(
                    || "—".to_owned(),
                    |ulp| format!("{ulp} ({})", crate::variant::dtype_name(pair.lower_dtype)),
                ),
                format!("{:.9}", pair.cosine),
                format!("{:.3e}", pair.nmse(Side::A)),
            ];
            row.extend(match &pair.distribution {
                Some(distribution) => [
                    format!(
                        "{:.2e} / {:.2e} / {:.2e} / {:.2e}",
                        distribution.kl.mean,
                        distribution.kl.median,
                        distribution.kl.p999,
                        distribution.kl.max
                    ),
                    format!("{:.2} %", 100.0 * distribution.top1_agreement),
                    format!("{:.2} %", 100.0 * distribution.top_k_agreement),
                    distribution.first_greedy_divergence.map_or_else(
                        || "none".to_owned(),
                        |at| format!("row {}, position {}", at.row, at.position),
                    ),
                ],
                None => ["—", "—", "—", "—"].map(str::to_owned),
            });
            rows.push(row);
        }
    }
    let header = [
        "A",
        "B",
        "Max abs (row, position, token)",
        "Max ULP",
        "Cosine",
        "NMSE",
        "KL(A‖B) mean / median / 99.9 % / max",
        "Top-1",
        "Top-k",
        "First greedy divergence",
    ];
    table(text, &header, &rows);
}

fn accuracies(text: &mut String, case: &CaseView) {
    if case.accuracies.is_empty() {
        return;
    }
    line(text, "\n### Error against float64\n");
    let names = &case.matrix.names;
    let rows: Vec<Vec<String>> = case
        .accuracies
        .iter()
        .map(|accuracy| {
            vec![
                names[accuracy.variant].clone(),
                names[accuracy.oracle].clone(),
                format!("{:.3e}", accuracy.rmse),
                format!("{:.3e}", accuracy.relative_l2),
                format!("{:.3e}", accuracy.max_abs),
            ]
        })
        .collect();
    table(text, &["Variant", "Oracle", "RMSE", "Relative L2", "Max abs"], &rows);
}

fn choices(text: &mut String, case: &CaseView) {
    let Some(choices) = &case.choices else { return };
    line(text, "\n### Choices\n\nSoftmax probability at the last real position.\n");
    let header: Vec<&str> =
        ["Variant", "Row"].into_iter().chain(choices.tokens.iter().map(String::as_str)).collect();
    let rows: Vec<Vec<String>> = choices
        .rows
        .iter()
        .map(|row| {
            let probability = |p: &Option<f64>| p.map_or_else(|| "—".to_owned(), |p| format!("{p:.6}"));
            [row.variant.clone(), row.row.to_string()]
                .into_iter()
                .chain(row.probabilities.iter().map(probability))
                .collect()
        })
        .collect();
    table(text, &header, &rows);
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
                line(text, &format!("\n**{}** — {}: {}", cell.name, kind(failure.kind), failure.reason));
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
