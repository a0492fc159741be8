//! Matrix products, norms, embeddings and elementwise kernels.

use models::Result;
use models::cuda::kernels::{
    Activation, Cast, Embed, Gate, Gemv, GemvEpilogue, Map, MapOp, MeanOfRealTokens, Norm, NormForm, RowNorm,
    Softmax,
};
use models::cuda::{Dtype, MatMul, Region, matmul};

use super::{Bench, Case, Outcome, get_as, numbers, round};

pub(super) const CASES: &[Case] = &[
    ("product of cuBLASLt with bias", product),
    ("product of cuBLASLt added to wide rows", product_added),
    ("recorded and replayed pass", replayed),
    ("embedding", embedding),
    ("RMS norm", |bench| norm(bench, false, NormForm::Norm)),
    ("layer norm", |bench| norm(bench, true, NormForm::Norm)),
    ("residual, then RMS norm", |bench| norm(bench, false, NormForm::AddThenNorm)),
    ("RMS norm, then residual", |bench| norm(bench, false, NormForm::NormThenAdd)),
    ("GEMV of 1 row", |bench| gemv(bench, 1, 576)),
    ("GEMV of 3 rows, odd length", |bench| gemv(bench, 3, 333)),
    ("GEMV of 8 rows", |bench| gemv(bench, 8, 512)),
    ("gated GEMV after a norm", gated_gemv),
    ("activations", activations),
    ("gate", gate),
    ("sum, product, soft cap", maps),
    ("softmax", softmax),
    ("mean of real tokens", mean),
    ("cast to F32 and back", cast),
];

/// `xs: [m, k]`, `weight: [n, k]`: `xs weight^T`.
pub(super) fn times(xs: &[f64], weight: &[f64], [m, n, k]: [usize; 3]) -> Vec<f64> {
    let mut out = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            let (x, w) = (&xs[i * k..][..k], &weight[j * k..][..k]);
            out.push(x.iter().zip(w).map(|(x, w)| x * w).sum());
        }
    }
    out
}

fn plain(dtype: Dtype, [m, n, k]: [usize; 3]) -> MatMul {
    MatMul { m, n, k, xs_row: k, out_row: n, dtype, out_dtype: dtype, alpha: 1.0, beta: 0.0 }
}

fn product(bench: &Bench) -> Outcome {
    let shape @ [m, n, k] = [40, 96, 144];
    let (xs, weight) = (bench.noise(1, m * k, 1.0), bench.noise(2, n * k, 1.0));
    let bias = bench.noise(3, n, 2.0);
    let out = bench.room(m * n)?;
    let regions = (bench.put(&xs)?, bench.put(&weight)?, bench.put(&bias)?);
    matmul(&plain(bench.dtype, shape), &regions.0, &regions.1, Some(&regions.2), &out)?;
    let want = times(&xs, &weight, shape).iter().enumerate().map(|(at, y)| y + bias[at % n]).collect();
    Ok((bench.get(&out, m * n)?, want))
}

/// `out = out + 0.5 xs weight^T` in F32, where `xs` and `out` are column ranges of wider matrices.
fn product_added(bench: &Bench) -> Outcome {
    let shape @ [m, n, k] = [17, 64, 80];
    let (xs_row, out_row) = (k + 16, n + 8);
    let (xs, weight) = (bench.noise(1, m * xs_row, 1.0), bench.noise(2, n * k, 1.0));
    let before = numbers(3, m * out_row, 1.0);
    let out = bench.put_as(Dtype::F32, &before)?;
    let (xs_there, weight_there) = (bench.put(&xs)?, bench.put(&weight)?);
    let spec =
        MatMul { xs_row, out_row, out_dtype: Dtype::F32, alpha: 0.5, beta: 1.0, ..plain(bench.dtype, shape) };
    matmul(&spec, &xs_there, &weight_there, None, &out)?;
    let tight: Vec<f64> = xs.chunks(xs_row).flat_map(|row| row[..k].to_vec()).collect();
    let sums = times(&tight, &weight, shape);
    let mut want = before;
    for (at, sum) in sums.iter().enumerate() {
        want[at / n * out_row + at % n] += 0.5 * sum;
    }
    Ok((get_as(Dtype::F32, &out, m * out_row)?, want))
}

