//! The two element types of the kernels, f32 and bf16, and their layout in a packed operand.

#![expect(unsafe_code, reason = "vector loads and stores")]

use super::simd::Simd;
use half::bf16;

/// f32 or bf16. Arithmetic is f32 for both; bf16 is widened exactly and rounded once to nearest even.
///
/// Packed operands consist of 32-bit units stored as `f32`: one f32, or two bf16 that are neighbours along the summed
/// dimension (even element in the low half), as `vdpbf16ps` multiplies them.
pub trait Element: Copy + Default + PartialEq + std::fmt::Debug + Send + Sync + 'static {
    /// Elements in one 32-bit unit.
    const PER_UNIT: usize;
    /// Whether this is bf16.
    const IS_BF16: bool = Self::PER_UNIT > 1;

    /// Widens exactly.
    fn to_f32(self) -> f32;
    /// Rounds to nearest even.
    fn from_f32(x: f32) -> Self;
    /// The unit `i` of `row`; an element past the end counts as zero.
    fn unit(row: &[Self], i: usize) -> f32;
    /// Element `i % PER_UNIT` of a unit.
    fn from_unit(unit: f32, i: usize) -> Self;

    /// The first `min(n, LANES)` elements from `p`, widened; the other lanes are zero.
    ///
    /// # Safety
    /// [`Simd`]'s contract; `p` is readable for that many elements.
    unsafe fn load<S: Simd>(p: *const Self, n: usize) -> S::F;
    /// Rounds and stores the first `min(n, LANES)` lanes.
    ///
    /// # Safety
    /// [`Simd`]'s contract; `p` is writable for that many elements.
    unsafe fn store<S: Simd>(p: *mut Self, v: S::F, n: usize);
    /// `acc` plus the products of the elements of `a` and `b`.
    ///
    /// # Safety
    /// [`Simd`]'s contract.
    unsafe fn dot<S: Simd>(acc: S::F, a: S::F, b: S::F) -> S::F;
}

impl Element for f32 {
    const PER_UNIT: usize = 1;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn unit(row: &[Self], i: usize) -> f32 {
        row[i]
    }
    #[inline(always)]
    fn from_unit(unit: f32, _: usize) -> Self {
        unit
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f32, n: usize) -> S::F {
        // SAFETY: passed on.
        unsafe { if n >= S::LANES { S::load(p) } else { S::load_n(p, n) } }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut f32, v: S::F, n: usize) {
        // SAFETY: passed on.
        unsafe { if n >= S::LANES { S::store(p, v) } else { S::store_n(p, v, n) } }
    }
    #[inline(always)]
    unsafe fn dot<S: Simd>(acc: S::F, a: S::F, b: S::F) -> S::F {
        // SAFETY: passed on.
        unsafe { S::fma(a, b, acc) }
    }
}

impl Element for bf16 {
    const PER_UNIT: usize = 2;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        bf16::from_f32(x)
    }
    #[inline(always)]
    fn unit(row: &[Self], i: usize) -> f32 {
        let high = row.get(2 * i + 1).map_or(0, |x| x.to_bits());
        f32::from_bits(u32::from(row[2 * i].to_bits()) | (u32::from(high) << 16))
    }
    #[inline(always)]
    fn from_unit(unit: f32, i: usize) -> Self {
        bf16::from_bits((unit.to_bits() >> (16 * (i % 2))) as u16)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const bf16, n: usize) -> S::F {
        // SAFETY: passed on.
        unsafe { if n >= S::LANES { S::load_bf16(p) } else { S::load_bf16_n(p, n) } }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut bf16, v: S::F, n: usize) {
        // SAFETY: passed on.
        unsafe { if n >= S::LANES { S::store_bf16(p, v) } else { S::store_bf16_n(p, v, n) } }
    }
    #[inline(always)]
    unsafe fn dot<S: Simd>(acc: S::F, a: S::F, b: S::F) -> S::F {
        // SAFETY: passed on.
        unsafe { S::dot_bf16(acc, a, b) }
    }
}
