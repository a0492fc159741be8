//! The matrix as a heat map, and the verdicts below it.

use super::{escape, put, table};
use crate::judge::view::CaseView;
use crate::results::localized::Localized;
use compare::matrix::PairOutcome;
use compare::metrics::Side;
use compare::repeat::times;
use compare::verdict::Decision;

/// L2 in figures, relative L2 as the depth of the colour, the verdict as the cell's mark.
pub(super) fn heat_map(page: &mut String, case: &CaseView) {
    let matrix = &case.matrix;
    put(
        page,
        "<h3>Logit L2 differences</h3>\n<p>‖row − column‖; the colour is the relative L2 on a logarithmic scale, the bar below a number the verdict; † is compared at last positions only.</p>\n",
    );
    put(page, "<div class=\"scroll\"><table class=\"heat\">\n<thead><tr><th></th>");
    for (index, name) in matrix.names.iter().enumerate() {
        put(page, &format!("<th scope=\"col\" title=\"{}\">{}</th>", escape(name), index + 1));
    }
    put(page, "</tr></thead>\n<tbody>\n");
    for (row, name) in matrix.names.iter().enumerate() {
        put(page, &format!("<tr><th scope=\"row\"><span>{}</span> {}</th>", row + 1, escape(name)));
        for column in 0..matrix.len() {
            let title = format!("{name} / {}", matrix.names[column]);
            put(page, &heat_cell(case, row, column, &title));
        }
        put(page, "</tr>\n");
    }
    put(page, "</tbody></table></div>\n");
    legend(page);
    if let Some(said) = case.noise_said() {
        put(
            page,
            &format!(
                "<p>The diagonal shows the noise floor: each variant against its own repetitions; {}.</p>\n",
                escape(&said)
            ),
        );
    }
}

/// How a pair stands to the noise, for those who look closer.
fn noise_title(case: &CaseView, row: usize, column: usize) -> String {
    let (Some(a), Some(b)) = (case.noise(row), case.noise(column)) else { return String::new() };
    match case.multiple(row, column) {
        Some(multiple) => format!(", {} times the noise of its sides", times(multiple)),
        None if row == column && !a.is_bitwise() => ", its own repetitions differ".to_owned(),
        None if a.is_bitwise() && b.is_bitwise() => ", noise 0".to_owned(),
        None => String::new(),
    }
}

fn heat_cell(case: &CaseView, row: usize, column: usize, title: &str) -> String {
    match case.matrix.oriented(row, column) {
        PairOutcome::Compared(pair) => {
            let share = pair.relative_l2(Side::A);
            let mark = verdict_class(case, row, column);
            let in_noise = case
                .multiple(row, column)
                .map(|multiple| format!(" ({}×)", times(multiple)))
                .unwrap_or_default();
            let title = format!("{title}: relative L2 {share:.3e}{}", noise_title(case, row, column));
            let number = match case.diagonal(row).filter(|_| row == column) {
                Some(itself) => itself,
                None => format!("{:.6}", pair.l2),
            };
            let last = if pair.last_positions_only { "†" } else { "" };
            format!(
                "<td class=\"{mark}\" style=\"--heat:{}%\" title=\"{}\">{number}{in_noise}{last}</td>",
                heat(share),
                escape(&title)
            )
        }
        PairOutcome::Incomparable(reason) => {
            format!(
                "<td class=\"absent bad\" title=\"{}\">incomparable</td>",
                escape(&format!("{title}: {reason}"))
            )
        }
        PairOutcome::NotRun(reason) => {
            format!("<td class=\"absent\" title=\"{}\">not run</td>", escape(&format!("{title}: {reason}")))
        }
    }
}

/// 0 at a relative L2 of 1e-9 and below, 100 at 1 and above; full for what is not a number.
fn heat(share: f64) -> u32 {
    if share.is_nan() {
        return 100;
    }
    let scaled = (share.max(1e-300).log10() + 9.0) / 9.0 * 100.0;
    scaled.clamp(0.0, 100.0).round() as u32
}

fn legend(page: &mut String) {
    put(page, "<p class=\"legend\">relative L2: ");
    for exponent in [-9, -7, -5, -3, -1] {
        put(page, &format!("<span style=\"--heat:{}%\">1e{exponent}</span>", heat(10_f64.powi(exponent))));
    }
    put(
        page,
        " <i class=\"good\">same or identical</i> <i class=\"warn\">worse rounding</i> <i class=\"bad\">diverged or incomparable</i></p>\n",
    );
}

fn verdict_class(case: &CaseView, a: usize, b: usize) -> &'static str {
    let names = (&case.matrix.names[a.min(b)], &case.matrix.names[a.max(b)]);
    let verdict = case.verdicts.iter().find(|verdict| (&verdict.a, &verdict.b) == names);
    verdict.map_or("none", |verdict| class(&verdict.decision))
}

pub(super) fn class(decision: &Decision) -> &'static str {
    match decision {
        Decision::Identical | Decision::SameMathematics => "good",
        Decision::WorseRounding { .. } => "warn",
        Decision::Diverged | Decision::Incomparable { .. } => "bad",
        Decision::NotRun { .. } => "none",
    }
}

/// What needs a person's eye is open; agreement, which grows with the square of the variants, is folded.
pub(super) fn verdicts(page: &mut String, case: &CaseView) {
    let rows = |classes: &[&str]| -> Vec<Vec<String>> {
        let chosen = case.verdicts.iter().filter(|verdict| classes.contains(&class(&verdict.decision)));
        chosen
            .map(|verdict| {
                let word =
                    format!("<b class=\"{}\">{}</b>", class(&verdict.decision), verdict.decision.word());
                vec![escape(&verdict.a), escape(&verdict.b), word, escape(&verdict.evidence)]
            })
            .collect()
    };
    let header = ["A", "B", "Verdict", "Evidence"];
    table(page, "Verdicts to check", &header, &rows(&["bad", "warn"]));
    for (title, classes) in [("agreeing pairs", "good"), ("pairs not run", "none")] {
        let rows = rows(&[classes]);
        if !rows.is_empty() {
            put(page, &format!("<details><summary>{} {title}</summary>", rows.len()));
            table(page, "", &header, &rows);
            put(page, "</details>\n");
        }
    }
}

pub(super) fn first_divergence(page: &mut String, case: &CaseView) {
    let row = |found: &Localized| {
        let path =
            found.path().map_or_else(|| "—".to_owned(), |path| format!("<code>{}</code>", escape(path)));
        vec![
            escape(&found.a),
            escape(&found.b),
            path,
            escape(&format!("{}; {}", found.sentence, found.effort())),
        ]
    };
    let rows: Vec<Vec<String>> = case.localized.iter().map(row).collect();
    if !rows.is_empty() {
        table(page, "First divergence", &["A", "B", "Module", "Evidence"], &rows);
    }
}
