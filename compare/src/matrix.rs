//! Metrics of every pair of N logits files; each file is read once, and files that are known to be equal are one.
//!
//! One task handles one position: it reads that row of every file, then walks the vocabulary in blocks that stay in the
//! core's cache while it accumulates all pairs. Memory use is bounded by the rows in flight.

use super::Dtype;
use super::entry::Frame;
pub use super::entry::{Entry, Incomparable, MetricSet, Options};
use super::logits::LogitsError;
use super::mask::Mask;
use super::metrics::{PairMetrics, PositionIndex};
use super::pass;
use super::plan::Plan;

/// Outcome of one pair.
#[derive(Clone, Debug, PartialEq)]
pub enum PairOutcome {
    /// It was measured.
    Compared(Box<PairMetrics>),
    /// Both sides have logits, but their shapes or positions do not match.
    Incomparable(Incomparable),
    /// A side has no logits; holds its name and the reason.
    NotRun(String),
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

    /// Whether there are no variants.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The pair of variants `a ≤ b`, with `a` as side A; [`Matrix::oriented`] takes any order.
    ///
    /// # Panics
    /// If `a > b` or `b` is not a variant.
    pub fn pair(&self, a: usize, b: usize) -> &PairOutcome {
        assert!(a <= b && b < self.len(), "pair ({a}, {b}) of {} variants", self.len());
        &self.pairs[pair_index(a, b)]
    }

    /// The pair with `a` as side A, in either order of `a` and `b`.
    pub fn oriented(&self, a: usize, b: usize) -> PairOutcome {
        match self.pair(a.min(b), a.max(b)) {
            PairOutcome::Compared(pair) if a > b => PairOutcome::Compared(Box::new(pair.reversed())),
            outcome => outcome.clone(),
        }
    }

    /// The metrics of a pair in either order, if it was measured. Side A is the smaller index.
    pub fn compared(&self, a: usize, b: usize) -> Option<&PairMetrics> {
        match self.pair(a.min(b), a.max(b)) {
            PairOutcome::Compared(pair) => Some(pair),
            _ => None,
        }
    }
}

/// Index of the pair `a ≤ b` in the order (0,0) (0,1) (1,1) (0,2) …
fn pair_index(a: usize, b: usize) -> usize {
    b * (b + 1) / 2 + a
}

/// The L2 family of two variants alone, oriented from the first to the second.
///
/// # Errors
/// As [`matrix()`].
pub fn of_pair(pair: &[Entry; 2], mask: Option<&Mask>) -> Result<PairOutcome, LogitsError> {
    let options = Options { metrics: MetricSet::L2Family, ..Options::default() };
    Ok(matrix(pair, mask, &options)?.oriented(0, 1))
}

/// Measures all pairs of the entries over the real positions of `mask`, or over all positions if `mask` is `None`.
///
/// If one file of a pair holds last positions only, the pair is compared at the last position of those rows that end in a
/// real token, and [`PairMetrics::last_positions_only`] is true.
///
/// # Errors
/// Reading an opened file fails.
pub fn matrix(entries: &[Entry], mask: Option<&Mask>, options: &Options) -> Result<Matrix, LogitsError> {
    let frame = Frame::new(entries, mask);
    let n = entries.len();
    let unmeasured = PairOutcome::Incomparable(Incomparable::NoCommonPosition);
    let mut pairs = vec![unmeasured; n * (n + 1) / 2];
    let columns = columns(entries);
    let mut classes: Vec<Vec<usize>> = Vec::new();
    for (b, entry) in entries.iter().enumerate() {
        if let Ok(logits) = &entry.logits
            && columns[b] == b
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
            if let Some(outcome) = excluded(&frame, &entries[a], entry) {
                pairs[pair_index(a, b)] = outcome;
            }
        }
    }
    for class in &classes {
        let measured = pass::run(&Plan::new(entries, class, &frame, options))?;
        for ((a, b), pair) in measured {
            if let Some(pair) = pair {
                pairs[pair_index(a, b)] = PairOutcome::Compared(Box::new(pair));
            }
        }
    }
    for b in 0..n {
        for a in 0..=b {
            let (first, second) = (columns[a], columns[b]);
            if (first, second) != (a, b) {
                let known = &pairs[pair_index(first.min(second), first.max(second))];
                if let PairOutcome::Compared(known) = known {
                    let pair = if first > second { known.reversed() } else { (**known).clone() };
                    pairs[pair_index(a, b)] = PairOutcome::Compared(Box::new(pair));
                }
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

/// For each entry, the first one that is known to hold the same logits: itself if there is none before it.
fn columns(entries: &[Entry]) -> Vec<usize> {
    let is_same = |a: &Entry, b: &Entry| match (&a.logits, &b.logits) {
        (Ok(one), Ok(other)) => a.dtype == b.dtype && one.is_known_to_equal(other),
        _ => false,
    };
    let first = |b: usize| (0..b).find(|&a| is_same(&entries[a], &entries[b])).unwrap_or(b);
    (0..entries.len()).map(first).collect()
}

/// The outcome of a pair that cannot be measured; `None` if it can.
fn excluded(frame: &Frame, a: &Entry, b: &Entry) -> Option<PairOutcome> {
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
        frame.problem(a).or_else(|| frame.problem(b))?
    };
    Some(PairOutcome::Incomparable(reason))
}
