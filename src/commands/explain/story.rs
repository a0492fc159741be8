//! The sections of the description that `tfcheck explain` prints; `next` adds the next steps.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::Pair;
use crate::execute::cell::{Cell, Completed, Outcome};
use crate::judge::view::{Timed, side_by_side};
use crate::spec::variant::{Runner, dtype_name};
use compare::matrix::PairOutcome;
use compare::metric::{self, MAX_ABS, Metric, RELATIVE_L2, RMSE, Value};
use compare::metrics::{PairMetrics, PositionIndex, PositionMetrics, Side};
use compare::timing::{Statistic, change, summarize};
use compare::units::{bytes, count};

/// Positions that are listed, largest difference first.
const WORST: usize = 5;
/// Lines of a failed variant's log that are shown.
const LOG_LINES: usize = 12;

/// The whole description of the pair formed by the first two cells of `pair.view`.
pub(super) fn tell(pair: &Pair<'_>) -> String {
    let mut text = String::new();
    let [a, b] = sides(pair);
    line(&mut text, &format!("{} .. {}", a.name, b.name));
    line(
        &mut text,
        &format!(
            "{}: {}, checkpoint {}, {}",
            pair.run, pair.case.name, pair.case.checkpoint, pair.case.inputs
        ),
    );
    verdict(&mut text, pair);
    failures(&mut text, [a, b]);
    if let PairOutcome::Compared(metrics) = pair.view.matrix.pair(0, 1) {
        numbers(&mut text, pair, metrics);
        positions(&mut text, pair, metrics);
    }
    divergence(&mut text, pair);
    diagnosis(&mut text, pair);
    accuracies(&mut text, pair);
    notes(&mut text, pair);
    environment(&mut text, pair);
    times(&mut text, [a, b]);
    text
}

pub(super) fn sides<'a>(pair: &'a Pair<'_>) -> [&'a Cell; 2] {
    [&pair.view.cells[0], &pair.view.cells[1]]
}

pub(super) fn decision<'a>(pair: &'a Pair<'_>) -> Option<&'a compare::verdict::Verdict> {
    let [a, b] = sides(pair);
    pair.view.verdict(&a.name, &b.name)
}

fn verdict(text: &mut String, pair: &Pair<'_>) {
    heading(text, "Verdict");
    if let Some(verdict) = decision(pair) {
        line(text, &format!("  {}: {}", verdict.decision.word(), verdict.evidence));
    }
}

fn failures(text: &mut String, sides: [&Cell; 2]) {
    for cell in sides {
        let Outcome::Failed(failure) = &cell.outcome else { continue };
        heading(text, &format!("Why {} has no result", cell.name));
        line(text, &format!("  {}", cell.outcome.reason()));
        for block in [&failure.detail, &failure.log_tail] {
            let lines: Vec<&str> = block.trim_end().lines().collect();
            for shown in &lines[lines.len().saturating_sub(LOG_LINES)..] {
                line(text, &format!("    {shown}"));
            }
        }
    }
}

fn numbers(text: &mut String, pair: &Pair<'_>, metrics: &PairMetrics) {
    heading(text, "Numbers");
    let [a, b] = sides(pair);
    let last = if metrics.last_positions_only { ", last positions only" } else { "" };
    let (positions, logits) = (count(metrics.positions, "position"), count(metrics.elements, "logit"));
    line(text, &format!("  over {positions}{last}, {logits}"));
    // A place and the input token at it.
    let words = |metric: &Metric, value: Value| {
        let words = value.words(metric.format);
        match value {
            Value::Place(Some(at)) => format!("{words}, {}", token(pair, at)),
            _ => words,
        }
    };
    for group in metric::lines() {
        let sides: &[(Side, &Cell)] =
            if group.is_per_side { &[(Side::A, a), (Side::B, b)] } else { &[(Side::A, a)] };
        for (side, cell) in sides {
            let Some(value) = group.text(metrics, *side, words) else { continue };
            let of = if group.is_per_side { format!(" of {}", cell.name) } else { String::new() };
            line(text, &format!("  {:<16} {value}{of}", group.title(metrics)));
        }
    }
}

