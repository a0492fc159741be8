//! The benchmark as Markdown.

use std::fmt::Write;

use super::{Bench, Measured, Table};
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
    text.push_str("| Variant | p50 (ms) | 95 % interval | min (ms) | n | Peak memory |\n");
    text.push_str("|---|--:|--:|--:|--:|--:|\n");
    for row in &table.rows {
        let _ = match &row.measured {
            Ok(measured) => writeln!(text, "| {} | {} |", row.variant, numbers(measured).join(" | ")),
            Err(reason) => writeln!(text, "| {} | {reason} | | | | |", row.variant),
        };
    }
    for ratio in &table.ratios {
        let [low, high] = ratio.interval;
        let _ = writeln!(
            text,
            "\n**{} / {}: {:.3}** ({low:.3}–{high:.3})",
            ratio.variant, ratio.over, ratio.ratio
        );
    }
    if table.rows.iter().any(|row| row.measured.as_ref().is_ok_and(|measured| measured.is_last_only)) {
        text.push_str("\n\\* logits of the last position only, so less work than the others'.\n");
    }
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
