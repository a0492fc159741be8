//! Tables of a page: plain tables, heat maps, numbers with bars, folded rows.

use super::{Limits, class, escape, put};
use crate::report::document::{Bar, Cell, Column, Row, Table};
use crate::report::sections::heat;

/// Rows that a table about pairs lists on a large page ([`Limits::is_large`]).
const MOST_OPEN: usize = 20;
/// Where a reader finds the rows that a large page leaves out.
const ELSEWHERE: &str =
    "the matrix above has their numbers and verdicts, summary.md in the run's folder lists them";

/// Writes a table: the open rows, then the folded rows under their summaries; writes nothing without rows. A large page
/// ([`Limits::is_large`]) leaves out matrices and rows beyond [`MOST_OPEN`] and tells the reader which file lists them.
pub(super) fn table(page: &mut String, table: &Table, limits: Limits) {
    if limits.is_large && table.is_square {
        put(
            page,
            "<p class=\"omitted\">This page has too many pairs to list this matrix as text; matrix.csv in the run's folder lists it.</p>\n",
        );
        return;
    }
    let mut open: Vec<&Row> = table.rows.iter().filter(|row| row.folded.is_none()).collect();
    let left_out = open.len().saturating_sub(MOST_OPEN);
    let has_folds = open.len() < table.rows.len() || table.folded.is_some();
    if limits.is_large && has_folds && left_out > 0 {
        open.truncate(MOST_OPEN);
    }
    if !open.is_empty() {
        match table.folded {
            Some(summary) => folded(page, table, summary, &open, limits),
            None => of_rows(page, table, &open),
        }
    }
    if limits.is_large && has_folds && left_out > 0 {
        put(page, &format!("<p class=\"omitted\">{left_out} more: {ELSEWHERE}.</p>\n"));
    }
    let mut summaries: Vec<&'static str> = table.rows.iter().filter_map(|row| row.folded).collect();
    summaries.sort_unstable();
    summaries.dedup();
    for summary in summaries {
        let rows: Vec<&Row> = table.rows.iter().filter(|row| row.folded == Some(summary)).collect();
        folded(page, table, summary, &rows, limits);
    }
    if table.rows.iter().flat_map(|row| &row.cells).any(|cell| cell.heat.is_some()) {
        legend(page);
    }
}

fn folded(page: &mut String, table: &Table, summary: &str, rows: &[&Row], limits: Limits) {
    if limits.is_large {
        put(page, &format!("<p class=\"omitted\">{} {summary}: {ELSEWHERE}.</p>\n", rows.len()));
        return;
    }
    put(page, &format!("<details><summary>{} {summary}</summary>\n", rows.len()));
    of_rows(page, table, rows);
    put(page, "</details>\n");
}

fn of_rows(page: &mut String, table: &Table, rows: &[&Row]) {
    let bar = (0..table.columns.len())
        .find(|&column| rows.iter().any(|row| row.cells.get(column).is_some_and(|cell| cell.bar.is_some())));
    let kind = match bar {
        Some(_) => " class=\"bars\"",
        None if table.is_square => " class=\"heat\"",
        None => "",
    };
    put(page, &format!("<div class=\"scroll\"><table{kind}>\n<thead><tr>"));
    for (index, column) in table.columns.iter().enumerate() {
        if bar == Some(index) {
            put(page, "<th class=\"bar\"></th>");
        }
        put(page, &heading(table, index, column));
    }
    put(page, "</tr></thead>\n<tbody>\n");
    let has_labels = table.is_square || bar.is_some();
    for (number, row) in rows.iter().enumerate() {
        put(page, "<tr>");
        let short = row.cells.len() < table.columns.len();
        for (index, cell) in row.cells.iter().enumerate() {
            if index == 0 && has_labels {
                let number =
                    if table.is_square { format!("<span>{}</span> ", number + 1) } else { String::new() };
                put(page, &format!("<th scope=\"row\">{number}{}</th>", escape(&cell.text)));
            } else if short && index + 1 == row.cells.len() {
                let span = table.columns.len() - index + usize::from(bar.is_some());
                put(
                    page,
                    &format!("<td class=\"absent bad\" colspan=\"{span}\">{}</td>", escape(&cell.text)),
                );
            } else {
                if bar == Some(index) {
                    put(page, &drawn(cell.bar));
                }
                put(page, &data(cell));
            }
        }
        put(page, "</tr>\n");
    }
    put(page, "</tbody></table></div>\n");
}

/// A column's title, or its number if the rows have the same names.
fn heading(table: &Table, index: usize, column: &Column) -> String {
    if table.is_square && index > 0 {
        format!("<th scope=\"col\" title=\"{}\">{index}</th>", escape(&column.title))
    } else {
        format!("<th>{}</th>", escape(&column.title))
    }
}

fn data(cell: &Cell) -> String {
    let text = escape(&cell.text);
    let tone = cell.tone.map(class);
    let hover = match cell.hover.as_str() {
        "" => String::new(),
        hover => format!(" title=\"{}\"", escape(hover)),
    };
    if cell.is_absent {
        return format!("<td class=\"absent {}\"{hover}>{text}</td>", tone.unwrap_or_default());
    }
    match (cell.heat, tone) {
        (Some(heat), tone) => format!(
            "<td class=\"{}\" style=\"--heat:{:.0}%\"{hover}>{text}</td>",
            tone.unwrap_or_default(),
            100.0 * heat
        ),
        (None, Some(tone)) => format!("<td{hover}><b class=\"{tone}\">{text}</b></td>"),
        (None, None) => format!("<td{hover}>{text}</td>"),
    }
}

fn drawn(bar: Option<Bar>) -> String {
    let Some(Bar { length, interval: [low, high], tick }) = bar else {
        return "<td class=\"bar\"></td>".to_owned();
    };
    format!(
        "<td class=\"bar\"><div style=\"width:{:.2}%\"></div><i style=\"left:{:.2}%;width:{:.2}%\"></i><u style=\"left:{:.2}%\"></u></td>",
        100.0 * length,
        100.0 * low,
        100.0 * (high - low),
        100.0 * tick
    )
}

fn legend(page: &mut String) {
    put(page, "<p class=\"legend\">relative L2: ");
    for exponent in [-9, -7, -5, -3, -1] {
        let depth = 100.0 * heat(10_f64.powi(exponent));
        put(page, &format!("<span style=\"--heat:{depth:.0}%\">1e{exponent}</span>"));
    }
    put(
        page,
        " <i class=\"good\">same or identical</i> <i class=\"warn\">worse rounding</i> <i class=\"bad\">diverged or incomparable</i></p>\n",
    );
}
