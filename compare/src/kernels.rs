//! The inner loops of the matrix: plain loops over fixed lanes, which pulp's run-time dispatch compiles for AVX-512,
//! AVX2 and the baseline.
//!
//! Each sum is kept in [`LANES`] partial sums across blocks, so that a result depends neither on the block's size nor
//! on the vector width.

#![expect(
    clippy::inline_always,
    reason = "a loop gets the dispatched instruction set only where it is inlined"
)]

use super::Dtype;
use half::slice::HalfFloatSliceExt;
use pulp::Simd;

use super::logits::LogitsRow;

/// Partial sums per quantity.
pub(super) const LANES: usize = 8;
/// Partial maxima of ordinals. Blocks are padded with zeros to a multiple of it.
pub(super) const WIDE: usize = 2 * LANES;
type Lanes = [f64; LANES];

/// Differences of one pair over one row.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Differences {
    /// Σ (a − b)².
    pub(super) squares: Lanes,
    /// max |a − b|, NaN ignored.
    pub(super) max: f64,
}

/// Sums of one pair over one row.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(super) struct PairLanes {
    pub(super) exact: Differences,
    /// After rounding both sides to the lower dtype.
    pub(super) rounded: Differences,
    /// Σ eᵃ·(a − b), each side minus its row's largest logit: logits near 10³⁰ would absorb the difference.
    pub(super) weighted_a: Lanes,
    /// Σ eᵇ·(a − b), shifted in the same way.
    pub(super) weighted_b: Lanes,
    /// Largest differences of ordinals, see [`ordinals`].
    pub(super) ulp: [u32; WIDE],
    /// As [`PairLanes::ulp`] for float64 values.
    pub(super) ulp_f64: u64,
}

/// `a·b + c`, fused if the instruction set has it; without it, emulating the fusion would cost a function call.
#[inline(always)]
fn multiply_add<S: Simd>(a: f64, b: f64, c: f64) -> f64 {
    if S::IS_SCALAR { a * b + c } else { a.mul_add(b, c) }
}

/// Adds the lanes pairwise.
#[inline(always)]
pub(super) fn total(lanes: &Lanes) -> f64 {
    let mut sums = *lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            sums[l] += sums[l + width];
        }
        width /= 2;
    }
    sums[0]
}

/// Largest lane; no lane is NaN.
#[inline(always)]
fn largest(lanes: &Lanes) -> f64 {
    let mut most = *lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            most[l] = if most[l + width] > most[l] { most[l + width] } else { most[l] };
        }
        width /= 2;
    }
    most[0]
}

/// Widens `row[from..from + length]` into `out`, zero-padded to the end of `out`.
#[inline(always)]
pub(super) fn widen(row: &LogitsRow, from: usize, length: usize, out: &mut [f64]) {
    if row.is_wide {
        out[..length].copy_from_slice(&row.wide[from..from + length]);
    } else {
        for (to, &x) in out[..length].iter_mut().zip(&row.narrow[from..from + length]) {
            *to = f64::from(x);
        }
    }
    out[length..].fill(0.0);
}

/// Adds Σ x² of a block.
#[inline(always)]
pub(super) fn squares<S: Simd>(x: &[f64], sum: &mut Lanes) {
    let mut lanes = *sum;
    for x in x.as_chunks::<LANES>().0 {
        for l in 0..LANES {
            lanes[l] = multiply_add::<S>(x[l], x[l], lanes[l]);
        }
    }
    *sum = lanes;
}

/// What the KL divergences read of one entry in one block.
#[derive(Clone, Copy)]
pub(super) struct Shifted<'a> {
    /// The values minus the largest logit of the whole row.
    pub(super) values: &'a [f64],
    /// e to the power of `values`.
    pub(super) exponentials: &'a [f64],
}

/// Sums of a pair in [`differences`] and in [`weighted`].
pub(super) const SUMS_PER_PAIR: usize = 2;

