use super::super::{
    Attention, Band, CacheShape, Element, KvCache, QkvLayout, Relative, attention, rope_into_cache,
};
use super::{Noise, U32, both, close, most, pools, reference, roundoff, shapes, wide};
use half::bf16;
use proptest::prelude::*;
use std::ops::Range;

#[derive(Clone, Debug)]
struct Case {
    tokens: usize,
    first: usize,
    kv_heads: usize,
    group: usize,
    head_dim: usize,
    softcap: Option<f32>,
    /// Whether each head has a bias for each distance.
    relative: bool,
    band: Band,
    keys: Vec<Range<usize>>,
    holes: bool,
}

fn check<T: Element>(case: &Case, seed: u64) {
    let Case { tokens, first, kv_heads, group, head_dim, softcap, band, .. } = *case;
    let (batch, q_heads, all) = (case.keys.len(), group * kv_heads, first + tokens);
    let width = (q_heads + 2 * kv_heads) * head_dim;
    let mut noise = Noise::new(seed);
    let scale = 2.0 / (head_dim as f32).sqrt();
    // All slots are written by `rope_into_cache`; the queries are those of the last tokens.
    let qkv = noise.take::<T>(batch * all * width, 1.0);
    let head =
        |b: usize, slot: usize, h: usize| wide(&qkv[(b * all + slot) * width + h * head_dim..][..head_dim]);
    let capacity = all.next_multiple_of(32);
    let visible: Vec<bool> = (0..batch * capacity).map(|_| noise.next() > -0.5).collect();
    let biases = noise.take::<f32>(q_heads * Relative::len(all), 2.0);
    let bias_of = |h: usize, slot: usize, key: usize| {
        if case.relative { f64::from(biases[h * Relative::len(all) + all - 1 + key - slot]) } else { 0.0 }
    };
    let mut want = Vec::new();
    for b in 0..batch {
        let rows = |h: usize| -> Vec<Vec<f64>> { (0..all).map(|s| head(b, s, h)).collect() };
        let keys: Vec<_> = (0..kv_heads).map(|h| rows(q_heads + h)).collect();
        let values: Vec<_> = (0..kv_heads).map(|h| rows(q_heads + kv_heads + h)).collect();
        for (slot, h) in (first..all).flat_map(|s| (0..q_heads).map(move |h| (s, h))) {
            let seen = |key: usize| {
                reference::sees(slot, key, band.before, band.after, &case.keys[b])
                    && (!case.holes || visible[b * capacity + key])
            };
            let cap = softcap.map(f64::from);
            let (k, v) = (&keys[h / group], &values[h / group]);
            let bias = |key: usize| bias_of(h, slot, key);
            let score = (f64::from(scale), cap);
            want.extend(reference::attention(&head(b, slot, h), k, v, seen, score, bias));
        }
    }
    // Values are below 1, scores below 2 sqrt(d) + 2. A score is off by (d + 4) u times its size, a probability
    // relatively by twice that (its own and the sum's) plus exp's 2.5e-7 and n u of the sums; bf16 rounds each
    // probability, in numerator and sum alike, and the result.
    let score = (2.0 * (head_dim as f64).sqrt() + 2.0) * (head_dim as f64 + 4.0) * U32;
    let tolerance = 2.0 * score
        + 1e-6
        + (all as f64 + 8.0) * U32
        + if T::PER_UNIT == 2 { 2.0 * roundoff::<T>() } else { 0.0 };
    for pool in pools() {
        let mut cache = KvCache::<T>::new(CacheShape { batch, kv_heads, head_dim, capacity: all });
        rope_into_cache(
            &pool,
            QkvLayout { tokens: all, q_heads, first_slot: 0 },
            &mut qkv.clone(),
            None,
            &mut cache,
        );
        let q: Vec<T> =
            (0..batch).flat_map(|b| qkv[(b * all + first) * width..(b + 1) * all * width].to_vec()).collect();
        let spec = Attention {
            tokens,
            q_heads,
            q_row: width,
            first_slot: first,
            scale,
            softcap,
            relative: case.relative.then(|| Relative::new(&biases, all, q_heads)),
            band,
            keys: &case.keys,
            visible: case.holes.then_some(visible.as_slice()),
        };
        let mut out = vec![T::from_f32(f32::NAN); batch * tokens * q_heads * head_dim];
        attention(&pool, &spec, &q, &cache, &mut out);
        close(&format!("{:?} {} threads {case:?}", pool.isa(), pool.threads()), &out, &want, |_| tolerance);
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let limit = || prop_oneof![Just(None), (0_usize..90).prop_map(Some)];
    let shape = (1..most(50, 4), 0..most(150, 40), 1_usize..3, 1..most(18, 3), 1..most(45, 12));
    let padding = prop::collection::vec((0_usize..60, 0_usize..60), 1..3);
    (shape, limit(), limit(), padding, any::<[bool; 3]>()).prop_map(
        |((tokens, first, kv_heads, group, head_dim), before, after, padding, [capped, relative, holes])| {
            let all = first + tokens;
            let keys = |(left, right): (usize, usize)| {
                let start = left.min(all);
                start..all.saturating_sub(right).max(start)
            };
            Case {
                tokens,
                first,
                kv_heads,
                group,
                head_dim,
                softcap: capped.then_some(1.5),
                relative,
                band: Band { before, after },
                keys: padding.into_iter().map(keys).collect(),
                holes,
            }
        },
    )
}

proptest! {
    #![proptest_config(shapes(48))]

    #[test]
    fn blocked_attention_is_softmax_over_the_keys_seen(case in cases(), seed: u64) {
        both!(check(&case, seed));
    }
}

fn plain(tokens: usize, first: usize, group: usize, head_dim: usize, band: Band) -> Case {
    let keys = std::iter::once(0..first + tokens).collect();
    Case {
        tokens,
        first,
        kv_heads: 1,
        group,
        head_dim,
        softcap: None,
        relative: false,
        band,
        keys,
        holes: false,
    }
}

#[test]
fn one_token_over_many_keys_is_split_and_merged() {
    let (keys, window, head_dim) = (most(2100, 135), most(700, 70), most(64, 4));
    both!(check(&plain(1, keys, 4, head_dim, Band::CAUSAL), 1));
    both!(check(&plain(1, keys, 4, head_dim, Band::causal_window(window)), 2));
}

#[test]
fn causal_prefill_passes_several_blocks() {
    // Under Miri the last tokens alone, which attend to the keys of two blocks.
    let (tokens, first) = (most(300, 3), most(0, 127));
    both!(check(&plain(tokens, first, most(3, 2), most(64, 4), Band::CAUSAL), 3));
    both!(check(&plain(tokens, first, 1, most(256, 20), Band::causal_window(70)), 4));
    both!(check(&plain(most(140, 3), first, 2, most(32, 4), Band::FULL), 5));
}

/// transformers 5.23.0 masking_utils.py: a window of W admits exactly W keys, the query's own included.
#[test]
fn a_window_admits_exactly_w_keys() {
    let (tokens, window) = (40, 8);
    let pool = super::super::Pool::new(2);
    let mut cache = KvCache::<f32>::new(CacheShape { batch: 1, kv_heads: 1, head_dim: 1, capacity: tokens });
    // All scores are equal and one value is marked, so the mean shows the number of keys attended to.
    for marked in [31 - window, 32 - window, 31, 32] {
        let mut qkv: Vec<f32> =
            (0..tokens).flat_map(|t| [0.0, 0.0, if t == marked { 1.0 } else { 0.0 }]).collect();
        rope_into_cache(&pool, QkvLayout { tokens, q_heads: 1, first_slot: 0 }, &mut qkv, None, &mut cache);
        let keys = 0..tokens;
        let spec = Attention {
            tokens,
            q_heads: 1,
            q_row: 3,
            first_slot: 0,
            scale: 1.0,
            softcap: None,
            relative: None,
            band: Band::causal_window(window),
            keys: std::slice::from_ref(&keys),
            visible: None,
        };
        let mut out = vec![0.0; tokens];
        attention(&pool, &spec, &qkv, &cache, &mut out);
        let seen = (32 - window..32).contains(&marked);
        close("share of the marked key", &out[31..32], &[if seen { 0.125 } else { 0.0 }], |_| 1e-7);
    }
}
