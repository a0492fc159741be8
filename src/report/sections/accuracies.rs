//! Each variant's own error against float64.

use crate::judge::view::CaseView;
use crate::report::document::{Block, Content, Medium, Row, Table};
use compare::metric::{MAX_ABS, RELATIVE_L2, RMSE};

pub(super) fn content(case: &CaseView, _: Medium) -> Option<Content> {
    if case.accuracies.is_empty() {
        return None;
    }
    let names = &case.matrix.names;
    let rows = case.accuracies.iter().map(|accuracy| -> Row {
        [
            names[accuracy.variant].clone(),
            names[accuracy.oracle].clone(),
            RMSE.written(accuracy.rmse),
            RELATIVE_L2.written(accuracy.relative_l2),
            MAX_ABS.written(accuracy.max_abs),
        ]
        .into_iter()
        .collect()
    });
    let table = Table::new(["Variant", "Oracle", "RMSE", "Relative L2", "Max abs"], rows);
    Some(Content::titled("Error against float64", vec![Block::Table(table)]))
}