/// The differences of `M` pairs over one block, each of `a` with the same `b`, added to those of the blocks `before`. `M` pairs at
/// once hide the latency of the dependent additions and share the reads of `b`.
#[inline(always)]
pub(super) fn differences<S: Simd, const M: usize>(
    a: [&[f64]; M],
    b: &[f64],
    before: [Differences; M],
) -> [Differences; M] {
    let mut to = before;
    let mut squares = [[0.0; LANES]; M];
    let mut most = [[0.0; LANES]; M];
    let b = chunked(b, b.len());
    let mut values = [b; M];
    for m in 0..M {
        squares[m] = to[m].squares;
        values[m] = chunked(a[m], b.len() * LANES);
    }
    for i in 0..b.len() {
        for m in 0..M {
            for l in 0..LANES {
                let d = values[m][i][l] - b[i][l];
                squares[m][l] = multiply_add::<S>(d, d, squares[m][l]);
                let square = d * d;
                most[m][l] = if square > most[m][l] { square } else { most[m][l] };
            }
        }
    }
    for m in 0..M {
        to[m].squares = squares[m];
        // The root of a rounded square is the number itself, unless the square overflowed or lost digits.
        let most = largest(&most[m]);
        to[m].max = if (WHOLE_SQUARE..=f64::MAX).contains(&most) {
            to[m].max.max(most.sqrt())
        } else {
            largest_difference(values[m], b, to[m].max)
        };
    }
    to
}

