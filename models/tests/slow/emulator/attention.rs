use std::ops::Range;

use proptest::prelude::*;

use super::noise::Noise;
use super::reference;
use super::{GPUS, U32, close, get, noise, on_both, put, roundoff};
use models::cuda::kernels::{
    Attention, AttentionBias, CacheRegions, HeadNorm, PassState, QkvLayout, RopeIntoCache, RopeTables,
    Visible,
};
use models::cuda::{Dtype, Gpu, Region};
use std::sync::Arc;

#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) dtype: Dtype,
    pub(super) tokens: usize,
    pub(super) first: usize,
    pub(super) kv_heads: usize,
    pub(super) group: usize,
    pub(super) head_dim: usize,
    pub(super) softcap: Option<f32>,
    pub(super) before: Option<usize>,
    pub(super) after: Option<usize>,
    pub(super) keys: Vec<Range<usize>>,
    pub(super) holes: bool,
    pub(super) bias: bool,
    /// Unused cache slots after the last token; they hold NaN.
    pub(super) room: usize,
}

impl Case {
    /// One sequence, causal, without window, cap, holes or bias.
    pub(super) fn plain(dtype: Dtype, tokens: usize, first: usize, group: usize, head_dim: usize) -> Self {
        let keys = std::iter::once(0..first + tokens).collect();
        let (before, after, softcap) = (None, Some(0), None);
        Self {
            dtype,
            tokens,
            first,
            kv_heads: 1,
            group,
            head_dim,
            softcap,
            before,
            after,
            keys,
            holes: false,
            bias: false,
            room: 5,
        }
    }
}

/// Returns the kernels' output and the expected output.
pub(super) fn run(
    case: &Case,
    seed: u64,
    on: impl Fn(&dyn Fn(&Arc<dyn Gpu>) -> Vec<f64>) -> Vec<f64>,
) -> [Vec<f64>; 2] {
    let Case { dtype, tokens, first, kv_heads, group, head_dim, before, after, room, .. } = *case;
    let (batch, q_heads, all) = (case.keys.len(), group * kv_heads, first + tokens);
    let capacity = all + room;
    let layout = QkvLayout::joined(q_heads, kv_heads, head_dim);
    let mut random = Noise::new(seed);
    let scale = 2.0 / (head_dim as f32).sqrt();
    let q = noise(&mut random, dtype, batch * tokens * layout.row, 1.0);
    // Cache slots outside the key ranges are NaN, so that reading them is detected.
    let mut filled = || -> Vec<f64> {
        let values = noise(&mut random, dtype, batch * kv_heads * capacity * head_dim, 1.0);
        let slot = |i: usize| (i / head_dim % capacity, i / head_dim / capacity / kv_heads);
        let there = |i: usize| slot(i).0 < all && case.keys[slot(i).1].contains(&slot(i).0);
        values.into_iter().enumerate().map(|(i, x)| if there(i) { x } else { f64::NAN }).collect()
    };
    let (keys, values) = (filled(), filled());
    let visible: Vec<u8> = (0..batch * all).map(|_| u8::from(random.next() > -0.5)).collect();
    let bias = noise(&mut random, Dtype::F32, batch * q_heads * all, 2.0);
    let got = on(&|gpu| {
        let [q, keys, values] = [&q, &keys, &values].map(|values| put(gpu, dtype, values));
        let bias = put(gpu, Dtype::F32, &bias);
        let first_slot = Region::of(gpu, &[first as i32]).unwrap();
        let ranges: Vec<i32> =
            case.keys.iter().flat_map(|keys| [keys.start as i32, keys.end as i32]).collect();
        let (ranges, visible) = (Region::of(gpu, &ranges).unwrap(), Region::of(gpu, &visible).unwrap());
        let scratch = Attention::scratch_len(&**gpu, batch, tokens, layout, capacity);
        let scratch = Region::room(gpu, Dtype::F32, scratch).unwrap();
        let len = batch * tokens * q_heads * head_dim;
        let out = Region::room(gpu, dtype, len).unwrap();
        let visible = case.holes.then_some(Visible { region: &visible, row: all });
        Attention {
            dtype,
            batch,
            tokens,
            layout,
            qkv: &q,
            turn: None,
            cache: CacheRegions { keys: &keys, values: &values, capacity },
            state: PassState { first_slot: &first_slot, keys: &ranges, visible },
            bias: case.bias.then_some(AttentionBias { region: &bias, row: all, per_sequence: true }),
            scale,
            soft_cap: case.softcap,
            before,
            after,
            out: &out,
            scratch: Some(&scratch),
        }
        .launch()
        .unwrap();
        get(&out, dtype, len)
    });
    let mut want = Vec::new();
    for b in 0..batch {
        for (t, h) in (0..tokens).flat_map(|t| (0..q_heads).map(move |h| (t, h))) {
            let slot = first + t;
            let rows = |cache: &[f64]| -> Vec<Vec<f64>> {
                let head = (b * kv_heads + h / group) * capacity;
                (0..all).map(|s| cache[(head + s) * head_dim..][..head_dim].to_vec()).collect()
            };
            let seen = |key: usize| {
                reference::sees(slot, key, before, after, &case.keys[b])
                    && (!case.holes || visible[b * all + key] != 0)
            };
            let query = &q[(b * tokens + t) * layout.row + h * head_dim..][..head_dim];
            let added = |key: usize| if case.bias { bias[(b * q_heads + h) * all + key] } else { 0.0 };
            want.extend(attention(
                query,
                &rows(&keys),
                &rows(&values),
                seen,
                added,
                f64::from(scale),
                case.softcap,
            ));
        }
    }
    [got, want]
}