/// A captured CUDA graph reads the contents that its memory has at launch.
fn replayed(bench: &Bench) -> Outcome {
    let shape @ [m, n, k] = [24, 32, 64];
    let weight = bench.noise(2, n * k, 1.0);
    let (first, second) = (bench.noise(1, m * k, 1.0), bench.noise(3, m * k, 1.0));
    let (xs, weight_there) = (bench.put(&first)?, bench.put(&weight)?);
    let (middle, out) = (bench.room(m * n)?, bench.room(m * n)?);
    let pass = || {
        matmul(&plain(bench.dtype, shape), &xs, &weight_there, None, &middle)?;
        let op = MapOp::Scale(0.5);
        Map { dtype: bench.dtype, op, len: m * n, xs: &middle, other: None, out: &out }.launch()
    };
    // One call before the capture, so that kernels are loaded and algorithms selected.
    pass()?;
    let graph = bench.gpu.record(&mut || pass())?;
    bench.put(&second)?.copy_to(&xs)?;
    graph.replay()?;
    let want = times(&second, &weight, shape).iter().map(|y| 0.5 * round(bench.dtype, *y)).collect();
    Ok((bench.get(&out, m * n)?, want))
}

fn embedding(bench: &Bench) -> Outcome {
    let (vocab, hidden, rows) = (50, 72, 21);
    let table = bench.noise(1, vocab * hidden, 1.0);
    let ids: Vec<u32> = (0..rows as u32).map(|row| row * 17 % vocab as u32).collect();
    let (there, ids_there) = (bench.put(&table)?, Region::of(&bench.gpu, &ids)?);
    let out = bench.room(rows * hidden)?;
    let scale = Some(1.5);
    Embed {
        dtype: bench.dtype,
        table: &there,
        vocab,
        hidden,
        ids: &ids_there,
        rows,
        scale,
        add: false,
        out: &out,
    }
    .launch()?;
    let row = |id: &u32| table[*id as usize * hidden..][..hidden].iter().map(|value| 1.5 * value);
    Ok((bench.get(&out, rows * hidden)?, ids.iter().flat_map(row).collect()))
}

/// Layer norm (`centred`) or RMS norm of one group of features: `xs`, `weight`, `bias`: `[len]`.
pub(super) fn normed(xs: &[f64], weight: &[f64], bias: &[f64], centred: bool, eps: f64) -> Vec<f64> {
    let len = xs.len() as f64;
    let mean = if centred { xs.iter().sum::<f64>() / len } else { 0.0 };
    let variance = xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / len;
    let scale = 1.0 / (variance + eps).sqrt();
    xs.iter().zip(weight).zip(bias).map(|((x, w), b)| (x - mean) * scale * w + b).collect()
}

fn norm(bench: &Bench, centred: bool, form: NormForm) -> Outcome {
    let (rows, size, eps) = (9, 200, 1e-5_f32);
    // With a mean far from zero, an inaccurate variance shows through cancellation.
    let xs: Vec<f64> = bench.noise(1, rows * size, 2.0).iter().map(|x| round(bench.dtype, x + 3.0)).collect();
    let residual = bench.noise(2, rows * size, 2.0);
    let (weight, bias) = (numbers(3, size, 2.0), numbers(4, size, 1.0));
    let (xs_there, residual_there) = (bench.put(&xs)?, bench.put(&residual)?);
    let (weight_there, bias_there) = (bench.put_as(Dtype::F32, &weight)?, bench.put_as(Dtype::F32, &bias)?);
    let out = bench.room(rows * size)?;
    Norm {
        dtype: bench.dtype,
        form,
        centred,
        eps,
        rows,
        heads: 1,
        size,
        xs: &xs_there,
        xs_row: size,
        residual: (form != NormForm::Norm).then_some(&residual_there),
        weight: Some(&weight_there),
        weight_per_head: false,
        bias: Some(&bias_there),
        out: &out,
        out_row: size,
    }
    .launch()?;
    let mut want = Vec::new();
    for (x, old) in xs.chunks(size).zip(residual.chunks(size)) {
        let sum: Vec<f64> = x.iter().zip(old).map(|(x, old)| round(bench.dtype, x + old)).collect();
        let y = normed(
            if form == NormForm::AddThenNorm { &sum } else { x },
            &weight,
            &bias,
            centred,
            f64::from(eps),
        );
        match form {
            NormForm::NormThenAdd => want.extend(y.iter().zip(old).map(|(y, old)| y + old)),
            NormForm::Norm | NormForm::AddThenNorm => want.extend(y),
        }
    }
    let result = if form == NormForm::NormThenAdd { &residual_there } else { &out };
    Ok((bench.get(result, rows * size)?, want))
}

