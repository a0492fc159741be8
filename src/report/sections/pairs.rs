//! The metrics of each pair, from the table of metrics.

use crate::judge::view::CaseView;
use crate::report::document::{Block, Content, Medium, Row, Table};
use compare::metric::{Group, columns};
use compare::metrics::Side;

pub(super) fn content(case: &CaseView, _: Medium) -> Option<Content> {
    let (matrix, columns) = (&case.matrix, columns());
    let mut rows: Vec<Row> = Vec::new();
    for a in 0..matrix.len() {
        for b in a + 1..matrix.len() {
            let Some(pair) = matrix.compared(a, b) else {
                continue;
            };
            let numbers = columns.iter().map(|column| {
                let text = column.text(pair, Side::A, |metric, value| value.text(metric.format));
                text.unwrap_or_else(|| "—".to_owned())
            });
            rows.push([a, b].map(|side| matrix.names[side].clone()).into_iter().chain(numbers).collect());
        }
    }
    let titles = ["A", "B"].into_iter().chain(columns.iter().map(Group::header));
    let table = Table { folded: Some("pairs"), ..Table::new(titles, rows) };
    Some(Content::titled("Metrics per pair", vec![Block::Table(table)]))
}
