//! `report.html`: one file without scripts or fetched parts, in light and dark.

use std::fmt::Write;

use super::gates::{change_rows, gate_rows, is_shown};
use super::sweep::Mark;
use super::{CaseView, Report, RunView, bytes, kind, ms, reason, speed_up_text};
use crate::compare::matrix::PairOutcome;
use crate::compare::metrics::Side;
use crate::compare::repeat::times;
use crate::compare::verdict::Decision;
use crate::localize::Localized;
use crate::results::Outcome;

/// The report as a page.
#[derive(Clone, Copy, Debug)]
pub struct Html;

const STYLE: &str = include_str!("html.css");

impl Report for Html {
    fn file_name(&self) -> &'static str {
        "report.html"
    }

    fn render(&self, run: &RunView) -> String {
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
        if is_shown(&run.judged) {
            let gates = gate_rows(&run.judged).into_iter();
            let gates: Vec<String> =
                gates.map(|[gate, word, found]| format!("{gate}: {word}. {found}")).collect();
            list(&mut page, "Gates", &gates);
        }
        if let Some(against) = &run.judged.against {
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

/// L2 in figures, relative L2 as the depth of the colour, the verdict as the cell's mark.
fn heat_map(page: &mut String, case: &CaseView) {
    let matrix = &case.matrix;
    put(
        page,
        "<h3>Logit L2 differences</h3>\n<p>‖row − column‖; the colour is the relative L2 on a logarithmic scale, the bar below a number the verdict; † is compared at last positions only.</p>\n",
    );
    put(page, "<div class=\"scroll\"><table class=\"heat\">\n<thead><tr><th></th>");
    for (index, name) in matrix.names.iter().enumerate() {
        put(page, &format!("<th scope=\"col\" title=\"{}\">{}</th>", escape(name), index + 1));
    }
    put(page, "</tr></thead>\n<tbody>\n");
    for (row, name) in matrix.names.iter().enumerate() {
        put(page, &format!("<tr><th scope=\"row\"><span>{}</span> {}</th>", row + 1, escape(name)));
        for column in 0..matrix.len() {
            let title = format!("{name} / {}", matrix.names[column]);
            put(page, &heat_cell(case, row, column, &title));
        }
        put(page, "</tr>\n");
    }
    put(page, "</tbody></table></div>\n");
    legend(page);
    if let Some(said) = case.noise_said() {
        put(
            page,
            &format!("<p>On the diagonal a variant meets its own repetitions; {}.</p>\n", escape(&said)),
        );
    }
}

/// How a pair stands to the noise, for those who look closer.
fn noise_title(case: &CaseView, row: usize, column: usize) -> String {
    let (Some(a), Some(b)) = (case.noise(row), case.noise(column)) else { return String::new() };
    match case.multiple(row, column) {
        Some(multiple) => format!(", {} times the noise of its sides", times(multiple)),
        None if row == column && !a.is_bitwise() => ", its own repetitions differ".to_owned(),
        None if a.is_bitwise() && b.is_bitwise() => ", noise 0".to_owned(),
        None => String::new(),
    }
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
        "Environments beside their numbers",
        &["A", "B", "Relative L2, the largest of one mode, attention and dtype", "Packages that differ"],
        &environments,
    );
}

fn heat_cell(case: &CaseView, row: usize, column: usize, title: &str) -> String {
    match case.matrix.oriented(row, column) {
        PairOutcome::Compared(pair) => {
            let share = pair.relative_l2(Side::A);
            let mark = verdict_class(case, row, column);
            let in_noise = case
                .multiple(row, column)
                .map(|multiple| format!(" ({}×)", times(multiple)))
                .unwrap_or_default();
            let title = format!("{title}: relative L2 {share:.3e}{}", noise_title(case, row, column));
            let number = match case.diagonal(row).filter(|_| row == column) {
                Some(itself) => itself,
                None => format!("{:.6}", pair.l2),
            };
            let last = if pair.last_positions_only { "†" } else { "" };
            format!(
                "<td class=\"{mark}\" style=\"--heat:{}%\" title=\"{}\">{number}{in_noise}{last}</td>",
                heat(share),
                escape(&title)
            )
        }
        PairOutcome::Incomparable(reason) => {
            format!(
                "<td class=\"absent bad\" title=\"{}\">incomparable</td>",
                escape(&format!("{title}: {reason}"))
            )
        }
        PairOutcome::NotRun(reason) => {
            format!("<td class=\"absent\" title=\"{}\">not run</td>", escape(&format!("{title}: {reason}")))
        }
    }
}

/// 0 at a relative L2 of 1e-9 and below, 100 at 1 and above; full for what is not a number.
fn heat(share: f64) -> u32 {
    if share.is_nan() {
        return 100;
    }
    let scaled = (share.max(1e-300).log10() + 9.0) / 9.0 * 100.0;
    scaled.clamp(0.0, 100.0).round() as u32
}

fn legend(page: &mut String) {
    put(page, "<p class=\"legend\">relative L2: ");
    for exponent in [-9, -7, -5, -3, -1] {
        put(page, &format!("<span style=\"--heat:{}%\">1e{exponent}</span>", heat(10_f64.powi(exponent))));
    }
    put(
        page,
        " <i class=\"good\">same or identical</i> <i class=\"warn\">worse rounding</i> <i class=\"bad\">diverged or incomparable</i></p>\n",
    );
}

fn verdict_class(case: &CaseView, a: usize, b: usize) -> &'static str {
    let names = (&case.matrix.names[a.min(b)], &case.matrix.names[a.max(b)]);
    let verdict = case.verdicts.iter().find(|verdict| (&verdict.a, &verdict.b) == names);
    verdict.map_or("none", |verdict| class(&verdict.decision))
}

