//! One vector trait for all instruction levels. A kernel is written once against [`Simd`] as an `Op`; `Isa::run`
//! calls it inside a function compiled for the level, into which the whole kernel is inlined.
//!
//! An `Op` must not use closures or call functions that are not `#[inline(always)]`, since neither inherits the
//! level's target features.

#![expect(unsafe_code, reason = "vector intrinsics are unsafe to call; the level is proven by `Isa::detect`")]

use half::bf16;

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

/// An instruction level. Levels are ordered: each contains the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, four lanes; LLVM compiles it to SSE2 or NEON.
    Portable,
    /// AVX2 and FMA, eight lanes.
    Avx2,
    /// AVX-512 F, BW, DQ and VL, sixteen lanes.
    Avx512,
    /// AVX-512 on Intel, where `vdpbf16ps` takes as long as four multiply-adds and does the work of two.
    Avx512SlowBf16,
    /// AVX-512 with `vdpbf16ps`.
    Avx512Bf16,
}

impl Isa {
    /// Every level, weakest first.
    pub const ALL: [Self; 5] =
        [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512SlowBf16, Self::Avx512Bf16];

    /// The strongest level that this machine has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx512 && is_x86_feature_detected!("avx512bf16") {
                return if x86::is_intel() { Self::Avx512SlowBf16 } else { Self::Avx512Bf16 };
            }
            if avx512 {
                return Self::Avx512;
            }
            if avx2 {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// The largest number of rows of a tile of the matrix product whose sums fit the registers at this level.
    pub(crate) fn tile_rows(self) -> usize {
        match self {
            Self::Portable => portable::Portable::TILE_ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => x86::Avx2::TILE_ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx512SlowBf16 | Self::Avx512Bf16 => x86::Avx512::<true>::TILE_ROWS,
            #[cfg(not(target_arch = "x86_64"))]
            _ => portable::Portable::TILE_ROWS,
        }
    }

    /// Whether `rows` rows of bf16 are multiplied in f32, after each panel of weights is widened once. On a Xeon
    /// `vdpbf16ps` took 0.76 ns and a multiply-add 0.19 ns. With `vdpbf16ps` 128 rows took 1.5 times as long as with
    /// widening; for 12 rows, a single tile, there was no difference.
    pub(crate) fn widens(self, rows: usize) -> bool {
        match self {
            Self::Portable | Self::Avx2 | Self::Avx512 => true,
            Self::Avx512SlowBf16 => rows > self.tile_rows(),
            Self::Avx512Bf16 => false,
        }
    }

    /// Runs `op` compiled for this level.
    ///
    /// # Safety
    /// The machine has the level (`self <= Isa::detect()`), and `op`'s own contract holds.
    #[inline]
    pub(crate) unsafe fn run<O: Op>(self, op: O) -> O::Output {
        // SAFETY: the caller vouches for the level and for the op.
        unsafe {
            match self {
                Self::Portable => op.call::<portable::Portable>(),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => x86::run_avx2(op),
                #[cfg(target_arch = "x86_64")]
                Self::Avx512SlowBf16 | Self::Avx512Bf16 if O::HAS_BF16 => x86::run_avx512_bf16(op),
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 | Self::Avx512SlowBf16 | Self::Avx512Bf16 => x86::run_avx512(op),
                #[cfg(not(target_arch = "x86_64"))]
                _ => op.call::<portable::Portable>(),
            }
        }
    }
}

/// A kernel body, generic over the level. Implementations mark `call` as `#[inline(always)]`.
pub(crate) trait Op {
    /// What the kernel returns.
    type Output;
    /// Whether an operand is bf16. Kernels of f32 alone are not compiled a second time for the bf16 instructions.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "other processors have one level"))]
    const HAS_BF16: bool;

    /// Runs the kernel.
    ///
    /// # Safety
    /// Only `Isa::run` may call it, because the caller must be compiled for `S`. Pointers held by `self` are valid.
    unsafe fn call<S: Simd>(self) -> Self::Output;
}

/// The most lanes of any level.
pub(crate) const MOST_LANES: usize = 16;

