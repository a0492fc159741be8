//! The tables of what variants computed: the matrix, the noise, the verdicts and their evidence.

use super::super::entry;
use super::{line, table};
use crate::judge::view::CaseView;
use compare::metric::{Group, L2, MAX_ABS, RELATIVE_L2, RMSE, columns};
use compare::metrics::Side;
use compare::repeat::times;

pub(super) fn matrices(text: &mut String, case: &CaseView) {
    let matrix = &case.matrix;
    let positions = matrix.positions.len();
    line(
        text,
        &format!("\n### Logit L2 Differences (N×N)\n\n‖row − column‖ over {positions} real positions.\n"),
    );
    square(text, case, |row, column| {
        if let Some(itself) = case.diagonal(row).filter(|_| row == column) {
            return itself;
        }
        entry(matrix, row, column, |pair| {
            let mark = if pair.last_positions_only { "†" } else { "" };
            format!("{}{mark}", L2.text(pair, Side::A))
        })
    });
    let last_only = (0..matrix.len())
        .any(|a| (0..=a).any(|b| matrix.compared(a, b).is_some_and(|pair| pair.last_positions_only)));
    if last_only {
        line(text, "\n† compared at the last position only, because one side has no other logits.");
    }
    noise(text, case);
    line(text, "\n### Relative L2 Differences (N×N)\n\n‖row − column‖ / ‖row‖: the row is the reference.\n");
    square(text, case, |row, column| entry(matrix, row, column, |pair| RELATIVE_L2.text(pair, Side::A)));
}

/// What the repetitions showed, and where there is noise, every pair in units of it.
pub(super) fn noise(text: &mut String, case: &CaseView) {
    let Some(said) = case.noise_said() else { return };
    line(
        text,
        &format!("\nThe diagonal shows the noise floor: each variant against its own repetitions; {said}."),
    );
    let count = case.matrix.len();
    if !(0..count).any(|a| (0..a).any(|b| case.multiple(a, b).is_some())) {
        return;
    }
    line(
        text,
        "\n### L2 Differences in Units of the Noise (N×N)\n\n‖row − column‖ divided by the larger self L2 of the two; — if neither variant has noise.\n",
    );
    square(text, case, |row, column| {
        case.multiple(row, column).map_or_else(|| "—".to_owned(), |multiple| format!("{}×", times(multiple)))
    });
}

/// A table of all variants by all variants.
fn square(text: &mut String, case: &CaseView, entry: impl Fn(usize, usize) -> String) {
    let names = &case.matrix.names;
    let header: Vec<&str> = std::iter::once("").chain(names.iter().map(String::as_str)).collect();
    let rows: Vec<Vec<String>> = names
        .iter()
        .enumerate()
        .map(|(row, name)| {
            let absent = case.cells.iter().find(|cell| cell.name == *name).map(|cell| cell.outcome.reason());
            let label = match absent.filter(|reason| !reason.is_empty()) {
                Some(reason) => format!("{name} ({reason})"),
                None => name.clone(),
            };
            std::iter::once(label).chain((0..names.len()).map(|column| entry(row, column))).collect()
        })
        .collect();
    table(text, &header, &rows);
}

pub(super) fn verdicts(text: &mut String, case: &CaseView) {
    line(text, "\n### Verdicts\n");
    let rows: Vec<Vec<String>> = case
        .verdicts
        .iter()
        .map(|verdict| {
            vec![
                verdict.a.clone(),
                verdict.b.clone(),
                verdict.decision.word().to_owned(),
                verdict.evidence.clone(),
            ]
        })
        .collect();
    table(text, &["A", "B", "Verdict", "Evidence"], &rows);
    distributions(text, case);
}

pub(super) fn first_divergence(text: &mut String, case: &CaseView) {
    if case.localized.is_empty() {
        return;
    }
    line(text, "\n### First divergence\n");
    for found in &case.localized {
        line(text, &format!("- **{} / {}**: {}.", found.a, found.b, found.sentence));
        line(text, &format!("  ({})", found.effort()));
        for note in &found.notes {
            line(text, &format!("  - {note}"));
        }
    }
}

pub(super) fn distributions(text: &mut String, case: &CaseView) {
    line(text, "\n### Metrics per pair\n");
    let (matrix, columns) = (&case.matrix, columns());
    let mut rows: Vec<Vec<String>> = Vec::new();
    for a in 0..matrix.len() {
        for b in a + 1..matrix.len() {
            let Some(pair) = matrix.compared(a, b) else {
                continue;
            };
            let numbers = columns.iter().map(|column| {
                let text = column.text(pair, Side::A, |metric, value| value.text(metric.format));
                text.unwrap_or_else(|| "—".to_owned())
            });
            rows.push([a, b].map(|side| matrix.names[side].clone()).into_iter().chain(numbers).collect());
        }
    }
    let header: Vec<&str> = ["A", "B"].into_iter().chain(columns.iter().map(Group::header)).collect();
    table(text, &header, &rows);
}

pub(super) fn accuracies(text: &mut String, case: &CaseView) {
    if case.accuracies.is_empty() {
        return;
    }
    line(text, "\n### Error against float64\n");
    let names = &case.matrix.names;
    let rows: Vec<Vec<String>> = case
        .accuracies
        .iter()
        .map(|accuracy| {
            vec![
                names[accuracy.variant].clone(),
                names[accuracy.oracle].clone(),
                RMSE.written(accuracy.rmse),
                RELATIVE_L2.written(accuracy.relative_l2),
                MAX_ABS.written(accuracy.max_abs),
            ]
        })
        .collect();
    table(text, &["Variant", "Oracle", "RMSE", "Relative L2", "Max abs"], &rows);
}

pub(super) fn choices(text: &mut String, case: &CaseView) {
    let Some(choices) = &case.choices else { return };
    line(text, "\n### Choices\n\nSoftmax probability at the last real position.\n");
    let header: Vec<&str> =
        ["Variant", "Row"].into_iter().chain(choices.tokens.iter().map(String::as_str)).collect();
    let rows: Vec<Vec<String>> = choices
        .rows
        .iter()
        .map(|row| {
            let probability = |p: &Option<f64>| p.map_or_else(|| "—".to_owned(), |p| format!("{p:.6}"));
            [row.variant.clone(), row.row.to_string()]
                .into_iter()
                .chain(row.probabilities.iter().map(probability))
                .collect()
        })
        .collect();
    table(text, &header, &rows);
}
