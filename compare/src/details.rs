//! Details of chosen pairs: the distances of their logits in ULP, and the tokens that both sides predict at the positions
//! that differ most.

use rayon::prelude::*;

use super::Dtype;
use super::entry::{Entry, row_in_file};
use super::kernels::{self, WIDE};
use super::logits::{Logits, LogitsError, LogitsRow};
use super::mask::Mask;
use super::matrix::Matrix;
use super::metrics::{PairMetrics, PositionIndex, PositionMetrics, lower_dtype};

/// Number of positions with the largest difference whose predictions are kept.
const WORST: usize = 5;
/// Number of predictions that are kept per side and position.
const TOP: usize = 5;
/// Most logits of a pair that its histogram counts; a larger pair is sampled at evenly spaced positions.
const MOST_COUNTED: usize = 1 << 24;
/// Classes of a histogram: equal values, then one class per power of two of a 64-bit distance.
const CLASSES: usize = 65;

/// Details of one pair.
#[derive(Clone, Debug, PartialEq)]
pub struct PairDetails {
    /// Index of side A in the matrix.
    pub a: usize,
    /// Index of side B in the matrix.
    pub b: usize,
    /// Distances of the logits in ULP.
    pub ulps: UlpHistogram,
    /// At most five positions that differ most, the worst first; empty if the sides are identical.
    pub worst: Vec<WorstPosition>,
}

/// Histogram of the distances between logits in ULP, after both sides were rounded to the less precise dtype.
#[derive(Clone, Debug, PartialEq)]
pub struct UlpHistogram {
    /// The less precise of the two dtypes.
    pub dtype: Dtype,
    /// Class 0 counts equal values, class `k` distances from `2^(k − 1)` to `2^k − 1`; trailing zeros are cut.
    pub counts: Vec<u64>,
    /// Number of logits that are NaN on a side; no class counts them.
    pub not_a_number: u64,
    /// Number of positions whose logits were counted.
    pub positions: usize,
    /// Number of positions that both sides have.
    pub of: usize,
}

/// A position and the predictions of both sides there.
#[derive(Clone, Debug, PartialEq)]
pub struct WorstPosition {
    /// The position.
    pub at: PositionIndex,
    /// `‖a − b‖ / max(‖a‖, ‖b‖)` over the vocabulary.
    pub relative_l2: f64,
    /// The largest logits of side A and of side B, largest first, without NaN.
    pub top: [Vec<Prediction>; 2],
}

/// A token that a side predicts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Token id.
    pub token: u32,
    /// Logit of the token.
    pub logit: f64,
    /// Softmax probability of the token; NaN if a logit of the position is NaN or +∞.
    pub probability: f64,
}

/// Computes the details of `pairs`, in that order; pairs that were not compared are left out.
///
/// # Errors
/// A logits file cannot be read.
pub fn details(
    entries: &[Entry],
    mask: Option<&Mask>,
    matrix: &Matrix,
    pairs: &[(usize, usize)],
) -> Result<Vec<PairDetails>, LogitsError> {
    let found: Vec<Option<PairDetails>> = pairs
        .par_iter()
        .map(|&(a, b)| {
            let (Some(pair), Ok(left), Ok(right)) =
                (matrix.compared(a, b), &entries[a].logits, &entries[b].logits)
            else {
                return Ok(None);
            };
            let sides = Sides {
                logits: [left, right],
                mask,
                dtype: lower_dtype(entries[a].dtype, entries[b].dtype),
                positions: &matrix.positions,
            };
            let (ulps, worst) = (sides.histogram(pair)?, sides.worst(pair)?);
            Ok(Some(PairDetails { a, b, ulps, worst }))
        })
        .collect::<Result<_, LogitsError>>()?;
    Ok(found.into_iter().flatten().collect())
}

struct Sides<'a> {
    logits: [&'a Logits; 2],
    mask: Option<&'a Mask>,
    dtype: Dtype,
    positions: &'a [PositionIndex],
}