/// A vector of f32 lanes and its operations. The same vectors hold bf16 pairs: the even element is in the low half of
/// a lane, the odd one in the high half.
///
/// # Safety of every method
/// The calling function is compiled for the level, and pointers are valid for the accessed lanes.
#[expect(clippy::missing_safety_doc, reason = "one contract for all methods, stated on the trait")]
pub trait Simd: Copy + 'static {
    /// The vector type.
    type F: Copy;
    /// The mask type: one boolean per lane.
    type M: Copy;
    /// Number of f32 lanes.
    const LANES: usize;
    /// Whether [`Simd::dot_bf16`] is one instruction. At other levels it is six, and products with many rows are
    /// faster in f32.
    const MULTIPLIES_PAIRS: bool;
    /// Rows of a tile of two vectors whose sums fit the registers (see `tile.rs`).
    const TILE_ROWS: usize;
    /// Whether a product of few rows prefetches the panels ahead of it (see `tile.rs`).
    const PREFETCHES_AHEAD: bool;

    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self::F;
    /// `LANES` values from `p`, unaligned.
    unsafe fn load(p: *const f32) -> Self::F;
    /// The first `n < LANES` values from `p`; the other lanes are zero.
    unsafe fn load_n(p: *const f32, n: usize) -> Self::F;
    /// Stores `LANES` values.
    unsafe fn store(p: *mut f32, v: Self::F);
    /// Stores the first `n < LANES` values.
    unsafe fn store_n(p: *mut f32, v: Self::F, n: usize);
    /// `LANES` bf16 values, widened.
    unsafe fn load_bf16(p: *const bf16) -> Self::F;
    /// The first `n < LANES` bf16 values, widened; the other lanes are zero.
    unsafe fn load_bf16_n(p: *const bf16, n: usize) -> Self::F;
    /// Rounds to nearest even and stores `LANES` bf16 values.
    unsafe fn store_bf16(p: *mut bf16, v: Self::F);
    /// Rounds to nearest even and stores the first `n < LANES` bf16 values.
    unsafe fn store_bf16_n(p: *mut bf16, v: Self::F, n: usize);
    /// `a + b`.
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`.
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once if the level has a fused multiply-add.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger; `b` if either is NaN.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// The smaller; `b` if either is NaN.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// `|a|`.
    unsafe fn abs(a: Self::F) -> Self::F;
    /// `|a|` with the sign of `s`.
    unsafe fn copy_sign(a: Self::F, s: Self::F) -> Self::F;
    /// Rounds to the nearest integer, ties to even.
    unsafe fn round(a: Self::F) -> Self::F;
    /// `2^n` for integral `n` in -126..=127.
    unsafe fn exp2i(n: Self::F) -> Self::F;
    /// Lanes where `a < b`.
    unsafe fn less(a: Self::F, b: Self::F) -> Self::M;
    /// `a` where the mask is set, else `b`.
    unsafe fn select(m: Self::M, a: Self::F, b: Self::F) -> Self::F;
    /// Sum of the lanes.
    unsafe fn sum(a: Self::F) -> f32;
    /// Largest lane (unspecified with a NaN).
    unsafe fn max_lane(a: Self::F) -> f32;
    /// Lane `j` of vector `i` becomes lane `i` of vector `j`, for the first `LANES` vectors.
    unsafe fn transpose(vectors: &mut [Self::F; MOST_LANES]);
    /// Prefetches the cache line at `p` into L2; any address is allowed.
    #[inline(always)]
    unsafe fn prefetch(_: *const f32) {}
    /// The low bf16 of each lane, widened.
    unsafe fn low_bf16(a: Self::F) -> Self::F;
    /// The high bf16 of each lane, widened.
    unsafe fn high_bf16(a: Self::F) -> Self::F;
    /// `acc + a.high * b.high + a.low * b.low` over bf16 pairs: exact products, f32 sums.
    #[inline(always)]
    unsafe fn dot_bf16(acc: Self::F, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the contract of the trait is passed on.
        unsafe {
            let acc = Self::fma(Self::high_bf16(a), Self::high_bf16(b), acc);
            Self::fma(Self::low_bf16(a), Self::low_bf16(b), acc)
        }
    }
}
