//! The vectors of texts, of a sentence-transformers checkpoint.

use crate::judge::view::CaseView;
use crate::report::document::{Block, Content, Medium, Row, Table};

pub(super) fn content(case: &CaseView, _: Medium) -> Option<Content> {
    let found = case.embeddings.as_ref()?;
    let rows = found.rows.iter().map(|row| -> Row {
        let ranking = format!("{} of {}", row.same_ranking, found.texts);
        [row.variant.clone(), format!("{:.1e}", row.cosine_change), ranking].into_iter().collect()
    });
    let table = Table::new(["Variant", "Largest change of a cosine", "Texts with the same ranking"], rows);
    let text = "The vectors of the texts, as the checkpoint's pooling makes them of the hidden states, beside those of the \
                variant that leads group A: the cosine between every two texts, and the order in which the other texts are \
                similar to each text.";
    Some(Content::titled("Embeddings", vec![Block::text(text), Block::Table(table)]))
}
