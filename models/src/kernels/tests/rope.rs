use super::super::{CacheShape, Element, KvCache, Pairing, QkvLayout, RopeTable, rope_into_cache};
use super::{Noise, U32, both, close, most, pools, reference, roundoff, shapes, wide};
use half::bf16;
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    tokens: usize,
    first: usize,
    q_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    pairs: usize,
    interleaved: bool,
}

fn check<T: Element>(case: Case, seed: u64) {
    let Case { batch, tokens, first, q_heads, kv_heads, head_dim, pairs, interleaved } = case;
    let mut noise = Noise::new(seed);
    let heads = q_heads + 2 * kv_heads;
    let qkv = noise.take::<T>(batch * tokens * heads * head_dim, 2.0);
    let (cos, sin) = (noise.take::<f32>(50 * pairs.max(1), 1.0), noise.take::<f32>(50 * pairs.max(1), 1.0));
    let positions: Vec<u32> = (0..batch * tokens).map(|i| (i * 7 % 50) as u32).collect();
    let pairing = if interleaved { Pairing::Interleaved } else { Pairing::HalfSplit };
    let table = (pairs > 0).then(|| RopeTable::new(cos.clone(), sin.clone(), pairs, pairing));
    let mut want = wide(&qkv);
    for (token, row) in want.chunks_exact_mut(heads * head_dim).enumerate() {
        for head in row[..(q_heads + kv_heads) * head_dim].chunks_exact_mut(head_dim) {
            let at = positions[token] as usize * pairs;
            reference::rope(head, pairs, interleaved, |i| (f64::from(cos[at + i]), f64::from(sin[at + i])));
        }
    }
    // Two products and a sum of values below 2 * 1, then one rounding.
    let tolerance = |want: f64| 12.0 * U32 + roundoff::<T>() * want.abs();
    for pool in pools() {
        let mut cache = KvCache::<T>::new(CacheShape { batch, kv_heads, head_dim, capacity: first + tokens });
        // Earlier tokens, so that the cache is filled in order.
        for part in [(0, first), (first, tokens)] {
            let mut out = if part.0 == first && part.1 == tokens {
                qkv.clone()
            } else {
                vec![T::default(); batch * first * heads * head_dim]
            };
            let layout = QkvLayout { tokens: part.1, q_heads, first_slot: part.0 };
            let zeros = vec![0; batch * first];
            let at = if part.1 == tokens && part.0 == first { &positions } else { &zeros };
            rope_into_cache(&pool, layout, &mut out, table.as_ref().map(|t| (t, at.as_slice())), &mut cache);
            if part.0 != first || part.1 != tokens {
                continue;
            }
            for token in 0..batch * tokens {
                let row = token * heads * head_dim..token * heads * head_dim + q_heads * head_dim;
                let want = &want[row.clone()];
                close("q", &out[row], want, |i| tolerance(want[i]));
            }
        }
        let mut got = vec![T::default(); head_dim];
        for (b, t, h) in
            (0..batch).flat_map(|b| (0..tokens).flat_map(move |t| (0..kv_heads).map(move |h| (b, t, h))))
        {
            let row = ((b * tokens + t) * heads + q_heads + h) * head_dim;
            cache.key(b, h, first + t, &mut got);
            let k = &want[row..row + head_dim];
            close("k", &got, k, |i| tolerance(k[i]));
            cache.value(b, h, first + t, &mut got);
            let v = row + kv_heads * head_dim;
            assert_eq!(got, &qkv[v..v + head_dim], "v is copied");
        }
    }
}

fn cases() -> impl Strategy<Value = Case> {
    (
        1..most(4, 3),
        1..most(40, 5),
        0..most(40, 34),
        1_usize..5,
        1_usize..3,
        1..most(40, 9),
        0..most(21, 5),
        any::<bool>(),
    )
        .prop_map(|(batch, tokens, first, q_heads, kv_heads, half, pairs, interleaved)| Case {
            batch,
            tokens,
            first,
            q_heads,
            kv_heads,
            head_dim: 2 * half,
            pairs: pairs.min(half),
            interleaved,
        })
}

proptest! {
    #![proptest_config(shapes(32))]

    #[test]
    fn q_rotates_in_place_and_k_and_v_reach_their_slots(case in cases(), seed: u64) {
        both!(check(case, seed));
    }
}

#[test]
#[should_panic(expected = "overfill")]
fn a_full_cache_is_an_error() {
    let pool = super::super::Pool::new(1);
    let mut cache = KvCache::<f32>::new(CacheShape { batch: 1, kv_heads: 1, head_dim: 2, capacity: 32 });
    let layout = QkvLayout { tokens: 1, q_heads: 1, first_slot: 32 };
    rope_into_cache(&pool, layout, &mut [0.0; 6], None, &mut cache);
}
