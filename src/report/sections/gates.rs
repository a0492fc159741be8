//! The results of the run's gates.

use crate::judge::gates::Judged;
use crate::judge::view::RunView;
use crate::report::document::{Block, Cell, Content, Entry, Medium, Row, Span, Table, Tone};

/// Maximum number of subjects that a gate lists; the machine-readable files list all.
const LISTED: usize = 5;

pub(super) fn content(_: &RunView, judged: &Judged, medium: Medium) -> Option<Content> {
    // The default gates only repeat the verdicts.
    let is_shown = judged.is_named || judged.against.is_some();
    if !is_shown && medium != Medium::Step {
        return None;
    }
    let rows = judged.gates.iter().map(|gate| (gate.gate.clone(), gate.word(), gate.text(LISTED)));
    if medium == Medium::Terminal {
        let entry = |(gate, word, text): (String, &str, String)| Entry {
            heads: vec![vec![
                Span::Plain(format!("gate {gate}: ")),
                Span::Toned(word.to_owned(), tone(word)),
            ]],
            wraps: false,
            text,
        };
        return Some(Content::untitled(vec![Block::Apart, Block::Entries(rows.map(entry).collect())]));
    }
    let rows = rows.map(|(gate, word, text)| -> Row {
        [Cell::from(gate), Cell::toned(word, tone(word)), Cell::from(text)].into_iter().collect()
    });
    let table = Block::Table(Table::new(["Gate", "Outcome", "Findings"], rows));
    let title = (medium != Medium::Step).then(|| "Gates".to_owned());
    Some(Content { title, blocks: vec![table] })
}

fn tone(word: &str) -> Tone {
    match word {
        "failed" => Tone::Bad,
        "unknown" => Tone::Warn,
        _ => Tone::Good,
    }
}
