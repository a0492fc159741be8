//! The vectors of texts that a sentence-transformers checkpoint makes of its hidden states.

use compare::Positions;
use compare::logits::{Logits, LogitsError, Values};
use compare::mask::Mask;
use compare::matrix::Entry;
use compare::metrics;
use miette::{Result, miette};

use crate::judge::view::{EmbeddingRow, EmbeddingsView, RetrievalRow};
use crate::spec::checkpoint::Pooling;
use crate::spec::inputs::retrieval::answer;

/// The vectors of every entry, as entries to compare, and what they come to.
pub(super) struct Embeddings {
    pub(super) entries: Vec<Entry>,
    pub(super) view: EmbeddingsView,
}

/// Pools the hidden states of every entry over the real positions of `mask`; `reference` is the entry that the rankings are
/// compared with. The first rows are so many `questions` of a retrieval set, and the others its passages, if it is one.
///
/// # Errors
/// When hidden states that exist cannot be read.
pub(super) fn embeddings(
    (pooling, questions): (Pooling, Option<usize>),
    entries: &[Entry],
    mask: &Mask,
    reference: usize,
) -> Result<Embeddings> {
    let mut pooled = Vec::new();
    for entry in entries {
        pooled.push(match &entry.logits {
            Ok(logits) if logits.positions() == Positions::All => {
                Ok(vectors(pooling, logits, mask).map_err(|error| miette!("{error}"))?)
            }
            Ok(_) => Err("it has the hidden states of the last position alone".to_owned()),
            Err(reason) => Err(reason.clone()),
        });
    }
    let known = pooled.get(reference).and_then(|vectors| vectors.as_ref().ok());
    let row = |(entry, vectors): (&Entry, &Result<Vec<Vec<f64>>, String>)| {
        let (vectors, known) = (vectors.as_ref().ok()?, known?);
        let pairs = || (0..known.len()).flat_map(|b| (0..b).map(move |a| (a, b)));
        let change =
            pairs().map(|(a, b)| (cosine(&vectors[a], &vectors[b]) - cosine(&known[a], &known[b])).abs());
        let same_ranking =
            (0..known.len()).filter(|&row| ranking(vectors, row) == ranking(known, row)).count();
        Some(EmbeddingRow {
            variant: entry.name.clone(),
            // A vector that is not finite has no angle, which is the largest change.
            cosine_change: metrics::largest(change).unwrap_or(0.0),
            same_ranking,
            retrieval: questions.and_then(|questions| retrieval(vectors, known, questions)),
        })
    };
    let rows = entries.iter().zip(&pooled).filter_map(row).collect();
    let texts = known.map_or(0, Vec::len);
    let entry = |(entry, vectors): (&Entry, Result<Vec<Vec<f64>>, String>)| {
        let logits = vectors.and_then(|vectors| {
            let shape = [vectors.len(), 1, vectors.first().map_or(0, Vec::len)];
            let values = Values::F64(vectors.concat());
            Logits::from_values(&entry.name, values, &shape, Positions::All)
                .map_err(|error| error.to_string())
        });
        Entry { name: entry.name.clone(), dtype: entry.dtype, logits }
    };
    let entries = entries.iter().zip(pooled).map(entry).collect();
    Ok(Embeddings { entries, view: EmbeddingsView { pooling, texts, questions, rows } })
}

