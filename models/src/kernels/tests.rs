//! Kernels against scalar f64 references over random shapes, at every instruction level of the machine.

mod attention;
mod block;
mod elementwise;
mod linear;
mod math;
mod memory;
mod noise;
mod norm;
mod pool;
mod reference;
mod rope;

use self::noise::Noise;
use super::simd::Isa;
use super::{Element, Pool};
use proptest::prelude::ProptestConfig;

/// Unit roundoff of f32: one operation is off by at most this, relatively.
const U32: f64 = 1.0 / (1 << 24) as f64;

/// Unit roundoff of bf16 (8 significant bits).
const U_BF16: f64 = 1.0 / (1 << 8) as f64;

/// Unit roundoff of a result stored as `T`.
fn roundoff<T: Element>() -> f64 {
    if T::PER_UNIT == 2 { U_BF16 } else { U32 }
}

/// Pools of one to three threads at each level that this machine has. Miri has one level: there it is two threads.
fn pools() -> Vec<Pool> {
    let levels = Isa::ALL.into_iter().filter(|level| *level <= Isa::detect());
    let first = if cfg!(miri) { 2 } else { 1 };
    levels.enumerate().map(|(i, level)| Pool::with_isa(first + i % 3, level)).collect()
}

/// So many random shapes; fewer under Miri, which is a thousand times slower and cannot write files.
fn shapes(cases: u32) -> ProptestConfig {
    if cfg!(miri) {
        return ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(8) };
    }
    ProptestConfig::with_cases(cases)
}

/// The end of a range of random sizes; a smaller one under Miri.
fn most(size: usize, under_miri: usize) -> usize {
    if cfg!(miri) { under_miri } else { size }
}

impl Noise {
    fn take<T: Element>(&mut self, len: usize, scale: f32) -> Vec<T> {
        (0..len).map(|_| T::from_f32(self.next() * scale)).collect()
    }
}

fn wide<T: Element>(xs: &[T]) -> Vec<f64> {
    xs.iter().map(|x| f64::from(x.to_f32())).collect()
}

/// Asserts that every element is within its own tolerance; a NaN fails.
#[track_caller]
fn close<T: Element>(what: &str, got: &[T], want: &[f64], tolerance: impl Fn(usize) -> f64) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let got = f64::from(got.to_f32());
        let tolerance = tolerance(i);
        assert!(
            (got - want).abs() <= tolerance,
            "{what}: element {i} is {got}, want {want}, off by {:e} with {tolerance:e} allowed",
            (got - want).abs()
        );
    }
}

/// Runs a check for both element types.
macro_rules! both {
    ($check:ident($($arg:expr),*)) => {
        $check::<f32>($($arg),*);
        $check::<bf16>($($arg),*);
    };
}
use both;
