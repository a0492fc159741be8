use proptest::prelude::*;

use super::noise::Noise;
use super::reference;
use super::{U32, close, get, noise, on_both, put, rounded, roundoff, stored};
use models::cuda::kernels::{Activation, Gemv, GemvEpilogue, RowNorm};
use models::cuda::{Dtype, Region};

#[derive(Clone, Debug)]
struct Case {
    dtype: Dtype,
    wide: bool,
    rows: usize,
    n: usize,
    k: usize,
    gap: usize,
    bias: bool,
    norm: Option<bool>,
    epilogue: GemvEpilogue,
}

fn check(case: &Case, seed: u64) {
    let Case { dtype, rows, n, k, gap, epilogue, .. } = *case;
    let out_dtype = if case.wide { Dtype::F32 } else { dtype };
    let columns = if matches!(epilogue, GemvEpilogue::Gate(_)) { 2 * n } else { n };
    let mut random = Noise::new(seed);
    let row = k + gap;
    let xs = noise(&mut random, dtype, rows * row, 1.0);
    let weight = noise(&mut random, dtype, columns * k, 1.0);
    let bias = noise(&mut random, out_dtype, columns, 1.0);
    let norm_weight = noise(&mut random, Dtype::F32, k, 2.0);
    let before = noise(&mut random, out_dtype, rows * n, 2.0);
    let got = on_both(|gpu| {
        let [xs, weight] = [&xs, &weight].map(|values| put(gpu, dtype, values));
        let [bias, out] = [&bias, &before].map(|values| put(gpu, out_dtype, values));
        let norm_weight = put(gpu, Dtype::F32, &norm_weight);
        let norm = |centred| RowNorm { weight: Some(&norm_weight), bias: None, centred, eps: 1e-5 };
        Gemv {
            dtype,
            out_dtype,
            rows,
            n,
            k,
            xs: &xs,
            xs_row: row,
            weight: &weight,
            bias: case.bias.then_some(&bias),
            norm: case.norm.map(norm),
            epilogue,
            out: &out,
            out_row: n,
        }
        .launch()
        .unwrap();
        get(&out, out_dtype, rows * n)
    });
    let mut want = Vec::new();
    let mut size = Vec::new();
    for r in 0..rows {
        let mut x = xs[r * row..][..k].to_vec();
        if let Some(centred) = case.norm {
            let eps = f64::from(1e-5_f32);
            x = if centred {
                reference::layer_norm(&x, &norm_weight, &vec![0.0; k], eps)
            } else {
                reference::rms_norm(&x, &norm_weight, eps)
            };
            for x in &mut x {
                *x = rounded(dtype, *x as f32);
            }
        }
        let (y, magnitude) = reference::linear(&x, &weight, k, case.bias.then_some(&bias));
        for j in 0..n {
            let up = if columns > n { y[n + j] } else { 0.0 };
            want.push(match epilogue {
                GemvEpilogue::Store => y[j],
                GemvEpilogue::Scale(f) => f64::from(f) * y[j],
                GemvEpilogue::Add(f) => before[r * n + j] + f64::from(f) * y[j],
                GemvEpilogue::Activate(_) => reference::silu(y[j]),
                GemvEpilogue::SoftCap(cap) => f64::from(cap) * (y[j] / f64::from(cap)).tanh(),
                GemvEpilogue::Gate(_) => reference::silu(y[j]) * up,
            });
            // Propagated error of the sums: silu's slope is below 1.1, and the other factor multiplies it.
            let magnitude = |j: usize| magnitude[j];
            size.push(if columns > n {
                1.1 * magnitude(j) * up.abs() + 1.1 * magnitude(n + j) * y[j].abs()
            } else {
                1.1 * magnitude(j)
            });
        }
    }
    // Sums of k terms are off by at most k u of their magnitude. A norm's rounding to 16 bits may differ by one unit
    // per element if the reference is near a rounding boundary; else the error is that of F32.
    let normed = if case.norm.is_some() { 2.0 * roundoff(dtype) + (k as f64 + 300.0) * U32 } else { 0.0 };
    close(&format!("{case:?}"), &got, &want, |i| {
        (k as f64 + 16.0) * U32 * (size[i] + want[i].abs() + 2.0)
            + normed * size[i]
            + stored(out_dtype, want[i])
    });
}

fn cases() -> impl Strategy<Value = Case> {
    let epilogues = prop_oneof![
        Just(GemvEpilogue::Store),
        Just(GemvEpilogue::Scale(0.5)),
        Just(GemvEpilogue::Add(1.0)),
        Just(GemvEpilogue::Activate(Activation::Silu)),
        Just(GemvEpilogue::SoftCap(3.0)),
        Just(GemvEpilogue::Gate(Activation::Silu)),
    ];
    let k = prop_oneof![3_usize..90, (1_usize..60).prop_map(|k| 8 * k), Just(1184_usize)];
    let gap = prop_oneof![Just(0_usize), Just(8), Just(3)];
    let norm = prop_oneof![Just(None), Just(Some(false)), Just(Some(true))];
    let shape = (1_usize..9, 1_usize..40, k, gap);
    (shape, epilogues, norm, prop::sample::select(&Dtype::ALL[..]), any::<[bool; 2]>()).prop_map(
        |((rows, n, k, gap), epilogue, norm, dtype, [wide, bias])| Case {
            dtype,
            wide,
            rows,
            n,
            k,
            gap,
            bias,
            norm,
            epilogue,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn gemv_matches_the_reference(case in cases(), seed: u64) {
        check(&case, seed);
    }
}

/// The grid is bounded: with more columns than warps, each warp computes several.
#[test]
fn columns_beyond_the_grid_are_computed() {
    for dtype in Dtype::ALL {
        let (norm, epilogue) = (Some(false), GemvEpilogue::Gate(Activation::Silu));
        check(&Case { dtype, wide: false, rows: 3, n: 700, k: 24, gap: 0, bias: true, norm, epilogue }, 5);
    }
}

#[test]
fn gemv_rejects_9_rows_and_short_regions() {
    let gpu = &super::GPUS[0];
    let room = Region::room(gpu, Dtype::F32, 64).unwrap();
    let gemv = Gemv {
        dtype: Dtype::F32,
        out_dtype: Dtype::F32,
        rows: 9,
        n: 1,
        k: 4,
        xs: &room,
        xs_row: 4,
        weight: &room,
        bias: None,
        norm: None,
        epilogue: GemvEpilogue::Store,
        out: &room,
        out_row: 1,
    };
    assert!(gemv.launch().is_err());
    let short = Gemv { rows: 2, n: 30, k: 4, out_row: 30, ..gemv }.launch().unwrap_err().to_string();
    assert!(short.contains("weight of gemv needs 120 elements"), "{short}");
}
