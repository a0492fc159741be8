//! Compares every kernel with float64 on the CPU. The references are separate implementations, so that an
//! error shared by the kernels and their unit tests shows here.

mod attention;
mod experts;
mod rows;

use std::sync::Arc;

use half::{bf16, f16};
use models::cuda::{Dtype, Gpu, Region};
use models::{Error, Result};
use serde::Serialize;

/// One kernel on one shape.
#[derive(Clone, Debug, Serialize)]
pub(super) struct KernelCheck {
    /// Name of the case.
    pub(super) name: String,
    /// `bf16`.
    pub(super) dtype: String,
    /// Relative L2 against float64; NaN if the kernel did not run.
    pub(super) error: f64,
    /// Largest relative L2 that rounding in this dtype explains.
    pub(super) limit: f64,
    /// Whether the error is within the limit and every element is close to its reference.
    pub(super) passed: bool,
    /// Why the kernel did not run, or which element is wrong.
    pub(super) failure: Option<String>,
}

impl KernelCheck {
    pub(super) fn text(&self) -> String {
        let failure = self.failure.as_ref().map(|failure| format!("; {failure}")).unwrap_or_default();
        format!(
            "{} in {}: relative L2 {:.1e}, limit {:.1e}{failure}",
            self.name, self.dtype, self.error, self.limit
        )
    }
}

/// A kernel's output and its float64 reference.
type Outcome = Result<(Vec<f64>, Vec<f64>)>;

/// A name, and the function that computes the case in one dtype.
type Case = (&'static str, fn(&Bench) -> Outcome);

/// A device and a dtype.
struct Bench {
    gpu: Arc<dyn Gpu>,
    dtype: Dtype,
}

/// Runs all cases; `say` receives each result as soon as it is known and returns whether to continue.
pub(super) fn run(gpu: &Arc<dyn Gpu>, say: &mut dyn FnMut(KernelCheck) -> bool) {
    for (name, case) in cases() {
        for dtype in Dtype::ALL {
            let bench = Bench { gpu: Arc::clone(gpu), dtype };
            if !say(checked(name, dtype, case(&bench))) {
                return;
            }
        }
    }
}

fn cases() -> impl Iterator<Item = Case> {
    rows::CASES.iter().chain(attention::CASES).chain(experts::CASES).copied()
}

/// One rounding costs at most half a unit in the last place; an F32 sum of a thousand terms costs a few dozen
/// units.
fn limit(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => 2e-6,
        // Attention rounds its probabilities as well.
        Dtype::Bf16 => 1.0 / 256.0,
        Dtype::F16 => 1.0 / 2048.0,
    }
}

/// Largest error of one element, in multiples of `limit` times the larger of its magnitude and the root mean
/// square.
const ONE: f64 = 8.0;

fn checked(name: &str, dtype: Dtype, outcome: Outcome) -> KernelCheck {
    let limit = limit(dtype);
    let check = |error: f64, failure: Option<String>| KernelCheck {
        name: name.to_owned(),
        dtype: dtype.suffix().to_owned(),
        error,
        limit,
        passed: error <= limit && failure.is_none(),
        failure,
    };
    let (got, want) = match outcome {
        Ok(values) => values,
        Err(error) => return check(f64::NAN, Some(text(&error))),
    };
    if got.len() != want.len() || want.is_empty() {
        return check(f64::NAN, Some(format!("{} values where there should be {}", got.len(), want.len())));
    }
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let norm = squares(&mut want.iter().copied()).sqrt();
    let error = squares(&mut got.iter().zip(&want).map(|(got, want)| got - want)).sqrt() / norm;
    let rms = norm / (want.len() as f64).sqrt();
    let off = |(got, want): (&f64, &f64)| {
        let allowed = ONE * limit * want.abs().max(rms);
        let is_near = (got - want).abs() <= allowed;
        !is_near
    };
    let failure = got
        .iter()
        .zip(&want)
        .position(off)
        .map(|at| format!("element {at} of {} is {}, and {} is right", want.len(), got[at], want[at]));
    check(error, failure)
}

