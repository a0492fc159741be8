//! Interleaves the rows of a block, so that a tile of many rows reads one step of all of them side by side.

#![expect(unsafe_code, reason = "vectors are read from rows and written to the block through pointers")]

use super::element::Element;
use super::simd::{MOST_LANES, Op, Simd};

/// Converts rows `[_, k]`, at most as many as a tile has, to units `[step][row]`.
pub(super) struct Interleave<'a, T> {
    pub(super) xs: &'a [T],
    pub(super) k: usize,
    /// Whether a unit is one element, widened to f32.
    pub(super) widens: bool,
    pub(super) to: &'a mut [f32],
}

impl<T: Element> Op for Interleave<'_, T> {
    type Output = ();
    const HAS_BF16: bool = T::IS_BF16;

    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        let Self { xs, k, widens, to } = self;
        let per_unit = if widens { 1 } else { T::PER_UNIT };
        let rows = xs.len() / k;
        assert!(rows <= S::LANES, "a tile has {} rows at most", S::TILE_ROWS);
        let whole = k / (S::LANES * per_unit) * S::LANES;
        for first in (0..whole).step_by(S::LANES) {
            // SAFETY: so many steps of a row are whole units inside `xs`; a vector is stored only inside `to`.
            unsafe {
                let mut vectors = [S::splat(0.0); MOST_LANES];
                for (r, vector) in vectors[..S::LANES].iter_mut().enumerate() {
                    if r < rows {
                        let from = xs.as_ptr().add(r * k + first * per_unit);
                        *vector = if widens { T::load::<S>(from, S::LANES) } else { S::load(from.cast()) };
                    }
                }
                S::transpose(&mut vectors);
                for (step, vector) in vectors[..S::LANES].iter().enumerate() {
                    let at = (first + step) * rows;
                    let place = to.as_mut_ptr().add(at);
                    // What a vector writes behind its rows, the next steps write again.
                    if at + S::LANES <= to.len() {
                        S::store(place, *vector);
                    } else {
                        S::store_n(place, *vector, rows);
                    }
                }
            }
        }
        for step in whole..to.len() / rows {
            for (r, row) in xs.chunks_exact(k).enumerate() {
                to[step * rows + r] =
                    if widens { row.get(step).map_or(0.0, |x| x.to_f32()) } else { T::unit(row, step) };
            }
        }
    }
}
