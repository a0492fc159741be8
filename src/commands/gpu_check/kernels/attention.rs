//! Rotary embedding into the cache, and attention over it.

use models::cuda::kernels::{
    Attention, AttentionBias, CacheRegions, HeadNorm, PassState, QkvLayout, RopeIntoCache, RopeTables,
    Visible,
};
use models::cuda::{Dtype, Region};

use super::rows::{exact_softmax, normed};
use super::{Bench, Case, Outcome, numbers};

pub(super) const CASES: &[Case] = &[
    ("rope into the cache, halves", |bench| rope(bench, false, false)),
    ("rope into the cache, pairs, grouped heads, q and k norms", |bench| rope(bench, true, true)),
    ("prefill attention, causal, 3 queries a key head", |bench| {
        attention(bench, &Shape { group: 3, tokens: 70, ..Shape::USUAL })
    }),
    ("prefill attention, window, soft cap, heads of 128", |bench| {
        attention(
            bench,
            &Shape { head_dim: 128, tokens: 40, before: Some(15), soft_cap: Some(20.0), ..Shape::USUAL },
        )
    }),
    ("prefill attention, padding, heads of 256, after a past", |bench| {
        attention(bench, &Shape { head_dim: 256, tokens: 24, past: 30, padding: true, ..Shape::USUAL })
    }),
    ("prefill attention, both directions, bias of each head", |bench| {
        attention(bench, &Shape { head_dim: 48, tokens: 33, after: None, bias: true, ..Shape::USUAL })
    }),
    ("decode attention, long past", |bench| {
        attention(bench, &Shape { group: 3, tokens: 1, past: 700, ..Shape::USUAL })
    }),
    ("decode attention, window and padding, heads of 128", |bench| {
        let window = Some(63);
        attention(
            bench,
            &Shape { head_dim: 128, tokens: 1, past: 200, before: window, padding: true, ..Shape::USUAL },
        )
    }),
    ("decode attention, soft cap, heads of 256", |bench| {
        attention(bench, &Shape { head_dim: 256, tokens: 1, past: 90, soft_cap: Some(10.0), ..Shape::USUAL })
    }),
];

const BATCH: usize = 2;
const KV_HEADS: usize = 2;

/// Parameters of one attention case.
#[derive(Clone, Copy)]
struct Shape {
    head_dim: usize,
    group: usize,
    tokens: usize,
    past: usize,
    before: Option<usize>,
    after: Option<usize>,
    soft_cap: Option<f32>,
    /// Whether the second sequence begins with padding and has a padding position in its middle.
    padding: bool,
    bias: bool,
}

impl Shape {
    const USUAL: Self = Self {
        head_dim: 64,
        group: 2,
        tokens: 1,
        past: 0,
        before: None,
        after: Some(0),
        soft_cap: None,
        padding: false,
        bias: false,
    };
}

fn attention(bench: &Bench, shape: &Shape) -> Outcome {
    let &Shape { head_dim, group, tokens, past, before, after, soft_cap, padding, bias } = shape;
    let q_heads = KV_HEADS * group;
    let layout = QkvLayout::joined(q_heads, KV_HEADS, head_dim);
    let (slots, capacity) = (past + tokens, past + tokens + 5);
    let qkv = bench.noise(1, BATCH * tokens * layout.row, 2.0);
    let cache_len = BATCH * KV_HEADS * capacity * head_dim;
    let (keys, values) = (bench.noise(2, cache_len, 1.0), bench.noise(3, cache_len, 1.0));
    let biases = numbers(4, q_heads * slots, 2.0);
    let ranges: Vec<i32> = [0, slots, if padding { 3 } else { 0 }, slots].map(|slot| slot as i32).to_vec();
    let is_seen = |row: usize, slot: usize| !padding || row == 0 || (slot >= 3 && slot != 5);
    let flags: Vec<u8> = (0..BATCH * slots).map(|at| u8::from(is_seen(at / slots, at % slots))).collect();

    let (qkv_there, keys_there, values_there) = (bench.put(&qkv)?, bench.put(&keys)?, bench.put(&values)?);
    let (first_slot, ranges_there) =
        (Region::of(&bench.gpu, &[past as i32])?, Region::of(&bench.gpu, &ranges)?);
    let flags_there = Region::of(&bench.gpu, &flags)?;
    let biases_there = bench.put_as(Dtype::F32, &biases)?;
    let out_len = BATCH * tokens * q_heads * head_dim;
    let out = bench.room(out_len)?;
    let scratch_len = Attention::scratch_len(&*bench.gpu, BATCH, tokens, layout, capacity);
    let scratch = Region::room(&bench.gpu, Dtype::F32, scratch_len)?;
    let scale = 1.0 / (head_dim as f32).sqrt();
    Attention {
        dtype: bench.dtype,
        batch: BATCH,
        tokens,
        layout,
        qkv: &qkv_there,
        turn: None,
        cache: CacheRegions { keys: &keys_there, values: &values_there, capacity },
        state: PassState {
            first_slot: &first_slot,
            keys: &ranges_there,
            visible: padding.then_some(Visible { region: &flags_there, row: slots }),
        },
        bias: bias.then_some(AttentionBias { region: &biases_there, row: slots, per_sequence: false }),
        scale,
        soft_cap,
        before,
        after,
        out: &out,
        scratch: (scratch_len > 0).then_some(&scratch),
    }
    .launch()?;

    let mut want = Vec::with_capacity(out_len);
    for row in 0..BATCH {
        for token in 0..tokens {
            let own = past + token;
            for head in 0..q_heads {
                let q = &qkv[(row * tokens + token) * layout.row + head * head_dim..][..head_dim];
                let at = |slot: usize| ((row * KV_HEADS + head / group) * capacity + slot) * head_dim;
                let admitted = |slot: &usize| {
                    is_seen(row, *slot)
                        && before.is_none_or(|before| *slot + before >= own)
                        && after.is_none_or(|after| *slot <= own + after)
                };
                let seen: Vec<usize> = (0..slots).filter(admitted).collect();
                let score = |slot: &usize| {
                    let dot: f64 = q.iter().zip(&keys[at(*slot)..]).map(|(q, k)| q * k).sum();
                    let score = dot * f64::from(scale);
                    let score =
                        soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
                    score + if bias { biases[head * slots + slot] } else { 0.0 }
                };
                let weights = exact_softmax(&seen.iter().map(score).collect::<Vec<_>>());
                want.extend((0..head_dim).map(|feature| {
                    seen.iter()
                        .zip(&weights)
                        .map(|(slot, weight)| weight * values[at(*slot) + feature])
                        .sum::<f64>()
                }));
            }
        }
    }
    Ok((bench.get(&out, out_len)?, want))
}

