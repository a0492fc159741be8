//! The first diverging module of each pair that was localised.

use crate::judge::view::CaseView;
use crate::report::document::{Block, Content, Entry, Item, Medium, Span};
use crate::results::localized::Localized;

pub(super) fn content(case: &CaseView, medium: Medium) -> Option<Content> {
    if case.localized.is_empty() {
        return None;
    }
    if medium == Medium::Terminal {
        let entry = |found: &Localized| Entry {
            heads: vec![vec![Span::Plain(format!("first divergence  {} / {}", found.a, found.b))]],
            wraps: false,
            text: found.sentence.clone(),
        };
        return Some(Content::untitled(vec![Block::Entries(case.localized.iter().map(entry).collect())]));
    }
    let item = |found: &Localized| Item {
        text: vec![
            Span::Strong(format!("{} / {}", found.a, found.b)),
            Span::Plain(format!(": {}.", found.sentence)),
        ],
        below: Some(format!("({})", found.effort())),
        items: found.notes.clone(),
    };
    let list = Block::List(case.localized.iter().map(item).collect());
    Some(Content::titled("First divergence", vec![list]))
}
