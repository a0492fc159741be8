//! What a matrix is made from: the variants' files, how much to measure, and the positions that they share.

use thiserror::Error;

use super::logits::{Logits, Mask};
use super::metrics::PositionIndex;
use super::{Dtype, Positions};

/// One variant's side of the matrix.
#[derive(Debug)]
pub struct Entry {
    /// The variant's name.
    pub name: String,
    /// dtype that the variant computed in (its logits file may be wider).
    pub dtype: Dtype,
    /// Its logits, or why there are none.
    pub logits: Result<Logits, String>,
}

/// How much to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricSet {
    /// L2, relative L2, NMSE, cosine and the largest difference.
    L2Family,
    /// Everything in [`super::metrics::PairMetrics`].
    All,
}

/// How to measure.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How much to measure.
    pub metrics: MetricSet,
    /// The `k` of top-k agreement.
    pub top_k: usize,
    /// Vocabulary elements per block; by default what fits the cache. Results do not depend on it.
    pub block: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self { metrics: MetricSet::All, top_k: 5, block: None }
    }
}

/// Why two files cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Incomparable {
    /// Different number of rows.
    #[error("batch sizes differ: {0} and {1}")]
    Batch(usize, usize),
    /// Different vocabulary.
    #[error("vocabulary sizes differ: {0} and {1}")]
    Vocabulary(usize, usize),
    /// Different number of positions, or one that the inputs do not have.
    #[error("sequence lengths differ: {0} and {1}")]
    Positions(usize, usize),
    /// No real position is in both files.
    #[error("no real position is held by both logits files")]
    NoCommonPosition,
}

/// The batch that the files are about.
pub(super) struct Frame {
    pub(super) mask: Mask,
    /// The real ones.
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

    /// Why a file does not belong to the batch.
    pub(super) fn problem(&self, logits: &Logits) -> Option<Incomparable> {
        let [batch, seq, _] = logits.shape();
        if batch != self.mask.batch() {
            return Some(Incomparable::Batch(self.mask.batch(), batch));
        }
        let whole = logits.positions() == Positions::All;
        (whole && seq != self.mask.seq()).then(|| Incomparable::Positions(self.mask.seq(), seq))
    }
}

/// The index in `logits` of a row's position; `None` where the file does not hold it.
pub(super) fn row_in_file(logits: &Logits, mask: &Mask, position: usize) -> Option<usize> {
    match logits.positions() {
        Positions::All => (position < logits.shape()[1]).then_some(position),
        // A last-position file holds the last column, which in a right-padded row is padding.
        Positions::Last => (position + 1 == mask.seq()).then_some(0),
    }
}
