//! The page results/diagnosis.md.

use std::fmt::Write as _;

use crate::judge::{Expected, Outcome, Verdict, judged};
use crate::{KINDS, Row, expectations};

/// Outcomes that count as attempts, with their words.
const WORDS: [(Outcome, &str); 8] = [
    (Outcome::Named, "named"),
    (Outcome::WrongName, "**named wrongly**"),
    (Outcome::Surgery, "localised by surgery"),
    (Outcome::Modules, "localised by modules"),
    (Outcome::NotFound, "not found"),
    (Outcome::Agrees, "agrees in f32"),
    (Outcome::NotTried, "inputs beside tokens"),
    (Outcome::Fails, "does not run"),
];

const TOP: &str = "# What tfcheck finds of known bugs\n\n\
    `cargo run --release --example diagnosis`, after `cargo build --release`, wrote this page from results/diagnosis.json, which it \
    makes. A row is right if the mistakes that tfcheck names, or else the module or the part of the network, are those that were \
    planted; for findings, those of [findings.md](findings.md). The tables of what is planted are in `tests/support/plants`, and \
    the tests read the same tables. [How a diagnosis works](../docs/diagnose.md). Seconds are those of the diagnosis, with those of \
    the comparison of modules where that found the bug; they were measured on 2 cores of an AMD EPYC, with nothing else running.\n\n";

/// A kind, its title and its rows.
type Kind<'a> = (&'a str, &'a str, Vec<(&'a Row, Verdict)>);

pub(crate) fn page(rows: &[Row]) -> String {
    let of = |kind: &str| -> Vec<(&Row, Verdict)> {
        let (expectations, unknown) = (expectations(kind), Expected::default());
        let of_the_kind = rows.iter().filter(|row| row.kind == kind);
        of_the_kind
            .map(|row| (row, judged(&row.found, expectations.get(&row.name).unwrap_or(&unknown))))
            .collect()
    };
    let all: Vec<Kind> = KINDS
        .iter()
        .map(|(kind, title)| (*kind, *title, of(kind)))
        .filter(|(_, _, rows)| !rows.is_empty())
        .collect();
    let mut page = TOP.to_owned();
    page += "| Kind | Bugs | Named | Localised by surgery | Localised by modules | Not found | Wrong place | Wrong name | Right | Median s |\n\
             |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n";
    for (_, title, rows) in &all {
        page += &totals(title, rows.iter().map(|(_, verdict)| verdict));
    }
    page += &totals("All", all.iter().flat_map(|(_, _, rows)| rows).map(|(_, verdict)| verdict));
    page += "\nPorts that agree in f32, do not run, or take inputs beside tokens and show no modules are listed below and not counted.\n";
    for (kind, title, rows) in &all {
        write!(page, "\n## {title}\n\n| Bug | Outcome | s | What tfcheck reports |\n|---|---|--:|---|\n")
            .unwrap();
        for (row, verdict) in rows {
            let name = match *kind {
                "findings" => format!("[{0}](findings/{0}.toml)", row.name),
                _ => row.name.clone(),
            };
            let (_, words) = WORDS.iter().find(|(outcome, _)| *outcome == verdict.outcome).unwrap();
            let is_place = [Outcome::Surgery, Outcome::Modules].contains(&verdict.outcome);
            let right = if is_place && !verdict.is_right { ", **wrong place**" } else { "" };
            let sentence = verdict.sentence.replace('|', "\\|").replace('\n', " ");
            writeln!(page, "| {name} | {words}{right} | {:.1} | {sentence} |", verdict.seconds).unwrap();
        }
        let is_measured = |name: &String| rows.iter().any(|(row, _)| row.name == *name);
        let mut others: Vec<String> =
            expectations(kind).into_keys().filter(|name| !is_measured(name)).collect();
        others.sort();
        if !others.is_empty() {
            writeln!(page, "\nNot measured: {}.", others.join("; ")).unwrap();
        }
    }
    page
}

/// One kind, or all, as a row of the table of totals.
fn totals<'a>(title: &str, verdicts: impl Iterator<Item = &'a Verdict>) -> String {
    let uncounted = [Outcome::Agrees, Outcome::NotTried, Outcome::Fails];
    let verdicts: Vec<&Verdict> = verdicts.filter(|verdict| !uncounted.contains(&verdict.outcome)).collect();
    let count = |outcome: Outcome| verdicts.iter().filter(|verdict| verdict.outcome == outcome).count();
    let right = verdicts.iter().filter(|verdict| verdict.is_right).count();
    let is_place = |verdict: &&&Verdict| [Outcome::Surgery, Outcome::Modules].contains(&verdict.outcome);
    let wrong_places = verdicts.iter().filter(is_place).filter(|verdict| !verdict.is_right).count();
    let mut seconds: Vec<f64> = verdicts.iter().map(|verdict| verdict.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    let median = seconds.get(seconds.len() / 2).copied().unwrap_or_default();
    format!(
        "| {title} | {} | {} | {} | {} | {} | {wrong_places} | {} | {:.0} % | {median:.1} |\n",
        verdicts.len(),
        count(Outcome::Named),
        count(Outcome::Surgery),
        count(Outcome::Modules),
        count(Outcome::NotFound),
        count(Outcome::WrongName),
        100.0 * right as f64 / verdicts.len().max(1) as f64,
    )
}
