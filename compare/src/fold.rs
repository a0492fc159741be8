//! Accumulates the rows of a plan into one result per pair, in order of positions, so that threads do not affect it.

use std::ops::Range;

use rayon::prelude::*;

use super::entry::row_in_file;
use super::logits::{LogitsError, LogitsRow};
use super::metrics::{
    Distribution, ElementIndex, NonFinite, PairMetrics, PositionIndex, PositionMetrics, Rounded, Spike,
    relative, summarize_kl,
};
use super::plan::{EntryRow, Measured, PairRow, Plan, RowResult};

/// A position's largest difference is a spike if it exceeds this multiple of the RMS of that position's differences.
/// Gaussian noise reaches 6 in a vocabulary of 10⁸. bf16 errors grow with the logit: bf16 results compared with each other
/// and with float64 reached 11.3 on SmolLM2-135M, 8.7 on gemma-3-270m, 8.3 on MiniLM's hidden states and 5.7 on ten
/// synthetic checkpoints (docs/metrics.md). The limit is about three times the largest of these.
const PROMINENT: f64 = 32.0;
/// Ratio of squared norms from which the cosine's sum is computed from the values: below it, the difference of squares leaves
/// the cosine an error of 100 roundings of float64.
const FAR_LARGER: f64 = 1e4;
/// Tokens read at a time in search of the largest difference.
const READ_AGAIN: usize = 8192;

/// Running results of all pairs of a plan.
pub(super) struct Fold<'a> {
    plan: &'a Plan<'a>,
    pairs: Vec<PairFold>,
    entries: Vec<EntryFold>,
}

#[derive(Clone, Default)]
struct EntryFold {
    squares: f64,
    non_finite: NonFinite,
    positions: Vec<u32>,
}

#[derive(Clone, Default)]
struct PairFold {
    squares: f64,
    squares_a: f64,
    squares_b: f64,
    /// Largest difference that is not NaN.
    max: f64,
    max_position: usize,
    ulp: u64,
    rounded_squares: f64,
    rounded_max: f64,
    top1: usize,
    overlap: usize,
    first_greedy_divergence: Option<(usize, usize)>,
    non_finite_a: NonFinite,
    non_finite_b: NonFinite,
    worst: f64,
    worst_at: PositionIndex,
    spike: Spike,
    per_position: Vec<PositionMetrics>,
}

impl<'a> Fold<'a> {
    pub(super) fn new(plan: &'a Plan<'a>) -> Self {
        Self {
            plan,
            pairs: vec![PairFold::default(); plan.pairs.len()],
            entries: vec![EntryFold::default(); plan.files.len()],
        }
    }

    /// Adds the result of the row at index `position` of the real positions.
    pub(super) fn add(&mut self, position: usize, row: &RowResult) {
        let at = self.plan.frame.positions[position];
        for (fold, entry) in self.entries.iter_mut().zip(&row.entries) {
            if let Some(entry) = entry {
                fold.squares += entry.squares;
                fold.positions.push(position as u32);
                count(&mut fold.non_finite, entry);
            }
        }
        for ((fold, planned), pair) in self.pairs.iter_mut().zip(&self.plan.pairs).zip(&row.pairs) {
            if let (Some(a), Some(b)) = (&row.entries[planned.a], &row.entries[planned.b]) {
                fold.add(position, at, pair, a, b, self.plan.vocab_size);
            }
        }
    }

    /// The results. Reads single rows again to find the token of the largest difference, and to check whether files that
    /// hold NaN are equal.
    pub(super) fn finish(self) -> Result<Vec<Measured>, LogitsError> {
        let Self { plan, pairs, entries } = self;
        let mut results: Vec<Measured> = pairs
            .into_par_iter()
            .enumerate()
            .map(|(index, fold)| {
                let (a, b) = (plan.pairs[index].a, plan.pairs[index].b);
                Ok(((plan.class[a], plan.class[b]), finish_pair(plan, index, fold)?))
            })
            .collect::<Result<_, LogitsError>>()?;
        for (index, entry) in entries.into_iter().enumerate() {
            results.push(((plan.class[index], plan.class[index]), diagonal(plan, index, &entry)));
        }
        Ok(results)
    }
}

