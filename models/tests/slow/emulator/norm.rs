use proptest::prelude::*;

use super::noise::Noise;
use super::reference;
use super::{U32, close, get, noise, on_both, put, rounded, stored};
use models::cuda::kernels::{Norm, NormForm};
use models::cuda::{Dtype, Region};

#[expect(clippy::struct_excessive_bools, reason = "each is a choice that the kernel leaves open")]
#[derive(Clone, Debug)]
struct Case {
    dtype: Dtype,
    form: NormForm,
    centred: bool,
    weight: bool,
    bias: bool,
    per_head: bool,
    rows: usize,
    heads: usize,
    size: usize,
    /// Unused columns after the groups in a row.
    gap: usize,
}

fn check(case: &Case, seed: u64) {
    let Case { dtype, form, centred, rows, heads, size, gap, .. } = *case;
    let mut random = Noise::new(seed);
    let (width, row) = (heads * size, heads * size + gap);
    // A mean far from zero detects cancellation in the variance.
    let xs: Vec<f64> =
        noise(&mut random, dtype, rows * row, 4.0).iter().map(|x| rounded(dtype, *x as f32 + 3.0)).collect();
    let residual = noise(&mut random, dtype, rows * width, 2.0);
    let weights = if case.per_head { width } else { size };
    let weight = noise(&mut random, Dtype::F32, weights, 2.0);
    let bias = noise(&mut random, Dtype::F32, weights, 1.0);
    let got = on_both(|gpu| {
        let [xs, residual] = [&xs, &residual].map(|values| put(gpu, dtype, values));
        let [weight, bias] = [&weight, &bias].map(|values| put(gpu, Dtype::F32, values));
        let out = Region::room(gpu, dtype, rows * width).unwrap();
        let norm = Norm {
            dtype,
            form,
            centred,
            eps: 1e-5,
            rows,
            heads,
            size,
            xs: &xs,
            xs_row: row,
            residual: (form != NormForm::Norm).then_some(&residual),
            weight: case.weight.then_some(&weight),
            weight_per_head: case.per_head,
            bias: case.bias.then_some(&bias),
            out: &out,
            out_row: width,
        };
        norm.launch().unwrap();
        let out = if form == NormForm::NormThenAdd { &residual } else { &out };
        [get(out, dtype, rows * width), get(&residual, dtype, rows * width)].concat()
    });
    let mut want = Vec::new();
    let mut sums = residual.clone();
    for r in 0..rows {
        for h in 0..heads {
            let at = (r * heads + h) * size;
            let mut x = xs[r * row + h * size..][..size].to_vec();
            let old = &residual[at..at + size];
            if form == NormForm::AddThenNorm {
                x.iter_mut().zip(old).for_each(|(x, old)| *x = rounded(dtype, (*x + old) as f32));
                sums[at..at + size].copy_from_slice(&x);
            }
            let first = if case.per_head { h * size } else { 0 };
            let part = |values: &[f64], is_there, other| {
                if is_there { values[first..first + size].to_vec() } else { vec![other; size] }
            };
            let (weight, bias) = (part(&weight, case.weight, 1.0), part(&bias, case.bias, 0.0));
            let eps = f64::from(1e-5_f32);
            let y = if centred {
                reference::layer_norm(&x, &weight, &bias, eps)
            } else {
                let y = reference::rms_norm(&x, &weight, eps);
                y.iter().zip(&bias).map(|(y, bias)| y + bias).collect()
            };
            let added = |(y, old): (&f64, &f64)| if form == NormForm::NormThenAdd { y + old } else { *y };
            want.extend(y.iter().zip(old).map(added));
        }
    }
    // Normalised values are below sqrt(size), times a weight below 2. Sums of n terms have a relative error of n u, and
    // differences to the mean n u times the values' size of 7; in total at most (n + 16) u times 16 sqrt(n).
    let tolerance = (size as f64 + 16.0) * U32 * 16.0 * (size as f64).sqrt();
    // A centred group of one or two values cancels completely: the rest is rounding error, amplified by up to
    // 1/sqrt(eps).
    let tolerance = if centred && size < 3 { tolerance + 300.0 * 8.0 * U32 } else { tolerance };
    let (out, after) = got.split_at(rows * width);
    close(&format!("{case:?}"), out, &want, |i| tolerance + stored(dtype, want[i]));
    if form == NormForm::AddThenNorm {
        close("residual", after, &sums, |i| U32 * sums[i].abs());
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let shape = (1_usize..5, prop_oneof![Just(1_usize), 1_usize..5], 1_usize..300, 0_usize..9);
    let forms = prop_oneof![Just(NormForm::Norm), Just(NormForm::AddThenNorm), Just(NormForm::NormThenAdd)];
    (shape, forms, prop::sample::select(&Dtype::ALL[..]), any::<[bool; 4]>()).prop_map(
        |((rows, heads, size, gap), form, dtype, [centred, weight, bias, per_head])| Case {
            dtype,
            form,
            centred,
            weight,
            bias,
            per_head,
            rows,
            heads,
            size,
            gap,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_norm_is_its_formula(case in cases(), seed: u64) {
        check(&case, seed);
    }
}

#[test]
fn rows_longer_than_a_block_are_normed() {
    for dtype in Dtype::ALL {
        for form in [NormForm::Norm, NormForm::AddThenNorm, NormForm::NormThenAdd] {
            let case = Case {
                dtype,
                form,
                centred: true,
                weight: true,
                bias: true,
                per_head: false,
                rows: 2,
                heads: 1,
                size: 4640,
                gap: 8,
            };
            check(&case, 7);
        }
    }
}
