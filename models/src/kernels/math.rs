//! Vector exp, tanh, erf and the activations built from them. Each function states its error bound, which is tested
//! against f64 over the whole range.

#![expect(unsafe_code, reason = "generic vector code")]

use super::simd::Simd;
use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, LOG2_E};

/// An MLP activation; the names in parentheses are those of transformers' `ACT2FN` (5.23.0, activations.py).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)` (`silu`, `swish`).
    Silu,
    /// The tanh approximation (`gelu_new`, `gelu_pytorch_tanh`, `gelu_fast`).
    GeluTanh,
    /// `x / 2 * (1 + erf(x / sqrt 2))` (`gelu`).
    GeluErf,
    /// `x * sigmoid(1.702 x)` (`quick_gelu`).
    QuickGelu,
    /// `max(x, 0)` (`relu`).
    Relu,
    /// `max(x, 0)^2` (`relu2`).
    ReluSquared,
    /// `tanh(x)` (`tanh`).
    Tanh,
}

impl Activation {
    /// Applies the activation to a vector.
    #[inline(always)]
    pub(crate) unsafe fn apply<S: Simd>(self, x: S::F) -> S::F {
        // SAFETY: `Simd`'s contract is passed on.
        unsafe {
            match self {
                Self::Silu => S::mul(x, sigmoid::<S>(x)),
                Self::GeluTanh => {
                    // x/2 (1 + tanh u) = x sigmoid(2u), which does not cancel for negative x.
                    let cubic = S::fma(S::mul(x, x), S::splat(0.044_715), S::splat(1.0));
                    let twice_u = S::mul(S::mul(x, S::splat(1.595_769_2)), cubic);
                    S::mul(x, sigmoid::<S>(twice_u))
                }
                Self::GeluErf => {
                    let half = S::mul(x, S::splat(0.5));
                    S::fma(half, erf::<S>(S::mul(x, S::splat(FRAC_1_SQRT_2))), half)
                }
                Self::QuickGelu => S::mul(x, sigmoid::<S>(S::mul(x, S::splat(1.702)))),
                Self::Relu => S::max(S::splat(0.0), x),
                Self::ReluSquared => {
                    let r = S::max(S::splat(0.0), x);
                    S::mul(r, r)
                }
                Self::Tanh => tanh::<S>(x),
            }
        }
    }
}

/// `e^x`, relative error below 2.5e-7 (about 2 ulp) if the result is normal; 0 below ln 2^-126, e^88.37 above x =
/// 88.37; NaN stays NaN.
///
/// Cody-Waite reduction by ln 2 in two parts, then a Chebyshev fit of degree 6 (2.6e-9 in exact arithmetic).
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    const LOWEST: f32 = -87.336_54;
    const HIGHEST: f32 = 88.37;
    // SAFETY: `Simd`'s contract is passed on.
    unsafe {
        let tiny = S::less(x, S::splat(LOWEST));
        let x = S::min(S::splat(HIGHEST), S::max(S::splat(LOWEST), x));
        let n = S::round(S::mul(x, S::splat(LOG2_E)));
        // ln 2 = 0.693359375 - 2.12194440e-4; the first part has few bits, so n times it is exact.
        let r = S::fma(n, S::splat(-0.693_359_4), x);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let p = S::splat(0.001_394_858_1);
        let p = S::fma(p, r, S::splat(0.008_375_129));
        let p = S::fma(p, r, S::splat(0.041_666_217));
        let p = S::fma(p, r, S::splat(0.166_664_15));
        let p = S::fma(p, r, S::splat(0.5));
        let p = S::fma(p, r, S::splat(1.0));
        let p = S::fma(p, r, S::splat(1.0));
        S::select(tiny, S::splat(0.0), S::mul(p, S::exp2i(n)))
    }
}

/// `1 / (1 + e^-x)`, relative error below 5e-7 down to x = -87.
#[inline(always)]
unsafe fn sigmoid<S: Simd>(x: S::F) -> S::F {
    // SAFETY: `Simd`'s contract is passed on.
    unsafe {
        let e = exp::<S>(S::sub(S::splat(0.0), x));
        S::div(S::splat(1.0), S::add(S::splat(1.0), e))
    }
}

/// `tanh x`, relative error below 4e-7: a polynomial fit of degree 11 below 0.6, `1 - 2 / (e^2x + 1)` above.
#[inline(always)]
pub(crate) unsafe fn tanh<S: Simd>(x: S::F) -> S::F {
    // SAFETY: `Simd`'s contract is passed on.
    unsafe {
        let w = S::mul(x, x);
        let p = S::splat(-0.005_856_428);
        let p = S::fma(p, w, S::splat(0.020_757_476));
        let p = S::fma(p, w, S::splat(-0.053_769_92));
        let p = S::fma(p, w, S::splat(0.133_317_05));
        let p = S::fma(p, w, S::splat(-0.333_332_84));
        let near = S::fma(S::mul(p, w), x, x);
        let a = S::abs(x);
        let e = exp::<S>(S::add(a, a));
        let far = S::sub(S::splat(1.0), S::div(S::splat(2.0), S::add(e, S::splat(1.0))));
        S::select(S::less(a, S::splat(0.6)), near, S::copy_sign(far, x))
    }
}

/// `erf x`, relative error below 3e-7: a polynomial fit of degree 13 below 1; above, `1 - erfc x` with the Chebyshev
/// approximation of Numerical Recipes (3rd ed., 6.2.2, fractional error 1.2e-7).
#[inline(always)]
unsafe fn erf<S: Simd>(x: S::F) -> S::F {
    const NEAR: [f32; 7] = [
        7.882_497e-5,
        -8.018_855_5e-4,
        5.189_312e-3,
        -0.026_854_329,
        0.112_835_97,
        -0.376_126_26,
        FRAC_2_SQRT_PI,
    ];
    const FAR: [f32; 10] = [
        0.170_872_77,
        -0.822_152_23,
        1.488_515_9,
        -1.135_204,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_7,
        -1.265_512_2,
    ];
    // SAFETY: `Simd`'s contract is passed on.
    unsafe {
        let w = S::mul(x, x);
        let mut p = S::splat(NEAR[0]);
        for c in &NEAR[1..] {
            p = S::fma(p, w, S::splat(*c));
        }
        let near = S::mul(p, x);
        let a = S::abs(x);
        let t = S::div(S::splat(1.0), S::fma(a, S::splat(0.5), S::splat(1.0)));
        let mut q = S::splat(FAR[0]);
        for c in &FAR[1..] {
            q = S::fma(q, t, S::splat(*c));
        }
        let erfc = S::mul(t, exp::<S>(S::sub(q, w)));
        let far = S::copy_sign(S::sub(S::splat(1.0), erfc), x);
        S::select(S::less(a, S::splat(1.0)), near, far)
    }
}
