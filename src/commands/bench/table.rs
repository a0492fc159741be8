//! The benchmark as Markdown.

use std::fmt::Write;

use super::{Bench, Measured, Ratio, Table, TimedVariant};
use compare::units::bytes;

/// The machine, then a table for each case and dtype with its ratios below.
pub(super) fn markdown(bench: &Bench) -> String {
    let mut text = format!("# Benchmark\n\nRun `{}`.\n\n", bench.run);
    for (key, value) in &bench.environment {
        let _ = writeln!(text, "- {key}: {value}");
    }
    for table in &bench.tables {
        one(&mut text, "##", table);
    }
    text.push_str(
        "\nVariants took turns in rounds; a ratio is time over time in shared rounds, lower is better, with its 95 % \
         bootstrap interval.\n",
    );
    text
}

/// Writes one table below a heading of the given level.
pub(crate) fn one(text: &mut String, level: &str, table: &Table) {
    let _ =
        writeln!(text, "\n{level} {}, {}, {}: {}\n", table.checkpoint, table.inputs, table.dtype, table.pass);
    // A run without a float64 reference judges nothing.
    let is_judged = table.rows.iter().any(|row| row.relative_l2.is_some() || row.verdict.is_some());
    text.push_str("| Variant | p50 (ms) | 95 % interval | min (ms) | n | Peak memory |");
    text.push_str(if is_judged { " fused ÷ it | Relative L2 to float64 | Verdict |\n" } else { "\n" });
    text.push_str("|---|--:|--:|--:|--:|--:|");
    text.push_str(if is_judged { "--:|--:|---|\n" } else { "\n" });
    for row in &table.rows {
        let times = match &row.measured {
            Ok(measured) => numbers(measured).join(" | "),
            Err(reason) => format!("{reason} | | | |"),
        };
        let judged = if is_judged { judged(row) } else { String::new() };
        let _ = writeln!(text, "| {} | {times} |{judged}", row.variant);
    }
    for ratio in &table.ratios {
        let [low, high] = ratio.interval;
        let _ = writeln!(
            text,
            "\n**{} / {}: {:.3}** ({low:.3}–{high:.3})",
            ratio.variant, ratio.over, ratio.ratio
        );
    }
    let mut notes: Vec<(&str, Vec<&str>)> = Vec::new();
    for (row, note) in table.rows.iter().flat_map(|row| row.notes.iter().map(move |note| (row, note))) {
        match notes.iter_mut().find(|(known, _)| known == note) {
            Some((_, variants)) => variants.push(&row.variant),
            None => notes.push((note, vec![&row.variant])),
        }
    }
    if !notes.is_empty() {
        text.push('\n');
    }
    for (note, variants) in notes {
        let _ = writeln!(text, "- {}: {note}", variants.join(", "));
    }
    if table.rows.iter().any(|row| row.measured.as_ref().is_ok_and(|measured| measured.is_last_only)) {
        text.push_str("\n\\* logits of the last position only, so less work than the others'.\n");
    }
}

/// The speed of the fused backend beside a variant, and whether the variant is right.
fn judged(row: &TimedVariant) -> String {
    let fused =
        row.fused_over.as_ref().map_or_else(String::new, |Ratio { ratio, interval: [low, high], .. }| {
            format!("{ratio:.2} ({low:.2}–{high:.2})")
        });
    let error = row.relative_l2.map_or_else(String::new, |error| format!("{error:.1e}"));
    format!(" {fused} | {error} | {} |", row.verdict.as_deref().unwrap_or_default())
}

fn numbers(measured: &Measured) -> Vec<String> {
    let [low, high] = measured.interval_ms;
    vec![
        format!("{:.2}{}", measured.p50_ms, if measured.is_last_only { "\\*" } else { "" }),
        format!("{low:.2}–{high:.2}"),
        format!("{:.2}", measured.min_ms),
        measured.n.to_string(),
        measured.peak_bytes.map_or_else(|| "unknown".to_owned(), bytes),
    ]
}
