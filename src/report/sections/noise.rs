//! The differences in multiples of the noise, if noise was measured.

use super::differences::{MOST_INLINE, square};
use crate::judge::view::CaseView;
use crate::report::document::{Block, Content, Medium};
use compare::repeat::times;

pub(super) fn content(case: &CaseView, _: Medium) -> Option<Content> {
    let count = case.matrix.len();
    case.noise_said()?;
    if count > MOST_INLINE || !(0..count).any(|a| (0..a).any(|b| case.multiple(a, b).is_some())) {
        return None;
    }
    let text = "‖row − column‖ divided by the larger self L2 of the two; — if neither variant has noise.";
    let table = square(case, "", |row, column| {
        case.multiple(row, column).map_or_else(|| "—".to_owned(), |multiple| format!("{}×", times(multiple)))
    });
    let blocks = vec![Block::text(text), Block::Table(table)];
    Some(Content::titled("L2 Differences in Units of the Noise (N×N)", blocks))
}