impl PairFold {
    fn add(
        &mut self,
        position: usize,
        at: PositionIndex,
        pair: &PairRow,
        a: &EntryRow,
        b: &EntryRow,
        vocab_size: usize,
    ) {
        self.squares += pair.squares;
        self.squares_a += a.squares;
        self.squares_b += b.squares;
        if pair.max > self.max {
            (self.max, self.max_position) = (pair.max, position);
        }
        self.ulp = self.ulp.max(pair.ulp);
        self.rounded_squares += pair.rounded_squares;
        self.rounded_max = self.rounded_max.max(pair.rounded_max);

        let larger = a.squares.max(b.squares);
        let share = relative(pair.squares.sqrt(), larger.sqrt());
        // A NaN counts as worse than any number, and the first one is kept.
        if share > self.worst || (share.is_nan() && !self.worst.is_nan()) {
            (self.worst, self.worst_at) = (share, at);
        }
        let rms = |squares: f64| (squares / vocab_size as f64).sqrt();
        let prominence = relative(pair.max, rms(pair.squares));
        let spike = Spike { relative: relative(pair.max, rms(larger)), prominence, at };
        if prominence > PROMINENT && spike.relative > self.spike.relative {
            self.spike = spike;
        }

        let (mut kl, mut kl_reversed) = (f64::NAN, f64::NAN);
        if let (Some(scan_a), Some(scan_b)) = (&a.scan, &b.scan) {
            count(&mut self.non_finite_a, a);
            count(&mut self.non_finite_b, b);
            let finite = scan_a.nan + scan_a.infinite + scan_b.nan + scan_b.infinite == 0;
            if finite {
                // ln Σeᵃ − ln Σeᵇ, where each side's largest logit is subtracted, as in the weighted differences.
                let normalizers = a.sum_exp.ln() - b.sum_exp.ln();
                kl = (pair.weighted_a / a.sum_exp - normalizers).max(0.0);
                kl_reversed = (normalizers - pair.weighted_b / b.sum_exp).max(0.0);
            }
            let same = !scan_a.top.is_empty() && scan_a.top.first() == scan_b.top.first();
            self.top1 += usize::from(same);
            self.overlap += scan_a.top.iter().filter(|&token| scan_b.top.contains(token)).count();
            let candidate = (at.position, at.row);
            if !same && self.first_greedy_divergence.is_none_or(|first| candidate < first) {
                self.first_greedy_divergence = Some(candidate);
            }
        }
        let l2 = pair.squares.sqrt();
        self.per_position.push(PositionMetrics {
            position: position as u32,
            l2,
            relative_l2: share,
            max_abs: unless_nan(pair.max, l2),
            kl,
            kl_reversed,
        });
    }
}

fn count(to: &mut NonFinite, entry: &EntryRow) {
    if let Some(scan) = &entry.scan {
        to.nan += scan.nan;
        to.infinite += scan.infinite;
    }
}

/// The largest difference, or NaN if a difference was NaN, which makes `l2` NaN.
fn unless_nan(max: f64, l2: f64) -> f64 {
    if l2.is_nan() { f64::NAN } else { max }
}

