//! Four lanes in plain Rust, for every target; on ARM, LLVM compiles it to NEON.

#![expect(unsafe_code, reason = "implements the unsafe vector trait; only the pointer methods need it")]

use super::{MOST_LANES, Simd};
use half::bf16;

/// The level that needs no target feature beyond the target's baseline.
#[derive(Clone, Copy)]
pub(super) struct Portable;

type V = [f32; 4];

#[inline(always)]
fn zip(a: V, b: V, f: impl Fn(f32, f32) -> f32) -> V {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

/// A fused multiply-add only if the target has the instruction, because the library function is slow.
#[inline(always)]
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) { a.mul_add(b, c) } else { a * b + c }
}

impl Simd for Portable {
    type F = V;
    type M = [bool; 4];
    const LANES: usize = 4;
    const MULTIPLIES_PAIRS: bool = false;
    const TILE_ROWS: usize = 4;
    const PREFETCHES_AHEAD: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> V {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> V {
        // SAFETY: four values are readable by the trait's contract.
        unsafe { p.cast::<V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> V {
        let mut v = [0.0; 4];
        // SAFETY: n < 4 values are readable.
        unsafe { std::ptr::copy_nonoverlapping(p, v.as_mut_ptr(), n) };
        v
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: V) {
        // SAFETY: four values are writable.
        unsafe { p.cast::<V>().write_unaligned(v) };
    }
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, v: V, n: usize) {
        // SAFETY: n < 4 values are writable.
        unsafe { std::ptr::copy_nonoverlapping(v.as_ptr(), p, n) };
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> V {
        // SAFETY: four values are readable.
        let v = unsafe { p.cast::<[bf16; 4]>().read_unaligned() };
        v.map(bf16::to_f32)
    }
    #[inline(always)]
    unsafe fn load_bf16_n(p: *const bf16, n: usize) -> V {
        let mut v = [bf16::ZERO; 4];
        // SAFETY: n < 4 values are readable.
        unsafe { std::ptr::copy_nonoverlapping(p, v.as_mut_ptr(), n) };
        v.map(bf16::to_f32)
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut bf16, v: V) {
        // SAFETY: four values are writable.
        unsafe { p.cast::<[bf16; 4]>().write_unaligned(v.map(bf16::from_f32)) };
    }
    #[inline(always)]
    unsafe fn store_bf16_n(p: *mut bf16, v: V, n: usize) {
        let v = v.map(bf16::from_f32);
        // SAFETY: n < 4 values are writable.
        unsafe { std::ptr::copy_nonoverlapping(v.as_ptr(), p, n) };
    }
    #[inline(always)]
    unsafe fn add(a: V, b: V) -> V {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: V, b: V) -> V {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: V, b: V) -> V {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: V, b: V) -> V {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn fma(a: V, b: V, c: V) -> V {
        [
            multiply_add(a[0], b[0], c[0]),
            multiply_add(a[1], b[1], c[1]),
            multiply_add(a[2], b[2], c[2]),
            multiply_add(a[3], b[3], c[3]),
        ]
    }
    // `f32::max` ignores a NaN; the comparison keeps x86's rule that the second operand wins.
    #[inline(always)]
    unsafe fn max(a: V, b: V) -> V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: V, b: V) -> V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn abs(a: V) -> V {
        a.map(f32::abs)
    }
    #[inline(always)]
    unsafe fn copy_sign(a: V, s: V) -> V {
        zip(a, s, f32::copysign)
    }
    #[inline(always)]
    unsafe fn round(a: V) -> V {
        // Adding and subtracting 1.5 * 2^23 rounds to an integer without a call; valid for |a| < 2^22.
        const MAGIC: f32 = 12_582_912.0;
        a.map(|x| (x + MAGIC) - MAGIC)
    }
    #[inline(always)]
    unsafe fn exp2i(n: V) -> V {
        n.map(|x| f32::from_bits((((x as i32).wrapping_add(127)) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn transpose(vectors: &mut [V; MOST_LANES]) {
        let [a, b, c, d, ..] = *vectors;
        for (i, vector) in vectors[..4].iter_mut().enumerate() {
            *vector = [a[i], b[i], c[i], d[i]];
        }
    }
    #[inline(always)]
    unsafe fn less(a: V, b: V) -> [bool; 4] {
        [a[0] < b[0], a[1] < b[1], a[2] < b[2], a[3] < b[3]]
    }
    #[inline(always)]
    unsafe fn select(m: [bool; 4], a: V, b: V) -> V {
        [
            if m[0] { a[0] } else { b[0] },
            if m[1] { a[1] } else { b[1] },
            if m[2] { a[2] } else { b[2] },
            if m[3] { a[3] } else { b[3] },
        ]
    }
    #[inline(always)]
    unsafe fn sum(a: V) -> f32 {
        (a[0] + a[2]) + (a[1] + a[3])
    }
    #[inline(always)]
    unsafe fn max_lane(a: V) -> f32 {
        a[0].max(a[1]).max(a[2].max(a[3]))
    }
    #[inline(always)]
    unsafe fn low_bf16(a: V) -> V {
        a.map(|x| f32::from_bits(x.to_bits() << 16))
    }
    #[inline(always)]
    unsafe fn high_bf16(a: V) -> V {
        a.map(|x| f32::from_bits(x.to_bits() & 0xffff_0000))
    }
}
