//! The matrix of L2 differences between all variants; the diagonal compares a variant's own repetitions.

use super::verdicts::tone;
use crate::judge::view::CaseView;
use crate::report::document::{Block, Cell, Content, Medium, Row, Table, Tone};
use crate::report::entry;
use compare::matrix::{Matrix, PairOutcome};
use compare::metric::{L2, MAX_ABS, Metric, RELATIVE_L2};
use compare::metrics::{PairMetrics, Side};
use compare::repeat::times;

/// Variants of the largest matrix that the summary shows.
pub(super) const MOST_INLINE: usize = 16;

pub(super) fn content(case: &CaseView, medium: Medium) -> Option<Content> {
    let said = case.noise_said();
    if medium == Medium::Terminal {
        let mut blocks = brief(case)?;
        blocks.extend(said.map(Block::text));
        return Some(Content::untitled(blocks));
    }
    let is_page = medium == Medium::Page;
    if !is_page && case.matrix.len() > MOST_INLINE {
        let (variants, most) = (case.matrix.len(), MOST_INLINE);
        let mut blocks = vec![Block::text(format!(
            "{variants} variants are more than the {most} that a table shows: matrix.csv and report.html have the matrix."
        ))];
        blocks.extend(said.map(|said| Block::text(format!("Noise floor: {said}."))));
        return Some(Content::titled("Logit L2 Differences (N×N)", blocks));
    }
    let positions = case.matrix.positions.len();
    let colours = if is_page {
        " The colour is the relative L2 on a logarithmic scale, the bar below a number the verdict."
    } else {
        ""
    };
    let mut blocks = vec![
        Block::text(format!("‖row − column‖ over {positions} real positions.{colours}")),
        Block::Table(square(case, "", |row, column| {
            if is_page { page_cell(case, row, column) } else { Cell::from(number(case, row, column)) }
        })),
    ];
    if is_last_only(&case.matrix) {
        let text = "† compared at the last position only, because one side has no other logits.";
        blocks.push(Block::text(text));
    }
    if let Some(said) = said {
        blocks.push(Block::text(format!(
            "The diagonal shows the noise floor: each variant against its own repetitions; {said}."
        )));
    }
    Some(Content::titled("Logit L2 Differences (N×N)", blocks))
}

/// A square table with all variants as rows and as columns.
pub(super) fn square<C: Into<Cell>>(
    case: &CaseView,
    corner: &str,
    cell: impl Fn(usize, usize) -> C,
) -> Table {
    let names = &case.matrix.names;
    let rows = names.iter().enumerate().map(|(row, name)| -> Row {
        let absent = case.cells.iter().find(|cell| cell.name == *name).map(|cell| cell.outcome.reason());
        let label = match absent.filter(|reason| !reason.is_empty()) {
            Some(reason) => format!("{name} ({reason})"),
            None => name.clone(),
        };
        let cells = (0..names.len()).map(|column| cell(row, column).into());
        std::iter::once(Cell { hover: name.clone(), ..Cell::from(label) }).chain(cells).collect()
    });
    let columns = std::iter::once(corner).chain(names.iter().map(String::as_str));
    Table { is_square: true, ..Table::new(columns, rows) }
}

fn is_last_only(matrix: &Matrix) -> bool {
    (0..matrix.len())
        .any(|a| (0..=a).any(|b| matrix.compared(a, b).is_some_and(|pair| pair.last_positions_only)))
}

/// `0.000014†`, `bitwise`, `not run`.
fn number(case: &CaseView, row: usize, column: usize) -> String {
    if let Some(itself) = case.diagonal(row).filter(|_| row == column) {
        return itself;
    }
    entry(&case.matrix, row, column, |pair| format!("{}{}", L2.text(pair, Side::A), mark(pair)))
}

fn mark(pair: &PairMetrics) -> &'static str {
    if pair.last_positions_only { "†" } else { "" }
}

/// `" (2.9×)"`.
fn in_noise(case: &CaseView, row: usize, column: usize) -> String {
    case.multiple(row, column).map(|multiple| format!(" ({}×)", times(multiple))).unwrap_or_default()
}

