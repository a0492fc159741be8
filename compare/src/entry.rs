//! Inputs of a matrix: the variants' logits, the metrics to measure, and the positions of the batch.

use std::path::Path;

use thiserror::Error;

use super::logits::Logits;
use super::mask::Mask;
use super::metrics::PositionIndex;
use super::{Dtype, Positions};

/// One variant of the matrix.
#[derive(Debug)]
pub struct Entry {
    /// The variant's name.
    pub name: String,
    /// dtype that the variant computed in; its logits file may have a wider one.
    pub dtype: Dtype,
    /// Its logits, or the reason why there are none.
    pub logits: Result<Logits, String>,
}

impl Entry {
    /// The logits in a file, under its path.
    pub fn of_file(path: &Path, positions: Positions, dtype: Dtype) -> Self {
        let logits = Logits::open(path, positions).map_err(|error| error.to_string());
        Self { name: path.display().to_string(), dtype, logits }
    }
}

/// The set of metrics to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricSet {
    /// L2, relative L2, NMSE, cosine and the largest difference.
    L2Family,
    /// Everything in [`super::metrics::PairMetrics`].
    All,
}

/// Options of a measurement.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The set of metrics to measure.
    pub metrics: MetricSet,
    /// The `k` of top-k agreement.
    pub top_k: usize,
    /// Vocabulary elements per block; `None` chooses a size that fits the cache. Results do not depend on it.
    pub block: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self { metrics: MetricSet::All, top_k: 5, block: None }
    }
}

/// Reason why two variants' logits cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Incomparable {
    /// Different batch sizes.
    #[error("batch sizes differ: {0} and {1}")]
    Batch(usize, usize),
    /// Different vocabulary sizes.
    #[error("vocabulary sizes differ: {0} and {1}")]
    Vocabulary(usize, usize),
    /// Different sequence lengths, or one that differs from that of the inputs.
    #[error("sequence lengths differ: {0} and {1}")]
    Positions(usize, usize),
    /// No real position is in both files.
    #[error("no real position is held by both logits files")]
    NoCommonPosition,
}

/// The batch of inputs that the files were computed on.
pub(super) struct Frame {
    pub(super) mask: Mask,
    /// The real (unpadded) positions.
    pub(super) positions: Vec<PositionIndex>,
}

impl Frame {
    pub(super) fn new(entries: &[Entry], mask: Option<&Mask>) -> Self {
        let files = || entries.iter().filter_map(|entry| entry.logits.as_ref().ok());
        let mask = mask.cloned().unwrap_or_else(|| {
            let whole =
                files().find(|logits| logits.positions() == Positions::All).or_else(|| files().next());
            whole.map_or_else(
                || Mask::all_real(0, 0),
                |logits| Mask::all_real(logits.shape()[0], logits.shape()[1]),
            )
        });
        let all = (0..mask.batch())
            .flat_map(|row| (0..mask.seq()).map(move |position| PositionIndex { row, position }));
        let positions = all.filter(|at| mask.is_real(at.row, at.position)).collect();
        Self { mask, positions }
    }

    /// The mismatch between a file and the batch; `None` if the file belongs to it.
    pub(super) fn problem(&self, logits: &Logits) -> Option<Incomparable> {
        let [batch, seq, _] = logits.shape();
        if batch != self.mask.batch() {
            return Some(Incomparable::Batch(self.mask.batch(), batch));
        }
        let whole = logits.positions() == Positions::All;
        (whole && seq != self.mask.seq()).then(|| Incomparable::Positions(self.mask.seq(), seq))
    }
}

/// The index along the `seq` axis of `logits` that holds `position`; `None` if the file does not hold it.
pub(super) fn row_in_file(logits: &Logits, mask: &Mask, position: usize) -> Option<usize> {
    match logits.positions() {
        Positions::All => (position < logits.shape()[1]).then_some(position),
        // A last-position file holds the last column, which is padding in a right-padded row.
        Positions::Last => (position + 1 == mask.seq()).then_some(0),
    }
}
