//! The tables of times and memory.

use super::super::speed_up_text;
use super::{line, table};
use crate::execute::cell::Cell;
use crate::judge::view::{CaseView, Performance};
use compare::units::{bytes, ms};

pub(super) fn performance(text: &mut String, case: &CaseView) {
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
pub(super) fn decoding(text: &mut String, case: &CaseView) {
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
