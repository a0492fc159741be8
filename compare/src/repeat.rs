//! The noise floor: how much a variant's logits differ when it repeats the same forward pass.

use serde::{Deserialize, Serialize};

use super::entry::row_in_file;
use super::logits::{Logits, LogitsError, LogitsRow};
use super::mask::Mask;
use super::metrics::largest;

/// A variant compared with its own repetitions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Noise {
    /// Comparison with another forward pass of the same process, after its timed passes; `None` if it was not made.
    pub same_process: Option<Repeat>,
    /// Comparison with the first forward pass of a second process; `None` if it was not made.
    pub second_process: Option<Repeat>,
    /// Nanoseconds that the repetitions took: a forward pass, and a second worker's start, load and first forward pass.
    pub elapsed_ns: u64,
}

/// Comparison of two results of one variant over the real positions that both hold.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub struct Repeat {
    /// Whether every value has the same bits, NaN and the sign of zero included.
    pub bitwise: bool,
    /// Values whose bits differ.
    pub differing: u64,
    /// `sqrt(Σ (a − b)²)` over the values whose bits differ, in units of logits, `[0, ∞]`; NaN if one of them is NaN.
    pub l2: f64,
}

/// The JSON representation of [`Repeat`]. JSON has no NaN and no infinity; such an L2 is `null`.
#[derive(Serialize, Deserialize)]
struct Stored {
    bitwise: bool,
    differing: u64,
    l2: Option<f64>,
}

impl From<Stored> for Repeat {
    fn from(stored: Stored) -> Self {
        Self::new(stored.differing, stored.l2.unwrap_or(f64::NAN))
    }
}

impl From<Repeat> for Stored {
    fn from(repeat: Repeat) -> Self {
        Self {
            bitwise: repeat.bitwise,
            differing: repeat.differing,
            l2: Some(repeat.l2).filter(|l2| l2.is_finite()),
        }
    }
}

impl Repeat {
    /// A comparison with `differing` differing values, whose differences have this L2.
    pub fn new(differing: u64, l2: f64) -> Self {
        Self { bitwise: differing == 0, differing, l2 }
    }
}

impl Noise {
    /// The larger L2 of the repetitions, NaN if either is NaN; `None` if no repetition was made.
    pub fn l2(&self) -> Option<f64> {
        let both = self.same_process.iter().chain(&self.second_process).map(|repeat| repeat.l2);
        largest(both)
    }

    /// Whether every repetition that was made is bitwise equal.
    pub fn is_bitwise(&self) -> bool {
        self.same_process.iter().chain(&self.second_process).all(|repeat| repeat.bitwise)
    }

    /// A sentence part that lists the repetitions that differ; `None` if all are bitwise equal.
    pub fn said(&self) -> Option<String> {
        let part = |repeat: &Option<Repeat>, place: &str| {
            repeat.filter(|repeat| !repeat.bitwise).map(|repeat| {
                let logits = if repeat.differing == 1 { "logit differs" } else { "logits differ" };
                format!("{} {logits} in {place}, self L2 {:.3e}", repeat.differing, repeat.l2)
            })
        };
        let parts: Vec<String> =
            [part(&self.same_process, "the same process"), part(&self.second_process, "a second process")]
                .into_iter()
                .flatten()
                .collect();
        (!parts.is_empty()).then(|| format!("not deterministic: {}", parts.join("; ")))
    }
}

/// L2 of a pair over the larger self L2 of its sides. `None` if neither side's noise is known, the noise is 0, or `l2`
/// is NaN.
pub fn multiple(l2: f64, a: Option<&Noise>, b: Option<&Noise>) -> Option<f64> {
    let noise = a.and_then(Noise::l2).into_iter().chain(b.and_then(Noise::l2)).fold(0.0, f64::max);
    (noise > 0.0 && !l2.is_nan()).then(|| l2 / noise)
}

/// Formats a multiple: `2.9`, `1.4e6`.
pub fn times(multiple: f64) -> String {
    if multiple < 1000.0 { format!("{multiple:.1}") } else { format!("{multiple:.1e}") }
}

/// Compares two logits files of one variant.
///
/// # Errors
/// A file cannot be read, or the shapes differ.
pub fn repeat(a: &Logits, b: &Logits, mask: Option<&Mask>) -> Result<Repeat, LogitsError> {
    if (a.shape(), a.positions()) != (b.shape(), b.positions()) {
        let problem = format!("holds logits {:?} where the first pass gave {:?}", b.shape(), a.shape());
        return Err(LogitsError::invalid(b.path(), problem));
    }
    let [batch, seq, _] = a.shape();
    let all = Mask::all_real(batch, seq);
    let mask = mask.filter(|mask| mask.batch() == batch).unwrap_or(&all);
    let (mut row_a, mut row_b) = (LogitsRow::default(), LogitsRow::default());
    let (mut differing, mut squares) = (0, 0.0);
    for row in 0..batch {
        for position in (0..mask.seq()).filter(|&position| mask.is_real(row, position)) {
            let Some(held) = row_in_file(a, mask, position).filter(|&held| held < seq) else { continue };
            a.read_row(row * seq + held, &mut row_a)?;
            b.read_row(row * seq + held, &mut row_b)?;
            for (x, y) in row_a.to_f64().into_iter().zip(row_b.to_f64()) {
                if x.to_bits() != y.to_bits() {
                    differing += 1;
                    squares += (x - y) * (x - y);
                }
            }
        }
    }
    Ok(Repeat::new(differing, f64::sqrt(squares)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(same: Option<(u64, f64)>, second: Option<(u64, f64)>) -> Noise {
        let repeat = |of: Option<(u64, f64)>| of.map(|(differing, l2)| Repeat::new(differing, l2));
        Noise { same_process: repeat(same), second_process: repeat(second), elapsed_ns: 1 }
    }

    #[test]
    fn the_noise_is_the_larger_self_difference_and_nan_is_larger_than_any() {
        assert_eq!(noise(None, None).l2(), None);
        assert_eq!(noise(Some((0, 0.0)), Some((3, 0.5))).l2(), Some(0.5));
        assert_eq!(noise(Some((3, 0.5)), Some((0, 0.0))).l2(), Some(0.5));
        for order in [[Some((1, f64::NAN)), Some((3, 0.5))], [Some((3, 0.5)), Some((1, f64::NAN))]] {
            assert!(noise(order[0], order[1]).l2().is_some_and(f64::is_nan));
        }
    }

    #[test]
    fn a_multiple_needs_a_nonzero_noise() {
        let (still, loud) = (noise(Some((0, 0.0)), None), noise(Some((1, 0.25)), None));
        assert_eq!(multiple(1.0, Some(&still), Some(&still)), None);
        assert_eq!(multiple(1.0, None, None), None);
        assert_eq!(multiple(f64::NAN, Some(&loud), None), None);
        assert_eq!(multiple(1.0, Some(&still), Some(&loud)), Some(4.0));
    }

    #[test]
    fn nan_l2_survives_a_json_round_trip() {
        for l2 in [0.0, 0.125, f64::NAN] {
            let before = Repeat::new(u64::from(l2.to_bits() != 0), l2);
            let text = serde_json::to_string(&before).unwrap();
            let after: Repeat = serde_json::from_str(&text).unwrap();
            assert_eq!((before.bitwise, before.differing), (after.bitwise, after.differing));
            assert!(after.l2.to_bits() == l2.to_bits() || l2.is_nan() && after.l2.is_nan());
        }
    }
}
