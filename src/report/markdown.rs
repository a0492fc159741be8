//! `summary.md`: every section as Markdown.

use std::borrow::Cow;
use std::fmt::Write;

use super::document::{Block, Content, Entry, Item, Medium, Row, Span, Table};
use super::sections::{Part, document};
use super::{Report, Source};

/// The summary for human readers.
#[derive(Clone, Copy, Debug)]
pub struct Markdown;

/// Lines of a failed cell's log that the summary shows; worker.log has all.
const LOG_LINES: usize = 20;

impl Report for Markdown {
    fn file_name(&self) -> &'static str {
        "summary.md"
    }

    fn render(&self, source: &Source<'_>) -> String {
        let mut text = format!("# tfcheck {}\n", source.run.id);
        for part in document(source, Medium::Summary) {
            match part {
                Part::Run(content) => section(&mut text, "##", &content),
                Part::Case(case, contents) => {
                    paragraph(&mut text, &format!("## {}", case.name));
                    let (checkpoint, inputs) = (plain(&case.checkpoint), plain(&case.inputs));
                    paragraph(&mut text, &format!("Checkpoint {checkpoint}; inputs {inputs}."));
                    for content in &contents {
                        section(&mut text, "###", content);
                    }
                }
            }
        }
        text
    }
}

/// Renders a section under a heading of `level`, with an empty line before each block.
pub(super) fn section(text: &mut String, level: &str, content: &Content) {
    if let Some(title) = &content.title {
        paragraph(text, &format!("{level} {title}"));
    }
    for block in &content.blocks {
        match block {
            Block::Heading(title) => paragraph(text, &format!("### {title}")),
            Block::Text(spans) => paragraph(text, &inline(spans)),
            Block::List(items) => {
                text.push('\n');
                for item in items {
                    list_item(text, item);
                }
            }
            Block::Table(one) => {
                text.push('\n');
                table(text, one);
            }
            Block::Fitting(tables) => {
                if let Some(one) = tables.first() {
                    text.push('\n');
                    table(text, one);
                }
            }
            Block::Entries(entries) => {
                text.push('\n');
                for entry in entries {
                    list_entry(text, entry);
                }
            }
            Block::Verbatim { text: log, .. } => {
                let lines: Vec<&str> = log.lines().collect();
                let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
                // The fence is longer than any fence in the log, so the log cannot close it.
                paragraph(text, &format!("`````text\n{}\n`````", tail.join("\n")));
            }
            Block::Gap | Block::Apart => {}
        }
    }
}

pub(super) fn paragraph(text: &mut String, content: &str) {
    text.push('\n');
    line(text, content);
}

fn inline(spans: &[Span]) -> String {
    let one = |span: &Span| match span {
        Span::Plain(text) | Span::Toned(text, _) => plain(text).into_owned(),
        Span::Strong(text) => format!("**{}**", plain(text)),
    };
    spans.iter().map(one).collect()
}

/// Text in which no `<` begins an HTML tag: Markdown passes tags on, also those of a worker's message. Code between backticks
/// stays as it is; where backticks are not in pairs, apostrophes replace them, so that no text decides how another one is read.
pub(super) fn plain(text: &str) -> Cow<'_, str> {
    let begins_tag = |rest: &str| rest.starts_with(|c: char| c.is_ascii_alphabetic() || "/!?".contains(c));
    let is_paired = text.matches('`').count().is_multiple_of(2)
        && !["``", "\\`", "\n"].iter().any(|part| text.contains(part));
    let is_paired = is_paired || !text.contains('`');
    if is_paired && !text.match_indices('<').any(|(at, _)| begins_tag(&text[at + 1..])) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    let mut is_code = false;
    for (at, c) in text.char_indices() {
        match c {
            '`' if is_paired => {
                is_code = !is_code;
                escaped.push(c);
            }
            '`' => escaped.push('\''),
            '<' if !is_code && begins_tag(&text[at + 1..]) => escaped.push_str("&lt;"),
            _ => escaped.push(c),
        }
    }
    Cow::Owned(escaped)
}

fn list_item(text: &mut String, item: &Item) {
    line(text, &format!("- {}", inline(&item.text)));
    if let Some(below) = &item.below {
        line(text, &format!("  {}", plain(below)));
    }
    for item in &item.items {
        line(text, &format!("  - {}", plain(item)));
    }
}

fn list_entry(text: &mut String, entry: &Entry) {
    for head in &entry.heads {
        line(text, &format!("- {}", inline(head).trim()));
    }
    line(text, &format!("  {}", plain(&entry.text)));
}

/// A pipe table, padded so that the source reads as a table too. A short row is completed with dashes.
fn table(text: &mut String, table: &Table) {
    let clean = |cell: &str| plain(cell).replace('|', "\\|").replace(['\n', '\r'], " ");
    let header: Vec<String> = table.columns.iter().map(|column| clean(&column.title)).collect();
    let row = |row: &Row| {
        let mut row: Vec<String> = row.cells.iter().map(|cell| clean(&cell.text)).collect();
        row.resize(header.len(), "—".to_owned());
        row
    };
    let rows: Vec<Vec<String>> = table.rows.iter().map(row).collect();
    // Reasons and evidence may be long; they do not widen the other rows.
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count()).filter(|&width| width <= 40);
        cells.chain([header[column].chars().count(), 3]).max().unwrap_or(3)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut write = |cells: &[String]| {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        line(text, &format!("| {} |", padded.join(" | ")));
    };
    write(&header);
    write(&widths.iter().map(|&width| "-".repeat(width)).collect::<Vec<_>>());
    for row in &rows {
        write(row);
    }
}

fn line(text: &mut String, content: &str) {
    writeln!(text, "{content}").expect("a String takes every write");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_text_holds_no_tag() {
        assert_eq!(plain("a < b, 1<2"), "a < b, 1<2");
        assert_eq!(plain("<script>x</script>"), "&lt;script>x&lt;/script>");
        assert_eq!(plain("\\<b>"), "\\&lt;b>");
        // A tag in code is text, unless the backticks are no pair.
        assert_eq!(plain("the token `<s>`, <b>"), "the token `<s>`, &lt;b>");
        assert_eq!(plain("a ` b"), "a ' b");
        assert_eq!(plain("` a `` <b> ```"), "' a '' &lt;b> '''");
    }
}
