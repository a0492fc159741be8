use proptest::prelude::*;

use super::noise::Noise;
use super::reference;
use super::{U32, close, get, noise, on_both, put, stored};
use models::cuda::kernels::{
    Activation, Cast, CopyColumns, Embed, Gate, Map, MapOp, MeanOfRealTokens, Softmax,
};
use models::cuda::{Dtype, Region};

const ACTIVATIONS: [Activation; 7] = [
    Activation::Silu,
    Activation::GeluTanh,
    Activation::GeluErf,
    Activation::QuickGelu,
    Activation::Relu,
    Activation::ReluSquared,
    Activation::Tanh,
];

fn activation(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => reference::silu(x),
        Activation::GeluTanh => reference::gelu_tanh(x),
        Activation::GeluErf => reference::gelu_erf(x),
        Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        Activation::Relu => x.max(0.0),
        Activation::ReluSquared => x.max(0.0).powi(2),
        Activation::Tanh => x.tanh(),
    }
}

fn check_map(dtype: Dtype, len: usize, seed: u64) {
    let mut random = Noise::new(seed);
    let (x, y) = (noise(&mut random, dtype, len, 6.0), noise(&mut random, dtype, len, 6.0));
    let ops = [MapOp::Scale(0.75), MapOp::Add(0.5), MapOp::Multiply, MapOp::SoftCap(5.0)];
    for op in ops.into_iter().chain(ACTIVATIONS.map(MapOp::Activate)) {
        let got = on_both(|gpu| {
            let [x, y] = [&x, &y].map(|values| put(gpu, dtype, values));
            let other = matches!(op, MapOp::Add(_) | MapOp::Multiply).then_some(&y);
            Map { dtype, op, len, xs: &x, other, out: &x }.launch().unwrap();
            get(&x, dtype, len)
        });
        let each = |(x, y): (&f64, &f64)| match op {
            MapOp::Scale(f) => x * f64::from(f),
            MapOp::Add(f) => x + f64::from(f) * y,
            MapOp::Multiply => x * y,
            MapOp::SoftCap(cap) => f64::from(cap) * (x / f64::from(cap)).tanh(),
            MapOp::Activate(kind) => activation(kind, *x),
        };
        let want: Vec<f64> = x.iter().zip(&y).map(each).collect();
        // At most 8 F32 roundings of numbers of this size; gelu cancels against x / 2 for negative x.
        close(&format!("{op:?} {dtype:?}"), &got, &want, |i| {
            stored(dtype, want[i]) + 8.0 * U32 * (want[i].abs() + x[i].abs() + y[i].abs())
        });
    }
}

fn check_rows(dtype: Dtype, rows: usize, n: usize, gap: usize, seed: u64) {
    let mut random = Noise::new(seed);
    let row = 2 * n + gap;
    let xs = noise(&mut random, dtype, rows * row, 4.0);
    let kind = ACTIVATIONS[seed as usize % ACTIVATIONS.len()];
    let got = on_both(|gpu| {
        let xs = put(gpu, dtype, &xs);
        let out = Region::room(gpu, dtype, rows * n).unwrap();
        let gate = Gate {
            dtype,
            activation: kind,
            rows,
            n,
            xs: &xs,
            xs_row: row,
            up_first: n,
            out: &out,
            out_row: n,
        };
        gate.launch().unwrap();
        get(&out, dtype, rows * n)
    });
    let at = |i: usize| i / n * row + i % n;
    let want: Vec<f64> = (0..rows * n).map(|i| activation(kind, xs[at(i)]) * xs[at(i) + n]).collect();
    close(&format!("gate {kind:?} {dtype:?}"), &got, &want, |i| stored(dtype, want[i]) + 64.0 * U32);

    let got = on_both(|gpu| {
        let xs = put(gpu, dtype, &xs);
        Softmax { dtype, rows, size: n, xs: &xs, row }.launch().unwrap();
        get(&xs, dtype, rows * row)
    });
    let mut want = xs.clone();
    for x in want.chunks_exact_mut(row).map(|x| &mut x[..n]) {
        let top = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = x.iter().map(|x| (x - top).exp()).sum();
        for x in x {
            *x = (*x - top).exp() / total;
        }
    }
    // Errors: exp 2 u, the difference of values up to 8 has 8 u, the sum of n terms n u.
    close("softmax", &got, &want, |i| (n as f64 + 16.0) * U32 * want[i].abs() + stored(dtype, want[i]));
}

fn check_copy(dtype: Dtype, (rows, groups, size): (usize, usize, usize), gaps: [usize; 4], seed: u64) {
    let mut random = Noise::new(seed);
    let strides = |gap: usize, row_gap: usize| (groups * (size + gap) + row_gap, size + gap);
    let (from_strides, to_strides) = (strides(gaps[0], gaps[1]), strides(gaps[2], gaps[3]));
    let from = noise(&mut random, dtype, rows * from_strides.0, 1.0);
    let before = noise(&mut random, dtype, rows * to_strides.0, 1.0);
    let got = on_both(|gpu| {
        let [from, to] = [&from, &before].map(|values| put(gpu, dtype, values));
        CopyColumns { dtype, rows, groups, size, from: &from, from_strides, to: &to, to_strides }
            .launch()
            .unwrap();
        get(&to, dtype, rows * to_strides.0)
    });
    let mut want = before;
    for (row, group, i) in (0..rows * groups * size).map(|i| (i / size / groups, i / size % groups, i % size))
    {
        want[row * to_strides.0 + group * to_strides.1 + i] =
            from[row * from_strides.0 + group * from_strides.1 + i];
    }
    close("copy", &got, &want, |_| 0.0);
}

