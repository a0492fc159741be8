//! The differences relative to the norm of the row's logits.

use super::differences::{MOST_INLINE, square};
use crate::judge::view::CaseView;
use crate::report::document::{Block, Content, Medium};
use crate::report::entry;
use compare::metric::RELATIVE_L2;
use compare::metrics::Side;

pub(super) fn content(case: &CaseView, _: Medium) -> Option<Content> {
    if case.matrix.len() > MOST_INLINE {
        return None;
    }
    let table = square(case, "", |row, column| {
        entry(&case.matrix, row, column, |pair| RELATIVE_L2.text(pair, Side::A))
    });
    let text = Block::text("‖row − column‖ / ‖row‖: the row is the reference.");
    Some(Content::titled("Relative L2 Differences (N×N)", vec![text, Block::Table(table)]))
}
