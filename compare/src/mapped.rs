//! Compares two results of one variant at corresponding positions. The inputs of the second result were varied, for example
//! padded, so that a position of the first result may be another position of the second.

use super::Positions;
use super::logits::{Logits, LogitsError, LogitsRow};

/// A position of a batch: row and position in the row, including padding.
pub type At = (usize, usize);

/// The difference between two results over corresponding positions.
#[derive(Clone, Debug, PartialEq)]
pub struct Mapped {
    /// Number of values whose bits differ; two values that are NaN count as equal.
    pub differing: u64,
    /// Number of pairs of positions that were compared.
    pub positions: usize,
    /// `‖a − b‖ / ‖a‖` over all pairs, `[0, ∞]`: 0 for equal values, infinite if only one side of a value is a number, or if
    /// `a` is zero and `b` is not.
    pub relative_l2: f64,
    /// The pair of positions with the largest relative L2; `None` if nothing differs.
    pub worst: Option<Worst>,
}

/// The pair of positions that differs most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Worst {
    /// The position in the first result.
    pub a: At,
    /// The position in the second result.
    pub b: At,
    /// Relative L2 of this pair.
    pub relative_l2: f64,
}

impl Mapped {
    /// Whether every value has the same bits.
    pub fn is_bitwise(&self) -> bool {
        self.differing == 0
    }

    /// Whether the relative L2 is above `bound` over all positions, or above `local_factor × bound` at one position.
    pub fn is_above(&self, bound: f64, local_factor: f64) -> bool {
        let local = self.worst.map_or(0.0, |worst| worst.relative_l2);
        self.relative_l2 > bound || local > bound * local_factor
    }
}

/// Sums of squares for a relative L2, and the number of values that differ.
#[derive(Clone, Copy, Debug, Default)]
pub struct Squares {
    difference: f64,
    norm: f64,
    differing: u64,
}

impl Squares {
    /// Adds a pair of values.
    pub fn add(&mut self, a: f64, b: f64) {
        let same = a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        if !same {
            let difference = a - b;
            self.differing += 1;
            self.difference += if difference.is_nan() { f64::INFINITY } else { difference * difference };
        }
        if a.is_finite() {
            self.norm += a * a;
        }
    }

    /// Adds the sums of `other`.
    pub fn extend(&mut self, other: Self) {
        self.difference += other.difference;
        self.norm += other.norm;
        self.differing += other.differing;
    }

    /// `‖a − b‖ / ‖a‖`, as [`Mapped::relative_l2`].
    pub fn relative(self) -> f64 {
        if self.difference > 0.0 { (self.difference / self.norm).sqrt() } else { 0.0 }
    }
}

/// Accumulates pairs of positions into a [`Mapped`].
#[derive(Clone, Debug, Default)]
pub struct Sum {
    all: Squares,
    positions: usize,
    worst: Option<Worst>,
}

impl Sum {
    /// Adds a pair of positions whose values are summed in `here`.
    pub fn add(&mut self, a: At, b: At, here: Squares) {
        self.all.extend(here);
        self.positions += 1;
        let relative_l2 = here.relative();
        if relative_l2 > self.worst.map_or(0.0, |worst| worst.relative_l2) {
            self.worst = Some(Worst { a, b, relative_l2 });
        }
    }

    /// The difference over all pairs that were added.
    pub fn finish(self) -> Mapped {
        Mapped {
            differing: self.all.differing,
            positions: self.positions,
            relative_l2: self.all.relative(),
            worst: self.worst,
        }
    }
}

