//! Splits a value whose features are grouped, for example by key head.

use candle_core::D;

use crate::error::Result;
use crate::xs::{Value, Xs};

/// Splits `xs: [.., groups * sum(sizes)]`, in which each group holds one part of each size, into one value `[..,
/// groups * size]` per size.
///
/// `gpt_neox` and `falcon` use this order: one group per key head with its queries, its key and its value.
///
/// # Errors
/// If the last dimension is not `groups * sum(sizes)`.
pub fn split_groups<const N: usize>(xs: &Xs, groups: usize, sizes: [usize; N]) -> Result<[Xs; N]> {
    if let Value::Fused(rows) = xs.value() {
        return Ok(parts_of(sizes).map(|(start, size)| rows.gathered(groups, start, size).into()));
    }
    let xs = xs.tensor()?;
    let rows = xs.elem_count() / xs.dim(D::Minus1)?;
    let grouped = xs.reshape((rows, groups, sizes.iter().sum::<usize>()))?;
    let mut parts = Vec::with_capacity(N);
    let mut start = 0;
    for size in sizes {
        let mut dims = xs.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = groups * size;
        }
        parts.push(Xs::from(grouped.narrow(2, start, size)?.contiguous()?.reshape(dims)?));
        start += size;
    }
    Ok(parts.try_into().unwrap_or_else(|_| unreachable!("N sizes make N parts")))
}

/// The start of each part in a group, and its size.
fn parts_of<const N: usize>(sizes: [usize; N]) -> [(usize, usize); N] {
    let mut start = 0;
    sizes.map(|size| {
        start += size;
        (start - size, size)
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn split_groups_keeps_the_order_of_groups() {
        let xs = Xs::from(Tensor::arange(0_u32, 8, &Device::Cpu).unwrap().reshape((1, 1, 8)).unwrap());
        let [queries, keys] = split_groups(&xs, 2, [3, 1]).unwrap();
        let values = |xs: &Xs| xs.tensor().unwrap().flatten_all().unwrap().to_vec1::<u32>().unwrap();
        assert_eq!(queries.tensor().unwrap().dims(), [1, 1, 6]);
        assert_eq!(values(&queries), [0, 1, 2, 4, 5, 6]);
        assert_eq!(values(&keys), [3, 7]);
    }
}