/// `reference::attention` with a bias on the scores.
fn attention(
    q: &[f64],
    keys: &[Vec<f64>],
    values: &[Vec<f64>],
    seen: impl Fn(usize) -> bool,
    bias: impl Fn(usize) -> f64,
    scale: f64,
    softcap: Option<f32>,
) -> Vec<f64> {
    let slots: Vec<usize> = (0..keys.len()).filter(|slot| seen(*slot)).collect();
    let scores: Vec<f64> = slots
        .iter()
        .map(|slot| {
            let score = scale * q.iter().zip(&keys[*slot]).map(|(a, b)| a * b).sum::<f64>();
            softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh()) + bias(*slot)
        })
        .collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scores.iter().map(|score| (score - top).exp()).sum();
    let mut out = vec![0.0; q.len()];
    for (score, slot) in scores.iter().zip(slots) {
        out.iter_mut()
            .zip(&values[slot])
            .for_each(|(out, value)| *out += (score - top).exp() / total * value);
    }
    out
}

/// Values are below 1, scores below 2 sqrt(d), biases below 2. The error of a score is at most (d + 8) u times its
/// size. The relative error of a probability is twice that (its own and the sum's) plus that of exp2 and n u of the
/// sums. 16-bit prefill also rounds the probabilities, and every 16-bit kernel the result.
pub(super) fn tolerance(case: &Case) -> f64 {
    let (all, d) = ((case.first + case.tokens) as f64, case.head_dim as f64);
    let score = (2.0 * d.sqrt() + 2.0) * (d + 8.0) * U32;
    let rounding = if case.dtype == Dtype::F32 { 0.0 } else { 2.0 * roundoff(case.dtype) };
    2.0 * score + 1e-6 + (all + 8.0) * U32 + rounding
}

fn check(case: &Case, seed: u64) {
    let [got, want] = run(case, seed, |case| on_both(case));
    let tolerance = tolerance(case);
    close(&format!("{case:?}"), &got, &want, |_| tolerance);
}

