//! Mixture of experts: all kernels in sequence.

use models::cuda::kernels::{ExpertRows, GroupedMatMul, MixExperts, Route, RouterScores};
use models::cuda::{Dtype, Region};

use super::rows::{exact_softmax, times};
use super::{Bench, Case, Outcome, numbers, round};

pub(super) const CASES: &[Case] = &[
    ("router, sorted tokens, product of each expert, mixture", |bench| mixture(bench, 37)),
    ("mixture of experts of one token", |bench| mixture(bench, 1)),
];

fn mixture(bench: &Bench, tokens: usize) -> Outcome {
    let (num_experts, per_token, hidden, k) = (6, 2, 64, 96);
    let rows = tokens * per_token;
    let (xs, weight) = (bench.noise(1, tokens * k, 1.0), bench.noise(2, num_experts * hidden * k, 1.0));
    // Scores differ by enough that rounding changes no choice of expert.
    let logits: Vec<f64> = (0..tokens)
        .flat_map(|token| {
            (0..num_experts).map(move |expert| ((expert + token) * 5 % num_experts) as f64 * 0.5)
        })
        .map(|logit| round(bench.dtype, logit))
        .collect();
    let (xs_there, weight_there, logits_there) = (bench.put(&xs)?, bench.put(&weight)?, bench.put(&logits)?);
    let ints = |len: usize| Region::of(&bench.gpu, &vec![0_i32; len]);
    let (experts, offsets, sources, slots) = (ints(rows)?, ints(num_experts + 1)?, ints(rows)?, ints(rows)?);
    let scores = bench.put_as(Dtype::F32, &numbers(3, rows, 1.0))?;
    let (ys, out) = (bench.room(rows * hidden)?, bench.room(tokens * hidden)?);
    let dtype = bench.dtype;
    let mode = RouterScores::NormalisedWide;
    Route {
        dtype,
        tokens,
        num_experts,
        per_token,
        mode,
        logits: &logits_there,
        experts: &experts,
        scores: &scores,
    }
    .launch()?;
    ExpertRows {
        assignments: rows,
        num_experts,
        experts: &experts,
        offsets: &offsets,
        sources: &sources,
        slots: &slots,
    }
    .launch()?;
    GroupedMatMul {
        dtype,
        rows,
        most_rows: tokens,
        num_experts,
        n: hidden,
        k,
        xs: &xs_there,
        sources: Some((&sources, per_token)),
        weight: &weight_there,
        offsets: &offsets,
        out: &ys,
    }
    .launch()?;
    MixExperts {
        dtype,
        tokens,
        per_token,
        hidden,
        ys: &ys,
        slots: &slots,
        experts: &experts,
        scores: &scores,
        out: &out,
    }
    .launch()?;

    let mut want = Vec::new();
    for token in 0..tokens {
        let probabilities = exact_softmax(&logits[token * num_experts..][..num_experts]);
        let mut order: Vec<usize> = (0..num_experts).collect();
        order.sort_by(|a, b| probabilities[*b].total_cmp(&probabilities[*a]));
        order.truncate(per_token);
        let sum: f64 = order.iter().map(|expert| probabilities[*expert]).sum();
        let mut mixed = vec![0.0; hidden];
        for expert in order {
            let of_expert = &weight[expert * hidden * k..][..hidden * k];
            let y = times(&xs[token * k..][..k], of_expert, [1, hidden, k]);
            for (mixed, y) in mixed.iter_mut().zip(y) {
                *mixed += probabilities[expert] / sum * round(dtype, y);
            }
        }
        want.extend(mixed);
    }
    Ok((bench.get(&out, tokens * hidden)?, want))
}
