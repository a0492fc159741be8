//! The script's data for the page of a pair: its charts, its error at each token, and the predictions of both sides at the
//! positions that differ most.

use std::collections::HashMap;

use compare::details::{PairDetails, Prediction, UlpHistogram};
use compare::metrics::PairMetrics;
use compare::units::count;
use serde_json::{Value, json};

use super::charts::{Look, Series, class_label, errors, ulps};
use super::number;
use crate::judge::details::CaseDetails;
use crate::judge::view::CaseView;

/// The text of the input token at each position of the matrix, its id if the text is unknown, or `null` if both are
/// unknown. Empty if the case's inputs could not be read.
pub(super) fn tokens(case: &CaseView, known: &CaseDetails) -> Vec<Value> {
    let Some(inputs) = &known.inputs else { return Vec::new() };
    let token = |at: &compare::metrics::PositionIndex| {
        let index = at.row * inputs.seq + at.position;
        match (inputs.texts.get(index), inputs.input_ids.get(index)) {
            (Some(text), _) if !text.is_empty() => json!(text),
            (_, id) => json!(id),
        }
    };
    case.matrix.positions.iter().map(token).collect()
}

/// The data of one pair, as JSON; null if the pair was not compared.
pub(super) fn pair(case: &CaseView, known: &CaseDetails, details: &PairDetails) -> Value {
    let names = &case.matrix.names;
    let (a, b) = (details.a, details.b);
    let Some(pair) = case.matrix.compared(a, b) else { return Value::Null };
    let length = case.matrix.positions.len();
    let along = |pair: &PairMetrics| {
        let mut values = vec![None; length];
        for position in &pair.per_position {
            values[position.position as usize] = Some(position.relative_l2);
        }
        values
    };
    let own = along(pair);
    let against_float64 = |variant: usize| -> Vec<Option<f64>> {
        let accuracy = case.accuracies.iter().find(|accuracy| accuracy.variant == variant);
        let pair = accuracy.and_then(|accuracy| case.matrix.compared(variant, accuracy.oracle));
        pair.map(along).unwrap_or_default()
    };
    let series = [
        Series { values: own.clone(), look: Look::Main },
        Series { values: against_float64(a), look: Look::Second },
        Series { values: against_float64(b), look: Look::Third },
    ];
    let keys = ["difference of the two", "first against float64", "second against float64"];
    let shown = series.iter().zip(keys).filter(|(one, _)| !one.values.is_empty());
    let keys: Vec<&str> = shown.map(|(_, key)| key).collect();
    let rows = rows(case);
    let what = if rows.len() > 1 { "rows of the batch, token by token" } else { "token" };
    let spelled = spelled(known);
    let predictions = |side: &[Prediction]| -> Vec<Value> {
        side.iter()
            .map(|found| {
                let text = spelled.get(&i64::from(found.token));
                json!([found.token, text, number(found.logit), number(found.probability)])
            })
            .collect()
    };
    let place = |at| case.matrix.positions.iter().position(|known| *known == at);
    let worst = details.worst.iter().map(|worst| {
        json!({
            "position": place(worst.at),
            "error": number(worst.relative_l2),
            "a": predictions(&worst.top[0]),
            "b": predictions(&worst.top[1]),
        })
    });
    json!({
        "a": names[a],
        "b": names[b],
        "chart": errors(&series, &rows, None, what),
        "keys": keys,
        "ulps": ulps(&details.ulps),
        "sentence": sentence(&details.ulps),
        "errors": own.iter().map(|value| value.map_or(Value::Null, number)).collect::<Vec<_>>(),
        "worst": worst.collect::<Vec<_>>(),
    })
}

/// The index in the matrix's positions at which each row of the batch begins, with the row's label.
fn rows(case: &CaseView) -> Vec<(usize, String)> {
    let positions = case.matrix.positions.iter().enumerate();
    let mut rows: Vec<(usize, String)> = Vec::new();
    let mut last = None;
    for (index, at) in positions {
        if last != Some(at.row) {
            rows.push((index, format!("row {}", at.row)));
            last = Some(at.row);
        }
    }
    rows
}

/// The known texts of token ids, from the inputs and from the predicted tokens.
fn spelled(known: &CaseDetails) -> HashMap<i64, &str> {
    let inputs = known.inputs.iter();
    let inputs = inputs.flat_map(|inputs| inputs.input_ids.iter().copied().zip(&inputs.texts));
    let predicted = known.predicted.iter().map(|(id, text)| (i64::from(*id), text));
    inputs
        .chain(predicted)
        .filter(|(_, text)| !text.is_empty())
        .map(|(id, text)| (id, text.as_str()))
        .collect()
}

/// Sentence about a histogram: `62.1 % of 524288 logits are equal and 99.0 % within 3 ULP of f32; …`.
fn sentence(histogram: &UlpHistogram) -> String {
    let all: u64 = histogram.counts.iter().sum();
    let nan = match histogram.not_a_number {
        0 => String::new(),
        found => format!("; {found} logits are NaN on a side and are not counted"),
    };
    if all == 0 {
        return format!("no logit is a number on both sides{nan}");
    }
    let share = |classes: usize| {
        let within: u64 = histogram.counts.iter().take(classes).sum();
        100.0 * within as f64 / all as f64
    };
    let some = if histogram.positions < histogram.of {
        format!(" at {} of {}", histogram.positions, count(histogram.of, "position"))
    } else {
        String::new()
    };
    let largest = class_label(histogram.counts.len().saturating_sub(1));
    format!(
        "{:.1} % of {all} logits{some} are equal and {:.1} % within 3 ULP of {}; the largest distance is {largest} ULP{nan}",
        share(1),
        share(3),
        histogram.dtype.name()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_of_a_histogram_reports_shares_and_nan_logits() {
        let histogram = UlpHistogram {
            dtype: compare::Dtype::F32,
            counts: vec![5, 3, 1, 0, 1],
            not_a_number: 2,
            positions: 1,
            of: 4,
        };
        assert_eq!(
            sentence(&histogram),
            "50.0 % of 10 logits at 1 of 4 positions are equal and 90.0 % within 3 ULP of f32; the largest distance is 8–15 ULP; 2 logits are NaN on a side and are not counted"
        );
        let nothing = UlpHistogram { counts: vec![], ..histogram };
        assert!(sentence(&nothing).starts_with("no logit is a number on both sides; 2 logits"));
    }
}
