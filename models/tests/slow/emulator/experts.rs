use proptest::prelude::*;

use super::noise::Noise;
use super::reference;
use super::{U32, close, get, noise, on_both, put, rounded, roundoff, stored};
use models::cuda::kernels::{ExpertRows, GroupedMatMul, MixExperts, Route, RouterScores};
use models::cuda::{Dtype, Region};

#[derive(Clone, Debug)]
struct Case {
    dtype: Dtype,
    tokens: usize,
    num_experts: usize,
    per_token: usize,
    k: usize,
    n: usize,
    mode: RouterScores,
}

/// Compares routing, sorting, the grouped product and the weighted sum with plain loops.
fn check(case: &Case, seed: u64) {
    let Case { dtype, tokens, num_experts, per_token, k, n, mode } = *case;
    let mut random = Noise::new(seed);
    let rows = tokens * per_token;
    let mut logits = noise(&mut random, dtype, tokens * num_experts, 3.0);
    // A tie, which the lower expert index must win.
    logits[num_experts - 1] = logits[0];
    let xs = noise(&mut random, dtype, tokens * k, 1.0);
    let weight = noise(&mut random, dtype, num_experts * n * k, 1.0);
    let got = on_both(|gpu| {
        let [logits, xs, weight] = [&logits, &xs, &weight].map(|values| put(gpu, dtype, values));
        let ints = |len: usize| Region::of(gpu, &vec![-1_i32; len]).unwrap();
        let [experts, sources, slots] = [rows, rows, rows].map(ints);
        let (offsets, scores) = (ints(num_experts + 1), Region::room(gpu, Dtype::F32, rows).unwrap());
        let ys = Region::room(gpu, dtype, rows * n).unwrap();
        let out = Region::room(gpu, dtype, tokens * n).unwrap();
        Route {
            dtype,
            tokens,
            num_experts,
            per_token,
            mode,
            logits: &logits,
            experts: &experts,
            scores: &scores,
        }
        .launch()
        .unwrap();
        let sorted = ExpertRows {
            assignments: rows,
            num_experts,
            experts: &experts,
            offsets: &offsets,
            sources: &sources,
            slots: &slots,
        };
        sorted.launch().unwrap();
        GroupedMatMul {
            dtype,
            rows,
            most_rows: tokens,
            num_experts,
            n,
            k,
            xs: &xs,
            sources: Some((&sources, per_token)),
            weight: &weight,
            offsets: &offsets,
            out: &ys,
        }
        .launch()
        .unwrap();
        MixExperts {
            dtype,
            tokens,
            per_token,
            hidden: n,
            ys: &ys,
            slots: &slots,
            experts: &experts,
            scores: &scores,
            out: &out,
        }
        .launch()
        .unwrap();
        let int = |region: &Region, len: usize| {
            region.download::<i32>(len).unwrap().into_iter().map(f64::from).collect::<Vec<_>>()
        };
        [
            int(&experts, rows),
            int(&offsets, num_experts + 1),
            int(&sources, rows),
            int(&slots, rows),
            get(&scores, Dtype::F32, rows),
            get(&ys, dtype, rows * n),
            get(&out, dtype, tokens * n),
        ]
        .concat()
    });
    let (ints, got) = got.split_at(3 * rows + num_experts + 1);
    let ints: Vec<usize> = ints.iter().map(|int| *int as usize).collect();
    let (experts, rest) = ints.split_at(rows);
    let (offsets, rest) = rest.split_at(num_experts + 1);
    let (sources, slots) = rest.split_at(rows);
    let (scores, got) = got.split_at(rows);
    let (ys, out) = got.split_at(rows * n);

    let mut want = Vec::new();
    for (row, chosen) in logits.chunks_exact(num_experts).zip(experts.chunks_exact(per_token)) {
        let mut order: Vec<usize> = (0..num_experts).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        assert_eq!(chosen, &order[..per_token], "{case:?}");
        let total: f64 = row.iter().map(|x| x.exp()).sum();
        let probabilities: Vec<f64> = chosen.iter().map(|expert| row[*expert].exp() / total).collect();
        let sum: f64 = if mode == RouterScores::Raw { 1.0 } else { probabilities.iter().sum() };
        want.extend(probabilities.into_iter().map(|p| p / sum));
    }
    let unit = if mode == RouterScores::NormalisedWide { 0.0 } else { roundoff(dtype) };
    close("scores", scores, &want, |i| {
        ((num_experts + per_token) as f64 * 2.0 * U32 + 2e-6 + unit) * want[i]
    });

    // `sources` is the stable sort by expert, and `slots` is its inverse.
    let mut order: Vec<usize> = (0..rows).collect();
    order.sort_by_key(|assignment| experts[*assignment]);
    assert_eq!(sources, order, "{case:?}");
    assert!(sources.iter().enumerate().all(|(row, assignment)| slots[*assignment] == row));
    for (expert, start) in offsets.iter().enumerate() {
        assert_eq!(*start, experts.iter().filter(|chosen| **chosen < expert).count());
    }

    for (row, assignment) in sources.iter().enumerate() {
        let x = &xs[assignment / per_token * k..][..k];
        let (want, size) = reference::linear(x, &weight[experts[*assignment] * n * k..][..n * k], k, None);
        close(&format!("{case:?}"), &ys[row * n..][..n], &want, |i| {
            k as f64 * U32 * size[i] + stored(dtype, want[i])
        });
    }
    for token in 0..tokens {
        let share = |place: usize, i: usize| {
            let assignment = token * per_token + place;
            scores[assignment] * ys[slots[assignment] * n + i]
        };
        let want: Vec<f64> = (0..n).map(|i| (0..per_token).map(|place| share(place, i)).sum()).collect();
        let size = |i: usize| (0..per_token).map(|place| share(place, i).abs()).sum::<f64>();
        close("mixed", &out[token * n..][..n], &want, |i| {
            per_token as f64 * 2.0 * U32 * size(i) + stored(dtype, want[i])
        });
    }
    assert!(scores.iter().all(|score| mode == RouterScores::NormalisedWide
        || score.to_bits() == rounded(dtype, *score as f32).to_bits()));
}

fn cases() -> impl Strategy<Value = Case> {
    let modes = prop_oneof![
        Just(RouterScores::NormalisedWide),
        Just(RouterScores::Normalised),
        Just(RouterScores::Raw)
    ];
    let k = prop_oneof![1_usize..70, (1_usize..12).prop_map(|k| 8 * k)];
    let shape = (1_usize..90, 1_usize..40, 0.0_f64..1.0, k, 1_usize..100);
    (shape, modes, prop::sample::select(&Dtype::ALL[..])).prop_map(
        |((tokens, num_experts, share, k, n), mode, dtype)| {
            let per_token = 1 + (share * (num_experts.min(6) - 1) as f64).round() as usize;
            Case { dtype, tokens, num_experts, per_token, k, n, mode }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_mixture_of_experts_matches_plain_loops(case in cases(), seed: u64) {
        check(&case, seed);
    }
}

#[test]
fn an_expert_can_have_more_rows_than_a_tile() {
    for dtype in Dtype::ALL {
        check(
            &Case {
                dtype,
                tokens: 150,
                num_experts: 2,
                per_token: 2,
                k: 72,
                n: 130,
                mode: RouterScores::Normalised,
            },
            3,
        );
    }
}
