//! The machine and the libraries.

use crate::judge::gates::Judged;
use crate::judge::view::RunView;
use crate::report::document::{Block, Content, Medium};

pub(super) fn content(run: &RunView, _: &Judged, medium: Medium) -> Option<Content> {
    if run.environment.is_empty() {
        return None;
    }
    let list = Block::list(run.environment.iter().map(|(key, value)| format!("{key}: {value}")));
    // The summary's own title serves as the heading.
    let title = (medium != Medium::Summary).then(|| "Environment".to_owned());
    Some(Content { title, blocks: vec![list] })
}
