//! Captured tensors: the layout of their positions, and the difference of two tensors.

mod mapped;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bounds::limits::STORED_TENSOR_BYTES;
use reference::protocol::CapturedTensor;

use super::Worst;
use compare::mask::Mask;
pub(in crate::hunt) use mapped::mapped;

/// Scores below this are masked: transformers adds the dtype's lowest finite value or −∞, and float16's lowest is
/// −65504. Unmasked scores are at most in the hundreds.
const MASKED: f64 = -6e4;

/// A captured tensor on the disk.
pub(in crate::hunt) struct Stored {
    file: File,
    pub(super) shape: Vec<usize>,
    /// Bytes of an element: 8 for f64, 4 for f32.
    width: usize,
}

/// The shape of a run's inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hunt) struct Extent {
    pub(in crate::hunt) batch: usize,
    pub(in crate::hunt) seq: usize,
}

/// How far two tensors are apart over the real positions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Difference {
    /// `‖a − b‖ / ‖a‖`; 0 for equal values, infinite if only one is finite or if `a` is zero and `b` is not.
    pub(super) relative_l2: f64,
    pub(super) worst: Option<Worst>,
}

impl Difference {
    /// Relative L2 of the position that differs most.
    pub(super) fn at_worst(&self) -> f64 {
        self.worst.map_or(0.0, |worst| worst.relative_l2)
    }
}

/// Location of the values of a position: `parts` runs of `length` values.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Layout {
    parts: usize,
    length: usize,
    row_stride: usize,
    position_stride: usize,
    part_stride: usize,
    heads_first: bool,
}

impl Stored {
    /// Opens a captured tensor; `None` where it was left out.
    pub(in crate::hunt) fn open(folder: &Path, tensor: Option<&CapturedTensor>) -> io::Result<Option<Self>> {
        let Some((tensor, name)) = tensor.and_then(|tensor| Some((tensor, tensor.file.as_ref()?))) else {
            return Ok(None);
        };
        Self::at(&folder.join(name), &tensor.shape).map(Some)
    }

    /// Opens a tensor of this shape.
    pub(super) fn at(path: &Path, shape: &[usize]) -> io::Result<Self> {
        let file = bounds::file::open_unlinked(path)?;
        let length = file.metadata()?.len();
        let elements = shape.iter().try_fold(1_u64, |product, side| product.checked_mul(*side as u64));
        let is_of =
            |width: &usize| elements.and_then(|elements| elements.checked_mul(*width as u64)) == Some(length);
        // An empty tensor is empty in any dtype.
        let width = [8, 4].into_iter().find(is_of).ok_or_else(|| {
            let problem = format!("{length} bytes, which are neither f64 nor f32 of shape {shape:?}");
            io::Error::new(io::ErrorKind::InvalidData, problem)
        })?;
        Ok(Self { file, shape: shape.to_vec(), width })
    }

    /// Its bytes.
    pub(super) fn bytes(&self) -> io::Result<Vec<u8>> {
        bounds::file::read_open(&self.file, STORED_TENSOR_BYTES)
    }

    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// `None` for a tensor without positions, such as `[batch, width]`.
    fn layout(&self, mask: &Mask) -> Option<Layout> {
        self.layout_in(Extent { batch: mask.batch(), seq: mask.seq() })
    }

    fn layout_in(&self, Extent { batch, seq }: Extent) -> Option<Layout> {
        let position_first = |width: usize| Layout {
            parts: 1,
            length: width,
            row_stride: seq * width,
            position_stride: width,
            part_stride: width,
            heads_first: false,
        };
        match *self.shape.as_slice() {
            [rows, positions, ref rest @ ..] if rows == batch && positions == seq => {
                Some(position_first(rest.iter().product()))
            }
            // Experts get tokens flattened over the batch.
            [tokens, width] | [tokens, 1, width] if tokens == batch * seq => Some(position_first(width)),
            [rows, parts, positions, length] if rows == batch && positions == seq => Some(Layout {
                parts,
                length,
                row_stride: parts * seq * length,
                position_stride: length,
                part_stride: seq * length,
                heads_first: true,
            }),
            _ => None,
        }
    }

    /// The values of a position; `None` if they are not contiguous.
    pub(super) fn at_position(
        &self,
        mask: &Mask,
        row: usize,
        position: usize,
    ) -> io::Result<Option<Vec<f64>>> {
        let Some(layout) = self.layout(mask).filter(|layout| layout.parts == 1) else { return Ok(None) };
        let mut values = vec![0.0; layout.length];
        self.read(layout.first(row, position, 0), &mut values)?;
        Ok(Some(values))
    }

