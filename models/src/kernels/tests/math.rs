use super::super::math::{self, Activation};
use super::super::simd::{Op, Simd};
use super::{U32, pools, reference};

#[derive(Clone, Copy)]
enum Function {
    Exp,
    Tanh,
    Apply(Activation),
}

struct Map<'a>(&'a mut [f32], Function);

#[expect(unsafe_code, reason = "calls the vector functions under test")]
impl Op for Map<'_> {
    type Output = ();
    const HAS_BF16: bool = false;
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        for chunk in self.0.chunks_exact_mut(16) {
            for i in (0..16).step_by(S::LANES) {
                // SAFETY: 16 values, a multiple of the lanes.
                unsafe {
                    let p = chunk.as_mut_ptr().add(i);
                    let x = S::load(p);
                    S::store(
                        p,
                        match self.1 {
                            Function::Exp => math::exp::<S>(x),
                            Function::Tanh => math::tanh::<S>(x),
                            Function::Apply(activation) => activation.apply::<S>(x),
                        },
                    );
                }
            }
        }
    }
}

fn map(xs: &[f32], f: Function) -> Vec<(String, Vec<f32>)> {
    pools()
        .into_iter()
        .map(|pool| {
            let mut out = xs.to_vec();
            out.resize(xs.len().next_multiple_of(16), 0.0);
            #[expect(unsafe_code, reason = "the level is the machine's")]
            // SAFETY: pools exist only at levels that the machine has.
            unsafe {
                pool.isa().run(Map(&mut out, f));
            };
            out.truncate(xs.len());
            (format!("{:?}", pool.isa()), out)
        })
        .collect()
}

/// A grid over `low..high`, dense near zero.
fn grid(low: f32, high: f32) -> Vec<f32> {
    let n = 40_000;
    let even = (0..=n).map(|i| low + (high - low) * i as f32 / n as f32);
    let near = (0..2000).flat_map(|i| {
        let x = 10_f32.powf(-6.0 + i as f32 * 0.003);
        [x, -x]
    });
    even.chain(near.filter(|x| (low..=high).contains(x))).collect()
}

/// `|got - want| <= relative * |want| + absolute` over the grid.
fn check(f: Function, truth: impl Fn(f64) -> f64, low: f32, high: f32, relative: f64, absolute: f64) {
    let xs = grid(low, high);
    for (level, ys) in map(&xs, f) {
        for (x, y) in xs.iter().zip(ys) {
            let want = truth(f64::from(*x));
            let off = (f64::from(y) - want).abs();
            assert!(
                off <= relative * want.abs() + absolute,
                "{level}: f({x}) = {y}, want {want}, off {off:e}"
            );
        }
    }
}

#[test]
fn exp_keeps_its_bound() {
    check(Function::Exp, f64::exp, -87.3, 88.3, 2.5e-7, 0.0);
}

#[test]
fn exp_of_the_extremes() {
    let xs = [f32::NEG_INFINITY, -200.0, -88.0, 0.0, -0.0, 200.0, f32::NAN];
    for (level, y) in map(&xs, Function::Exp) {
        assert_eq!(y[..3].iter().map(|y| y.to_bits()).collect::<Vec<_>>(), [0, 0, 0], "{level}: {y:?}");
        assert_eq!(
            y[3..5].iter().map(|y| y.to_bits()).collect::<Vec<_>>(),
            [1.0_f32.to_bits(); 2],
            "{level}"
        );
        assert!(y[5] > 1e38 && y[5].is_finite(), "{level}: saturates at {}", y[5]);
        assert!(y[6].is_nan(), "{level}: NaN stays NaN");
    }
}

#[test]
fn tanh_keeps_its_bound() {
    check(Function::Tanh, f64::tanh, -30.0, 30.0, 4e-7, 0.0);
}

#[test]
fn activations_keep_their_bounds() {
    // Rounding the sigmoid's argument u costs |u| roundoffs of its exponential, and below about -16 that is the
    // dominant error; the values there are below 1e-6.
    let tail = 16.0 * 4.0 * U32;
    check(Function::Apply(Activation::Silu), reference::silu, -80.0, 80.0, 5e-7, 0.0);
    check(Function::Apply(Activation::GeluTanh), reference::gelu_tanh, -3.0, 30.0, 5e-7 + tail, 0.0);
    check(Function::Apply(Activation::GeluTanh), reference::gelu_tanh, -30.0, -3.0, 0.0, 1e-7);
    // 1 + erf cancels for negative x: an absolute error of erf's last place times x/2.
    check(Function::Apply(Activation::GeluErf), reference::gelu_erf, -30.0, 30.0, 4e-7, 4e-7);
    check(Function::Apply(Activation::QuickGelu), |x| x / (1.0 + (-1.702 * x).exp()), -9.0, 30.0, 2e-6, 0.0);
    check(Function::Apply(Activation::Relu), |x| x.max(0.0), -30.0, 30.0, 0.0, 0.0);
    check(Function::Apply(Activation::ReluSquared), |x| x.max(0.0).powi(2), -30.0, 30.0, U32, 0.0);
}
