//! The AVX2 and AVX-512 levels.

#![expect(unsafe_code, reason = "vector intrinsics")]
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "some ninety intrinsics of one family"))]

use super::{MOST_LANES, Op, Simd};
use half::bf16;
use std::arch::x86_64::*;

/// AVX2 with FMA.
#[derive(Clone, Copy)]
pub(super) struct Avx2;

/// AVX-512; `BF16` is true if the machine has `vdpbf16ps` and the bf16 conversions.
#[derive(Clone, Copy)]
pub(super) struct Avx512<const BF16: bool>;

/// Whether the CPU is an Intel CPU.
pub(super) fn is_intel() -> bool {
    let vendor = __cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel"
}

/// # Safety
/// As [`Op::call`]; the machine has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn run_avx2<O: Op>(op: O) -> O::Output {
    // SAFETY: this function is compiled for the level; the rest is the caller's.
    unsafe { op.call::<Avx2>() }
}

/// # Safety
/// As [`Op::call`]; the machine has the target features listed below.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn run_avx512<O: Op>(op: O) -> O::Output {
    // SAFETY: this function is compiled for the level; the rest is the caller's.
    unsafe { op.call::<Avx512<false>>() }
}

/// # Safety
/// As [`Op::call`]; the machine has the target features listed below.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn run_avx512_bf16<O: Op>(op: O) -> O::Output {
    // SAFETY: this function is compiled for the level; the rest is the caller's.
    unsafe { op.call::<Avx512<true>>() }
}

// In every method below, the trait's contract guarantees the features and the pointers.
macro_rules! simple {
    ($($name:ident($($arg:ident),*) => $body:expr;)*) => {
        $(#[inline(always)]
        unsafe fn $name($($arg: Self::F),*) -> Self::F {
            // SAFETY: the trait's contract gives the level's features.
            unsafe { $body }
        })*
    };
}

impl Simd for Avx2 {
    type F = __m256;
    type M = __m256;
    const LANES: usize = 8;
    const MULTIPLIES_PAIRS: bool = false;
    const TILE_ROWS: usize = 6;
    // On a Zen 3 a token decoded takes 1.12 times as long with it, at any distance.
    const PREFETCHES_AHEAD: bool = false;