/// The vector of each row.
fn vectors(pooling: Pooling, logits: &Logits, mask: &Mask) -> Result<Vec<Vec<f64>>, LogitsError> {
    let [batch, seq, _] = logits.shape();
    (0..batch.min(mask.batch()))
        .map(|row| {
            let real = (0..seq.min(mask.seq())).filter(|&position| mask.is_real(row, position));
            let states =
                real.map(|position| logits.row(row * seq + position)).collect::<Result<Vec<_>, _>>()?;
            Ok(pooling.vector(&states))
        })
        .collect()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The other rows by their similarity to `row`, the nearest first.
fn ranking(vectors: &[Vec<f64>], row: usize) -> Vec<usize> {
    let mut others: Vec<usize> = (0..vectors.len()).filter(|other| *other != row).collect();
    others
        .sort_by(|&a, &b| cosine(&vectors[row], &vectors[b]).total_cmp(&cosine(&vectors[row], &vectors[a])));
    others
}

/// How `vectors` rank the passages behind the first `questions` rows, beside the reference's; `None` without either.
fn retrieval(vectors: &[Vec<f64>], known: &[Vec<f64>], questions: usize) -> Option<RetrievalRow> {
    let cosines = |vectors: &[Vec<f64>], question: usize| -> Vec<f64> {
        vectors[questions..].iter().map(|passage| cosine(&vectors[question], passage)).collect()
    };
    if questions == 0 || vectors.len() != known.len() || questions + 2 > known.len() {
        return None;
    }
    let of: Vec<[Vec<f64>; 2]> =
        (0..questions).map(|question| [cosines(vectors, question), cosines(known, question)]).collect();
    let taus: Vec<f64> = of.iter().map(|[ours, theirs]| kendall(ours, theirs)).collect();
    let changes = of.iter().flat_map(|[ours, theirs]| ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()));
    let answers = of.iter().enumerate().filter(|(question, [ours, _])| first(ours) == answer(*question));
    Some(RetrievalRow {
        same_first: of.iter().filter(|[ours, theirs]| first(ours) == first(theirs)).count(),
        tau_mean: taus.iter().sum::<f64>() / questions as f64,
        tau_least: taus.iter().copied().fold(1.0, f64::min),
        cosine_change: metrics::largest(changes).unwrap_or(0.0),
        answered: answers.count(),
    })
}

/// The place of the largest value; a value that is not a number is not the largest.
fn first(cosines: &[f64]) -> usize {
    let rank = |index: &usize| if cosines[*index].is_nan() { f64::NEG_INFINITY } else { cosines[*index] };
    // The first of equal ones.
    (0..cosines.len()).rev().max_by(|a, b| rank(a).total_cmp(&rank(b))).unwrap_or_default()
}

/// Kendall's τ between the orders of two lists of one length, at least 2 (Kendall 1938, "A new measure of rank correlation").
fn kendall(a: &[f64], b: &[f64]) -> f64 {
    let pairs = || (0..a.len()).flat_map(|j| (0..j).map(move |i| (i, j)));
    let agreement = |(i, j): (usize, usize)| {
        let (a, b) = (a[i].partial_cmp(&a[j]), b[i].partial_cmp(&b[j]));
        match (a, b) {
            (Some(a), Some(b)) if a.is_ne() && b.is_ne() => {
                if a == b {
                    1.0
                } else {
                    -1.0
                }
            }
            _ => 0.0,
        }
    };
    pairs().map(agreement).sum::<f64>() / pairs().count() as f64
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "sums of a few ones are exact")]
mod tests {
    use super::*;

    #[test]
    fn a_ranking_agrees_by_its_pairs_and_its_first_passage() {
        assert_eq!(kendall(&[0.9, 0.5, 0.1], &[0.8, 0.6, 0.2]), 1.0);
        assert_eq!(kendall(&[0.9, 0.5, 0.1], &[0.2, 0.6, 0.8]), -1.0);
        // One of three pairs is in the opposite order; equal and incomparable cosines count as neither.
        assert!((kendall(&[0.9, 0.5, 0.1], &[0.6, 0.8, 0.2]) - 1.0 / 3.0).abs() < 1e-15);
        assert!((kendall(&[0.9, 0.5, 0.1], &[0.8, 0.8, f64::NAN]) - 0.0).abs() < 1e-15);
        // A question and two passages; the reference has them the other way round.
        let known = [vec![1.0, 0.0], vec![1.0, 0.1], vec![0.5, 1.0]];
        let ours = [vec![0.0, 1.0], vec![1.0, 0.1], vec![0.5, 1.0]];
        let same = retrieval(&known, &known, 1).unwrap();
        assert_eq!((same.same_first, same.tau_mean, same.cosine_change, same.answered), (1, 1.0, 0.0, 1));
        let other = retrieval(&ours, &known, 1).unwrap();
        assert_eq!((other.same_first, other.tau_mean, other.tau_least, other.answered), (0, -1.0, -1.0, 0));
        assert!(other.cosine_change > 0.4);
        assert_eq!(retrieval(&known, &known, 2), None);
    }

    #[test]
    fn rows_are_ranked_by_the_angle_between_them() {
        let vectors = [vec![1.0, 0.0], vec![0.0, 2.0], vec![3.0, 1.0], vec![-1.0, 0.1]];
        assert_eq!(ranking(&vectors, 0), [2, 1, 3]);
        assert_eq!(ranking(&vectors, 1), [2, 3, 0]);
        assert!((cosine(&vectors[0], &vectors[2]) - 3.0 / 10.0_f64.sqrt()).abs() < 1e-15);
    }
}