fn class(decision: &Decision) -> &'static str {
    match decision {
        Decision::Identical | Decision::SameMathematics => "good",
        Decision::WorseRounding { .. } => "warn",
        Decision::Diverged | Decision::Incomparable { .. } => "bad",
        Decision::NotRun { .. } => "none",
    }
}

/// What needs a person's eye is open; agreement, which grows with the square of the variants, is folded.
fn verdicts(page: &mut String, case: &CaseView) {
    let rows = |classes: &[&str]| -> Vec<Vec<String>> {
        let chosen = case.verdicts.iter().filter(|verdict| classes.contains(&class(&verdict.decision)));
        chosen
            .map(|verdict| {
                let word =
                    format!("<b class=\"{}\">{}</b>", class(&verdict.decision), verdict.decision.word());
                vec![escape(&verdict.a), escape(&verdict.b), word, escape(&verdict.evidence)]
            })
            .collect()
    };
    let header = ["A", "B", "Verdict", "Evidence"];
    table(page, "Verdicts that need a look", &header, &rows(&["bad", "warn"]));
    for (title, classes) in [("agreeing pairs", "good"), ("pairs not run", "none")] {
        let rows = rows(&[classes]);
        if !rows.is_empty() {
            put(page, &format!("<details><summary>{} {title}</summary>", rows.len()));
            table(page, "", &header, &rows);
            put(page, "</details>\n");
        }
    }
}

fn first_divergence(page: &mut String, case: &CaseView) {
    let row = |found: &Localized| {
        let path =
            found.path().map_or_else(|| "—".to_owned(), |path| format!("<code>{}</code>", escape(path)));
        vec![
            escape(&found.a),
            escape(&found.b),
            path,
            escape(&format!("{}; {}", found.sentence, found.effort())),
        ]
    };
    let rows: Vec<Vec<String>> = case.localized.iter().map(row).collect();
    if !rows.is_empty() {
        table(page, "First divergence", &["A", "B", "Module", "Evidence"], &rows);
    }
}

