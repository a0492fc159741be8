//! Notes on the whole run.

use crate::judge::gates::Judged;
use crate::judge::view::RunView;
use crate::report::document::{Block, Content, Medium};

pub(super) fn content(run: &RunView, _: &Judged, medium: Medium) -> Option<Content> {
    if run.notes.is_empty() {
        return None;
    }
    if medium == Medium::Terminal {
        let blocks = run.notes.iter().map(|note| Block::text(format!("note: {note}"))).collect();
        return Some(Content::untitled(blocks));
    }
    Some(Content::titled("Notes", vec![Block::list(run.notes.clone())]))
}
