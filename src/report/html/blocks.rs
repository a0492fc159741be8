//! The blocks of a document as HTML.

use super::table::table;
use super::{Limits, class, escape, put};
use crate::report::document::{Block, Content, Entry, Item, Span};

/// A section with its heading.
pub(super) fn section(page: &mut String, content: &Content, limits: Limits) {
    // The script hides this section and shows its interactive matrix instead.
    let has_square = content.blocks.iter().any(|block| matches!(block, Block::Table(one) if one.is_square));
    if has_square {
        put(page, "<div class=\"square\">\n");
    }
    blocks(page, content, limits);
    if has_square {
        put(page, "</div>\n");
    }
}

fn blocks(page: &mut String, content: &Content, limits: Limits) {
    if let Some(title) = &content.title {
        put(page, &format!("<h3>{}</h3>\n", escape(title)));
    }
    for block in &content.blocks {
        match block {
            Block::Heading(title) => put(page, &format!("<h4>{}</h4>\n", escape(title))),
            Block::Text(spans) => put(page, &format!("<p>{}</p>\n", inline(spans))),
            Block::List(items) => {
                put(page, "<ul>\n");
                for item in items {
                    list_item(page, item);
                }
                put(page, "</ul>\n");
            }
            Block::Table(one) => table(page, one, limits),
            Block::Fitting(tables) => {
                if let Some(one) = tables.first() {
                    table(page, one, limits);
                }
            }
            Block::Entries(entries) => {
                put(page, "<ul>\n");
                for entry in entries {
                    list_entry(page, entry);
                }
                put(page, "</ul>\n");
            }
            Block::Verbatim { title, text } => put(
                page,
                &format!(
                    "<details open><summary>{}</summary><pre>{}</pre></details>\n",
                    escape(title),
                    escape(text)
                ),
            ),
            Block::Gap | Block::Apart => {}
        }
    }
}

fn inline(spans: &[Span]) -> String {
    let one = |span: &Span| match span {
        Span::Plain(text) => escape(text),
        Span::Strong(text) => format!("<b>{}</b>", escape(text)),
        Span::Toned(text, tone) => format!("<b class=\"{}\">{}</b>", class(*tone), escape(text)),
    };
    spans.iter().map(one).collect()
}

fn list_item(page: &mut String, item: &Item) {
    put(page, &format!("<li>{}", inline(&item.text)));
    if let Some(below) = &item.below {
        put(page, &format!(" {}", escape(below)));
    }
    if !item.items.is_empty() {
        put(page, "<ul>");
        for item in &item.items {
            put(page, &format!("<li>{}</li>", escape(item)));
        }
        put(page, "</ul>");
    }
    put(page, "</li>\n");
}

fn list_entry(page: &mut String, entry: &Entry) {
    let heads: Vec<String> = entry.heads.iter().map(|head| inline(head)).collect();
    put(page, &format!("<li>{}: {}</li>\n", heads.join(", "), escape(&entry.text)));
}
