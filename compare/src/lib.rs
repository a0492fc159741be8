//! Compares logits, saved in files or held in memory; no model, Python or network is involved.
//!
//! A variant is identified by its name only.
//! [`logits`] opens files or takes numbers in memory, [`mask`] tells which positions are compared, [`matrix`] reads all of them once and measures every pair,
//! [`metrics`] defines each metric, [`metric`] is the table of metrics, [`details`] measures chosen pairs position by
//! position, [`oracle`] compares variants with float64 results, [`verdict`] decides on each pair, [`evidence`] holds the rule
//! and the numbers of a decision, [`recorded`] decides on a variant and recorded logits, [`groups`] partitions variants by
//! verdicts, [`repeat`] and [`mapped`] compare a variant with itself, [`timing`] summarises times.

mod aligned;
pub mod details;
mod dtype;
mod entry;
pub mod envelope;
pub mod evidence;
mod fold;
pub mod groups;
mod kernels;
pub mod logits;
pub mod mapped;
pub mod mask;
pub mod matrix;
pub mod metric;
pub mod metrics;
pub mod oracle;
mod pass;
mod plan;
pub mod recorded;
pub mod repeat;
pub mod timing;
mod tolerances;
pub mod units;
pub mod verdict;

pub use dtype::{Dtype, Positions};

use logits::{Logits, LogitsError, LogitsRow};
use mask::Mask;

/// Softmax probability of each of `tokens` at the last real position of each row of the batch, in f64:
/// `exp(x[token] − max x) / Σ exp(x − max x)`, in `[0, 1]`.
///
/// A row is `None` if it has no real token or the file lacks its last real position (a last-position file of a
/// right-padded row). A token is `None` if its id is outside the vocabulary. A NaN logit makes the row's probabilities NaN.
///
/// # Errors
/// The file cannot be read.
pub fn choices(
    logits: &Logits,
    mask: &Mask,
    tokens: &[u32],
) -> Result<Vec<Option<Vec<Option<f64>>>>, LogitsError> {
    let [batch, seq, _] = logits.shape();
    let mut row = LogitsRow::default();
    (0..batch.min(mask.batch()))
        .map(|b| {
            let Some(position) = mask.last_real(b).and_then(|p| entry::row_in_file(logits, mask, p)) else {
                return Ok(None);
            };
            logits.read_row(b * seq + position, &mut row)?;
            let values = row.to_f64();
            let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = values.iter().map(|value| (value - max).exp()).sum();
            let probability =
                |&token: &u32| values.get(token as usize).map(|value| (value - max).exp() / sum);
            Ok(Some(tokens.iter().map(probability).collect()))
        })
        .collect()
}
