//! `report.html`: one self-contained file that makes no network requests and has a light and a dark scheme.
//!
//! The page holds the content of the summary as text. Its inline script, which the content security policy allows by its
//! SHA-256 digest, adds the matrix by any metric and a page for each pair. The script's data is compressed in the page.

mod blocks;
mod case;
mod chart;
mod charts;
mod grid;
mod pack;
mod pairs;
mod profile;
mod table;

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rayon::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::document::{Medium, Tone};
use super::sections::{Part, document};
use super::{Report, Source};
use crate::judge::details::CaseDetails;
use crate::judge::view::RunView;
use blocks::section;
use case::CasePage;
pub(super) use grid::{tone, words};
use pack::Budget;

/// Renders `report.html`.
#[derive(Clone, Copy, Debug)]
pub struct Html;

const STYLE: &str = include_str!("html.css");
/// The scripts in dependency order: each uses functions of the earlier ones.
const SCRIPTS: [&str; 4] = [
    include_str!("html/format.js"),
    include_str!("html/matrix.js"),
    include_str!("html/pair.js"),
    include_str!("html/page.js"),
];
/// With more pairs than this, the page leaves out the text that grows with the number of pairs.
const MANY_PAIRS: usize = 1500;

/// Limits on the size of a page.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Whether the run has more than [`MANY_PAIRS`] pairs; the text then leaves out matrices and most rows about pairs.
    is_large: bool,
}

impl Report for Html {
    fn file_name(&self) -> &'static str {
        "report.html"
    }

    fn render(&self, source: &Source<'_>) -> String {
        let Source { run, found, details, .. } = *source;
        let pairs: usize = run.cases.iter().map(|case| case.verdicts.len()).sum();
        let limits = Limits { is_large: pairs > MANY_PAIRS };
        let nothing = CaseDetails::default();
        let path = if details.run.is_empty() { &run.id } else { &details.run };
        let pages: Vec<CasePage> = run
            .cases
            .par_iter()
            .enumerate()
            .map(|(index, case)| {
                let known = details.cases.get(index).unwrap_or(&nothing);
                CasePage::new(case, &found.cases[index], known, path, limits)
            })
            .collect();
        let script = script();
        let mut page = head(&format!("tfcheck {}", run.id), Some(&script));
        put(
            &mut page,
            &format!("<header>\n<h1>tfcheck <span class=\"id\">{}</span></h1>\n", escape(&run.id)),
        );
        tally(&mut page, run);
        put(&mut page, "</header>\n");
        put(
            &mut page,
            "<noscript><p>Without scripts this page has the text of all sections; the matrices by metric and the pages of single pairs need its script.</p></noscript>\n",
        );
        grid::grid(&mut page, run, found);
        let is_alone = pages.len() == 1;
        let mut texts = pages.iter();
        let mut has_cases = false;
        for part in document(source, Medium::Page) {
            match part {
                Part::Run(content) => {
                    if std::mem::take(&mut has_cases) {
                        put(&mut page, "</section>\n");
                    }
                    put(&mut page, "<section class=\"part\">\n");
                    section(&mut page, &content, limits);
                    put(&mut page, "</section>\n");
                }
                Part::Case(_, contents) => {
                    if !std::mem::replace(&mut has_cases, true) {
                        put(&mut page, "<section id=\"cases\">\n<h2>Cases</h2>\n");
                    }
                    let Some(of_case) = texts.next() else { continue };
                    of_case.text(&mut page, &contents, is_alone);
                }
            }
        }
        if has_cases {
            put(&mut page, "</section>\n");
        }
        put(&mut page, "</main>\n");
        let budget = Budget::after(page.len() + script.len());
        pack::put(&mut page, &pages, path, budget);
        put(&mut page, &format!("<script>{script}</script>\n</body>\n</html>\n"));
        page
    }
}

/// The page up to its content. The policy forbids loading anything and running any script except `script`.
pub(super) fn head(title: &str, script: Option<&str>) -> String {
    let digest = script.map(|script| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(script))));
    let policy = format!(
        "default-src 'none'; style-src 'unsafe-inline'; script-src {}; base-uri 'none'; form-action 'none'",
        digest.as_deref().unwrap_or("'none'")
    );
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"referrer\" content=\"no-referrer\">\n<title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n",
        escape(title)
    )
}

/// The page's script: strict mode and all of [`SCRIPTS`].
fn script() -> String {
    format!("\"use strict\";\n{}", SCRIPTS.join("\n"))
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
        (tally.not_started, "cells not started", Tone::Unknown),
    ];
    put(page, "<ul class=\"tally\">\n");
    for (count, word, tone) in counts.into_iter().filter(|(count, ..)| *count > 0) {
        put(page, &format!("<li class=\"{}\"><b>{count}</b> {word}</li>\n", class(tone)));
    }
    put(page, "</ul>\n");
}

/// The CSS class of a tone.
pub(super) fn class(tone: Tone) -> &'static str {
    match tone {
        Tone::Good => "good",
        Tone::Warn => "warn",
        Tone::Bad => "bad",
        Tone::Unknown => "none",
    }
}

/// A number rounded to four significant digits, as JSON; a string such as `NaN` or `inf` if it is not finite.
fn number(value: f64) -> Value {
    let rounded = format!("{value:.3e}").parse().ok().and_then(serde_json::Number::from_f64);
    rounded.map_or_else(|| value.to_string().into(), Value::Number)
}

/// Escapes text for HTML content and attribute values; control characters become visible.
pub(super) fn escape(text: &str) -> String {
    let text = bounds::lines(text, u64::MAX);
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Escapes text as a value in a URL fragment, for example in `#case=…`.
pub(super) fn fragment(text: &str) -> String {
    let mut fragment = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            fragment.push(char::from(byte));
        } else {
            write!(fragment, "%{byte:02X}").expect("a String takes every write");
        }
    }
    fragment
}

pub(super) fn put(page: &mut String, text: &str) {
    page.write_str(text).expect("a String takes every write");
}