fn gemv(bench: &Bench, rows: usize, k: usize) -> Outcome {
    let n = 70;
    let (xs, weight) = (bench.noise(1, rows * k, 1.0), bench.noise(2, n * k, 1.0));
    let before = bench.noise(3, rows * n, 4.0);
    let (xs_there, weight_there, out) = (bench.put(&xs)?, bench.put(&weight)?, bench.put(&before)?);
    Gemv {
        dtype: bench.dtype,
        out_dtype: bench.dtype,
        rows,
        n,
        k,
        xs: &xs_there,
        xs_row: k,
        weight: &weight_there,
        bias: None,
        norm: None,
        epilogue: GemvEpilogue::Add(0.5),
        out: &out,
        out_row: n,
    }
    .launch()?;
    let want = times(&xs, &weight, [rows, n, k]).iter().zip(&before).map(|(y, old)| old + 0.5 * y).collect();
    Ok((bench.get(&out, rows * n)?, want))
}

/// `silu(gate) * up` of the normalised rows.
fn gated_gemv(bench: &Bench) -> Outcome {
    let (rows, n, k, eps) = (2, 60, 128, 1e-5_f32);
    let (xs, weight) = (bench.noise(1, rows * k, 1.0), bench.noise(2, 2 * n * k, 0.5));
    let norm_weight = numbers(3, k, 1.0);
    let (xs_there, weight_there) = (bench.put(&xs)?, bench.put(&weight)?);
    let (norm_there, out) = (bench.put_as(Dtype::F32, &norm_weight)?, bench.room(rows * n)?);
    Gemv {
        dtype: bench.dtype,
        out_dtype: bench.dtype,
        rows,
        n,
        k,
        xs: &xs_there,
        xs_row: k,
        weight: &weight_there,
        bias: None,
        norm: Some(RowNorm { weight: Some(&norm_there), bias: None, centred: false, eps }),
        epilogue: GemvEpilogue::Gate(Activation::Silu),
        out: &out,
        out_row: n,
    }
    .launch()?;
    let mut want = Vec::new();
    for x in xs.chunks(k) {
        let x = normed(x, &norm_weight, &vec![0.0; k], false, f64::from(eps));
        let x: Vec<f64> = x.into_iter().map(|x| round(bench.dtype, x)).collect();
        let y = times(&x, &weight, [1, 2 * n, k]);
        want.extend((0..n).map(|j| activated(Activation::Silu, y[j]) * y[n + j]));
    }
    Ok((bench.get(&out, rows * n)?, want))
}

/// The error function by its series and continued fraction (Abramowitz and Stegun 7.1.6 and 7.1.14), to 1e-14.
fn erf(x: f64) -> f64 {
    let size = x.abs();
    let value = if size < 2.5 {
        let (mut term, mut sum) = (size, size);
        for n in 1..200 {
            term *= 2.0 * size * size / (2 * n + 1) as f64;
            sum += term;
        }
        std::f64::consts::FRAC_2_SQRT_PI * (-size * size).exp() * sum
    } else {
        let fraction = (1..80).rev().fold(0.0, |below, n| f64::from(n) / 2.0 / (size + below));
        1.0 - (-size * size).exp() / (std::f64::consts::PI.sqrt() * (size + fraction))
    };
    value.copysign(x)
}

fn activated(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
        }
        Activation::GeluErf => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        Activation::Relu => x.max(0.0),
        Activation::ReluSquared => x.max(0.0).powi(2),
        Activation::Tanh => x.tanh(),
    }
}

/// All activations, one after the other.
fn activations(bench: &Bench) -> Outcome {
    const ALL: [Activation; 7] = [
        Activation::Silu,
        Activation::GeluTanh,
        Activation::GeluErf,
        Activation::QuickGelu,
        Activation::Relu,
        Activation::ReluSquared,
        Activation::Tanh,
    ];
    let len = 300;
    let xs = bench.noise(1, len, 4.0);
    let (there, out) = (bench.put(&xs)?, bench.room(len)?);
    let (mut got, mut want) = (Vec::new(), Vec::new());
    for activation in ALL {
        let op = MapOp::Activate(activation);
        Map { dtype: bench.dtype, op, len, xs: &there, other: None, out: &out }.launch()?;
        got.extend(bench.get(&out, len)?);
        want.extend(xs.iter().map(|&x| activated(activation, x)));
    }
    Ok((got, want))
}