    fn read(&self, first: usize, values: &mut [f64]) -> io::Result<()> {
        let mut bytes = vec![0; values.len() * self.width];
        self.file.read_exact_at(&mut bytes, (first * self.width) as u64)?;
        if self.width == 8 {
            for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *value = f64::from_le_bytes(*bytes);
            }
        } else {
            for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f64::from(f32::from_le_bytes(*bytes));
            }
        }
        Ok(())
    }

    /// If this tensor and one of `shape` differ in the order of heads and positions, writes it to `path` in the
    /// layout of `shape` and returns true.
    pub(super) fn laid_out_as(&self, shape: &[usize], mask: &Mask, path: &Path) -> io::Result<bool> {
        let other = Self { file: self.file.try_clone()?, shape: shape.to_vec(), width: self.width };
        let (Some(from), Some(to)) = (self.layout(mask), other.layout(mask)) else { return Ok(false) };
        let Some((from, to)) = from.matched(to) else { return Ok(false) };
        if from.heads_first == to.heads_first || self.elements() != other.elements() {
            return Ok(false);
        }
        let mut bytes = vec![0; self.elements() * self.width];
        let run = from.length * self.width;
        for (row, position, part) in from.runs(mask) {
            let at = to.first(row, position, part) * self.width;
            self.file.read_exact_at(
                &mut bytes[at..at + run],
                (from.first(row, position, part) * self.width) as u64,
            )?;
        }
        fs::write(path, bytes)?;
        Ok(true)
    }
}

impl Layout {
    /// Splits both into runs of equal length; `None` if that is impossible.
    fn matched(self, other: Self) -> Option<(Self, Self)> {
        let parts = self.parts.max(other.parts);
        if self.parts * self.length != other.parts * other.length || parts == 0 {
            return None;
        }
        let cut = |layout: Self| {
            let whole = layout.parts == parts;
            let length = layout.length * layout.parts / parts;
            let cut = Self { parts, length, part_stride: length, ..layout };
            if whole { Some(layout) } else { (layout.parts == 1).then_some(cut) }
        };
        Some((cut(self)?, cut(other)?))
    }

    fn first(&self, row: usize, position: usize, part: usize) -> usize {
        row * self.row_stride + position * self.position_stride + part * self.part_stride
    }

    fn runs(self, mask: &Mask) -> impl Iterator<Item = (usize, usize, usize)> {
        let (batch, seq) = (mask.batch(), mask.seq());
        (0..batch).flat_map(move |row| {
            (0..seq).flat_map(move |position| (0..self.parts).map(move |part| (row, position, part)))
        })
    }
}

/// Sums of squares.
#[derive(Default)]
struct Sums {
    difference: f64,
    norm: f64,
}

impl Sums {
    fn add(&mut self, a: f64, b: f64) {
        // NaN on both sides, or the same infinity, counts as equal.
        let same = a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        let difference = if same { 0.0 } else { a - b };
        self.difference += if difference.is_nan() { f64::INFINITY } else { difference * difference };
        if a.is_finite() {
            self.norm += a * a;
        }
    }

    fn relative(&self) -> f64 {
        if self.difference > 0.0 { (self.difference / self.norm).sqrt() } else { 0.0 }
    }
}

/// Difference of `b` relative to `a`; `None` if the layouts do not match. If the heads of the two sides have
/// different lengths, only the features that both hold (the rotated ones) are compared.
pub(super) fn difference(a: &Stored, b: &Stored, mask: &Mask) -> io::Result<Option<Difference>> {
    let (Some(of_a), Some(of_b)) = (a.layout(mask), b.layout(mask)) else {
        // An expert's tokens may be padding, which is not compared.
        let by_rows = a.shape.first().is_some_and(|&rows| rows == 1 || rows == mask.batch());
        let is_padded = (0..mask.batch()).any(|row| (0..mask.seq()).any(|at| !mask.is_real(row, at)));
        // Patches of an image are rows, or the positions of one row.
        let sides = |of: &Stored| of.shape.iter().copied().filter(|side| *side != 1).collect::<Vec<_>>();
        let is_comparable = sides(a) == sides(b) && (by_rows || !is_padded);
        return if is_comparable { whole(a, b).map(Some) } else { Ok(None) };
    };
    let (of_a, of_b) = match of_a.matched(of_b) {
        Some(both) => both,
        None if of_a.heads_first && of_b.heads_first && of_a.parts == of_b.parts => {
            let length = of_a.length.min(of_b.length);
            (Layout { length, ..of_a }, Layout { length, ..of_b })
        }
        None => return Ok(None),
    };
    let (mut left, mut right) = (vec![0.0; of_a.length], vec![0.0; of_a.length]);
    let mut all = Sums::default();
    let mut worst: Option<Worst> = None;
    for row in 0..mask.batch() {
        for position in (0..mask.seq()).filter(|position| mask.is_real(row, *position)) {
            let mut here = Sums::default();
            for part in 0..of_a.parts {
                a.read(of_a.first(row, position, part), &mut left)?;
                b.read(of_b.first(row, position, part), &mut right)?;
                left.iter().zip(&right).for_each(|(a, b)| here.add(*a, *b));
            }
            all.difference += here.difference;
            all.norm += here.norm;
            note_worst(&mut worst, row, position, here.relative());
        }
    }
    Ok(Some(Difference { relative_l2: all.relative(), worst }))
}