fn check_casts(dtype: Dtype, len: usize, seed: u64) {
    let xs = noise(&mut Noise::new(seed), Dtype::F32, len, 9.0);
    let got = on_both(|gpu| {
        let (from, to) = (put(gpu, Dtype::F32, &xs), Region::room(gpu, dtype, len).unwrap());
        Cast { dtype, widen: false, len, from: &from, to: &to }.launch().unwrap();
        from.zero().unwrap();
        Cast { dtype, widen: true, len, from: &to, to: &from }.launch().unwrap();
        get(&from, Dtype::F32, len)
    });
    let want: Vec<f64> = xs.iter().map(|x| super::rounded(dtype, *x as f32)).collect();
    close("there and back", &got, &want, |_| 0.0);
}

fn check_mean(dtype: Dtype, (batch, tokens, features): (usize, usize, usize), seed: u64) {
    let mut random = Noise::new(seed);
    let xs = noise(&mut random, dtype, batch * tokens * features, 1.0);
    let real: Vec<u8> = (0..batch * tokens).map(|_| u8::from(random.next() > 0.0)).collect();
    let got = on_both(|gpu| {
        let (xs, real) = (put(gpu, dtype, &xs), Region::of(gpu, &real).unwrap());
        let out = Region::room(gpu, dtype, batch * features).unwrap();
        MeanOfRealTokens { dtype, batch, tokens, features, xs: &xs, real: Some(&real), out: &out }
            .launch()
            .unwrap();
        get(&out, dtype, batch * features)
    });
    let mut want = Vec::new();
    for (b, f) in (0..batch * features).map(|i| (i / features, i % features)) {
        let there = (0..tokens).filter(|t| real[b * tokens + t] != 0);
        let values: Vec<f64> = there.map(|t| xs[(b * tokens + t) * features + f]).collect();
        want.push(if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 });
    }
    close("mean", &got, &want, |i| stored(dtype, want[i]) + tokens as f64 * U32);
}

fn check_embed(dtype: Dtype, rows: usize, hidden: usize, seed: u64) {
    let mut random = Noise::new(seed);
    let vocab = 19;
    let (table, before) =
        (noise(&mut random, dtype, vocab * hidden, 1.0), noise(&mut random, dtype, rows * hidden, 1.0));
    let ids: Vec<u32> = (0..rows).map(|i| (i * 7 + seed as usize % vocab) as u32 % vocab as u32).collect();
    for add in [false, true] {
        let got = on_both(|gpu| {
            let [table, out] = [&table, &before].map(|values| put(gpu, dtype, values));
            let ids = Region::of(gpu, &ids).unwrap();
            let scale = Some(3.25);
            Embed { dtype, table: &table, vocab, hidden, ids: &ids, rows, scale, add, out: &out }
                .launch()
                .unwrap();
            get(&out, dtype, rows * hidden)
        });
        let value = |i: usize| {
            let x =
                super::rounded(dtype, table[ids[i / hidden] as usize * hidden + i % hidden] as f32 * 3.25);
            if add { x + before[i] } else { x }
        };
        let want: Vec<f64> = (0..rows * hidden).map(value).collect();
        close("embed", &got, &want, |i| if add { stored(dtype, want[i]) } else { 0.0 });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn elementwise_kernels_match_the_references(
        dtype in prop::sample::select(&Dtype::ALL[..]), len in 1_usize..700, seed: u64
    ) {
        check_map(dtype, len, seed);
        check_casts(dtype, len, seed);
    }

    #[test]
    fn row_kernels_match_the_references(
        dtype in prop::sample::select(&Dtype::ALL[..]),
        rows in 1_usize..5,
        n in prop_oneof![1_usize..40, (1_usize..40).prop_map(|n| 8 * n), Just(700_usize)],
        gap in prop_oneof![Just(0_usize), Just(8), Just(5)],
        seed: u64
    ) {
        check_rows(dtype, rows, n, gap, seed);
        check_mean(dtype, (rows, gap + 3, n), seed);
        check_embed(dtype, rows, n, seed);
    }

    #[test]
    fn columns_are_copied_between_any_strides(
        dtype in prop::sample::select(&Dtype::ALL[..]),
        shape in (1_usize..4, 1_usize..4, prop_oneof![1_usize..20, Just(16_usize), Just(64)]),
        gaps in prop::array::uniform4(prop_oneof![Just(0_usize), Just(8), 0_usize..5]),
        seed: u64
    ) {
        check_copy(dtype, shape, gaps, seed);
    }
}

#[test]
fn a_row_of_minus_infinity_becomes_zeros_and_an_unknown_id_nan() {
    for dtype in Dtype::ALL {
        let got = on_both(|gpu| {
            let xs = put(gpu, dtype, &[f64::NEG_INFINITY; 5]);
            Softmax { dtype, rows: 1, size: 5, xs: &xs, row: 5 }.launch().unwrap();
            get(&xs, dtype, 5)
        });
        close("softmax of nothing", &got, &[0.0; 5], |_| 0.0);
        let gpu = &super::GPUS[0];
        let (table, ids) = (put(gpu, dtype, &[1.0; 6]), Region::of(gpu, &[3_u32]).unwrap());
        let out = Region::room(gpu, dtype, 2).unwrap();
        let embed = Embed {
            dtype,
            table: &table,
            vocab: 3,
            hidden: 2,
            ids: &ids,
            rows: 1,
            scale: None,
            add: false,
            out: &out,
        };
        embed.launch().unwrap();
        assert!(get(&out, dtype, 2).into_iter().all(f64::is_nan));
    }
}
