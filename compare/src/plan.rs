//! The plan of a measurement (the files of one vocabulary size, their pairs and dtypes) and the results of one row.

use super::entry::{Entry, Frame, MetricSet, Options};
use super::kernels::{RowScan, WIDE};
use super::logits::Logits;
use super::metrics::{PairMetrics, lower_dtype};
use super::{Dtype, Positions};

/// Largest total size of all variants' blocks: a part of a core's first-level cache.
const L1_BYTES: usize = 40 << 10;
/// The same for the second-level cache, which holds the blocks if all metrics are measured.
const L2_BYTES: usize = 384 << 10;
/// Largest total size of the parts of rows of all variants, as read.
const PART_BYTES: usize = 512 << 10;

/// One entry rounded to one dtype, for ULP distances and mixed pairs.
pub(super) struct View {
    pub(super) entry: usize,
    pub(super) dtype: Dtype,
    /// Whether a pair of two dtypes needs the rounded values in addition to the ordinals.
    pub(super) keeps_values: bool,
}

pub(super) struct PlannedPair {
    pub(super) a: usize,
    pub(super) b: usize,
    pub(super) view_a: usize,
    pub(super) view_b: usize,
    pub(super) mixed: bool,
}

/// The plan for the files of one vocabulary size. Entry indices count within `class`.
pub(super) struct Plan<'a> {
    pub(super) files: Vec<&'a Logits>,
    pub(super) class: &'a [usize],
    pub(super) frame: &'a Frame,
    pub(super) pairs: Vec<PlannedPair>,
    pub(super) views: Vec<View>,
    pub(super) lower: Vec<Dtype>,
    pub(super) dtypes: Vec<Dtype>,
    pub(super) vocab_size: usize,
    pub(super) all: bool,
    pub(super) k: usize,
    pub(super) block: usize,
    /// Tokens of a row read at a time: the whole row if all metrics are measured, which need its largest logit first.
    pub(super) part: usize,
}

/// Two entries of the matrix, and their metrics if they have a position in common.
pub(super) type Measured = ((usize, usize), Option<PairMetrics>);

/// Results of one entry over one row.
pub(super) struct EntryRow {
    pub(super) squares: f64,
    pub(super) sum_exp: f64,
    pub(super) scan: Option<RowScan>,
}

/// Results of a task for one position; `None` for entries that do not hold it.
pub(super) struct RowResult {
    pub(super) entries: Vec<Option<EntryRow>>,
    pub(super) pairs: Vec<PairRow>,
}

/// Results of one pair over one row.
#[derive(Clone, Copy, Default)]
pub(super) struct PairRow {
    pub(super) squares: f64,
    pub(super) max: f64,
    pub(super) weighted_a: f64,
    pub(super) weighted_b: f64,
    pub(super) ulp: u64,
    pub(super) rounded_squares: f64,
    pub(super) rounded_max: f64,
}

impl<'a> Plan<'a> {
    pub(super) fn new(entries: &'a [Entry], class: &'a [usize], frame: &'a Frame, options: &Options) -> Self {
        let files: Vec<&Logits> =
            class.iter().filter_map(|&index| entries[index].logits.as_ref().ok()).collect();
        let vocab_size = files[0].shape()[2];
        let all = options.metrics == MetricSet::All;
        let mut views: Vec<View> = Vec::new();
        let mut view = |entry: usize, dtype: Dtype, keeps_values: bool| {
            if let Some(index) = views.iter().position(|view| view.entry == entry && view.dtype == dtype) {
                views[index].keeps_values |= keeps_values;
                return index;
            }
            views.push(View { entry, dtype, keeps_values });
            views.len() - 1
        };
        let (mut pairs, mut lower) = (Vec::new(), Vec::new());
        for b in 0..files.len() {
            for a in 0..b {
                let (dtype_a, dtype_b) = (entries[class[a]].dtype, entries[class[b]].dtype);
                let dtype = lower_dtype(dtype_a, dtype_b);
                let mixed = dtype_a != dtype_b;
                let (view_a, view_b) =
                    if all { (view(a, dtype, mixed), view(b, dtype, mixed)) } else { (0, 0) };
                pairs.push(PlannedPair { a, b, view_a, view_b, mixed });
                lower.push(dtype);
            }
        }
        let widest =
            if all { L2_BYTES / (24 * files.len() + 12 * views.len()) } else { L1_BYTES / (8 * files.len()) };
        let block = options.block.unwrap_or(widest).clamp(WIDE, 4096) / WIDE * WIDE;
        let part = PART_BYTES / (4 * files.len());
        let part = if all { vocab_size } else { part.next_multiple_of(block).min(vocab_size) };
        let dtypes = class.iter().map(|&index| entries[index].dtype).collect();
        Self {
            files,
            class,
            frame,
            pairs,
            views,
            lower,
            dtypes,
            vocab_size,
            all,
            k: options.top_k.clamp(1, vocab_size),
            block,
            part,
        }
    }

    pub(super) fn holds_last_only(&self, entry: usize) -> bool {
        self.files[entry].positions() == Positions::Last
    }
}
