//! What gates found and what changed since a baseline, as rows that every format shows.

use crate::judge::against::{Against, Row};
use crate::judge::gates::Judged;
use compare::matrix::PairOutcome;
use compare::metric::{L2, RELATIVE_L2};
use compare::metrics::Side;
use compare::units::bytes;

/// Subjects that a table names; the files for programs have all.
const NAMED: usize = 5;

/// Whether a report has anything to show of it: the usual gates alone repeat the verdicts.
pub(crate) fn is_shown(judged: &Judged) -> bool {
    judged.is_named || judged.against.is_some()
}

/// Gate, outcome, findings.
pub(crate) fn gate_rows(judged: &Judged) -> Vec<[String; 3]> {
    judged.gates.iter().map(|gate| [gate.gate.clone(), gate.word().to_owned(), gate.text(NAMED)]).collect()
}

/// The columns of [`change_rows`].
pub(crate) const CHANGE_HEADER: [&str; 8] =
    ["Case", "Variant", "Verdict", "L2", "Relative L2", "p50 change", "Peak memory", "Notes"];

/// A row per variant: what became of its numbers, its time and its memory.
pub(crate) fn change_rows(against: &Against) -> Vec<[String; 8]> {
    against.rows.iter().map(change_row).collect()
}

fn change_row(row: &Row) -> [String; 8] {
    let (l2, relative) = match &row.pair {
        PairOutcome::Compared(pair) => (L2.text(pair, Side::A), RELATIVE_L2.text(pair, Side::A)),
        PairOutcome::Incomparable(_) | PairOutcome::NotRun(_) => ("—".to_owned(), "—".to_owned()),
    };
    let time = match (&row.times, row.change()) {
        (Ok(_), Some(change)) => change.text(),
        (Ok(_), None) => "not timed".to_owned(),
        (Err(why), _) => why.clone(),
    };
    let memory = match &row.peak_bytes {
        Ok([then, now]) => format!("{} → {}", bytes(*then), bytes(*now)),
        Err(why) => why.clone(),
    };
    let word = row.verdict.decision.word().to_owned();
    [row.case.clone(), row.variant.clone(), word, l2, relative, time, memory, row.notes.join("; ")]
}
