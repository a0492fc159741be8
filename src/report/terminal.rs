//! The summary on a terminal: short, aligned, in colour only if the output is a terminal.

use std::fmt::Write;

use console::{Alignment, Style, measure_text_width, pad_str, truncate_str};

use super::document::{Block, Content, Entry, Medium, Row, Span, Table, Tone};
use super::sections::{Part, document};
use super::wrap::wrap;
use super::{Report, Source};

/// Terminal width, in columns, below which nothing is truncated.
const NARROWEST: usize = 60;

/// The summary as text for a terminal.
#[derive(Clone, Copy, Debug)]
pub struct Terminal {
    /// Columns of the terminal.
    pub width: usize,
    /// Whether to colour.
    pub color: bool,
}

impl Report for Terminal {
    /// Terminal text is kept only in the log.
    fn file_name(&self) -> &'static str {
        "run.log"
    }

    fn render(&self, source: &Source<'_>) -> String {
        let terminal = Self { width: self.width.max(NARROWEST), ..*self };
        let mut text = String::new();
        for part in document(source, Medium::Terminal) {
            match part {
                Part::Run(content) => terminal.section(&mut text, &content, 0),
                Part::Case(case, contents) => {
                    let title = format!("{} · {} · {}", case.name, case.checkpoint, case.inputs);
                    terminal.line(&mut text, &terminal.paint(&Style::new().bold(), &title));
                    for content in &contents {
                        terminal.section(&mut text, content, 2);
                    }
                }
            }
        }
        let tally = source.run.tally();
        let cells = format!("{} failed, {} unsupported", tally.failed, tally.unsupported);
        text.push('\n');
        terminal.wrapped(&mut text, &format!("pairs: {}; cells: {cells}", tally.pairs()), 0);
        text
    }
}

impl Terminal {
    /// Renders a section whose paragraphs are indented by `indent` columns, or by 2 under a title.
    fn section(&self, text: &mut String, content: &Content, indent: usize) {
        let indent = match &content.title {
            Some(title) => {
                text.push('\n');
                self.line(text, &self.paint(&Style::new().bold(), title));
                2
            }
            None => indent,
        };
        for block in &content.blocks {
            match block {
                Block::Heading(title) => self.line(text, &format!("  {title}")),
                Block::Text(spans) => self.wrapped(text, &plain(spans), indent),
                Block::List(items) => {
                    for item in items {
                        self.wrapped(text, &format!("- {}", plain(&item.text)), indent);
                        for item in &item.items {
                            self.wrapped(text, &format!("- {item}"), 4);
                        }
                    }
                }
                Block::Table(table) => self.table(text, table),
                Block::Fitting(tables) => {
                    let fits = |table: &&Table| self.fits(&Self::cells(table));
                    if let Some(table) = tables.iter().find(fits).or(tables.last()) {
                        self.table(text, table);
                    }
                }
                Block::Entries(entries) => {
                    for entry in entries {
                        self.entry(text, entry);
                    }
                }
                Block::Verbatim { text: log, .. } => {
                    for part in log.lines() {
                        self.line(text, &format!("    {part}"));
                    }
                }
                Block::Gap => text.push('\n'),
                Block::Apart if !text.ends_with("\n\n") => text.push('\n'),
                Block::Apart => {}
            }
        }
    }

    fn entry(&self, text: &mut String, entry: &Entry) {
        for head in &entry.heads {
            if entry.wraps {
                for (index, part) in wrap(&plain(head), self.width - 4).iter().enumerate() {
                    self.line(text, &format!("{}{part}", if index == 0 { "  " } else { "    " }));
                }
            } else {
                let spans: String = head.iter().map(|span| self.span(span)).collect();
                self.line(text, &format!("  {spans}"));
            }
        }
        self.wrapped(text, &entry.text, 4);
    }

    fn span(&self, span: &Span) -> String {
        match span {
            Span::Plain(text) => text.clone(),
            Span::Strong(text) => self.paint(&Style::new().bold(), text),
            Span::Toned(text, tone) => {
                let style = match tone {
                    Tone::Good => Style::new().green(),
                    Tone::Warn | Tone::Unknown => Style::new().yellow(),
                    Tone::Bad => Style::new().red().bold(),
                };
                self.paint(&style, text)
            }
        }
    }

