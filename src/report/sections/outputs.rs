//! Outputs beside the main one: embeddings, router logits, the loss.

use crate::judge::view::CaseView;
use crate::report::document::{Block, Content, Medium, Row, Table};
use compare::metric::RELATIVE_L2;

pub(super) fn content(case: &CaseView, _: Medium) -> Option<Content> {
    let rows = case.outputs.iter().flat_map(|output| {
        output.rows.iter().map(|row| -> Row {
            let apart = row.relative_l2.map_or_else(|| "—".to_owned(), |apart| RELATIVE_L2.written(apart));
            [
                output.name.clone(),
                output.reference.clone(),
                row.variant.clone(),
                apart,
                row.verdict.decision.word().to_owned(),
            ]
            .into_iter()
            .collect()
        })
    });
    let rows: Vec<Row> = rows.collect();
    if rows.is_empty() {
        return None;
    }
    let table = Table::new(["Output", "Reference", "Variant", "Relative L2", "Verdict"], rows);
    Some(Content::titled("Outputs beside the main one", vec![Block::Table(table)]))
}