fn cases(tokens: Range<usize>) -> impl Strategy<Value = Case> {
    let limit = || prop_oneof![Just(None), (0_usize..90).prop_map(Some)];
    let head_dim = prop_oneof![1_usize..70, Just(64_usize), Just(80), Just(128), Just(96), Just(256)];
    let shape = (tokens, 0_usize..150, 1_usize..3, 1_usize..11, head_dim);
    let padding = prop::collection::vec((0_usize..60, 0_usize..60), 1..3);
    let dtype = prop::sample::select(&Dtype::ALL[..]);
    (shape, limit(), limit(), padding, any::<[bool; 3]>(), 0_usize..90, dtype).prop_map(
        |(
            (tokens, first, kv_heads, group, head_dim),
            before,
            after,
            padding,
            [capped, holes, bias],
            room,
            dtype,
        )| {
            let all = first + tokens;
            let keys = |(left, right): (usize, usize)| {
                let start = left.min(all);
                start..all.saturating_sub(right).max(start)
            };
            let (softcap, keys) = (capped.then_some(1.5), padding.into_iter().map(keys).collect());
            Case {
                dtype,
                tokens,
                first,
                kv_heads,
                group,
                head_dim,
                softcap,
                before,
                after,
                keys,
                holes,
                bias,
                room,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn prefill_is_softmax_over_the_keys_seen(case in cases(2..40), seed: u64) {
        check(&case, seed);
    }

    /// One token; its keys are split by the cache's capacity, which is independent of the number of keys.
    #[test]
    fn decoding_is_softmax_over_the_keys_seen(case in cases(1..2), seed: u64) {
        check(&case, seed);
    }
}

#[test]
fn causal_prefill_passes_several_tiles() {
    for dtype in Dtype::ALL {
        check(&Case::plain(dtype, 150, 0, 3, 64), 1);
        check(&Case { before: Some(69), ..Case::plain(dtype, 150, 30, 1, 256) }, 2);
        check(&Case { after: None, ..Case::plain(dtype, 100, 0, 2, 32) }, 3);
    }
}

#[test]
fn decode_over_many_keys_is_split_and_combined() {
    for dtype in Dtype::ALL {
        check(&Case { room: 900, ..Case::plain(dtype, 1, 1500, 4, 64) }, 4);
        check(&Case { before: Some(699), ..Case::plain(dtype, 1, 1500, 9, 128) }, 5);
        // More parts than keys: most are empty.
        check(&Case { room: 3000, ..Case::plain(dtype, 1, 2, 2, 256) }, 6);
    }
}

/// transformers 5.23.0 masking_utils.py: a window of W admits exactly W keys, the query's own included.
#[test]
fn a_window_admits_exactly_w_keys() {
    let window = 8;
    for (dtype, tokens) in Dtype::ALL.into_iter().flat_map(|dtype| [(dtype, 1), (dtype, 40)]) {
        let slots = 40;
        let layout = QkvLayout::joined(1, 1, 8);
        for gpu in GPUS.iter() {
            for marked in [31 - window, 32 - window, 31, 32] {
                // All scores are equal and one value is 1, so the output is 1 / (number of visible keys).
                let q = put(gpu, dtype, &vec![0.0; tokens * layout.row]);
                let keys = put(gpu, dtype, &vec![0.0; slots * 8]);
                let mark = |i: usize| if i / 8 == marked { 1.0 } else { 0.0 };
                let values = put(gpu, dtype, &(0..slots * 8).map(mark).collect::<Vec<_>>());
                let first = if tokens == 1 { 31 } else { 0 };
                let first_slot = Region::of(gpu, &[first]).unwrap();
                let ranges = Region::of(gpu, &[0, slots as i32]).unwrap();
                let out = Region::room(gpu, dtype, tokens * 8).unwrap();
                let scratch = Region::room(gpu, Dtype::F32, 4096).unwrap();
                Attention {
                    dtype,
                    batch: 1,
                    tokens,
                    layout,
                    qkv: &q,
                    turn: None,
                    cache: CacheRegions { keys: &keys, values: &values, capacity: slots },
                    state: PassState { first_slot: &first_slot, keys: &ranges, visible: None },
                    bias: None,
                    scale: 1.0,
                    soft_cap: None,
                    before: Some(window - 1),
                    after: Some(0),
                    out: &out,
                    scratch: Some(&scratch),
                }
                .launch()
                .unwrap();
                let row = if tokens == 1 { 0 } else { 31 };
                let want = if (32 - window..32).contains(&marked) { 0.125 } else { 0.0 };
                let got = get(&out, dtype, tokens * 8);
                close("share of the marked key", &got[row * 8..][..8], &[want; 8], |_| 1e-7);
            }
        }
    }
}

/// For one token, norm, rope, cache write and attention in one launch give the same output and cache as two launches.
#[test]
fn decode_with_fused_rope_matches_two_launches() {
    let kinds = [
        (64, 32, false, false, 3),
        (48, 12, true, true, 1),
        (128, 64, false, true, 9),
        (256, 128, false, false, 2),
    ];
    for (dtype, (head_dim, pairs, interleaved, grouped, group)) in
        Dtype::ALL.into_iter().flat_map(|dtype| kinds.map(|kind| (dtype, kind)))
    {
        let (batch, kv_heads, past, capacity) = (2, 2, 37, 600);
        let make = if grouped { QkvLayout::grouped } else { QkvLayout::joined };
        let layout = make(kv_heads * group, kv_heads, head_dim);
        let mut random = Noise::new(7);
        let qkv = noise(&mut random, dtype, batch * layout.row, 1.5);
        let cache = noise(&mut random, dtype, batch * kv_heads * capacity * head_dim, 1.0);
        let [cos, sin] = [0, 1].map(|_| noise(&mut random, Dtype::F32, 50 * pairs, 1.0));
        let weight = noise(&mut random, Dtype::F32, head_dim, 1.0);
        let len = batch * kv_heads * group * head_dim;
        let run = |gpu: &Arc<dyn Gpu>, is_one: bool| {
            let [qkv, keys, values] = [&qkv, &cache, &cache].map(|values| put(gpu, dtype, values));
            let [cos, sin, weight] = [&cos, &sin, &weight].map(|values| put(gpu, Dtype::F32, values));
            let norm = HeadNorm { weight: &weight, per_head: false, centred: false, eps: 1e-5 };
            let positions = Region::of(gpu, &[past as u32, 3]).unwrap();
            let first_slot = Region::of(gpu, &[past]).unwrap();
            let ranges = Region::of(gpu, &[0, past + 1, 2, past + 1]).unwrap();
            let state = PassState { first_slot: &first_slot, keys: &ranges, visible: None };
            let regions = CacheRegions { keys: &keys, values: &values, capacity };
            let turn = RopeIntoCache {
                dtype,
                batch,
                tokens: 1,
                qkv: &qkv,
                layout,
                cache: regions,
                state,
                rope: Some(RopeTables {
                    cos: &cos,
                    sin: &sin,
                    rows: 50,
                    pairs,
                    interleaved,
                    positions: &positions,
                }),
                q_norm: Some(norm),
                k_norm: Some(norm),
            };
            if !is_one {
                turn.launch().unwrap();
            }
            let out = Region::room(gpu, dtype, len).unwrap();
            let scratch = Attention::scratch_len(&**gpu, batch, 1, layout, capacity);
            let scratch = Region::room(gpu, Dtype::F32, scratch).unwrap();
            Attention {
                dtype,
                batch,
                tokens: 1,
                layout,
                qkv: &qkv,
                turn: is_one.then_some(turn),
                cache: regions,
                state,
                bias: None,
                scale: 0.125,
                soft_cap: None,
                before: Some(20),
                after: Some(0),
                out: &out,
                scratch: Some(&scratch),
            }
            .launch()
            .unwrap();
            [get(&out, dtype, len), get(&keys, dtype, cache.len()), get(&values, dtype, cache.len())].concat()
        };
        let [one, two] = [true, false].map(|is_one| on_both(|gpu| run(gpu, is_one)));
        // `rope_halves` sums the features of a head in another order.
        let what = format!("{dtype:?}, heads of {head_dim}");
        close(&what, &one, &two, |i| (8.0 * roundoff(dtype)).max(16.0 * U32) * two[i].abs().max(1.0));
        assert!(
            one != [vec![0.0; len], cache.clone(), cache.clone()].concat(),
            "{what}: the cache is as before"
        );
    }
}
