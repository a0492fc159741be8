//! What a draft commits: a row of the table, or a factor that was fitted.

use super::draft::Draft;
use super::hypotheses::Hypothesis;
use super::knobs::{Knob, expression};

/// A mistake of a draft.
#[derive(Clone, Copy)]
pub(super) enum Cause {
    /// A row of the table.
    Known(&'static Hypothesis),
    /// A factor.
    Fitted(&'static Knob, f64),
}

impl Cause {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Known(row) => row.name,
            Self::Fitted(knob, _) => knob.name,
        }
    }

    /// `draft` with the mistake; `None` where it makes no difference.
    pub(super) fn applied(&self, draft: &Draft) -> Option<Draft> {
        match self {
            Self::Known(row) => row.applied(draft),
            Self::Fitted(knob, factor) => {
                let mut edited = draft.clone();
                (knob.turn)(&mut edited, *factor);
                (edited != *draft).then_some(edited)
            }
        }
    }

    /// The mistake in words, with the values that `edited` has; `plain` is the checkpoint as it is.
    pub(super) fn words(&self, edited: &Draft, plain: &Draft) -> String {
        match self {
            Self::Known(row) => row.words(edited),
            Self::Fitted(knob, factor) => {
                let known = expression(*factor, plain).map(|words| format!(" = {words}")).unwrap_or_default();
                format!("{} multiplied by {factor:.6}{known}", knob.words)
            }
        }
    }
}
