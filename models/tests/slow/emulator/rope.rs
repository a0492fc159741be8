use proptest::prelude::*;

use super::noise::Noise;
use super::reference;
use super::{U32, close, get, noise, on_both, put, rounded, stored};
use models::cuda::kernels::{CacheRegions, HeadNorm, PassState, QkvLayout, RopeIntoCache, RopeTables};
use models::cuda::{Dtype, Region};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Heads {
    Plain,
    Rms,
    LayerPerHead,
}

#[derive(Clone, Debug)]
struct Case {
    dtype: Dtype,
    batch: usize,
    tokens: usize,
    first: usize,
    room: usize,
    kv_heads: usize,
    group: usize,
    head_dim: usize,
    pairs: usize,
    interleaved: bool,
    grouped: bool,
    norm: Heads,
}

const POSITIONS: usize = 40;

fn check(case: &Case, seed: u64) {
    let Case { dtype, batch, tokens, first, kv_heads, group, head_dim, pairs, interleaved, norm, .. } = *case;
    let (q_heads, capacity) = (kv_heads * group, first + tokens + case.room);
    let layout = if case.grouped {
        QkvLayout::grouped(q_heads, kv_heads, head_dim)
    } else {
        QkvLayout::joined(q_heads, kv_heads, head_dim)
    };
    let mut random = Noise::new(seed);
    let rows = batch * tokens;
    let qkv = noise(&mut random, dtype, rows * layout.row, 2.0);
    let cache = noise(&mut random, dtype, batch * kv_heads * capacity * head_dim, 1.0);
    let angles = noise(&mut random, Dtype::F32, POSITIONS * pairs, 3.0);
    let cos: Vec<f64> = angles.iter().map(|a| rounded(Dtype::F32, a.cos() as f32)).collect();
    let sin: Vec<f64> = angles.iter().map(|a| rounded(Dtype::F32, a.sin() as f32)).collect();
    let positions: Vec<u32> = (0..rows)
        .map(|_| ((random.next() + 1.0) * 0.5 * POSITIONS as f32) as u32 % POSITIONS as u32)
        .collect();
    let per_head = norm == Heads::LayerPerHead;
    let lens = [q_heads, kv_heads].map(|heads| if per_head { heads * head_dim } else { head_dim });
    let [q_weight, k_weight] = lens.map(|len| noise(&mut random, Dtype::F32, len, 2.0));
    let len = cache.len();
    let got = on_both(|gpu| {
        let [qkv, keys, values] = [&qkv, &cache, &cache].map(|values| put(gpu, dtype, values));
        let [cos, sin, q_weight, k_weight] =
            [&cos, &sin, &q_weight, &k_weight].map(|values| put(gpu, Dtype::F32, values));
        let positions = Region::of(gpu, &positions).unwrap();
        let first_slot = Region::of(gpu, &[first as i32]).unwrap();
        let ranges = Region::of(gpu, &vec![0_i32; 2 * batch]).unwrap();
        let head_norm = |weight| HeadNorm { weight, per_head, centred: per_head, eps: 1e-5 };
        let rope =
            RopeTables { cos: &cos, sin: &sin, rows: POSITIONS, pairs, interleaved, positions: &positions };
        RopeIntoCache {
            dtype,
            batch,
            tokens,
            qkv: &qkv,
            layout,
            cache: CacheRegions { keys: &keys, values: &values, capacity },
            state: PassState { first_slot: &first_slot, keys: &ranges, visible: None },
            rope: (pairs > 0).then_some(rope),
            q_norm: (norm != Heads::Plain).then_some(head_norm(&q_weight)),
            k_norm: (norm != Heads::Plain).then_some(head_norm(&k_weight)),
        }
        .launch()
        .unwrap();
        [get(&qkv, dtype, rows * layout.row), get(&keys, dtype, len), get(&values, dtype, len)].concat()
    });
    let turned = |from: &[f64], weight: &[f64], head: usize, token: usize| {
        let weight = if per_head { &weight[head * head_dim..][..head_dim] } else { weight };
        let mut x = match norm {
            Heads::Plain => from.to_vec(),
            Heads::Rms => reference::rms_norm(from, weight, f64::from(1e-5_f32)),
            Heads::LayerPerHead => {
                reference::layer_norm(from, weight, &vec![0.0; head_dim], f64::from(1e-5_f32))
            }
        };
        let row = positions[token] as usize * pairs;
        reference::rope(&mut x, pairs, interleaved, |i| (cos[row + i], sin[row + i]));
        x
    };
    let (mut q, mut keys, mut values) = (qkv.clone(), cache.clone(), cache);
    for token in 0..rows {
        let at = |column: usize| token * layout.row + column;
        for h in 0..q_heads {
            let place = at(layout.q_first + h / group * layout.q_group + h % group * head_dim);
            q[place..place + head_dim].copy_from_slice(&turned(
                &qkv[place..][..head_dim],
                &q_weight,
                h,
                token,
            ));
        }
        for h in 0..kv_heads {
            let slot = ((token / tokens * kv_heads + h) * capacity + first + token % tokens) * head_dim;
            let key = &qkv[at(layout.k_first + h * layout.kv_head)..][..head_dim];
            keys[slot..slot + head_dim].copy_from_slice(&turned(key, &k_weight, h, token));
            let value = &qkv[at(layout.v_first + h * layout.kv_head)..][..head_dim];
            values[slot..slot + head_dim].copy_from_slice(value);
        }
    }
    // Two products and a sum, each with an error of u times values below 2 (normed: below 2 sqrt(d), plus the norm's
    // errors).
    let size =
        if norm == Heads::Plain { 4.0 } else { (head_dim as f64 + 16.0) * 16.0 * (head_dim as f64).sqrt() };
    // A centred head of one or two values cancels completely; its rounding error is amplified by up to 1/sqrt(eps).
    let size = if per_head && head_dim < 3 { size + 300.0 * 16.0 } else { size };
    let want = [q, keys, values].concat();
    close(&format!("{case:?}"), &got, &want, |i| 4.0 * size * U32 + stored(dtype, want[i]));
}

fn cases() -> impl Strategy<Value = Case> {
    let shape = (1_usize..3, 1_usize..6, 0_usize..5, 0_usize..3);
    let heads = (1_usize..3, 1_usize..4, 1_usize..80, 0.0_f64..1.0);
    let norm = prop_oneof![Just(Heads::Plain), Just(Heads::Rms), Just(Heads::LayerPerHead)];
    (shape, heads, norm, prop::sample::select(&Dtype::ALL[..]), any::<[bool; 2]>()).prop_map(
        |(
            (batch, tokens, first, room),
            (kv_heads, group, head_dim, share),
            norm,
            dtype,
            [interleaved, grouped],
        )| Case {
            dtype,
            batch,
            tokens,
            first,
            room,
            kv_heads,
            group,
            head_dim,
            pairs: (share * 1.2 * (head_dim / 2) as f64).min((head_dim / 2) as f64) as usize,
            interleaved,
            grouped,
            norm,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Also checks that other cache slots and other columns of the rows do not change.
    #[test]
    fn heads_are_normed_rotated_and_written_to_their_slots(case in cases(), seed: u64) {
        check(&case, seed);
    }
}
