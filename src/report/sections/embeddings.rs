//! The vectors of texts, of a sentence-transformers checkpoint.

use crate::judge::view::{CaseView, EmbeddingsView};
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
    let mut blocks = vec![Block::text(text), Block::Table(table)];
    blocks.extend(found.questions.into_iter().flat_map(|questions| retrieval(found, questions)));
    Some(Content::titled("Embeddings", blocks))
}

/// How each variant ranks the passages of the retrieval set.
fn retrieval(found: &EmbeddingsView, questions: usize) -> [Block; 2] {
    let rows = found.rows.iter().filter_map(|row| {
        let ranked = row.retrieval?;
        let of = |count: usize| format!("{count} of {questions}");
        let cells = [
            row.variant.clone(),
            of(ranked.same_first),
            format!("{:.4}", ranked.tau_mean),
            format!("{:.4}", ranked.tau_least),
            format!("{:.1e}", ranked.cosine_change),
            of(ranked.answered),
        ];
        Some(cells.into_iter().collect::<Row>())
    });
    let heads = [
        "Variant",
        "Same first passage",
        "Kendall's τ, mean",
        "Kendall's τ, smallest",
        "Largest change of a cosine",
        "Answer first",
    ];
    let text = format!(
        "The built-in retrieval set: for each of {questions} questions, the order of the {} passages by their cosine to it, beside \
         the order of the variant that leads group A. τ is 1 for the same order and -1 for the opposite one. A question's \
         answer is the passage that was written for it.",
        found.texts.saturating_sub(questions),
    );
    [Block::text(text), Block::Table(Table::new(heads, rows))]
}