fn note_worst(worst: &mut Option<Worst>, row: usize, position: usize, relative_l2: f64) {
    if relative_l2 > worst.map_or(0.0, |worst| worst.relative_l2) {
        *worst = Some(Worst { row, position, relative_l2 });
    }
}

fn whole(a: &Stored, b: &Stored) -> io::Result<Difference> {
    let (mut left, mut right) = (vec![0.0; a.elements()], vec![0.0; a.elements()]);
    a.read(0, &mut left)?;
    b.read(0, &mut right)?;
    let mut sums = Sums::default();
    left.iter().zip(&right).for_each(|(a, b)| sums.add(*a, *b));
    Ok(Difference { relative_l2: sums.relative(), worst: None })
}

/// Difference of an argument that need not have positions, such as a mask or a table: masked scores of any value are
/// equal. `None` if the layouts do not match.
pub(super) fn argument_difference(a: &Stored, b: &Stored, mask: &Mask) -> io::Result<Option<Difference>> {
    if let Some(Scores { mask, scores }) = scores(a, b, mask)? {
        let larger = if mask.relative_l2 > scores.relative_l2 { mask } else { scores };
        return Ok(Some(larger));
    }
    if a.layout(mask).is_some() {
        return difference(a, b, mask);
    }
    let (mut left, mut right) = (vec![0.0; a.elements()], vec![0.0; b.elements()]);
    a.read(0, &mut left)?;
    b.read(0, &mut right)?;
    let mut sums = Sums::default();
    left.iter().zip(&right).for_each(|(a, b)| sums.add(a.max(MASKED), b.max(MASKED)));
    Ok(Some(Difference { relative_l2: sums.relative(), worst: None }))
}

/// Differences of the inputs of two softmaxes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scores {
    /// The mask: admitted keys as ones, masked keys as zeros.
    pub(super) mask: Difference,
    /// The scores of the keys that both sides admit.
    pub(super) scores: Difference,
}

