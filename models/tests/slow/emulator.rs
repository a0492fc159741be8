//! Runs every kernel's source in the emulator and compares it with the CPU kernels' scalar f64 references.
//!
//! Each case runs with both thread orders and must give the same bits, which detects missing barriers.

mod attention;
mod device;
mod elementwise;
mod experts;
mod gemv;
#[path = "../../src/kernels/tests/noise.rs"]
mod noise;
mod norm;
mod planted;
#[path = "../../src/kernels/tests/reference.rs"]
#[allow(dead_code, reason = "attention on a GPU has a reference of its own")]
mod reference;
mod rope;

use std::sync::{Arc, LazyLock};

use half::{bf16, f16};

use models::cuda::{Dtype, Emulator, Gpu, Order, Region};

use self::noise::Noise;

/// Unit roundoff of F32.
const U32: f64 = 1.0 / (1 << 24) as f64;

/// Unit roundoff of `dtype`.
fn roundoff(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => U32,
        Dtype::Bf16 => 1.0 / 256.0,
        Dtype::F16 => 1.0 / 2048.0,
    }
}

/// Error bound of rounding a value to `dtype`; F16's subnormals have an absolute bound.
fn stored(dtype: Dtype, value: f64) -> f64 {
    let smallest = if dtype == Dtype::F16 { 1.0 / f64::from(1 << 25) } else { 0.0 };
    roundoff(dtype) * value.abs() + smallest
}

/// Emulated devices with both thread orders.
static GPUS: LazyLock<[Arc<dyn Gpu>; 2]> =
    LazyLock::new(|| [Order::Forward, Order::Reversed].map(Emulator::start));

/// Runs a case on both devices, which must return identical bits.
#[track_caller]
fn on_both(case: impl Fn(&Arc<dyn Gpu>) -> Vec<f64>) -> Vec<f64> {
    let [forward, reversed] = GPUS.each_ref().map(case);
    let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    assert!(
        bits(&forward) == bits(&reversed),
        "the order of threads changes the result: a barrier is missing"
    );
    forward
}

/// A value rounded to `dtype`.
fn rounded(dtype: Dtype, value: f32) -> f64 {
    f64::from(match dtype {
        Dtype::F32 => value,
        Dtype::Bf16 => bf16::from_f32(value).to_f32(),
        Dtype::F16 => f16::from_f32(value).to_f32(),
    })
}

/// Noise in `-scale..scale`, rounded to `dtype`.
fn noise(noise: &mut Noise, dtype: Dtype, len: usize, scale: f32) -> Vec<f64> {
    (0..len).map(|_| rounded(dtype, noise.next() * scale)).collect()
}

/// Uploads values that `dtype` represents exactly.
fn put(gpu: &Arc<dyn Gpu>, dtype: Dtype, values: &[f64]) -> Region {
    let single = values.iter().map(|value| *value as f32);
    match dtype {
        Dtype::F32 => Region::of(gpu, &single.collect::<Vec<_>>()),
        Dtype::Bf16 => Region::of(gpu, &single.map(bf16::from_f32).collect::<Vec<_>>()),
        Dtype::F16 => Region::of(gpu, &single.map(f16::from_f32).collect::<Vec<_>>()),
    }
    .unwrap()
}

/// Downloads the first `len` values.
fn get(region: &Region, dtype: Dtype, len: usize) -> Vec<f64> {
    match dtype {
        Dtype::F32 => region.download::<f32>(len).unwrap().into_iter().map(f64::from).collect(),
        Dtype::Bf16 => {
            region.download::<bf16>(len).unwrap().into_iter().map(|x| f64::from(x.to_f32())).collect()
        }
        Dtype::F16 => {
            region.download::<f16>(len).unwrap().into_iter().map(|x| f64::from(x.to_f32())).collect()
        }
    }
}

/// Asserts that every element is within its own tolerance, which also excludes NaN.
#[track_caller]
fn close(what: &str, got: &[f64], want: &[f64], tolerance: impl Fn(usize) -> f64) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let (off, tolerance) = ((got - want).abs(), tolerance(i));
        assert!(
            off <= tolerance,
            "{what}: element {i} is {got}, want {want}, off by {off:e} with {tolerance:e} allowed"
        );
    }
}
