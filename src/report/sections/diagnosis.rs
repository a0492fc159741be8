//! What each variant that was diagnosed computes instead.

use crate::judge::view::CaseView;
use crate::report::document::{Block, Content, Entry, Item, Medium, Span};
use crate::results::diagnosed::Diagnosed;

pub(super) fn content(case: &CaseView, medium: Medium) -> Option<Content> {
    if case.diagnosed.is_empty() {
        return None;
    }
    if medium == Medium::Terminal {
        let entry = |found: &Diagnosed| Entry {
            heads: vec![vec![Span::Plain(format!("diagnosis  {} / {}", found.trusted, found.suspect))]],
            wraps: false,
            text: found.sentence.clone(),
        };
        return Some(Content::untitled(vec![Block::Entries(case.diagnosed.iter().map(entry).collect())]));
    }
    let item = |found: &Diagnosed| Item {
        text: vec![
            Span::Strong(format!("{} / {}", found.trusted, found.suspect)),
            Span::Plain(format!(": {}.", found.sentence)),
        ],
        below: Some(format!("({})", found.effort())),
        items: found.notes.clone(),
    };
    let list = Block::List(case.diagnosed.iter().map(item).collect());
    Some(Content::titled("Diagnosis", vec![list]))
}