fn finish_pair(plan: &Plan<'_>, index: usize, fold: PairFold) -> Result<Option<PairMetrics>, LogitsError> {
    let planned = &plan.pairs[index];
    let positions = fold.per_position.len();
    if positions == 0 {
        return Ok(None);
    }
    let undefined = fold.squares.is_nan();
    let max_abs_at = if fold.max > 0.0 && !undefined {
        Some(find(plan, planned.a, planned.b, fold.max_position, fold.max)?)
    } else {
        None
    };
    let identical = fold.max.to_bits() == 0
        && (!undefined
            || (fold.non_finite_a == fold.non_finite_b && equal(plan, planned.a, planned.b, &fold)?));
    let (norm_a, norm_b) = (fold.squares_a.sqrt(), fold.squares_b.sqrt());
    let kl = |of: fn(&PositionMetrics) -> f64| {
        summarize_kl(&fold.per_position.iter().map(of).collect::<Vec<f64>>())
    };
    let has_nan = fold.non_finite_a.nan + fold.non_finite_b.nan > 0;
    Ok(Some(PairMetrics {
        positions,
        last_positions_only: plan.holds_last_only(planned.a) || plan.holds_last_only(planned.b),
        elements: (positions * plan.vocab_size) as u64,
        identical,
        l2: fold.squares.sqrt(),
        norm_a,
        norm_b,
        // Of equal sides the quotient may be one rounding away from 1.
        cosine: if [norm_a, norm_b].iter().any(|norm| !norm.is_normal()) {
            f64::NAN
        } else if identical {
            1.0
        } else {
            // The product of the norms may overflow.
            let (smaller, larger) = (norm_a.min(norm_b), norm_a.max(norm_b));
            (dot(plan, planned.a, planned.b, &fold)? / larger / smaller).clamp(-1.0, 1.0)
        },
        max_abs: unless_nan(fold.max, fold.squares),
        max_abs_at,
        max_ulp: (plan.all && !has_nan).then_some(fold.ulp),
        lower_dtype: plan.lower[index],
        rounded: (plan.all && planned.mixed).then(|| Rounded {
            l2: fold.rounded_squares.sqrt(),
            max_abs: unless_nan(fold.rounded_max, fold.rounded_squares),
        }),
        distribution: plan.all.then(|| Distribution {
            kl: kl(|position| position.kl),
            kl_reversed: kl(|position| position.kl_reversed),
            top1_agreement: fold.top1 as f64 / positions as f64,
            top_k_agreement: fold.overlap as f64 / (positions * plan.k) as f64,
            k: plan.k,
            first_greedy_divergence: fold
                .first_greedy_divergence
                .map(|(position, row)| PositionIndex { row, position }),
            non_finite_a: fold.non_finite_a,
            non_finite_b: fold.non_finite_b,
        }),
        worst_position: (fold.worst, fold.worst_at),
        spike: fold.spike,
        per_position: fold.per_position,
    }))
}

/// A file compared with itself: every difference is 0, or NaN if the file holds NaN or infinite values.
fn diagonal(plan: &Plan<'_>, index: usize, entry: &EntryFold) -> Option<PairMetrics> {
    let first = *entry.positions.first()?;
    let positions = entry.positions.len();
    let odd =
        entry.non_finite.nan + entry.non_finite.infinite > 0 || (!plan.all && !entry.squares.is_finite());
    let zero = if odd { f64::NAN } else { 0.0 };
    let norm = entry.squares.sqrt();
    let kl = summarize_kl(&vec![zero; positions]);
    Some(PairMetrics {
        positions,
        last_positions_only: plan.holds_last_only(index),
        elements: (positions * plan.vocab_size) as u64,
        identical: true,
        l2: zero,
        norm_a: norm,
        norm_b: norm,
        cosine: if norm > 0.0 && norm.is_finite() { 1.0 } else { f64::NAN },
        max_abs: zero,
        max_abs_at: None,
        max_ulp: (plan.all && entry.non_finite.nan == 0).then_some(0),
        lower_dtype: plan.dtypes[index],
        rounded: None,
        distribution: plan.all.then_some(Distribution {
            kl,
            kl_reversed: kl,
            top1_agreement: 1.0,
            top_k_agreement: 1.0,
            k: plan.k,
            first_greedy_divergence: None,
            non_finite_a: entry.non_finite,
            non_finite_b: entry.non_finite,
        }),
        worst_position: (zero, plan.frame.positions[first as usize]),
        spike: Spike::default(),
        per_position: entry
            .positions
            .iter()
            .map(|&position| PositionMetrics {
                position,
                l2: zero,
                relative_l2: zero,
                max_abs: zero,
                kl: if plan.all { zero } else { f64::NAN },
                kl_reversed: if plan.all { zero } else { f64::NAN },
            })
            .collect(),
    })
}

