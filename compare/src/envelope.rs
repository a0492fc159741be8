//! What rounding alone does to a variant's logits, measured on the inputs of a comparison.

use serde::{Deserialize, Serialize};

use super::Dtype;
use super::matrix::{Entry, MetricSet, Options, matrix};
use super::metrics::{PairMetrics, relative};

/// The largest differences among results of one variant whose embedding was moved by one unit in the last place of its dtype.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    /// The variant that was repeated.
    pub variant: String,
    /// Its dtype.
    pub dtype: Dtype,
    /// Number of results, of which the first has the embedding as it is.
    pub results: usize,
    /// Largest relative L2 of two results over all positions.
    pub relative_l2: f64,
    /// Largest relative L2 of two results at one position.
    pub position: f64,
    /// Largest [`super::metrics::Spike::relative`] of two results; 0 if no token stands out.
    pub token: f64,
}

impl Envelope {
    /// The envelope of results of one variant; `None` if fewer than two are comparable, or a difference is not finite.
    pub fn of(results: &[Entry], mask: Option<&super::mask::Mask>) -> Option<Self> {
        let first = results.first()?;
        let options = Options { metrics: MetricSet::L2Family, ..Options::default() };
        let matrix = matrix(results, mask, &options).ok()?;
        let indices = (0..results.len()).flat_map(|a| (a + 1..results.len()).map(move |b| (a, b)));
        let pairs: Vec<&PairMetrics> = indices.filter_map(|(a, b)| matrix.compared(a, b)).collect();
        let largest = |of: fn(&PairMetrics) -> f64| {
            pairs
                .iter()
                .map(|pair| of(pair))
                .fold(0.0, |most: f64, value| if value.is_nan() { f64::NAN } else { most.max(value) })
        };
        let found = Self {
            variant: first.name.clone(),
            dtype: first.dtype,
            results: results.len(),
            relative_l2: largest(|pair| relative(pair.l2, pair.norm_a.max(pair.norm_b))),
            position: largest(|pair| pair.worst_position.0),
            token: largest(|pair| pair.spike.relative),
        };
        let is_usable =
            found.relative_l2.is_finite() && found.position.is_finite() && found.token.is_finite();
        (!pairs.is_empty() && is_usable).then_some(found)
    }
}