/// Differences of two masked scores `[batch, heads, seq, keys]`; `None` for other layouts.
pub(super) fn scores(a: &Stored, b: &Stored, mask: &Mask) -> io::Result<Option<Scores>> {
    let (Some(of_a), Some(of_b)) = (a.layout(mask), b.layout(mask)) else { return Ok(None) };
    if a.shape != b.shape || !of_a.heads_first {
        return Ok(None);
    }
    let (mut left, mut right) = (vec![0.0; of_a.length], vec![0.0; of_a.length]);
    let (mut admitted, mut common) = (Sums::default(), Sums::default());
    let mut found = Scores::default();
    for row in 0..mask.batch() {
        for position in (0..mask.seq()).filter(|position| mask.is_real(row, *position)) {
            let (mut admitted_here, mut common_here) = (Sums::default(), Sums::default());
            for part in 0..of_a.parts {
                a.read(of_a.first(row, position, part), &mut left)?;
                b.read(of_b.first(row, position, part), &mut right)?;
                for (a, b) in left.iter().zip(&right) {
                    let (in_a, in_b) = (*a > MASKED, *b > MASKED);
                    admitted_here.add(f64::from(in_a), f64::from(in_b));
                    if in_a && in_b {
                        common_here.add(*a, *b);
                    }
                }
            }
            note_worst(&mut found.mask.worst, row, position, admitted_here.relative());
            note_worst(&mut found.scores.worst, row, position, common_here.relative());
            for (all, here) in [(&mut admitted, admitted_here), (&mut common, common_here)] {
                all.difference += here.difference;
                all.norm += here.norm;
            }
        }
    }
    found.mask.relative_l2 = admitted.relative();
    found.scores.relative_l2 = common.relative();
    Ok(Some(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(folder: &Path, name: &str, shape: &[usize], values: &[f64]) -> Stored {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        fs::write(folder.join(name), bytes).unwrap();
        Stored::at(&folder.join(name), shape).unwrap()
    }

    /// Two sequences of three positions, two heads of two features; the value encodes its location.
    fn value(row: usize, position: usize, head: usize, feature: usize) -> f64 {
        (row * 1000 + position * 100 + head * 10 + feature) as f64 + 1.0
    }

    fn ordered(heads_first: bool) -> Vec<f64> {
        let mut values = Vec::new();
        for row in 0..2 {
            for outer in 0..if heads_first { 2 } else { 3 } {
                for inner in 0..if heads_first { 3 } else { 2 } {
                    let (position, head) = if heads_first { (inner, outer) } else { (outer, inner) };
                    values.extend((0..2).map(|feature| value(row, position, head, feature)));
                }
            }
        }
        values
    }

    #[test]
    fn layouts_with_heads_first_heads_last_and_joined_heads_are_equal() {
        let folder = tempfile::tempdir().unwrap();
        let mask = Mask::all_real(2, 3);
        let shapes: [(&[usize], bool); 3] =
            [(&[2, 3, 4], false), (&[2, 3, 2, 2], false), (&[2, 2, 3, 2], true)];
        for (a, a_first) in shapes {
            for (b, b_first) in shapes {
                let left = stored(folder.path(), "a", a, &ordered(a_first));
                let right = stored(folder.path(), "b", b, &ordered(b_first));
                let found = difference(&left, &right, &mask).unwrap().unwrap();
                assert!(found.relative_l2.abs() <= 0.0, "{a:?} against {b:?}: {found:?}");
                let path = folder.path().join("c");
                if left.laid_out_as(b, &mask, &path).unwrap() {
                    assert_eq!(fs::read(&path).unwrap(), fs::read(folder.path().join("b")).unwrap());
                } else {
                    assert_eq!(a_first, b_first);
                }
            }
        }
    }

    #[test]
    fn a_file_of_another_size_than_its_shape_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, [0; 40]).unwrap();
        for shape in [&[2, 2][..], &[6], &[], &[usize::MAX, 2]] {
            assert!(Stored::at(&path, shape).is_err(), "{shape:?}");
        }
    }

    #[test]
    fn padding_is_ignored_and_the_worst_position_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let mask = Mask::new(1, 3, vec![false, true, true]).unwrap();
        let a = stored(folder.path(), "a", &[1, 3, 1], &[f64::NAN, 3.0, 4.0]);
        let b = stored(folder.path(), "b", &[1, 3, 1], &[7.0, 3.0, 4.5]);
        let found = difference(&a, &b, &mask).unwrap().unwrap();
        assert!((found.relative_l2 - 0.1).abs() < 1e-15, "{found:?}");
        let worst = found.worst.unwrap();
        assert_eq!((worst.row, worst.position), (0, 2));
        assert!((worst.relative_l2 - 0.125).abs() < 1e-15);
    }

    #[test]
    fn nan_against_a_number_is_infinite_and_nan_against_nan_is_zero() {
        let folder = tempfile::tempdir().unwrap();
        let mask = Mask::all_real(1, 1);
        let at = |name, value: f64| stored(folder.path(), name, &[1, 1, 2], &[1.0, value]);
        let apart =
            |a: f64, b: f64| difference(&at("a", a), &at("b", b), &mask).unwrap().unwrap().relative_l2;
        assert!(apart(f64::NAN, 1.0).is_infinite());
        assert!(apart(1.0, f64::NAN).is_infinite());
        assert!(apart(f64::NAN, f64::NAN).abs() <= 0.0);
        assert!(apart(f64::INFINITY, f64::INFINITY).abs() <= 0.0);
    }

    #[test]
    fn masks_and_scores_are_measured_separately() {
        let folder = tempfile::tempdir().unwrap();
        let mask = Mask::all_real(1, 2);
        let lowest = f64::MIN;
        let a = stored(folder.path(), "a", &[1, 1, 2, 2], &[1.0, lowest, 2.0, 3.0]);
        let same = stored(folder.path(), "b", &[1, 1, 2, 2], &[1.0, f64::NEG_INFINITY, 2.0, 3.0]);
        let found = scores(&a, &same, &mask).unwrap().unwrap();
        assert!(found.mask.relative_l2.abs() <= 0.0 && found.scores.relative_l2.abs() <= 0.0);
        let masked = stored(folder.path(), "c", &[1, 1, 2, 2], &[1.0, lowest, lowest, 3.0]);
        let found = scores(&a, &masked, &mask).unwrap().unwrap();
        assert!(found.mask.relative_l2 > 0.5 && found.scores.relative_l2.abs() <= 0.0);
        let scaled = stored(folder.path(), "d", &[1, 1, 2, 2], &[2.0, lowest, 4.0, 6.0]);
        let found = scores(&a, &scaled, &mask).unwrap().unwrap();
        assert!(found.mask.relative_l2.abs() <= 0.0 && (found.scores.relative_l2 - 1.0).abs() < 1e-15);
    }
}
