//! The random values. This crate has its own generator instead of rand_chacha with Box–Muller, for two reasons. It
//! must give the same bytes on every platform: Box–Muller needs `ln` and `cos`, whose last bit depends on the
//! platform, while this generator uses integers, one multiplication and one addition. And value `i` of a tensor
//! depends only on `i`, so that a tensor can be written in pieces.

use crate::checkpoints::Tensor;

/// Step of splitmix64: 2^64 divided by the golden ratio (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
/// generators").
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// Value `counter` of the splitmix64 sequence that starts at `seed`.
pub(super) fn splitmix64(seed: u64, counter: u64) -> u64 {
    let mut z = seed.wrapping_add(GAMMA.wrapping_mul(counter.wrapping_add(1)));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Seed of a tensor: FNV-1a of its name, mixed with the checkpoint's seed. It does not depend on shape and variant,
/// so that variants with the same tensors share their weights.
pub(super) fn tensor_seed(seed: u64, name: &str) -> u64 {
    let name = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    splitmix64(seed, name)
}

/// Approximately standard normal: the sum of four uniform 16-bit numbers (Irwin–Hall), centred and scaled. Its
/// kurtosis is 2.7 instead of 3 and its range is ±3.46.
fn normal(bits: u64) -> f64 {
    const MEAN: f64 = 4.0 * 65535.0 / 2.0;
    // 1 / sqrt(4 (65536² - 1) / 12)
    const SCALE: f64 = 2.642_899_792_130_301_4e-5;
    let sum: u64 = (0..4).map(|part| (bits >> (16 * part)) & 0xffff).sum();
    (sum as f64 - MEAN) * SCALE
}

/// Values `start..start + values.len()` of a tensor, in row-major order.
pub(super) fn fill(tensor: &Tensor, seed: u64, start: usize, values: &mut [f32]) {
    let seed = tensor_seed(seed, &tensor.name);
    for (index, value) in (start as u64..).zip(values) {
        *value = (tensor.mean + tensor.std * normal(splitmix64(seed, index))) as f32;
    }
}