/// Medians as bars, their bootstrap intervals as whiskers, p90 as a tick.
fn timings(page: &mut String, case: &CaseView) {
    let results: Vec<_> = case.cells.iter().map(|cell| (cell, case.performance(cell))).collect();
    let timed = || results.iter().filter_map(|(_, result)| result.as_ref().ok()?.timing);
    let longest = timed().map(|timing| timing.p90_ms.max(timing.median_interval_ms.high)).fold(0.0, f64::max);
    let share = |x: f64| {
        if longest > 0.0 { 100.0 * x / longest } else { 0.0 }
    };
    put(
        page,
        "<h3>Performance</h3>\n<p>Median of the steady passes in ms, with its 95 % interval (whisker) and p90 (tick).</p>\n",
    );
    put(
        page,
        "<div class=\"scroll\"><table class=\"bars\">\n<thead><tr><th>Variant</th><th class=\"bar\"></th><th>p50</th><th>p90</th><th>p99</th><th>Mean</th><th>First call</th><th>Load</th><th>Peak memory</th><th>Speed-up</th><th>n</th></tr></thead>\n<tbody>\n",
    );
    for (cell, result) in &results {
        put(page, &format!("<tr><th scope=\"row\">{}</th>", escape(&cell.name)));
        match result {
            Err(reason) => {
                put(page, &format!("<td class=\"absent bad\" colspan=\"10\">{}</td>", escape(reason)));
            }
            Ok(performance) => {
                match &performance.timing {
                    Some(timing) => {
                        let interval = timing.median_interval_ms;
                        put(
                            page,
                            &format!(
                                "<td class=\"bar\"><div style=\"width:{:.2}%\"></div><i style=\"left:{:.2}%;width:{:.2}%\"></i><u style=\"left:{:.2}%\"></u></td>",
                                share(timing.p50_ms),
                                share(interval.low),
                                share(interval.high - interval.low),
                                share(timing.p90_ms)
                            ),
                        );
                        for value in [timing.p50_ms, timing.p90_ms, timing.p99_ms, timing.mean_ms] {
                            put(page, &format!("<td>{value:.2}</td>"));
                        }
                    }
                    None => put(page, "<td class=\"absent\" colspan=\"5\">not timed</td>"),
                }
                let completed = performance.completed;
                let peak = completed.peak_bytes.map_or_else(|| "unknown".to_owned(), bytes);
                let samples = performance.timing.map_or(0, |timing| timing.n);
                let (first, load) = (ms(completed.first_call_ns), ms(completed.load_ns));
                let speed_up = speed_up_text(performance);
                put(
                    page,
                    &format!(
                        "<td>{first:.2}</td><td>{load:.2}</td><td>{peak}</td><td>{speed_up}</td><td>{samples}</td>"
                    ),
                );
            }
        }
        put(page, "</tr>\n");
    }
    put(page, "</tbody></table></div>\n");
}

/// Nothing where no variant decoded.
fn decoding(page: &mut String, case: &CaseView) {
    let rows: Vec<Vec<String>> = case
        .decoding()
        .iter()
        .filter_map(|(cell, performance)| {
            let timing = performance.timing.as_ref()?;
            Some(vec![
                escape(&cell.name),
                format!("{:.2}", timing.p50_ms),
                format!("{:.2}–{:.2}", timing.median_interval_ms.low, timing.median_interval_ms.high),
                format!("{:.2}", timing.p90_ms),
                speed_up_text(performance),
                timing.n.to_string(),
            ])
        })
        .collect();
    if !rows.is_empty() {
        let header = ["Variant", "p50 (ms)", "95 % interval", "p90 (ms)", "Speed-up", "n"];
        table(page, "Decoding one token after the inputs", &header, &rows);
    }
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
            &format!("<article><h4>{}</h4>\n<p>{}</p>\n", escape(&cell.name), escape(&reason(&cell.outcome))),
        );
        if let Outcome::Failed(failure) = &cell.outcome {
            for (title, block) in [(kind(failure.kind), &failure.detail), ("worker.log", &failure.log_tail)] {
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