fn text(error: &Error) -> String {
    error.to_string()
}

impl Bench {
    /// Numbers in `-scale..scale`, rounded to the dtype; equal for equal `seed`.
    fn noise(&self, seed: u64, len: usize, scale: f64) -> Vec<f64> {
        numbers(seed, len, scale).into_iter().map(|value| round(self.dtype, value)).collect()
    }

    /// Copies values that the dtype represents exactly to the device.
    fn put(&self, values: &[f64]) -> Result<Region> {
        self.put_as(self.dtype, values)
    }

    fn put_as(&self, dtype: Dtype, values: &[f64]) -> Result<Region> {
        let single = values.iter().map(|value| *value as f32);
        match dtype {
            Dtype::F32 => Region::of(&self.gpu, &single.collect::<Vec<_>>()),
            Dtype::Bf16 => Region::of(&self.gpu, &single.map(bf16::from_f32).collect::<Vec<_>>()),
            Dtype::F16 => Region::of(&self.gpu, &single.map(f16::from_f32).collect::<Vec<_>>()),
        }
    }

    fn room(&self, len: usize) -> Result<Region> {
        Region::room(&self.gpu, self.dtype, len)
    }

    fn get(&self, region: &Region, len: usize) -> Result<Vec<f64>> {
        get_as(self.dtype, region, len)
    }
}

fn get_as(dtype: Dtype, region: &Region, len: usize) -> Result<Vec<f64>> {
    Ok(match dtype {
        Dtype::F32 => region.download::<f32>(len)?.into_iter().map(f64::from).collect(),
        Dtype::Bf16 => region.download::<bf16>(len)?.into_iter().map(f64::from).collect(),
        Dtype::F16 => region.download::<f16>(len)?.into_iter().map(f64::from).collect(),
    })
}

/// A value rounded to `dtype`.
fn round(dtype: Dtype, value: f64) -> f64 {
    match dtype {
        Dtype::F32 => f64::from(value as f32),
        Dtype::Bf16 => f64::from(bf16::from_f32(value as f32)),
        Dtype::F16 => f64::from(f16::from_f32(value as f32)),
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014), uniform in `-scale..scale`, rounded to F32.
fn numbers(seed: u64, len: usize, scale: f64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x5851_f42d_4c95_7f2d);
    let next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let unit = ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64;
        f64::from(((2.0 * unit - 1.0) * scale) as f32)
    };
    std::iter::repeat_with(next).take(len).collect()
}

#[cfg(test)]
mod tests {
    use models::cuda::{Emulator, Order};

    use super::*;

    #[test]
    fn a_check_sees_a_wrong_element_a_wrong_scale_and_a_failure() {
        let want = numbers(1, 4096, 1.0);
        let of = |got: Vec<f64>| checked("test", Dtype::Bf16, Ok((got, want.clone())));
        assert!(of(want.clone()).passed);
        assert!(of(want.iter().map(|&value| round(Dtype::Bf16, value)).collect()).passed, "one rounding");
        let mut one = want.clone();
        one[77] += 0.1;
        let one = of(one);
        assert!(!one.passed && one.error < one.limit && one.text().contains("element 77"), "{}", one.text());
        assert!(!of(want.iter().map(|value| value * 1.01).collect()).passed);
        assert!(!of(vec![f64::NAN; 4096]).passed);
        assert!(!of(want[1..].to_vec()).passed);
        assert!(!checked("test", Dtype::F32, Err(Error::Gpu("no".to_owned()))).passed);
    }

    /// All cases on the emulated GPU.
    #[test]
    fn every_kernel_passes_on_the_emulated_gpu() {
        let gpu = Emulator::start(Order::Forward);
        let mut failed = Vec::new();
        let mut count = 0;
        run(&gpu, &mut |check| {
            count += 1;
            if !check.passed {
                failed.push(check.text());
            }
            true
        });
        assert!(failed.is_empty(), "{failed:#?}");
        assert_eq!(count, 3 * cases().count());
    }
}