/// The first token at which the absolute difference of a position reaches `max`.
fn find(plan: &Plan<'_>, a: usize, b: usize, position: usize, max: f64) -> Result<ElementIndex, LogitsError> {
    let at = plan.frame.positions[position];
    let (mut row_a, mut row_b) = (LogitsRow::default(), LogitsRow::default());
    for from in (0..plan.vocab_size).step_by(READ_AGAIN) {
        let tokens = from..plan.vocab_size.min(from + READ_AGAIN);
        read(plan, a, at, tokens.clone(), &mut row_a)?;
        read(plan, b, at, tokens, &mut row_b)?;
        let mut pairs = row_a.to_f64().into_iter().zip(row_b.to_f64());
        if let Some(token) = pairs.position(|(a, b)| (a - b).abs() >= max) {
            return Ok(ElementIndex { at, token: from + token });
        }
    }
    unreachable!("the pass met this difference in this row")
}

/// Whether two files hold the same values, NaN included, at all positions that were compared.
fn equal(plan: &Plan<'_>, a: usize, b: usize, fold: &PairFold) -> Result<bool, LogitsError> {
    let same = |(a, b): (f64, f64)| {
        a.partial_cmp(&b).is_some_and(std::cmp::Ordering::is_eq) || (a.is_nan() && b.is_nan())
    };
    for row in rows(plan, a, b, fold) {
        let (a, b) = row?;
        if !a.into_iter().zip(b).all(same) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Σ a·b, from ‖a − b‖² = ‖a‖² + ‖b‖² − 2 Σ a·b. If one norm is far larger than the other, that would lose the digits of the
/// sum, and squares may overflow: then the files are read again.
fn dot(plan: &Plan<'_>, a: usize, b: usize, fold: &PairFold) -> Result<f64, LogitsError> {
    let (smaller, larger) = (fold.squares_a.min(fold.squares_b), fold.squares_a.max(fold.squares_b));
    let twice = smaller + larger - fold.squares;
    if larger / smaller < FAR_LARGER && twice.is_finite() {
        return Ok(0.5 * twice);
    }
    rows(plan, a, b, fold)
        .map(|row| row.map(|(a, b)| a.into_iter().zip(b).map(|(a, b)| a * b).sum::<f64>()))
        .sum()
}

/// The values of two files at each position that was compared, read again.
fn rows(
    plan: &Plan<'_>,
    a: usize,
    b: usize,
    fold: &PairFold,
) -> impl Iterator<Item = Result<(Vec<f64>, Vec<f64>), LogitsError>> {
    let (mut row_a, mut row_b) = (LogitsRow::default(), LogitsRow::default());
    fold.per_position.iter().map(move |compared| {
        let at = plan.frame.positions[compared.position as usize];
        read(plan, a, at, 0..plan.vocab_size, &mut row_a)?;
        read(plan, b, at, 0..plan.vocab_size, &mut row_b)?;
        Ok((row_a.to_f64(), row_b.to_f64()))
    })
}

/// Reads the logits of `tokens` at a position that the pass has read before.
fn read(
    plan: &Plan<'_>,
    entry: usize,
    at: PositionIndex,
    tokens: Range<usize>,
    row: &mut LogitsRow,
) -> Result<(), LogitsError> {
    let logits = plan.files[entry];
    let position = row_in_file(logits, &plan.frame.mask, at.position).expect("the pass read this row before");
    logits.read_part(at.row * logits.shape()[1] + position, tokens, row)
}
