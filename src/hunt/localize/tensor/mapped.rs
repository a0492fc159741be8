//! Captured tensors of runs over different inputs, at positions that correspond.

use std::io;

use compare::mapped::{At, Mapped, Squares, Sum};

use super::{Extent, Stored};

/// How far two tensors of runs over different inputs are apart at corresponding positions; `None` where they have no
/// positions, or hold different things.
pub(in crate::hunt) fn mapped(
    (a, extent_a): (&Stored, Extent),
    (b, extent_b): (&Stored, Extent),
    pairs: &[(At, At)],
) -> io::Result<Option<Mapped>> {
    let (Some(of_a), Some(of_b)) = (a.layout_in(extent_a), b.layout_in(extent_b)) else { return Ok(None) };
    // Scores have a key for each token, which other inputs have more of.
    if of_a.length != of_b.length || of_a.parts != of_b.parts {
        return Ok(None);
    }
    let (mut left, mut right) = (vec![0.0; of_a.length], vec![0.0; of_a.length]);
    let mut sum = Sum::default();
    for &(at_a, at_b) in pairs {
        let mut here = Squares::default();
        for part in 0..of_a.parts {
            a.read(of_a.first(at_a.0, at_a.1, part), &mut left)?;
            b.read(of_b.first(at_b.0, at_b.1, part), &mut right)?;
            left.iter().zip(&right).for_each(|(a, b)| here.add(*a, *b));
        }
        sum.add(at_a, at_b, here);
    }
    Ok(Some(sum.finish()))
}
