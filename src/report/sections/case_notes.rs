//! Notes that the variants reported.

use crate::execute::cell::Outcome;
use crate::judge::view::CaseView;
use crate::report::document::{Block, Content, Medium};

pub(super) fn content(case: &CaseView, _: Medium) -> Option<Content> {
    let mut notes = Vec::new();
    for cell in &case.cells {
        if let Outcome::Completed(completed) = &cell.outcome {
            notes.extend(completed.notes.iter().map(|note| format!("{}: {note}", cell.name)));
        }
    }
    (!notes.is_empty()).then(|| Content::titled("Notes of the variants", vec![Block::list(notes)]))
}