/// The weighted differences of both KL divergences, of pairs as in [`differences`].
#[inline(always)]
pub(super) fn weighted<S: Simd, const M: usize>(
    a: [Shifted<'_>; M],
    b: Shifted<'_>,
    to: &mut [PairLanes; M],
) {
    let mut sums_a = [[0.0; LANES]; M];
    let mut sums_b = [[0.0; LANES]; M];
    let length = b.values.len();
    let (shifted_b, exp_b) = (chunked(b.values, length), chunked(b.exponentials, length));
    let (mut shifted_a, mut exp_a) = ([shifted_b; M], [exp_b; M]);
    for m in 0..M {
        (sums_a[m], sums_b[m]) = (to[m].weighted_a, to[m].weighted_b);
        (shifted_a[m], exp_a[m]) = (chunked(a[m].values, length), chunked(a[m].exponentials, length));
    }
    for i in 0..shifted_b.len() {
        for m in 0..M {
            for l in 0..LANES {
                let d = shifted_a[m][i][l] - shifted_b[i][l];
                sums_a[m][l] = multiply_add::<S>(exp_a[m][i][l], d, sums_a[m][l]);
                sums_b[m][l] = multiply_add::<S>(exp_b[i][l], d, sums_b[m][l]);
            }
        }
    }
    for m in 0..M {
        (to[m].weighted_a, to[m].weighted_b) = (sums_a[m], sums_b[m]);
    }
}

/// From here on squares have all their digits.
const WHOLE_SQUARE: f64 = f64::MIN_POSITIVE / f64::EPSILON;

/// The largest of `max` and the absolute differences of a block, NaN ignored.
#[inline(always)]
fn largest_difference(a: &[Lanes], b: &[Lanes], max: f64) -> f64 {
    let mut lanes = [max; LANES];
    for (a, b) in a.iter().zip(b) {
        for l in 0..LANES {
            let size = (a[l] - b[l]).abs();
            lanes[l] = if size > lanes[l] { size } else { lanes[l] };
        }
    }
    largest(&lanes)
}

/// The first `length` values of a block in whole chunks.
#[inline(always)]
fn chunked(block: &[f64], length: usize) -> &[Lanes] {
    &block.as_chunks::<LANES>().0[..length / LANES]
}

/// Largest distance between the ordinals of a pair over one block. In vectors by name: of loops over lanes the compiler makes
/// single loads at AVX2, which take five times as long.
#[inline(always)]
pub(super) fn ulps<S: Simd>(simd: S, a: &[u32], b: &[u32], to: &mut PairLanes) {
    let (a, b) = (S::as_simd_u32s(a).0, S::as_simd_u32s(b).0);
    let to = &mut S::as_mut_simd_u32s(&mut to.ulp).0[0];
    let mut ulp = *to;
    for (&a, &b) in a.iter().zip(b) {
        ulp = simd.max_u32s(ulp, simd.sub_u32s(simd.max_u32s(a, b), simd.min_u32s(a, b)));
    }
    *to = ulp;
}

/// Largest distance of two blocks in representable float64 values, which [`ordinals`] (u32) cannot count.
#[inline(always)]
pub(super) fn ulps_f64(a: &[f64], b: &[f64], to: &mut PairLanes) {
    to.ulp_f64 = a.iter().zip(b).map(|(a, b)| ulp_f64(*a, *b)).fold(to.ulp_f64, u64::max);
}

/// Distance of two float64 values in representable ones.
#[inline(always)]
pub(super) fn ulp_f64(a: f64, b: f64) -> u64 {
    ordinal_64(a).abs_diff(ordinal_64(b))
}

/// Writes `shifted = x − max` and `out = e^(x − max)` for the first `length` elements and 0 after them; adds the
/// exponentials to `sum`.
#[inline(always)]
pub(super) fn exponentials<S: Simd>(
    x: &[f64],
    max: f64,
    length: usize,
    shifted: &mut [f64],
    out: &mut [f64],
    sum: &mut Lanes,
) {
    for ((to, shifted), &x) in out.iter_mut().zip(&mut *shifted).zip(x) {
        *shifted = x - max;
        *to = exp_negative::<S>(*shifted);
    }
    out[length..].fill(0.0);
    shifted[length..].fill(0.0);
    let mut lanes = *sum;
    for e in out.as_chunks::<LANES>().0 {
        for l in 0..LANES {
            lanes[l] += e[l];
        }
    }
    *sum = lanes;
}

/// e^x for x ≤ 0 to about 2 ulp; 0 below −708, NaN for NaN. Branch-free, so that it vectorises.
///
/// Argument reduction uses fdlibm's split of ln 2 (e_exp.c). The Taylor series ends at r¹³; its remainder is below 4e-18
/// for |r| ≤ ln 2 / 2. From r² on it is evaluated by Estrin's scheme; Horner's is a chain of 13 dependent products.
#[inline(always)]
fn exp_negative<S: Simd>(x: f64) -> f64 {
    /// 1.5 · 2⁵²: adding it rounds to an integer, which is then in the low bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    /// 1 / (i + 2)!
    const TAYLOR: [f64; 12] = [
        0.5,
        1.0 / 6.0,
        1.0 / 24.0,
        1.0 / 120.0,
        1.0 / 720.0,
        1.0 / 5_040.0,
        1.0 / 40_320.0,
        1.0 / 362_880.0,
        1.0 / 3_628_800.0,
        1.0 / 39_916_800.0,
        1.0 / 479_001_600.0,
        1.0 / 6_227_020_800.0,
    ];
    let shifted = x * std::f64::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let r2 = r * r;
    let r4 = r2 * r2;
    let r8 = r4 * r4;
    let linear = |i: usize| multiply_add::<S>(TAYLOR[i + 1], r, TAYLOR[i]);
    let cubic = |i: usize| multiply_add::<S>(linear(i + 2), r2, linear(i));
    let tail = multiply_add::<S>(cubic(8), r8, multiply_add::<S>(cubic(4), r4, cubic(0)));
    let sum = multiply_add::<S>(tail, r2, r) + 1.0;
    let scale = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    if x < -708.0 { 0.0 } else { sum * scale }
}

/// Ordinals of a block rounded to `dtype`, and the rounded values if `rounded` is given. An ordinal is a monotone count
/// of representable values, [`ORDINAL_ZERO`] for ±0. Does nothing for float64, see [`ulps_f64`].
#[inline(always)]
pub(super) fn ordinals(x: &[f64], is_wide: bool, dtype: Dtype, out: &mut [u32], rounded: Option<&mut [f64]>) {
    match dtype {
        Dtype::F64 => return,
        Dtype::F32 => {
            for (to, &x) in out.iter_mut().zip(x) {
                *to = ordinal((x as f32).to_bits(), 31);
            }
        }
        Dtype::Bf16 if is_wide => {
            for (to, &x) in out.iter_mut().zip(x) {
                *to = ordinal(half::bf16::from_f32(to_odd(x)).to_bits().into(), 15);
            }
        }
        Dtype::Bf16 => {
            for (to, &x) in out.iter_mut().zip(x) {
                let bits = (x as f32).to_bits();
                *to = ordinal(bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16, 15);
            }
        }
        Dtype::F16 if is_wide => {
            for (to, &x) in out.iter_mut().zip(x) {
                *to = ordinal(half::f16::from_f32(to_odd(x)).to_bits().into(), 15);
            }
        }
        Dtype::F16 => {
            for (to, x) in out.as_chunks_mut::<WIDE>().0.iter_mut().zip(x.as_chunks::<WIDE>().0) {
                let mut halves = [half::f16::ZERO; WIDE];
                halves.convert_from_f32_slice(&x.map(|x| x as f32));
                *to = halves.map(|half| ordinal(half.to_bits().into(), 15));
            }
        }
    }
    if let Some(rounded) = rounded {
        for (to, &ordinal) in rounded.iter_mut().zip(&*out) {
            *to = value_of(ordinal, dtype);
        }
    }
}

/// Rounds to odd: the f32 whose rounding to 16 bits equals the rounding of `x` itself. If `x` lies between two f32, this
/// is the one whose last bit is set, which is never halfway between two 16-bit values. Rounding to the nearest f32 first
/// would round twice, and `half`'s own conversions drop the lower half of an f64 (half 2.7.1, `f64_to_bf16`).
#[inline(always)]
fn to_odd(x: f64) -> f32 {
    let near = x as f32;
    let back = f64::from(near);
    if x.is_nan() || back.total_cmp(&x).is_eq() {
        return near;
    }
    let below = near.to_bits() - u32::from(back.abs() > x.abs());
    f32::from_bits(below | 1)
}

/// The ordinal of zero. Around it the ordinals of all 32-bit floats fit a u32, so that a vector holds twice as many.
const ORDINAL_ZERO: u32 = 1 << 31;

/// Ordinal of the bits of a float whose sign is bit `sign`.
#[inline(always)]
fn ordinal(bits: u32, sign: u32) -> u32 {
    let size = bits & ((1 << sign) - 1);
    if bits >> sign == 1 { ORDINAL_ZERO - size } else { ORDINAL_ZERO + size }
}

#[inline(always)]
fn ordinal_64(x: f64) -> i64 {
    let bits = x.to_bits() as i64;
    if bits < 0 { i64::MIN.wrapping_sub(bits) } else { bits }
}

/// The value whose ordinal this is; −0 comes back as 0.
#[inline(always)]
fn value_of(ordinal: u32, dtype: Dtype) -> f64 {
    let size = ordinal.abs_diff(ORDINAL_ZERO);
    let value = match dtype {
        Dtype::Bf16 => f64::from(f32::from_bits(size << 16)),
        Dtype::F16 => half::f16::from_bits(size as u16).to_f64(),
        Dtype::F32 | Dtype::F64 => f64::from(f32::from_bits(size)),
    };
    if ordinal < ORDINAL_ZERO { -value } else { value }
}

/// Result of [`scan`] for one row of one entry.
#[derive(Clone, Debug)]
pub(super) struct RowScan {
    /// Largest value, NaN ignored; −∞ if there is none.
    pub(super) max: f64,
    pub(super) nan: u64,
    pub(super) infinite: u64,
    /// Token ids of the `k` largest, largest first, lower id first on a tie.
    pub(super) top: Vec<u32>,
}

/// Elements examined together for a new candidate of the top k.
const SCAN: usize = 64;

/// Finds the largest values and counts the non-finite ones.
#[inline(always)]
pub(super) fn scan<T: Copy + Into<f64>>(row: &[T], k: usize) -> RowScan {
    let mut best: Vec<(f64, u32)> = Vec::with_capacity(k + 1);
    let (mut nan, mut infinite) = (0, 0);
    let mut threshold = f64::NEG_INFINITY;
    for (number, chunk) in row.chunks(SCAN).enumerate() {
        let mut max = [f64::NEG_INFINITY; WIDE];
        // x·0 is 0 for finite x and NaN otherwise, so the sum is NaN if the chunk holds a non-finite value.
        let mut marks = [0.0; WIDE];
        let (lanes, rest) = chunk.as_chunks::<WIDE>();
        for lane in lanes {
            for l in 0..WIDE {
                let x: f64 = lane[l].into();
                max[l] = if x > max[l] { x } else { max[l] };
                marks[l] += x * 0.0;
            }
        }
        // Pairwise: a fold over the lanes would be a chain of dependent instructions.
        let mut width = WIDE / 2;
        while width > 0 {
            for l in 0..width {
                max[l] = if max[l + width] > max[l] { max[l + width] } else { max[l] };
                marks[l] += marks[l + width];
            }
            width /= 2;
        }
        let (mut chunk_max, mut mark) = (max[0], marks[0]);
        for &x in rest {
            let x: f64 = x.into();
            chunk_max = chunk_max.max(x);
            mark += x * 0.0;
        }
        if mark.is_nan() {
            for &x in chunk {
                let x: f64 = x.into();
                nan += u64::from(x.is_nan());
                infinite += u64::from(x.is_infinite());
            }
        }
        if best.len() < k || chunk_max > threshold {
            for (offset, &x) in chunk.iter().enumerate() {
                let x: f64 = x.into();
                if x.is_nan() || (best.len() == k && x <= threshold) {
                    continue;
                }
                // Ids ascend, so a tie keeps the lower id first.
                let at = best.partition_point(|&(value, _)| value >= x);
                best.insert(at, (x, (number * SCAN + offset) as u32));
                best.truncate(k);
                if best.len() == k {
                    threshold = best[k - 1].0;
                }
            }
        }
    }
    RowScan {
        max: best.first().map_or(f64::NEG_INFINITY, |&(value, _)| value),
        nan,
        infinite,
        top: best.into_iter().map(|(_, token)| token).collect(),
    }
}
