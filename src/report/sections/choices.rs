//! Probabilities of the tokens that the config gives.

use crate::judge::view::CaseView;
use crate::report::document::{Block, Content, Medium, Row, Table};

pub(super) fn content(case: &CaseView, _: Medium) -> Option<Content> {
    let choices = case.choices.as_ref()?;
    let columns = ["Variant", "Row"].into_iter().chain(choices.tokens.iter().map(String::as_str));
    let rows = choices.rows.iter().map(|row| -> Row {
        let probability = |p: &Option<f64>| p.map_or_else(|| "—".to_owned(), |p| format!("{p:.6}"));
        let start = [row.variant.clone(), row.row.to_string()];
        start.into_iter().chain(row.probabilities.iter().map(probability)).collect()
    });
    let text = Block::text("Softmax probability at the last real position.");
    Some(Content::titled("Choices", vec![text, Block::Table(Table::new(columns, rows))]))
}