    simple! {
        add(a, b) => _mm256_add_ps(a, b);
        sub(a, b) => _mm256_sub_ps(a, b);
        mul(a, b) => _mm256_mul_ps(a, b);
        div(a, b) => _mm256_div_ps(a, b);
        fma(a, b, c) => _mm256_fmadd_ps(a, b, c);
        max(a, b) => _mm256_max_ps(a, b);
        min(a, b) => _mm256_min_ps(a, b);
        abs(a) => _mm256_andnot_ps(_mm256_set1_ps(-0.0), a);
        copy_sign(a, s) => _mm256_or_ps(
            _mm256_andnot_ps(_mm256_set1_ps(-0.0), a),
            _mm256_and_ps(_mm256_set1_ps(-0.0), s),
        );
        round(a) => _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
        exp2i(n) => _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(
            _mm256_cvtps_epi32(n),
            _mm256_set1_epi32(127),
        )));
        low_bf16(a) => _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(a)));
        high_bf16(a) => _mm256_and_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000_u32 as i32)));
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> __m256 {
        let mut v = [0.0; 8];
        // SAFETY: n < 8 values are readable.
        unsafe {
            std::ptr::copy_nonoverlapping(p, v.as_mut_ptr(), n);
            _mm256_loadu_ps(v.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m256) {
        // SAFETY: the trait's contract.
        unsafe { _mm256_storeu_ps(p, v) };
    }
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, v: __m256, n: usize) {
        let mut all = [0.0; 8];
        // SAFETY: n < 8 values are writable.
        unsafe {
            _mm256_storeu_ps(all.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(all.as_ptr(), p, n);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> __m256 {
        // SAFETY: the trait's contract: 8 values are readable.
        unsafe {
            let half = _mm_loadu_si128(p.cast());
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half)))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_n(p: *const bf16, n: usize) -> __m256 {
        let mut v = [bf16::ZERO; 8];
        // SAFETY: n < 8 values are readable.
        unsafe {
            std::ptr::copy_nonoverlapping(p, v.as_mut_ptr(), n);
            Self::load_bf16(v.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut bf16, v: __m256) {
        // SAFETY: the trait's contract: 8 values are writable.
        unsafe {
            // Rounds the bits to nearest even; a NaN becomes the quiet NaN instead of overflowing.
            let bits = _mm256_castps_si256(v);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
            let up = _mm256_blendv_epi8(up, _mm256_set1_epi32(0x7fc0_0000), nan);
            let up = _mm256_srli_epi32::<16>(up);
            let packed = _mm_packus_epi32(_mm256_castsi256_si128(up), _mm256_extracti128_si256::<1>(up));
            _mm_storeu_si128(p.cast(), packed);
        }
    }
    #[inline(always)]
    unsafe fn store_bf16_n(p: *mut bf16, v: __m256, n: usize) {
        let mut all = [bf16::ZERO; 8];
        // SAFETY: n < 8 values are writable.
        unsafe {
            Self::store_bf16(all.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(all.as_ptr(), p, n);
        }
    }
    #[inline(always)]
    unsafe fn transpose(vectors: &mut [__m256; MOST_LANES]) {
        // SAFETY: the trait's contract.
        unsafe {
            // Lane group l of `of_four[g][j]` holds column 4 l + j of the rows 4 g to 4 g + 3.
            let mut of_four = [[_mm256_setzero_ps(); 4]; 2];
            for (g, of_four) in of_four.iter_mut().enumerate() {
                let (a, b, c, d) =
                    (vectors[4 * g], vectors[4 * g + 1], vectors[4 * g + 2], vectors[4 * g + 3]);
                let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
                let (ab_high, cd_high) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
                *of_four = [
                    _mm256_shuffle_ps::<0x44>(ab, cd),
                    _mm256_shuffle_ps::<0xee>(ab, cd),
                    _mm256_shuffle_ps::<0x44>(ab_high, cd_high),
                    _mm256_shuffle_ps::<0xee>(ab_high, cd_high),
                ];
            }
            for j in 0..4 {
                let (upper, lower) = (of_four[0][j], of_four[1][j]);
                vectors[j] = _mm256_permute2f128_ps::<0x20>(upper, lower);
                vectors[4 + j] = _mm256_permute2f128_ps::<0x31>(upper, lower);
            }
        }
    }
    #[inline(always)]
    unsafe fn less(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    unsafe fn select(m: __m256, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_blendv_ps(b, a, m) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) };
    }
    #[inline(always)]
    unsafe fn sum(a: __m256) -> f32 {
        // SAFETY: the trait's contract.
        unsafe {
            let v = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
        }
    }
    #[inline(always)]
    unsafe fn max_lane(a: __m256) -> f32 {
        // SAFETY: the trait's contract.
        unsafe {
            let v = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps::<1>(v, v)))
        }
    }
}

/// The first `n` of sixteen lanes.
#[inline(always)]
fn lanes(n: usize) -> u16 {
    ((1_u32 << n) - 1) as u16
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    type F = __m512;
    type M = __mmask16;
    const LANES: usize = 16;
    const MULTIPLIES_PAIRS: bool = BF16;
    // 14 x 2 accumulators, two vectors of the weights and one broadcast fill 31 of 32 registers.
    const TILE_ROWS: usize = 14;
    const PREFETCHES_AHEAD: bool = true;

    simple! {
        add(a, b) => _mm512_add_ps(a, b);
        sub(a, b) => _mm512_sub_ps(a, b);
        mul(a, b) => _mm512_mul_ps(a, b);
        div(a, b) => _mm512_div_ps(a, b);
        fma(a, b, c) => _mm512_fmadd_ps(a, b, c);
        max(a, b) => _mm512_max_ps(a, b);
        min(a, b) => _mm512_min_ps(a, b);
        abs(a) => _mm512_abs_ps(a);
        copy_sign(a, s) => _mm512_or_ps(_mm512_abs_ps(a), _mm512_and_ps(_mm512_set1_ps(-0.0), s));
        round(a) => _mm512_roundscale_ps::<0>(a);
        exp2i(n) => _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(
            _mm512_cvtps_epi32(n),
            _mm512_set1_epi32(127),
        )));
        low_bf16(a) => _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(a)));
        high_bf16(a) => _mm512_and_ps(a, _mm512_castsi512_ps(_mm512_set1_epi32(0xffff_0000_u32 as i32)));
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> __m512 {
        // SAFETY: lanes above n are masked off and not touched.
        unsafe { _mm512_maskz_loadu_ps(lanes(n), p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        // SAFETY: the trait's contract.
        unsafe { _mm512_storeu_ps(p, v) };
    }
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, v: __m512, n: usize) {
        // SAFETY: lanes above n are masked off and not touched.
        unsafe { _mm512_mask_storeu_ps(p, lanes(n), v) };
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> __m512 {
        // SAFETY: 16 values are readable.
        unsafe { widen(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16_n(p: *const bf16, n: usize) -> __m512 {
        // SAFETY: lanes above n are masked off and not touched.
        unsafe { widen(_mm256_maskz_loadu_epi16(lanes(n), p.cast())) }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut bf16, v: __m512) {
        // SAFETY: 16 values are writable.
        unsafe { _mm256_storeu_si256(p.cast(), Self::narrow(v)) };
    }
    #[inline(always)]
    unsafe fn store_bf16_n(p: *mut bf16, v: __m512, n: usize) {
        // SAFETY: lanes above n are masked off and not touched.
        unsafe { _mm256_mask_storeu_epi16(p.cast(), lanes(n), Self::narrow(v)) };
    }
    #[inline(always)]
    unsafe fn transpose(vectors: &mut [__m512; MOST_LANES]) {
        // SAFETY: the trait's contract.
        unsafe {
            // Lane group l of `of_four[g][j]` holds column 4 l + j of the rows 4 g to 4 g + 3.
            let mut of_four = [[_mm512_setzero_ps(); 4]; 4];
            for (g, of_four) in of_four.iter_mut().enumerate() {
                let (a, b, c, d) =
                    (vectors[4 * g], vectors[4 * g + 1], vectors[4 * g + 2], vectors[4 * g + 3]);
                let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
                let (ab_high, cd_high) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
                *of_four = [
                    _mm512_shuffle_ps::<0x44>(ab, cd),
                    _mm512_shuffle_ps::<0xee>(ab, cd),
                    _mm512_shuffle_ps::<0x44>(ab_high, cd_high),
                    _mm512_shuffle_ps::<0xee>(ab_high, cd_high),
                ];
            }
            for j in 0..4 {
                let [a, b, c, d] = [of_four[0][j], of_four[1][j], of_four[2][j], of_four[3][j]];
                let (ab, cd) = (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0x44>(c, d));
                let (ab_high, cd_high) =
                    (_mm512_shuffle_f32x4::<0xee>(a, b), _mm512_shuffle_f32x4::<0xee>(c, d));
                vectors[j] = _mm512_shuffle_f32x4::<0x88>(ab, cd);
                vectors[4 + j] = _mm512_shuffle_f32x4::<0xdd>(ab, cd);
                vectors[8 + j] = _mm512_shuffle_f32x4::<0x88>(ab_high, cd_high);
                vectors[12 + j] = _mm512_shuffle_f32x4::<0xdd>(ab_high, cd_high);
            }
        }
    }
    #[inline(always)]
    unsafe fn less(a: __m512, b: __m512) -> __mmask16 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    unsafe fn select(m: __mmask16, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_mask_blend_ps(m, b, a) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) };
    }
    #[inline(always)]
    unsafe fn sum(a: __m512) -> f32 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_reduce_add_ps(a) }
    }
    #[inline(always)]
    unsafe fn max_lane(a: __m512) -> f32 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_reduce_max_ps(a) }
    }
    #[inline(always)]
    unsafe fn dot_bf16(acc: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: with BF16 the level has the instruction; a transmute between 512-bit vectors keeps the bits.
        unsafe {
            if BF16 {
                _mm512_dpbf16_ps(
                    acc,
                    std::mem::transmute::<__m512, __m512bh>(a),
                    std::mem::transmute::<__m512, __m512bh>(b),
                )
            } else {
                let acc = _mm512_fmadd_ps(Self::high_bf16(a), Self::high_bf16(b), acc);
                _mm512_fmadd_ps(Self::low_bf16(a), Self::low_bf16(b), acc)
            }
        }
    }
}

impl<const BF16: bool> Avx512<BF16> {
    /// Sixteen f32 to bf16, nearest even.
    #[inline(always)]
    unsafe fn narrow(v: __m512) -> __m256i {
        // SAFETY: with BF16 the level has the instruction; the rest is AVX-512 F.
        unsafe {
            if BF16 {
                std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v))
            } else {
                let bits = _mm512_castps_si512(v);
                let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                let up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
                let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
                let up = _mm512_mask_blend_epi32(nan, up, _mm512_set1_epi32(0x7fc0_0000));
                _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(up))
            }
        }
    }
}

/// Sixteen bf16 to f32.
#[inline(always)]
unsafe fn widen(v: __m256i) -> __m512 {
    // SAFETY: called from the AVX-512 level only.
    unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(v))) }
}