    /// The header and the rows; a square table numbers them.
    fn cells(table: &Table) -> Vec<Vec<String>> {
        let columns = table.columns.iter().enumerate();
        let header = columns.map(|(index, column)| match index {
            1.. if table.is_square => format!("[{index}]"),
            _ => column.title.clone(),
        });
        let rows = table.rows.iter().enumerate().map(|(row, Row { cells, .. })| {
            let cells = cells.iter().enumerate().map(|(index, cell)| match index {
                0 if table.is_square => format!("[{}] {}", row + 1, cell.hover),
                _ => cell.text.clone(),
            });
            cells.collect()
        });
        std::iter::once(header.collect()).chain(rows).collect()
    }

    fn fits(&self, rows: &[Vec<String>]) -> bool {
        widths(rows).iter().map(|width| width + 2).sum::<usize>() <= self.width
    }

    fn table(&self, text: &mut String, table: &Table) {
        let mut rows = Self::cells(table);
        // A row with fewer cells than columns ends in a reason, which does not widen its column.
        let mut reasons: Vec<(usize, String)> = Vec::new();
        for (index, row) in rows.iter_mut().enumerate().filter(|(_, row)| row.len() < table.columns.len()) {
            reasons.extend(row.pop().map(|reason| (index, reason)));
        }
        // Columns that a narrow terminal drops, lowest `need` first.
        let mut dropped: Vec<(u8, usize)> = Vec::new();
        let needs = table.columns.iter().enumerate();
        let mut needs: Vec<(u8, usize)> =
            needs.filter_map(|(index, column)| Some((column.need?, index))).collect();
        needs.sort_unstable();
        for need in needs {
            if self.fits(&rows) {
                break;
            }
            let column = need.1 - dropped.iter().filter(|other| other.1 < need.1).count();
            for row in rows.iter_mut().filter(|row| row.len() > column) {
                row.remove(column);
            }
            dropped.push(need);
        }
        let widths = widths(&rows);
        for (index, row) in rows.iter().enumerate() {
            match reasons.iter().find(|(at, _)| *at == index) {
                Some((_, reason)) => {
                    let names: Vec<_> = row
                        .iter()
                        .zip(&widths)
                        .map(|(name, &width)| pad_str(name, width, Alignment::Left, None))
                        .collect();
                    let reason = self.paint(&Style::new().red(), reason);
                    self.line(text, &format!("  {}  {reason}", names.join("  ")));
                }
                None => self.row(text, row, &widths, index == 0),
            }
        }
    }

    fn row(&self, text: &mut String, cells: &[String], widths: &[usize], is_header: bool) {
        let padded: Vec<String> = cells
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(column, (cell, &width))| {
                let side = if column == 0 { Alignment::Left } else { Alignment::Right };
                pad_str(cell, width, side, None).into_owned()
            })
            .collect();
        let line = format!("  {}", padded.join("  "));
        let line = truncate_str(line.trim_end(), self.width, "…");
        if is_header {
            self.line(text, &self.paint(&Style::new().dim(), &line));
        } else {
            self.line(text, &line);
        }
    }

    fn wrapped(&self, text: &mut String, content: &str, indent: usize) {
        for part in wrap(content, self.width - indent) {
            self.line(text, &format!("{:indent$}{part}", ""));
        }
    }

    fn paint(&self, style: &Style, text: &str) -> String {
        style.clone().force_styling(self.color).apply_to(text).to_string()
    }

    fn line(&self, text: &mut String, content: &str) {
        writeln!(text, "{}", truncate_str(content, self.width, "…")).expect("a String takes every write");
    }
}

fn plain(spans: &[Span]) -> String {
    let one = |span: &Span| match span {
        Span::Plain(text) | Span::Strong(text) | Span::Toned(text, _) => text.clone(),
    };
    spans.iter().map(one).collect()
}

fn widths(rows: &[Vec<String>]) -> Vec<usize> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    (0..columns)
        .map(|column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| measure_text_width(cell))
                .max()
                .unwrap_or(0)
        })
        .collect()
}