impl Sides<'_> {
    fn histogram(&self, pair: &PairMetrics) -> Result<UlpHistogram, LogitsError> {
        let vocab_size = self.logits[0].shape()[2];
        let of = pair.per_position.len();
        let most = (MOST_COUNTED / vocab_size).clamp(1, of.max(1));
        let step = of.div_ceil(most).max(1);
        let chosen: Vec<&PositionMetrics> = pair.per_position.iter().step_by(step).collect();
        let nothing = || ([0_u64; CLASSES], 0_u64);
        let (counts, not_a_number) = chosen
            .par_iter()
            .map(|position| self.count(self.positions[position.position as usize]))
            .try_reduce(nothing, |(mut counts, nan), (more, more_nan)| {
                counts.iter_mut().zip(more).for_each(|(count, more)| *count += more);
                Ok((counts, nan + more_nan))
            })?;
        let used = counts.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
        Ok(UlpHistogram {
            dtype: self.dtype,
            counts: counts[..used].to_vec(),
            not_a_number,
            positions: chosen.len(),
            of,
        })
    }

    /// Counts per class, and the number of logits with a NaN, at one position.
    fn count(&self, at: PositionIndex) -> Result<([u64; CLASSES], u64), LogitsError> {
        let rows = [self.row(0, at)?, self.row(1, at)?];
        let length = self.logits[0].shape()[2];
        let values = rows.each_ref().map(|row| {
            let mut values = vec![0.0; length.next_multiple_of(WIDE)];
            kernels::widen(row, 0, length, &mut values);
            values
        });
        let mut counts = [0; CLASSES];
        let mut not_a_number = 0;
        let mut add = |index: usize, distance: u64| {
            if values[0][index].is_nan() || values[1][index].is_nan() {
                not_a_number += 1;
            } else {
                counts[distance.checked_ilog2().map_or(0, |power| power as usize + 1)] += 1;
            }
        };
        if self.dtype == Dtype::F64 {
            (0..length).for_each(|index| add(index, kernels::ulp_f64(values[0][index], values[1][index])));
        } else {
            let ordinals: [Vec<u32>; 2] = std::array::from_fn(|side| {
                let mut out = vec![0; values[side].len()];
                kernels::ordinals(&values[side], rows[side].is_wide, self.dtype, &mut out, None);
                out
            });
            (0..length).for_each(|index| add(index, ordinals[0][index].abs_diff(ordinals[1][index]).into()));
        }
        Ok((counts, not_a_number))
    }

    fn worst(&self, pair: &PairMetrics) -> Result<Vec<WorstPosition>, LogitsError> {
        if pair.identical {
            return Ok(Vec::new());
        }
        let mut order: Vec<&PositionMetrics> = pair.per_position.iter().collect();
        // NaN sorts before every number.
        let key = |position: &PositionMetrics| (position.relative_l2.is_nan(), position.relative_l2);
        order.sort_by(|a, b| {
            let (a, b) = (key(a), key(b));
            b.0.cmp(&a.0).then(b.1.total_cmp(&a.1))
        });
        order
            .into_iter()
            .take(WORST)
            .map(|position| {
                let at = self.positions[position.position as usize];
                let top = [predictions(&self.row(0, at)?), predictions(&self.row(1, at)?)];
                Ok(WorstPosition { at, relative_l2: position.relative_l2, top })
            })
            .collect()
    }

    fn row(&self, side: usize, at: PositionIndex) -> Result<LogitsRow, LogitsError> {
        let logits = self.logits[side];
        let all = Mask::all_real(logits.shape()[0], logits.shape()[1]);
        let position = row_in_file(logits, self.mask.unwrap_or(&all), at.position);
        let position = position.expect("the matrix compared this position");
        let mut row = LogitsRow::default();
        logits.read_row(at.row * logits.shape()[1] + position, &mut row)?;
        Ok(row)
    }
}

