//! The vectors of texts that a sentence-transformers checkpoint makes of its hidden states.

use compare::Positions;
use compare::logits::{Logits, LogitsError, Values};
use compare::mask::Mask;
use compare::matrix::Entry;
use compare::metrics;
use miette::{Result, miette};

use crate::judge::view::{EmbeddingRow, EmbeddingsView};
use crate::spec::checkpoint::Pooling;

/// The vectors of every entry, as entries to compare, and what they come to.
pub(super) struct Embeddings {
    pub(super) entries: Vec<Entry>,
    pub(super) view: EmbeddingsView,
}

/// Pools the hidden states of every entry over the real positions of `mask`; `reference` is the entry that the rankings are
/// compared with.
///
/// # Errors
/// When hidden states that exist cannot be read.
pub(super) fn embeddings(
    pooling: Pooling,
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
    Ok(Embeddings { entries, view: EmbeddingsView { pooling, texts, rows } })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_ranked_by_the_angle_between_them() {
        let vectors = [vec![1.0, 0.0], vec![0.0, 2.0], vec![3.0, 1.0], vec![-1.0, 0.1]];
        assert_eq!(ranking(&vectors, 0), [2, 1, 3]);
        assert_eq!(ranking(&vectors, 1), [2, 3, 0]);
        assert!((cosine(&vectors[0], &vectors[2]) - 3.0 / 10.0_f64.sqrt()).abs() < 1e-15);
    }
}
