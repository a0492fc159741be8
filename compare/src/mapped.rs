//! Two results of one variant at positions that correspond: of inputs that were varied, so that a position of one result is
//! another position of the other.

use super::Positions;
use super::logits::{Logits, LogitsError, Row};

/// A position of a batch: row and position, padding counted.
pub type At = (usize, usize);

/// How far two results are apart over corresponding positions.
#[derive(Clone, Debug, PartialEq)]
pub struct Mapped {
    /// Values whose bits differ, any NaN being as good as another.
    pub differing: u64,
    /// Pairs of positions that were compared.
    pub positions: usize,
    /// `‖a − b‖ / ‖a‖` over all of them, `[0, ∞]`: 0 for equal values, infinite where only one side is a number, or where
    /// `a` is zero and `b` is not.
    pub relative_l2: f64,
    /// The pair of positions that differs most by its own relative L2; `None` where nothing differs.
    pub worst: Option<Worst>,
}

/// The pair of positions that differs most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Worst {
    /// The position in the first result.
    pub a: At,
    /// The position in the second one.
    pub b: At,
    /// Relative L2 of this pair.
    pub relative_l2: f64,
}

impl Mapped {
    /// Whether every value has the same bits.
    pub fn is_bitwise(&self) -> bool {
        self.differing == 0
    }

    /// Whether it is above `bound` over all positions, or above `local_factor` times that at one.
    pub fn is_above(&self, bound: f64, local_factor: f64) -> bool {
        let local = self.worst.map_or(0.0, |worst| worst.relative_l2);
        self.relative_l2 > bound || local > bound * local_factor
    }
}

/// Squares over which a relative L2 is taken.
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

    /// Adds other sums.
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

/// Adds up pairs of positions.
#[derive(Clone, Debug, Default)]
pub struct Sum {
    all: Squares,
    positions: usize,
    worst: Option<Worst>,
}

impl Sum {
    /// Adds a pair of positions.
    pub fn add(&mut self, a: At, b: At, here: Squares) {
        self.all.extend(here);
        self.positions += 1;
        let relative_l2 = here.relative();
        if relative_l2 > self.worst.map_or(0.0, |worst| worst.relative_l2) {
            self.worst = Some(Worst { a, b, relative_l2 });
        }
    }

    /// What was added.
    pub fn finish(self) -> Mapped {
        Mapped {
            differing: self.all.differing,
            positions: self.positions,
            relative_l2: self.all.relative(),
            worst: self.worst,
        }
    }
}

/// Compares two results at `pairs` of positions. Of a file that holds last positions only, the caller gives pairs of last
/// positions.
///
/// # Errors
/// A file cannot be read, the vocabularies differ, or a file does not hold a position.
pub fn mapped(a: &Logits, b: &Logits, pairs: &[(At, At)]) -> Result<Mapped, LogitsError> {
    if a.shape()[2] != b.shape()[2] {
        let problem = format!("holds logits {:?} where the other run gave {:?}", b.shape(), a.shape());
        return Err(LogitsError::invalid(b.path(), problem));
    }
    let (mut row_a, mut row_b) = (Row::default(), Row::default());
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

fn read(logits: &Logits, (row, position): At, into: &mut Row) -> Result<(), LogitsError> {
    let [batch, seq, _] = logits.shape();
    let held = if logits.positions() == Positions::Last { 0 } else { position };
    if row >= batch || held >= seq {
        let problem = format!("holds logits {:?}, without row {row} position {position}", logits.shape());
        return Err(LogitsError::invalid(logits.path(), problem));
    }
    logits.read_row(row * seq + held, into)
}

/// The values of one position.
///
/// # Errors
/// As [`mapped`].
pub fn values_at(logits: &Logits, at: At) -> Result<Vec<f64>, LogitsError> {
    let mut row = Row::default();
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
        // Row 1 of b is the row of a, one position later; what lies elsewhere is anything.
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
    fn a_number_against_none_is_above_any_bound_and_none_against_none_is_equal() {
        let at = |value: f64| logits(vec![1.0, value], [1, 1, 2]);
        let found = |a: f64, b: f64| mapped(&at(a), &at(b), &[((0, 0), (0, 0))]).unwrap();
        assert!(found(f64::NAN, f64::NAN).is_bitwise());
        assert!(found(f64::NAN, 1.0).is_above(1e9, 1e9) && found(1.0, f64::INFINITY).is_above(1e9, 1e9));
        assert!(!found(f64::INFINITY, f64::INFINITY).is_above(0.0, 1.0));
        assert!(!found(1.0, 1.0 + 1e-9).is_above(1e-6, 4.0) && found(1.0, 1.1).is_above(1e-6, 4.0));
    }
}
