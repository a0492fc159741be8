//! One value cut into several.

use candle_core::D;

use crate::error::Result;
use crate::pass::Xs;

/// Cuts the last dimension into parts of these sizes, as a projection that joins q, k and v lays them out.
///
/// # Errors
/// If the last dimension is shorter than their sum.
pub fn split<const N: usize>(xs: &Xs, sizes: [usize; N]) -> Result<[Xs; N]> {
    let mut start = 0;
    let mut parts = Vec::with_capacity(N);
    for size in sizes {
        parts.push(Xs::from(xs.tensor().narrow(D::Minus1, start, size)?.contiguous()?));
        start += size;
    }
    Ok(parts.try_into().unwrap_or_else(|_| unreachable!("N sizes make N parts")))
}
