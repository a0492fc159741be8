//! The scoreboard as Markdown.

use std::fmt::Write;

use reference::protocol::Positions;

use super::lines::{header, put};
use super::{CHECKOUT, Score, Scoreboard, page};
use crate::spec::variant::{Runner, dtype_name};

/// Counts first, then a row per checkpoint and inputs, then the reasons for cells without numbers.
pub(super) fn markdown(scoreboard: &Scoreboard) -> String {
    let mut reasons: Vec<&str> = Vec::new();
    let mut rows = String::new();
    for row in &scoreboard.rows {
        let scores = row
            .scores
            .iter()
            .map(|score| score.as_ref().map_or_else(String::new, |score| cell(score, &mut reasons)));
        let cells: Vec<String> =
            [row.checkpoint.clone(), row.inputs.clone()].into_iter().chain(scores).collect();
        put(&mut rows, &cells);
    }
    let mut text = format!(
        "# Scoreboard\n\nReference: transformers {}, eager attention; run `{}`. A verdict compares a variant with the \
         reference in the same dtype. The number is the variant's relative L2 against the reference in float64; \
         for bf16 the ratio in parentheses divides it by the reference's own error. The ratio of a classifier (two or \
         three numbers per sequence) is mostly chance. `last`: the port returns the logits of the last position only.\n\n",
        scoreboard.reference, scoreboard.run
    );
    counts(&mut text, scoreboard);
    text.push('\n');
    text.push_str(&page::markdown(scoreboard));
    text.push_str("\n## Checkpoints\n\n");
    header(&mut text, &["Checkpoint", "Inputs"], &scoreboard.variants);
    text.push_str(&rows);
    changes(&mut text, scoreboard);
    diagnoses(&mut text, scoreboard);
    if !reasons.is_empty() {
        text.push_str("\n## Without numbers\n\n");
        for (index, reason) in reasons.iter().enumerate() {
            let _ = writeln!(text, "{}. {reason}", index + 1);
        }
    }
    text
}

/// Where the verdicts on the other checkout's ports are not those on the ports that tfcheck was built with.
fn changes(text: &mut String, scoreboard: &Scoreboard) {
    let Some(checkout) = &scoreboard.checkout else { return };
    let _ = writeln!(
        text,
        "\n## What the checkout changes\n\n`{CHECKOUT}` has the ports of candle-transformers {checkout}.\n"
    );
    let mut rows: Vec<Vec<String>> = Vec::new();
    for row in &scoreboard.rows {
        for after in row.scores.iter().flatten().filter(|score| score.variant.version == CHECKOUT) {
            let is_before = |score: &&Score| {
                score.variant.runner == Runner::CandleTransformers
                    && score.variant.dtype == after.variant.dtype
            };
            let Some(before) = row.scores.iter().flatten().find(is_before) else { continue };
            if before.word != after.word {
                let place = [&row.checkpoint, &row.inputs].map(String::clone);
                let dtype = dtype_name(after.variant.dtype).to_owned();
                rows.push(place.into_iter().chain([dtype, brief(before), brief(after)]).collect());
            }
        }
    }
    if rows.is_empty() {
        text.push_str("Every verdict is the same as before.\n");
        return;
    }
    header(text, &["Checkpoint", "Inputs", "dtype", "Before", "After"], &[]);
    for row in &rows {
        put(text, row);
    }
}

/// The verdict, with its number if there is one; the reasons are in the other table.
fn brief(score: &Score) -> String {
    score.relative_l2.map_or_else(|| score.word.clone(), |relative| format!("{} {relative:.1e}", score.word))
}

/// What diverging variants compute instead: a row per checkpoint, inputs and sentence.
fn diagnoses(text: &mut String, scoreboard: &Scoreboard) {
    let mut rows: Vec<[String; 3]> = Vec::new();
    for row in &scoreboard.rows {
        for sentence in row.scores.iter().flatten().filter_map(|score| score.diagnosis.as_ref()) {
            let row = [row.checkpoint.clone(), row.inputs.clone(), sentence.clone()];
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
    }
    if rows.is_empty() {
        return;
    }
    text.push_str(
        "\n## What diverging variants compute instead\n\nA mistake is proven: the trusted side reproduces the logits within \
         rounding when it commits the mistake. Otherwise the table lists the parts of the model in which the two differ.\n\n",
    );
    header(text, &["Checkpoint", "Inputs", "Diagnosis"], &[]);
    for row in rows {
        put(text, &row);
    }
}

fn counts(text: &mut String, scoreboard: &Scoreboard) {
    let mut words: Vec<&str> = Vec::new();
    for score in scoreboard.rows.iter().flat_map(|row| row.scores.iter().flatten()) {
        if !words.contains(&score.word.as_str()) {
            words.push(&score.word);
        }
    }
    header(text, &["Verdict"], &scoreboard.variants);
    for word in words {
        let count = |variant: usize| {
            let scores = scoreboard.rows.iter().filter_map(|row| row.scores.get(variant)?.as_ref());
            scores.filter(|score| score.word == word).count().to_string()
        };
        let counts = (0..scoreboard.variants.len()).map(count);
        put(text, &std::iter::once(word.to_owned()).chain(counts).collect::<Vec<_>>());
    }
}

/// One score; a reason is printed as its number in the list below the table.
fn cell<'a>(score: &'a Score, reasons: &mut Vec<&'a str>) -> String {
    let Some(relative) = score.relative_l2 else {
        let number = reasons.iter().position(|reason| *reason == score.evidence).unwrap_or_else(|| {
            reasons.push(&score.evidence);
            reasons.len() - 1
        });
        return format!("{} ({})", score.word, number + 1);
    };
    let is_finding = !matches!(score.word.as_str(), "identical" | "same mathematics");
    let mut text = if is_finding {
        format!("**{}** {relative:.1e}", score.word)
    } else {
        format!("{} {relative:.1e}", score.word)
    };
    // Below bf16's rounding the ratio reflects chance in the order of summation.
    if let Some(own) = score.reference_relative_l2.filter(|own| *own > 1e-4) {
        let _ = write!(text, " ({:.2}×)", relative / own);
    }
    if let (true, Some(worst)) = (is_finding, score.worst) {
        let _ = write!(
            text,
            ", worst {:.1e} in row {}, position {}",
            worst.relative_l2, worst.row, worst.position
        );
    }
    if let (true, Some(module)) = (is_finding, &score.module) {
        let _ = write!(text, ", first at {module}");
    }
    if score.positions == Some(Positions::Last) {
        text.push_str(", last");
    }
    text
}
