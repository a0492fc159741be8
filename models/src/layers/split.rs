//! Splits a value along the last dimension.

use candle_core::D;

use crate::error::Result;
use crate::xs::{Value, Xs};

/// Splits the last dimension into parts of these sizes, as a projection that joins q, k and v concatenates them.
///
/// # Errors
/// If the last dimension is shorter than their sum.
pub fn split<const N: usize>(xs: &Xs, sizes: [usize; N]) -> Result<[Xs; N]> {
    let mut start = 0;
    each(&sizes, |size| {
        let part = match xs.value() {
            Value::Tensor(tensor) => tensor.narrow(D::Minus1, start, *size)?.contiguous()?.into(),
            Value::Fused(rows) => rows.part(start, *size).into(),
        };
        start += size;
        Ok(part)
    })
}

/// Applies `f` to each item and returns the results or the first error, without a heap allocation.
pub(super) fn each<T, U, const N: usize>(
    items: &[T; N],
    mut f: impl FnMut(&T) -> Result<U>,
) -> Result<[U; N]> {
    let mut failed = None;
    let results = items.each_ref().map(|item| match failed {
        Some(_) => None,
        None => f(item).map_err(|error| failed = Some(error)).ok(),
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(results.map(|result| result.expect("none failed"))),
    }
}
