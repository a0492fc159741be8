//! Which variants compute the same function in each case, and each finding once.

use crate::judge::findings::{Finding, Findings, Mark, What};
use crate::judge::view::RunView;
use crate::report::document::{Block, Cell, Content, Medium, Row, Table, Tone};
use crate::report::finding::sentence;

/// A grid of variants × cases and the findings, ahead of the cases.
pub(super) fn of_several_cases(run: &RunView, found: &Findings, medium: Medium) -> Option<Content> {
    if run.cases.len() < 2 {
        return None;
    }
    if medium == Medium::Page {
        // The page begins with its own grid.
        return Some(Content::titled("Findings", vec![list(run, found)?]));
    }
    let legend = "Variants with the same letter in a case compute the same; A holds the reference. `~` marks a member that rounds worse, `!` a cell that failed, `-` one that is not supported, `·` one that was not started.";
    let mut blocks = vec![Block::Table(grid(run, found)), Block::text(legend)];
    blocks.extend(list(run, found));
    Some(Content::titled("Findings", blocks))
}

/// The findings of a run of one case; its groups have a table of their own.
pub(super) fn of_one_case(run: &RunView, found: &Findings, _: Medium) -> Option<Content> {
    let list = list(run, found).filter(|_| run.cases.len() == 1)?;
    Some(Content::titled("Findings", vec![list]))
}

fn list(run: &RunView, found: &Findings) -> Option<Block> {
    let told = found.findings.iter().map(|finding| told(finding, run));
    (!found.findings.is_empty()).then(|| Block::list(told))
}

/// A finding as text, with the sentences of its localisation and its diagnosis.
fn told(finding: &Finding, run: &RunView) -> String {
    let text = sentence(finding, run);
    match &finding.what {
        What::Diverges { localized, diagnosis, .. } => {
            let sentences = std::iter::once(&text).chain(localized).chain(diagnosis);
            sentences.map(String::as_str).collect::<Vec<_>>().join(". ")
        }
        _ => text,
    }
}

fn grid(run: &RunView, found: &Findings) -> Table {
    let rows = found.grid(run).into_iter().map(|(cell, marks)| -> Row {
        let cells = marks.into_iter().map(|mark| mark.map_or_else(Cell::default, sign));
        std::iter::once(Cell::from(cell.name.clone())).chain(cells).collect()
    });
    let columns = std::iter::once("Variant".to_owned()).chain(run.cases.iter().map(|case| case.name.clone()));
    Table::new(columns, rows.collect::<Vec<_>>())
}

fn sign(mark: &Mark) -> Cell {
    match mark {
        Mark::Member { letter, rounds_worse } => {
            let tone = match (letter.as_str(), rounds_worse) {
                ("A", false) => Tone::Good,
                ("A", true) => Tone::Warn,
                _ => Tone::Bad,
            };
            Cell::toned(mark.text(), tone)
        }
        Mark::Failed => Cell::toned(mark.text(), Tone::Bad),
        Mark::Reference | Mark::Unsupported | Mark::NotStarted => Cell::toned(mark.text(), Tone::Unknown),
    }
}
