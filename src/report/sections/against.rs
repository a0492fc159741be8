//! What changed since a saved baseline.

use crate::judge::against::ComparedCell as Change;
use crate::judge::gates::Judged;
use crate::judge::view::RunView;
use crate::report::document::{Block, Content, Entry, Medium, Row, Span, Table};
use compare::matrix::PairOutcome;
use compare::metric::{L2, RELATIVE_L2};
use compare::metrics::Side;
use compare::units::bytes;

const COLUMNS: [&str; 8] =
    ["Case", "Variant", "Verdict", "L2", "Relative L2", "p50 change", "Peak memory", "Notes"];

pub(super) fn content(_: &RunView, judged: &Judged, medium: Medium) -> Option<Content> {
    let against = judged.against.as_ref()?;
    let (name, run) = (&against.baseline, &against.run);
    let rows = against.rows.iter().map(row);
    if medium == Medium::Terminal {
        let entry = |[case, variant, word, l2, _, time, _, notes]: [String; 8]| Entry {
            heads: vec![vec![Span::Plain(format!("{case}: {variant}: {word}, L2 {l2}; p50 {time}"))]],
            wraps: true,
            text: notes,
        };
        let blocks = std::iter::once(Block::Entries(rows.map(entry).collect()))
            .chain(against.notes.iter().map(Block::text))
            .collect();
        return Some(Content::titled(format!("against baseline {name} ({run})"), blocks));
    }
    let table = Block::Table(Table::new(COLUMNS, rows.map(Row::from_iter)));
    if medium == Medium::Step {
        let blocks = std::iter::once(table).chain(against.notes.iter().map(Block::text)).collect();
        return Some(Content::titled(format!("Against baseline `{name}` ({run})"), blocks));
    }
    let mut blocks = vec![
        Block::text(format!("Saved from {run}.")),
        table,
        Block::text(
            "The change of the median is this run's over the baseline's; its 95 % bootstrap interval resamples whole rounds. The two runs were not interleaved.",
        ),
    ];
    if !against.notes.is_empty() {
        blocks.push(Block::list(against.notes.clone()));
    }
    Some(Content::titled(format!("Against baseline `{name}`"), blocks))
}

/// One variant in the baseline and in this run, in the order of [`COLUMNS`].
pub(in crate::report) fn row(row: &Change) -> [String; 8] {
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
