//! All cases' verdicts in one table.

use crate::judge::gates::Judged;
use crate::judge::view::RunView;
use crate::report::document::{Block, Cell, Content, Entry, Medium, Row, Span, Table};
use crate::report::sections::verdicts::tone;
use crate::report::sweep::{self, Mark, Sweep};

pub(super) fn content(run: &RunView, _: &Judged, medium: Medium) -> Option<Content> {
    let sweep = sweep::sweep(run)?;
    if medium == Medium::Terminal {
        return Some(Content::titled("sweep: the worst verdict for each value of an axis", brief(&sweep)));
    }
    let mark = |mark: &Mark| Cell::toned(mark.text(), tone(&mark.decision));
    let rows = sweep.rows.iter().map(|row| -> Row {
        let marks = row.marks.iter().map(|entry| entry.as_ref().map_or_else(|| Cell::from("—"), mark));
        [row.a.clone().into(), row.b.clone().into(), mark(&row.worst)].into_iter().chain(marks).collect()
    });
    let values = sweep.columns.iter().map(|(axis, value)| format!("{axis} {value}"));
    let table = Table::new(["A", "B", "Worst"].map(str::to_owned).into_iter().chain(values), rows);
    let text =
        "The worst verdict of each pair for each value of an axis; 1/4 means that one of four cells has it.";
    Some(Content::titled("Sweep", vec![Block::text(text), Block::Table(table)]))
}

/// Every pair that does not agree in every case, and the number of pairs that do.
fn brief(sweep: &Sweep) -> Vec<Block> {
    let (good, bad): (Vec<_>, Vec<_>) = sweep.rows.iter().partition(|row| row.worst.is_good());
    if bad.is_empty() {
        let values: Vec<String> =
            sweep.columns.iter().map(|(axis, value)| format!("{axis} {value}")).collect();
        return vec![Block::text(format!("all {} pairs agree at {}", good.len(), values.join(", ")))];
    }
    let entry = |row: &&sweep::PairRow| {
        let mut axis = "";
        let mut parts: Vec<String> = Vec::new();
        for ((name, value), mark) in sweep.columns.iter().zip(&row.marks) {
            let Some(mark) = mark else { continue };
            if *name != axis {
                axis = name;
                parts.push(format!("{name}:"));
            }
            parts.push(format!("{value} {};", mark.text()));
        }
        let head = Span::Plain(format!("{} / {}: {}", row.a, row.b, row.worst.text()));
        Entry { heads: vec![vec![head]], wraps: false, text: parts.join(" ") }
    };
    let mut blocks = vec![Block::Entries(bad.iter().map(entry).collect())];
    if !good.is_empty() {
        blocks.push(Block::text(format!("{} other pairs agree everywhere", good.len())));
    }
    blocks
}
