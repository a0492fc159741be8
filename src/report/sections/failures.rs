//! Cells without a result, with their logs.

use crate::execute::cell::{Cell, FailureKind, Outcome};
use crate::judge::view::CaseView;
use crate::report::document::{Block, Content, Medium, Span};

pub(super) fn content(case: &CaseView, _: Medium) -> Option<Content> {
    let mut blocks = Vec::new();
    for Cell { name, outcome, .. } in &case.cells {
        let head = |text: String| Block::Text(vec![Span::Strong(name.clone()), Span::Plain(text)]);
        match outcome {
            Outcome::Completed(_) => {}
            Outcome::Unsupported { reason } => blocks.push(head(format!(" — unsupported: {reason}"))),
            Outcome::Failed(failure) => {
                // What the worker wrote stands below.
                let is_shown = matches!(failure.kind, FailureKind::Exception | FailureKind::Crashed);
                let hint =
                    failure.hint().filter(|_| !is_shown).map(|hint| format!(" ({hint})")).unwrap_or_default();
                blocks.push(head(format!(" — {}: {}{hint}", failure.kind.words(), failure.reason)));
                let logs = [(failure.kind.words(), &failure.detail), ("worker.log", &failure.log_tail)];
                blocks.extend(logs.into_iter().filter(|(_, text)| !text.trim().is_empty()).map(
                    |(title, text)| Block::Verbatim {
                        title: title.to_owned(),
                        text: text.trim_end().to_owned(),
                    },
                ));
            }
        }
    }
    (!blocks.is_empty()).then(|| Content::titled("Failed and unsupported cells", blocks))
}
