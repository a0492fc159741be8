//! One value cut into several, group by group.

use candle_core::D;

use super::split::each;
use crate::error::Result;
use crate::fused::{Float, Slot};
use crate::pass::{Value, Xs};

/// `xs: [.., groups * sum(sizes)]`, in which each group holds one part of each size, to one
/// `[.., groups * size]` a part.
///
/// A group a key head, and in it its queries, its key and its value, is the order of `gpt_neox` and `falcon`.
///
/// # Errors
/// If the last dimension is not `groups * sum(sizes)`.
pub fn split_groups<const N: usize>(xs: &Xs, groups: usize, sizes: [usize; N]) -> Result<[Xs; N]> {
    match xs.value() {
        Value::Tensor(_) => {}
        Value::F32(slot) => return each(&parts_of(sizes), |part| Ok(gathered(slot, groups, *part))),
        Value::Bf16(slot) => return each(&parts_of(sizes), |part| Ok(gathered(slot, groups, *part))),
    }
    let xs = xs.tensor();
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

/// Where in a group each part starts, its size, and the size of the whole group.
fn parts_of<const N: usize>(sizes: [usize; N]) -> [(usize, usize, usize); N] {
    let mut start = 0;
    sizes.map(|size| {
        start += size;
        (start - size, size, sizes.iter().sum())
    })
}

/// One part of every group, side by side.
fn gathered<T: Float>(xs: &Slot<T>, groups: usize, (start, size, group): (usize, usize, usize)) -> Xs {
    let out = Slot::take(xs.workspace(), xs.batch, xs.seq, groups * size);
    let (from, mut to) = (xs.read(), out.write());
    for (from, to) in from.chunks_exact(xs.width).zip(to.chunks_exact_mut(groups * size)) {
        let from = &from[xs.first..xs.first + xs.columns];
        for (from, to) in from.chunks_exact(group).zip(to.chunks_exact_mut(size)) {
            to.copy_from_slice(&from[start..start + size]);
        }
    }
    drop(to);
    out.into_xs()
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn each_group_gives_its_share_to_each_part_in_order() {
        let xs = Xs::from(Tensor::arange(0_u32, 8, &Device::Cpu).unwrap().reshape((1, 1, 8)).unwrap());
        let [queries, keys] = split_groups(&xs, 2, [3, 1]).unwrap();
        let values = |xs: &Xs| xs.tensor().flatten_all().unwrap().to_vec1::<u32>().unwrap();
        assert_eq!(queries.tensor().dims(), [1, 1, 6]);
        assert_eq!(values(&queries), [0, 1, 2, 4, 5, 6]);
        assert_eq!(values(&keys), [3, 7]);
    }
}
