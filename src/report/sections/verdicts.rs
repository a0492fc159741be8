//! The verdict on each pair, with its evidence.

use crate::judge::view::CaseView;
use crate::report::document::{Block, Cell, Content, Entry, Medium, Row, Span, Table, Tone};
use compare::verdict::{Decision, Verdict};

pub(super) fn content(case: &CaseView, medium: Medium) -> Option<Content> {
    if medium == Medium::Terminal {
        return Some(Content::untitled(vec![Block::Gap, Block::Entries(brief(case))]));
    }
    let rows = case.verdicts.iter().map(|verdict| {
        let tone = tone(&verdict.decision);
        let cells = [
            verdict.a.clone().into(),
            verdict.b.clone().into(),
            Cell::toned(verdict.decision.word(), tone),
            verdict.evidence.clone().into(),
        ];
        // HTML folds agreeing pairs, whose number grows with the square of the number of variants, and pairs that did
        // not run.
        let folded = match tone {
            Tone::Good => Some("agreeing pairs"),
            Tone::Unknown => Some("pairs not run"),
            Tone::Warn | Tone::Bad => None,
        };
        Row { folded, ..cells.into_iter().collect() }
    });
    let table = Table::new(["A", "B", "Verdict", "Evidence"], rows);
    Some(Content::titled("Verdicts", vec![Block::Table(table)]))
}

pub(super) fn tone(decision: &Decision) -> Tone {
    match decision {
        Decision::Identical | Decision::SameMathematics => Tone::Good,
        Decision::WorseRounding { .. } => Tone::Warn,
        Decision::Diverged | Decision::Incomparable { .. } => Tone::Bad,
        Decision::NotRun { .. } => Tone::Unknown,
    }
}

/// The pairs with a warning or bad verdict; pairs with equal evidence share one entry.
fn brief(case: &CaseView) -> Vec<Entry> {
    // One broken variant diverges from all others for one reason, which is reported once.
    let mut groups: Vec<(&Verdict, Vec<String>)> = Vec::new();
    for verdict in &case.verdicts {
        let pair = format!("{} / {}", verdict.a, verdict.b);
        match groups.iter_mut().find(|(first, _)| first.evidence == verdict.evidence) {
            Some((_, pairs)) => pairs.push(pair),
            None => groups.push((verdict, vec![pair])),
        }
    }
    let is_shown = |verdict: &Verdict| matches!(tone(&verdict.decision), Tone::Warn | Tone::Bad);
    let entry = |(verdict, pairs): (&Verdict, Vec<String>)| {
        let word = verdict.decision.word();
        let head = |(index, pair): (usize, String)| {
            let word = match index {
                0 => Span::Toned(word.to_owned(), tone(&verdict.decision)),
                _ => Span::Plain(" ".repeat(word.len())),
            };
            vec![word, Span::Plain(format!("  {pair}"))]
        };
        let heads = pairs.into_iter().enumerate().map(head).collect();
        Entry { heads, wraps: false, text: verdict.evidence.clone() }
    };
    groups.into_iter().filter(|(verdict, _)| is_shown(verdict)).map(entry).collect()
}