/// A cell for HTML: L2 as its text, relative L2 as its colour intensity, the verdict as its mark.
fn page_cell(case: &CaseView, row: usize, column: usize) -> Cell {
    let names = &case.matrix.names;
    let title = format!("{} / {}", names[row], names[column]);
    match case.matrix.oriented(row, column) {
        PairOutcome::Compared(pair) => {
            let relative = pair.relative_l2(Side::A);
            let verdict = case.verdict(&names[row], &names[column]);
            let number = match case.diagonal(row).filter(|_| row == column) {
                Some(itself) => itself,
                None => L2.text(&pair, Side::A),
            };
            Cell {
                text: format!("{number}{}{}", in_noise(case, row, column), mark(&pair)),
                tone: Some(verdict.map_or(Tone::Unknown, |verdict| tone(&verdict.decision))),
                heat: Some(heat(relative)),
                hover: format!(
                    "{title}: relative L2 {}{}",
                    RELATIVE_L2.written(relative),
                    noise_title(case, row, column)
                ),
                ..Cell::default()
            }
        }
        PairOutcome::Incomparable(reason) => Cell {
            hover: format!("{title}: {reason}"),
            is_absent: true,
            ..Cell::toned("incomparable", Tone::Bad)
        },
        PairOutcome::NotRun(reason) => {
            Cell { hover: format!("{title}: {reason}"), is_absent: true, ..Cell::from("not run") }
        }
    }
}

/// Tooltip that compares a pair's difference with the noise.
fn noise_title(case: &CaseView, row: usize, column: usize) -> String {
    let (Some(a), Some(b)) = (case.noise(row), case.noise(column)) else { return String::new() };
    match case.multiple(row, column) {
        Some(multiple) => format!(", {} times the noise of its sides", times(multiple)),
        None if row == column && !a.is_bitwise() => ", its own repetitions differ".to_owned(),
        None if a.is_bitwise() && b.is_bitwise() => ", noise 0".to_owned(),
        None => String::new(),
    }
}

/// Colour intensity: 0 for a relative L2 of at most 1e-9, 1 for at least 1, logarithmic between; 1 for NaN.
pub(in crate::report) fn heat(relative: f64) -> f64 {
    if relative.is_nan() { 1.0 } else { ((relative.max(1e-300).log10() + 9.0) / 9.0).clamp(0.0, 1.0) }
}

/// The matrix if it fits the terminal, with the multiples of the noise if they fit too; otherwise each variant
/// against the baseline.
fn brief(case: &CaseView) -> Option<Vec<Block>> {
    let (matrix, names) = (&case.matrix, &case.matrix.names);
    let cell = |row: usize, column: usize, has_multiple: bool| {
        let multiple = if has_multiple { in_noise(case, row, column) } else { String::new() };
        let itself = case.diagonal(row).filter(|_| row == column);
        let l2 = |pair: &PairMetrics| L2.text(pair, Side::A);
        itself.unwrap_or_else(|| format!("{}{multiple}", entry(matrix, row, column, l2)))
    };
    let mut tables: Vec<Table> = [true, false]
        .map(|has_multiple| square(case, "L2", |row, column| cell(row, column, has_multiple)))
        .into();
    let baseline = case.baseline.as_ref().and_then(|name| names.iter().position(|other| other == name));
    let baseline = baseline.unwrap_or(0);
    let narrow = |metric: Metric, other: usize| {
        let number = |pair: &PairMetrics| {
            let value = (metric.get)(pair, Some(Side::A));
            value.map_or_else(|| "—".to_owned(), |value| value.narrow(metric.format))
        };
        entry(matrix, baseline, other, number)
    };
    let rows = (0..names.len()).filter(|&other| other != baseline).map(|other| -> Row {
        let numbers = [cell(baseline, other, true), narrow(RELATIVE_L2, other), narrow(MAX_ABS, other)];
        std::iter::once(names[other].clone()).chain(numbers).collect()
    });
    let columns = [&format!("against {}", names.get(baseline)?), "L2", "relative", "max abs"];
    tables.push(Table::new(columns, rows));
    Some(vec![Block::Gap, Block::Fitting(tables)])
}