fn predictions(row: &LogitsRow) -> Vec<Prediction> {
    let values = row.to_f64();
    let scan = kernels::scan(&values, TOP);
    let sum: f64 = values.iter().map(|value| (value - scan.max).exp()).sum();
    let of = |&token: &u32| {
        let logit = values[token as usize];
        Prediction { token, logit, probability: (logit - scan.max).exp() / sum }
    };
    scan.top.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Positions;
    use crate::logits::Values;
    use crate::matrix::{Options, matrix};

    fn entry(name: &str, dtype: Dtype, values: &[f64]) -> Entry {
        let shape = [1, values.len() / 4, 4];
        let logits = Logits::from_values(name, Values::F64(values.to_vec()), &shape, Positions::All).unwrap();
        Entry { name: name.to_owned(), dtype, logits: Ok(logits) }
    }

    fn of(dtype: Dtype, a: &[f64], b: &[f64]) -> PairDetails {
        let entries = [entry("a", dtype, a), entry("b", dtype, b)];
        let matrix = matrix(&entries, None, &Options::default()).unwrap();
        details(&entries, None, &matrix, &[(0, 1)]).unwrap().remove(0)
    }

    #[test]
    fn distances_are_counted_in_classes_of_powers_of_two() {
        let step = |steps: u32| f64::from(f32::from_bits(1.0_f32.to_bits() + steps));
        let found = of(Dtype::F32, &[1.0; 8], &[1.0, step(1), step(2), step(3), step(4), step(7), 1.0, 1.0]);
        assert_eq!(found.ulps.counts, [3, 1, 2, 2]);
        assert_eq!((found.ulps.positions, found.ulps.of, found.ulps.not_a_number), (2, 2, 0));
        // 1 + 2⁻⁸ lies halfway between two bf16 values and rounds to the even one, 1.
        let found = of(Dtype::Bf16, &[1.0; 4], &[1.0, 1.0 + 1.0 / 256.0, 1.0 + 1.0 / 128.0, f64::NAN]);
        assert_eq!((found.ulps.counts.as_slice(), found.ulps.not_a_number), ([2, 1].as_slice(), 1));
        let next = f64::from_bits(1.0_f64.to_bits() + 5);
        assert_eq!(of(Dtype::F64, &[1.0; 4], &[1.0, 1.0, 1.0, next]).ulps.counts, [3, 0, 0, 1]);
    }

    #[test]
    fn the_worst_position_comes_first_with_both_sides_predictions() {
        let a = [0.0, 1.0, 2.0, 3.0, 4.0, 1.0, 0.0, 0.0];
        let b = [0.0, 1.0, 2.0, 3.1, 0.0, 1.0, 5.0, f64::NEG_INFINITY];
        let found = of(Dtype::F32, &a, &b);
        let at = |index: usize| found.worst[index].at.position;
        assert_eq!((found.worst.len(), at(0), at(1)), (2, 1, 0), "an infinite difference is the worst");
        let tokens = |side: usize| found.worst[0].top[side].iter().map(|top| top.token).collect::<Vec<_>>();
        assert_eq!((tokens(0), tokens(1)), (vec![0, 1, 2, 3], vec![2, 1, 0, 3]));
        let total: f64 = found.worst[0].top[1].iter().map(|top| top.probability).sum();
        assert!((total - 1.0).abs() < 1e-12, "f64 rounding of a sum of four: {total}");
    }

    #[test]
    fn a_position_of_nan_is_worse_than_any_number_and_identical_sides_have_none() {
        let found = of(Dtype::F32, &[1.0; 8], &[1.0, 9.0, 9.0, 9.0, 1.0, 1.0, 1.0, f64::NAN]);
        assert_eq!(found.worst[0].at.position, 1);
        assert!(found.worst[0].relative_l2.is_nan());
        assert!(of(Dtype::F32, &[1.0; 8], &[1.0; 8]).worst.is_empty());
    }
}