/// Compares two results at `pairs` of positions. For a last-position file, each pair must hold the last position of a row.
///
/// # Errors
/// A file cannot be read, the vocabularies differ, or a file does not hold a position.
pub fn mapped(a: &Logits, b: &Logits, pairs: &[(At, At)]) -> Result<Mapped, LogitsError> {
    if a.shape()[2] != b.shape()[2] {
        let problem = format!("holds logits {:?} where the other run gave {:?}", b.shape(), a.shape());
        return Err(LogitsError::invalid(b.path(), problem));
    }
    let (mut row_a, mut row_b) = (LogitsRow::default(), LogitsRow::default());
    let mut sum = Sum::default();
    for &(at_a, at_b) in pairs {
        read(a, at_a, &mut row_a)?;
        read(b, at_b, &mut row_b)?;
        let mut here = Squares::default();
        row_a.to_f64().into_iter().zip(row_b.to_f64()).for_each(|(a, b)| here.add(a, b));
        sum.add(at_a, at_b, here);
    }
    Ok(sum.finish())
}

fn read(logits: &Logits, (row, position): At, into: &mut LogitsRow) -> Result<(), LogitsError> {
    let [batch, seq, _] = logits.shape();
    let held = if logits.positions() == Positions::Last { 0 } else { position };
    if row >= batch || held >= seq {
        let problem = format!("holds logits {:?}, without row {row} position {position}", logits.shape());
        return Err(LogitsError::invalid(logits.path(), problem));
    }
    logits.read_row(row * seq + held, into)
}

/// The logits of one position, `[vocab_size]`.
///
/// # Errors
/// The file cannot be read or does not hold the position.
pub fn values_at(logits: &Logits, at: At) -> Result<Vec<f64>, LogitsError> {
    let mut row = LogitsRow::default();
    read(logits, at, &mut row)?;
    Ok(row.to_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logits::Values;

    fn logits(values: Vec<f64>, shape: [usize; 3]) -> Logits {
        Logits::from_values("test", Values::F64(values), &shape, Positions::All).unwrap()
    }

    #[test]
    fn corresponding_positions_are_compared_and_others_are_not() {
        // Row 1 of b is the row of a, one position later; the other values are arbitrary.
        let a = logits(vec![3.0, 4.0, 1.0, 2.0], [1, 2, 2]);
        let b = logits(vec![9.0; 6].into_iter().chain([9.0, 9.0, 3.0, 4.0, 1.0, 2.0]).collect(), [2, 3, 2]);
        let pairs = [((0, 0), (1, 1)), ((0, 1), (1, 2))];
        let found = mapped(&a, &b, &pairs).unwrap();
        assert!(found.is_bitwise() && found.positions == 2 && found.worst.is_none());
        let wrong = mapped(&a, &b, &[((0, 0), (1, 1)), ((0, 1), (1, 0))]).unwrap();
        let worst = wrong.worst.unwrap();
        assert_eq!((worst.a, worst.b, wrong.differing), ((0, 1), (1, 0), 2));
        let expected = (64.0_f64 + 49.0).sqrt();
        assert!((wrong.relative_l2 - expected / 30.0_f64.sqrt()).abs() < 1e-12);
        assert!((worst.relative_l2 - expected / 5.0_f64.sqrt()).abs() < 1e-12);
        assert!(mapped(&a, &b, &[((0, 0), (2, 0))]).is_err() && mapped(&a, &b, &[((0, 2), (0, 0))]).is_err());
    }

    #[test]
    fn a_number_against_nan_is_above_any_bound_and_nan_equals_nan() {
        let at = |value: f64| logits(vec![1.0, value], [1, 1, 2]);
        let found = |a: f64, b: f64| mapped(&at(a), &at(b), &[((0, 0), (0, 0))]).unwrap();
        assert!(found(f64::NAN, f64::NAN).is_bitwise());
        assert!(found(f64::NAN, 1.0).is_above(1e9, 1e9) && found(1.0, f64::INFINITY).is_above(1e9, 1e9));
        assert!(!found(f64::INFINITY, f64::INFINITY).is_above(0.0, 1.0));
        assert!(!found(1.0, 1.0 + 1e-9).is_above(1e-6, 4.0) && found(1.0, 1.1).is_above(1e-6, 4.0));
    }
}
