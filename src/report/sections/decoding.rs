//! Times of one token through the KV cache.

use super::performance::percentiles;
use crate::execute::cell::Cell as Variant;
use crate::judge::view::{CaseView, Performance};
use crate::report::document::{Block, Cell, Content, Medium, Row, Table};
use crate::report::speed_up_text;

/// The section, or `None` if no variant decoded.
pub(super) fn content(case: &CaseView, medium: Medium) -> Option<Content> {
    let timed = case.decoding();
    if timed.is_empty() {
        return None;
    }
    if medium == Medium::Terminal {
        let rows = timed.iter().filter_map(|(cell, performance)| {
            let timing = performance.timing.as_ref()?;
            let (p50, p90) = (format!("{:.2}", timing.p50_ms), format!("{:.2}", timing.p90_ms));
            Some([cell.name.clone(), p50, p90, speed_up_text(performance)].into_iter().collect())
        });
        let table = Table::new(["decoding", "p50 ms", "p90 ms", "speed-up"], rows);
        return Some(Content::untitled(vec![Block::Gap, Block::Table(table)]));
    }
    let row = |(cell, performance): &(&Variant, Performance<'_>)| -> Row {
        let names = [cell.variant.version.clone(), cell.variant.note()].map(Cell::from);
        let n = performance.timing.map_or(0, |timing| timing.n).to_string();
        let rest = [speed_up_text(performance), n].map(Cell::from);
        names.into_iter().chain(percentiles(performance)).chain(rest).collect()
    };
    let columns = ["Variant", "Note", "p50 (ms)", "p90 (ms)", "p99 (ms)", "Average (ms)", "Speed-up", "n"];
    let table = Block::Table(Table::new(columns, timed.iter().map(row)));
    let text = Block::text("One token of every row, through the KV cache that holds the inputs.");
    Some(Content::titled("Decoding", vec![text, table]))
}
