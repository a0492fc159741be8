//! Every pair of N logits files, measured in one pass that reads each file once.
//!
//! A task takes one position: it reads that row of every file, then walks the vocabulary in blocks that
//! stay in the core's cache while all pairs are accumulated. Memory is bounded by the rows in flight.

use super::{Dtype, Positions};

use super::logits::{Logits, LogitsError, Mask};
use super::metrics::{PairMetrics, PositionIndex};
use super::pass::Pass;

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
    /// Everything in [`PairMetrics`].
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

/// What became of one pair.
#[derive(Clone, Debug, PartialEq)]
pub enum PairOutcome {
    /// It was measured.
    Compared(Box<PairMetrics>),
    /// Both files exist but are not about the same thing.
    Incomparable(Incomparable),
    /// A side has no logits; says whose and why.
    NotRun(String),
}

/// Why two files cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
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

/// All pairs of a case.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Variants in order of rows and columns.
    pub names: Vec<String>,
    /// dtype of each variant.
    pub dtypes: Vec<Dtype>,
    /// The real positions that [`super::metrics::PositionMetrics::position`] counts.
    pub positions: Vec<PositionIndex>,
    pairs: Vec<PairOutcome>,
}

impl Matrix {
    /// Number of variants.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// True without a variant.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The pair of variants `a ≤ b`, side A being `a`; [`Matrix::oriented`] takes any order.
    ///
    /// # Panics
    /// When `a > b` or `b` is not a variant.
    pub fn pair(&self, a: usize, b: usize) -> &PairOutcome {
        assert!(a <= b && b < self.len(), "pair ({a}, {b}) of {} variants", self.len());
        &self.pairs[pair_index(a, b)]
    }

    /// The pair with `a` as side A whatever the order.
    pub fn oriented(&self, a: usize, b: usize) -> PairOutcome {
        match self.pair(a.min(b), a.max(b)) {
            PairOutcome::Compared(pair) if a > b => PairOutcome::Compared(Box::new(pair.reversed())),
            outcome => outcome.clone(),
        }
    }

    /// A measured pair in either order (symmetric metrics only).
    pub fn compared(&self, a: usize, b: usize) -> Option<&PairMetrics> {
        match self.pair(a.min(b), a.max(b)) {
            PairOutcome::Compared(pair) => Some(pair),
            _ => None,
        }
    }
}

/// Pairs `a ≤ b` in order (0,0) (0,1) (1,1) (0,2) …
fn pair_index(a: usize, b: usize) -> usize {
    b * (b + 1) / 2 + a
}

/// Measures all pairs of the entries over the real positions of `mask` (all positions without one).
///
/// A pair of which one file holds last positions only is compared at the last position of those rows
/// that end in a real token; [`PairMetrics::last_positions_only`] says so.
///
/// # Errors
/// A file that could be opened cannot be read.
pub fn matrix(entries: &[Entry], mask: Option<&Mask>, options: &Options) -> Result<Matrix, LogitsError> {
    let frame = Frame::new(entries, mask);
    let n = entries.len();
    let unmeasured = PairOutcome::Incomparable(Incomparable::NoCommonPosition);
    let mut pairs = vec![unmeasured; n * (n + 1) / 2];
    let mut classes: Vec<Vec<usize>> = Vec::new();
    for (b, entry) in entries.iter().enumerate() {
        if let Ok(logits) = &entry.logits
            && frame.problem(logits).is_none()
        {
            let same = |class: &&mut Vec<usize>| {
                let first = entries[class[0]].logits.as_ref();
                first.is_ok_and(|first| first.shape()[2] == logits.shape()[2])
            };
            match classes.iter_mut().find(same) {
                Some(class) => class.push(b),
                None => classes.push(vec![b]),
            }
        }
        for a in 0..=b {
            if let Some(outcome) = frame.excluded(&entries[a], entry) {
                pairs[pair_index(a, b)] = outcome;
            }
        }
    }
    for class in &classes {
        let measured = Pass::new(entries, class, &frame, options).run()?;
        for ((a, b), pair) in measured {
            if let Some(pair) = pair {
                pairs[pair_index(a, b)] = PairOutcome::Compared(Box::new(pair));
            }
        }
    }
    Ok(Matrix {
        names: entries.iter().map(|entry| entry.name.clone()).collect(),
        dtypes: entries.iter().map(|entry| entry.dtype).collect(),
        positions: frame.positions,
        pairs,
    })
}

/// The index in `logits` of a row's position; `None` where the file does not hold it.
pub(super) fn row_in_file(logits: &Logits, mask: &Mask, position: usize) -> Option<usize> {
    match logits.positions() {
        Positions::All => (position < logits.shape()[1]).then_some(position),
        // A last-position file holds the last column, which in a right-padded row is padding.
        Positions::Last => (position + 1 == mask.seq()).then_some(0),
    }
}

/// The batch that the files are about.
pub(super) struct Frame {
    pub(super) mask: Mask,
    /// The real ones.
    pub(super) positions: Vec<PositionIndex>,
}

impl Frame {
    fn new(entries: &[Entry], mask: Option<&Mask>) -> Self {
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
    fn problem(&self, logits: &Logits) -> Option<Incomparable> {
        let [batch, seq, _] = logits.shape();
        if batch != self.mask.batch() {
            return Some(Incomparable::Batch(self.mask.batch(), batch));
        }
        let whole = logits.positions() == Positions::All;
        (whole && seq != self.mask.seq()).then(|| Incomparable::Positions(self.mask.seq(), seq))
    }

    /// The outcome of a pair that is not measured.
    fn excluded(&self, a: &Entry, b: &Entry) -> Option<PairOutcome> {
        let absent =
            |entry: &Entry| entry.logits.as_ref().err().map(|reason| format!("{}: {reason}", entry.name));
        if let Some(reason) = absent(a).or_else(|| absent(b)) {
            return Some(PairOutcome::NotRun(reason));
        }
        let (Ok(a), Ok(b)) = (&a.logits, &b.logits) else {
            unreachable!("absent logits were handled above");
        };
        let ([batch_a, seq_a, vocab_a], [batch_b, seq_b, vocab_b]) = (a.shape(), b.shape());
        let reason = if batch_a != batch_b {
            Incomparable::Batch(batch_a, batch_b)
        } else if vocab_a != vocab_b {
            Incomparable::Vocabulary(vocab_a, vocab_b)
        } else if a.positions() == b.positions() && seq_a != seq_b {
            Incomparable::Positions(seq_a, seq_b)
        } else {
            self.problem(a).or_else(|| self.problem(b))?
        };
        Some(PairOutcome::Incomparable(reason))
    }
}