/// The rotated queries, then the keys and values written to the cache.
fn rope(bench: &Bench, interleaved: bool, grouped: bool) -> Outcome {
    let (head_dim, group, tokens, past, positions, eps) = (32, 2, 5, 4, 40, 1e-5_f32);
    let (q_heads, pairs, capacity) = (KV_HEADS * group, 12, past + tokens + 3);
    let of = if grouped { QkvLayout::grouped } else { QkvLayout::joined };
    let layout = of(q_heads, KV_HEADS, head_dim);
    let rows = BATCH * tokens;
    let qkv = bench.noise(1, rows * layout.row, 2.0);
    let angles = numbers(2, positions * pairs, 3.0);
    let table =
        |of: fn(f64) -> f64| angles.iter().map(|&angle| f64::from(of(angle) as f32)).collect::<Vec<_>>();
    let (cos, sin) = (table(f64::cos), table(f64::sin));
    let places: Vec<u32> = (0..rows as u32).map(|row| row * 7 % positions as u32).collect();
    let weights = [numbers(3, head_dim, 2.0), numbers(4, head_dim, 2.0)];

    let qkv_there = bench.put(&qkv)?;
    let cache_len = BATCH * KV_HEADS * capacity * head_dim;
    let zeros = vec![0.0; cache_len];
    let (keys, values) = (bench.put(&zeros)?, bench.put(&zeros)?);
    let (cos_there, sin_there) = (bench.put_as(Dtype::F32, &cos)?, bench.put_as(Dtype::F32, &sin)?);
    let places_there = Region::of(&bench.gpu, &places)?;
    let (first_slot, ranges) =
        (Region::of(&bench.gpu, &[past as i32])?, Region::of(&bench.gpu, &[0_i32; 2 * BATCH])?);
    let (q_weight, k_weight) =
        (bench.put_as(Dtype::F32, &weights[0])?, bench.put_as(Dtype::F32, &weights[1])?);
    let head_norm = |weight| HeadNorm { weight, per_head: false, centred: false, eps };
    RopeIntoCache {
        dtype: bench.dtype,
        batch: BATCH,
        tokens,
        qkv: &qkv_there,
        layout,
        cache: CacheRegions { keys: &keys, values: &values, capacity },
        state: PassState { first_slot: &first_slot, keys: &ranges, visible: None },
        rope: Some(RopeTables {
            cos: &cos_there,
            sin: &sin_there,
            rows: positions,
            pairs,
            interleaved,
            positions: &places_there,
        }),
        q_norm: grouped.then(|| head_norm(&q_weight)),
        k_norm: grouped.then(|| head_norm(&k_weight)),
    }
    .launch()?;

    let turned = |head: &[f64], weight: &[f64], place: usize| {
        let normed = if grouped {
            normed(head, weight, &vec![0.0; head_dim], false, f64::from(eps))
        } else {
            head.to_vec()
        };
        let mut out = normed.clone();
        for pair in 0..pairs {
            let (a, b) = if interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + pairs) };
            let (c, s) = (cos[place * pairs + pair], sin[place * pairs + pair]);
            out[a] = normed[a] * c - normed[b] * s;
            out[b] = normed[b] * c + normed[a] * s;
        }
        out
    };
    let got_qkv = bench.get(&qkv_there, rows * layout.row)?;
    let (got_keys, got_values) = (bench.get(&keys, cache_len)?, bench.get(&values, cache_len)?);
    let (mut got, mut want) = (Vec::new(), Vec::new());
    for row in 0..rows {
        let place = places[row] as usize;
        let line = &qkv[row * layout.row..][..layout.row];
        for head in 0..q_heads {
            let at = layout.q_first + head / group * layout.q_group + head % group * head_dim;
            got.extend_from_slice(&got_qkv[row * layout.row + at..][..head_dim]);
            want.extend(turned(&line[at..][..head_dim], &weights[0], place));
        }
        for head in 0..KV_HEADS {
            let slot = past + row % tokens;
            let cached = ((row / tokens * KV_HEADS + head) * capacity + slot) * head_dim;
            let key = layout.k_first + head * layout.kv_head;
            got.extend_from_slice(&got_keys[cached..][..head_dim]);
            want.extend(turned(&line[key..][..head_dim], &weights[1], place));
            let value = layout.v_first + head * layout.kv_head;
            got.extend_from_slice(&got_values[cached..][..head_dim]);
            want.extend_from_slice(&line[value..][..head_dim]);
        }
    }
    Ok((got, want))
}