fn gate(bench: &Bench) -> Outcome {
    let (rows, n) = (6, 90);
    let xs = bench.noise(1, rows * 2 * n, 3.0);
    let (there, out) = (bench.put(&xs)?, bench.room(rows * n)?);
    let activation = Activation::GeluTanh;
    Gate {
        dtype: bench.dtype,
        activation,
        rows,
        n,
        xs: &there,
        xs_row: 2 * n,
        up_first: n,
        out: &out,
        out_row: n,
    }
    .launch()?;
    let row =
        |row: &[f64]| -> Vec<f64> { (0..n).map(|j| activated(activation, row[j]) * row[n + j]).collect() };
    Ok((bench.get(&out, rows * n)?, xs.chunks(2 * n).flat_map(row).collect()))
}

fn maps(bench: &Bench) -> Outcome {
    let len = 500;
    let (xs, ys) = (bench.noise(1, len, 2.0), bench.noise(2, len, 2.0));
    let (xs_there, ys_there, out) = (bench.put(&xs)?, bench.put(&ys)?, bench.room(len)?);
    let (mut got, mut want) = (Vec::new(), Vec::new());
    let mut map = |op, other: Option<&Region>, exact: &dyn Fn(f64, f64) -> f64| -> Result<()> {
        Map { dtype: bench.dtype, op, len, xs: &xs_there, other, out: &out }.launch()?;
        got.extend(bench.get(&out, len)?);
        want.extend(xs.iter().zip(&ys).map(|(x, y)| exact(*x, *y)));
        Ok(())
    };
    map(MapOp::Add(0.25), Some(&ys_there), &|x, y| x + 0.25 * y)?;
    map(MapOp::Multiply, Some(&ys_there), &|x, y| x * y)?;
    map(MapOp::SoftCap(1.5), None, &|x, _| 1.5 * (x / 1.5).tanh())?;
    Ok((got, want))
}

fn softmax(bench: &Bench) -> Outcome {
    let (rows, size, row) = (5, 130, 136);
    let xs = bench.noise(1, rows * row, 6.0);
    let there = bench.put(&xs)?;
    Softmax { dtype: bench.dtype, rows, size, xs: &there, row }.launch()?;
    let got = bench.get(&there, rows * row)?;
    let tight =
        |values: &[f64]| -> Vec<f64> { values.chunks(row).flat_map(|row| row[..size].to_vec()).collect() };
    let want = tight(&xs).chunks(size).flat_map(exact_softmax).collect();
    Ok((tight(&got), want))
}

pub(super) fn exact_softmax(xs: &[f64]) -> Vec<f64> {
    let most = xs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = xs.iter().map(|x| (x - most).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.iter().map(|exp| exp / sum).collect()
}

fn mean(bench: &Bench) -> Outcome {
    let (batch, tokens, features) = (3, 7, 40);
    let xs = bench.noise(1, batch * tokens * features, 2.0);
    // The first sequence has no padding, the others begin with padding.
    let real: Vec<u8> = (0..batch * tokens).map(|at| u8::from(at % tokens >= at / tokens)).collect();
    let (there, flags, out) =
        (bench.put(&xs)?, Region::of(&bench.gpu, &real)?, bench.room(batch * features)?);
    let (dtype, real_there) = (bench.dtype, Some(&flags));
    MeanOfRealTokens { dtype, batch, tokens, features, xs: &there, real: real_there, out: &out }.launch()?;
    let mut want = Vec::new();
    for b in 0..batch {
        let those: Vec<usize> = (0..tokens).filter(|t| real[b * tokens + t] != 0).collect();
        want.extend((0..features).map(|f| {
            those.iter().map(|t| xs[(b * tokens + t) * features + f]).sum::<f64>() / those.len() as f64
        }));
    }
    Ok((bench.get(&out, batch * features)?, want))
}

fn cast(bench: &Bench) -> Outcome {
    let len = 333;
    let xs = bench.noise(1, len, 2.0);
    let there = bench.put(&xs)?;
    let wide = Region::room(&bench.gpu, Dtype::F32, len)?;
    let back = bench.room(len)?;
    Cast { dtype: bench.dtype, widen: true, len, from: &there, to: &wide }.launch()?;
    Cast { dtype: bench.dtype, widen: false, len, from: &wide, to: &back }.launch()?;
    let mut got = get_as(Dtype::F32, &wide, len)?;
    got.extend(bench.get(&back, len)?);
    Ok((got, [xs.clone(), xs].concat()))
}
