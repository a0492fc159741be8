//! `report.html`: one self-contained file without scripts, with a light and a dark theme.

mod table;

use std::fmt::Write;

use super::Report;
use super::document::{Block, Content, Entry, Item, Medium, Span, Tone};
use super::sections::{Part, document};
use crate::judge::gates::Judged;
use crate::judge::view::RunView;
use table::table;

/// The report as a page.
#[derive(Clone, Copy, Debug)]
pub struct Html;

const STYLE: &str = include_str!("html.css");

impl Report for Html {
    fn file_name(&self) -> &'static str {
        "report.html"
    }

    fn render(&self, run: &RunView, judged: &Judged) -> String {
        let mut page = String::new();
        let id = escape(&run.id);
        put(&mut page, "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
        put(&mut page, "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
        put(
            &mut page,
            &format!("<title>tfcheck {id}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"),
        );
        put(&mut page, &format!("<h1>tfcheck <span class=\"id\">{id}</span></h1>\n"));
        tally(&mut page, run);
        for part in document(run, judged, Medium::Page) {
            match part {
                Part::Run(content) => section(&mut page, &content),
                Part::Case(case, contents) => {
                    put(&mut page, &format!("<section>\n<h2>{}</h2>\n", escape(&case.name)));
                    put(
                        &mut page,
                        &format!(
                            "<p class=\"about\">{} · {}</p>\n",
                            escape(&case.checkpoint),
                            escape(&case.inputs)
                        ),
                    );
                    for content in &contents {
                        section(&mut page, content);
                    }
                    put(&mut page, "</section>\n");
                }
            }
        }
        put(&mut page, "</main>\n</body>\n</html>\n");
        page
    }
}

fn tally(page: &mut String, run: &RunView) {
    let tally = run.tally();
    let counts = [
        (tally.identical, "identical", Tone::Good),
        (tally.same_mathematics, "same mathematics", Tone::Good),
        (tally.worse_rounding, "worse rounding", Tone::Warn),
        (tally.diverged, "diverged", Tone::Bad),
        (tally.incomparable, "incomparable", Tone::Bad),
        (tally.not_run, "pairs not run", Tone::Unknown),
        (tally.failed, "cells failed", Tone::Bad),
        (tally.unsupported, "cells unsupported", Tone::Unknown),
    ];
    put(page, "<ul class=\"tally\">\n");
    for (count, word, tone) in counts.into_iter().filter(|(count, ..)| *count > 0) {
        put(page, &format!("<li class=\"{}\"><b>{count}</b> {word}</li>\n", class(tone)));
    }
    put(page, "</ul>\n");
}

fn section(page: &mut String, content: &Content) {
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
            Block::Table(one) => table(page, one),
            Block::Fitting(tables) => {
                if let Some(one) = tables.first() {
                    table(page, one);
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

fn class(tone: Tone) -> &'static str {
    match tone {
        Tone::Good => "good",
        Tone::Warn => "warn",
        Tone::Bad => "bad",
        Tone::Unknown => "none",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn put(page: &mut String, text: &str) {
    page.write_str(text).expect("a String takes every write");
}