fn positions(text: &mut String, pair: &Pair<'_>, metrics: &PairMetrics) {
    if metrics.identical {
        return;
    }
    heading(text, "Worst positions");
    let mut worst: Vec<&PositionMetrics> = metrics.per_position.iter().collect();
    // NaN sorts before every number.
    worst.sort_by(|a, b| b.l2.is_nan().cmp(&a.l2.is_nan()).then(b.l2.total_cmp(&a.l2)));
    for position in worst.iter().take(WORST) {
        let at = pair.view.matrix.positions[position.position as usize];
        line(
            text,
            &format!(
                "  row {}, position {}: L2 {:.3e}, largest {:.3e}, KL {:.2e}; {}",
                at.row,
                at.position,
                position.l2,
                position.max_abs,
                position.kl,
                token(pair, at)
            ),
        );
    }
    let differing = metrics.per_position.iter().find(|position| position.l2 > 0.0 || position.l2.is_nan());
    if let Some(first) = differing {
        let at = pair.view.matrix.positions[first.position as usize];
        let (row, position) = (at.row, at.position);
        line(
            text,
            &format!("  first position that differs: row {row}, position {position}; {}", token(pair, at)),
        );
    }
}

/// What localisation found for the pair, if the run or `tfcheck localize` localised it.
fn divergence(text: &mut String, pair: &Pair<'_>) {
    for found in &pair.view.localized {
        heading(text, "First divergence");
        line(text, &format!("  {}", found.sentence));
        line(text, &format!("  ({})", found.effort()));
        for note in &found.notes {
            line(text, &format!("  note: {note}"));
        }
    }
}

/// What the pair's diagnosis found, if the run or `tfcheck diagnose` diagnosed it.
fn diagnosis(text: &mut String, pair: &Pair<'_>) {
    for found in &pair.view.diagnosed {
        heading(text, "Diagnosis");
        line(text, &format!("  {}", found.sentence));
        line(text, &format!("  ({})", found.effort()));
        for note in &found.notes {
            line(text, &format!("  note: {note}"));
        }
    }
}

/// The input token at a position, as text if the run recorded its text.
fn token(pair: &Pair<'_>, at: PositionIndex) -> String {
    let Some(inputs) = &pair.inputs else { return "input token unknown".to_owned() };
    let index = at.row * inputs.seq + at.position;
    let id = inputs.input_ids.get(index).map_or_else(|| "?".to_owned(), ToString::to_string);
    match inputs.texts.get(index) {
        Some(piece) => format!("input token {id} {piece:?}"),
        None => format!("input token {id}"),
    }
}

fn accuracies(text: &mut String, pair: &Pair<'_>) {
    heading(text, "Error against float64");
    let names = &pair.view.matrix.names;
    let mut found = false;
    for accuracy in pair.view.accuracies.iter().filter(|accuracy| accuracy.variant < 2) {
        found = true;
        line(
            text,
            &format!(
                "  {}: RMSE {}, relative L2 {}, largest {}, against {}",
                names[accuracy.variant],
                RMSE.written(accuracy.rmse),
                RELATIVE_L2.written(accuracy.relative_l2),
                MAX_ABS.written(accuracy.max_abs),
                names[accuracy.oracle]
            ),
        );
    }
    if !found {
        line(text, "  unknown: the run has no float64 reference; set `oracle = true` under [run]");
    }
}

fn notes(text: &mut String, pair: &Pair<'_>) {
    let of = |cell: &Cell| match &cell.outcome {
        Outcome::Completed(completed) => completed.notes.clone(),
        _ => Vec::new(),
    };
    let [a, b] = sides(pair);
    if of(a).is_empty() && of(b).is_empty() && pair.case.notes.is_empty() {
        return;
    }
    heading(text, "Config keys and other notes");
    for cell in [a, b] {
        for note in of(cell) {
            line(text, &format!("  {}: {note}", cell.name));
        }
    }
    for note in &pair.case.notes {
        line(text, &format!("  both: {note}"));
    }
}

