use super::super::{Element, Norm};
use super::{Noise, U32, both, close, most, pools, reference, roundoff, shapes, wide};
use half::bf16;
use proptest::prelude::*;

/// Relative error of a normalised value: n/4 roundoffs of the shortest interleaved sum halved by the root,
/// and a few operations; all in f32.
fn bound(n: usize) -> f64 {
    (n as f64 / 8.0 + 8.0) * U32
}

fn check_rms<T: Element>(rows: usize, n: usize, seed: u64) {
    let mut noise = Noise::new(seed);
    let (x, h) = (noise.take::<T>(rows * n, 2.0), noise.take::<T>(rows * n, 2.0));
    let weight = noise.take::<f32>(n, 2.0);
    let norm = Norm::rms(weight.clone(), 1e-6);
    let (u, weight) = (roundoff::<T>(), wide(&weight));
    let relative = bound(n) + u;
    for pool in pools() {
        let mut out = vec![T::default(); rows * n];
        norm.forward(&pool, &x, &mut out);
        let want = reference::rms_norm(&wide(&x), &weight, f64::from(1e-6_f32));
        close("rms", &out, &want, |i| relative * want[i].abs());

        // The stored sum is the input of the norm, so the reference starts from it.
        let mut residual = h.clone();
        norm.add_forward(&pool, &x, &mut residual, &mut out);
        let sum: Vec<f64> = wide(&x).iter().zip(wide(&h)).map(|(a, b)| a + b).collect();
        close("sum", &residual, &sum, |i| u * sum[i].abs() + 1e-12);
        let want = reference::rms_norm(&wide(&residual), &weight, f64::from(1e-6_f32));
        close("add, then norm", &out, &want, |i| relative * want[i].abs());

        residual.copy_from_slice(&h);
        norm.forward_add(&pool, &x, &mut residual);
        let normed = reference::rms_norm(&wide(&x), &weight, f64::from(1e-6_f32));
        let want: Vec<f64> = normed.iter().zip(wide(&h)).map(|(a, b)| a + b).collect();
        close("norm, then add", &residual, &want, |i| bound(n) * normed[i].abs() + u * want[i].abs() + 1e-7);
    }
}

fn check_layer<T: Element>(rows: usize, n: usize, mean: f32, seed: u64) {
    let mut noise = Noise::new(seed);
    let x: Vec<T> = noise.take::<f32>(rows * n, 2.0).into_iter().map(|v| T::from_f32(v + mean)).collect();
    let (weight, bias) = (noise.take::<f32>(n, 2.0), noise.take::<f32>(n, 1.0));
    let want = reference::layer_norm(&wide(&x), &wide(&weight), &wide(&bias), f64::from(1e-5_f32));
    let norm = Norm::layer(weight, Some(bias), 1e-5);
    for pool in pools() {
        let mut out = vec![T::default(); rows * n];
        norm.forward(&pool, &x, &mut out);
        // The mean has an error of a few roundoffs of its own size, which the division by the deviation (about 1.2,
        // but eps keeps it above 0.003 for one or two elements) amplifies.
        let amplified = 16.0 * (f64::from(mean.abs()) + 2.0) * U32 * if n < 8 { 1000.0 } else { 20.0 };
        close("layer", &out, &want, |i| {
            (bound(n) + roundoff::<T>()) * (want[i].abs() + 8.0 * U32) + bound(n) * 8.0 + amplified
        });
    }
}

proptest! {
    #![proptest_config(shapes(24))]

    #[test]
    fn rms_norm_matches_f64_with_residual(rows in 1..most(70, 4), n in 1..most(300, 40), seed: u64) {
        both!(check_rms(rows, n, seed));
    }

    #[test]
    fn layer_norm_matches_f64(rows in 1..most(20, 4), n in 1..most(300, 40), seed: u64) {
        both!(check_layer(rows, n, 0.0, seed));
    }
}

/// At this mean, E[x^2] - mean^2 in f32 loses all significant digits.
#[test]
fn a_large_mean_does_not_cancel_the_variance() {
    check_layer::<f32>(4, 576, 1000.0, 11);
}

#[test]
fn head_norms_change_only_their_heads() {
    let mut noise = Noise::new(5);
    let (rows, width, dim) = (37, 7 * 24 + 5, 24);
    let x = noise.take::<f32>(rows * width, 2.0);
    let weight = noise.take::<f32>(dim, 2.0);
    let norm = Norm::rms(weight.clone(), 1e-6);
    for pool in pools() {
        let mut out = x.clone();
        norm.heads_in_place(&pool, &mut out, width, dim, 3);
        let want: Vec<f64> = x
            .chunks_exact(width)
            .flat_map(|row| {
                let mut row = wide(row);
                let heads = reference::rms_norm(&row[dim..4 * dim], &wide(&weight), f64::from(1e-6_f32));
                row[dim..4 * dim].copy_from_slice(&heads);
                row
            })
            .collect();
        close("heads", &out, &want, |i| bound(dim) * want[i].abs());
    }
}

#[test]
fn zeros_stay_zeros() {
    for pool in pools() {
        let mut out = [1.0_f32; 40];
        Norm::rms(vec![1.0; 20], 1e-6).forward(&pool, &[0.0; 40], &mut out);
        close("rms of zeros", &out, &[0.0; 40], |_| 0.0);
    }
}
