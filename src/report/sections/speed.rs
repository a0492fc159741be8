//! How fast each variant is over all cases.

use crate::judge::gates::Judged;
use crate::judge::view::RunView;
use crate::report::document::{Block, Content, Medium};
use crate::report::speed;

/// Nothing where nothing was timed against a baseline.
pub(super) fn content(run: &RunView, _: &Judged, _: Medium) -> Option<Content> {
    let sentence = speed::sentence(run);
    (!sentence.is_empty()).then(|| Content::titled("Speed", vec![Block::text(sentence)]))
}