fn environment(text: &mut String, pair: &Pair<'_>) {
    heading(text, "What differs in the environment");
    let [a, b] = sides(pair);
    let mut found = false;
    let mut differs = |what: &str, a: &str, b: &str| {
        if a != b {
            found = true;
            line(text, &format!("  {what}: {a} | {b}"));
        }
    };
    let variant = [&a.variant, &b.variant];
    let runner = |runner: Runner| {
        serde_json::to_value(runner)
            .ok()
            .and_then(|name| name.as_str().map(str::to_owned))
            .unwrap_or_default()
    };
    differs("runner", &runner(variant[0].runner), &runner(variant[1].runner));
    differs(
        "mode",
        crate::spec::variant::mode_name(variant[0].mode),
        crate::spec::variant::mode_name(variant[1].mode),
    );
    let attention =
        |index: usize| variant[index].attention.map_or("its own", crate::spec::variant::attention_name);
    differs("attention", attention(0), attention(1));
    differs("dtype", dtype_name(variant[0].dtype), dtype_name(variant[1].dtype));
    differs("device", &variant[0].device, &variant[1].device);
    let packages = [packages(pair, a), packages(pair, b)];
    let names: BTreeSet<&String> = packages.iter().flatten().map(|(name, _)| name).collect();
    for name in names {
        let version = |side: &[(String, String)]| {
            side.iter()
                .find(|(known, _)| known == name)
                .map_or("—", |(_, version)| version.as_str())
                .to_owned()
        };
        differs(name, &version(&packages[0]), &version(&packages[1]));
    }
    if !found {
        line(text, "  no recorded difference");
    }
}

/// Versions that a side computed with: those its worker reported and those installed in its environment.
fn packages(pair: &Pair<'_>, cell: &Cell) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = match &cell.outcome {
        Outcome::Completed(completed) => completed.libraries.clone().into_iter().collect(),
        _ => Vec::new(),
    };
    let recorded = pair.environment.iter().flat_map(|record| &record.environments);
    for environment in recorded.filter(|environment| environment.versions.contains(&cell.variant.version)) {
        for (name, version) in &environment.installed {
            if !found.iter().any(|(known, _)| known == name) {
                found.push((name.clone(), version.clone()));
            }
        }
    }
    found
}

fn times(text: &mut String, sides: [&Cell; 2]) {
    let completed = |cell: &'_ Cell| -> Option<Completed> {
        match &cell.outcome {
            Outcome::Completed(completed) => Some(completed.clone()),
            _ => None,
        }
    };
    let [Some(a), Some(b)] = sides.map(completed) else { return };
    heading(text, "Time and memory");
    for (cell, completed) in sides.into_iter().zip([&a, &b]) {
        let p50 = summarize(&completed.rounds_ns).map_or_else(
            || "not timed".to_owned(),
            |timing| {
                format!(
                    "p50 {:.3} ms ({:.3} to {:.3}), {} passes in {} rounds",
                    timing.p50_ms,
                    timing.median_interval_ms.low,
                    timing.median_interval_ms.high,
                    timing.n,
                    timing.rounds
                )
            },
        );
        let memory = completed.peak_bytes.map_or_else(|| "unknown".to_owned(), bytes);
        line(text, &format!("  {}: {p50}; peak memory {memory}", cell.name));
    }
    let (first, second) = side_by_side(Timed::Prefill, &a, &b);
    if let Some(change) = change(&first, &second, Statistic::P50, true) {
        line(
            text,
            &format!("  from {} to {} the median pass {}", sides[0].name, sides[1].name, change.text()),
        );
    }
}

pub(super) fn heading(text: &mut String, title: &str) {
    line(text, &format!("\n{title}"));
}

pub(super) fn line(text: &mut String, content: &str) {
    writeln!(text, "{content}").expect("a String takes every write");
}
