//! One llama block of SmolLM2's shape on plain slices, as a layer would call the kernels.

use super::super::{
    Activation, Attention, Band, CacheShape, Element, Epilogue, KvCache, Norm, PackedGateUp, PackedLinear,
    Pairing, Pool, QkvLayout, RopeTable, attention, rope_into_cache,
};
use super::{Noise, reference, wide};
use half::bf16;

const HIDDEN: usize = 576;
const INTERMEDIATE: usize = 1536;
const Q_HEADS: usize = 9;
const KV_HEADS: usize = 3;
const DIM: usize = 64;
const QKV: usize = (Q_HEADS + 2 * KV_HEADS) * DIM;
const TOKENS: usize = 21;

struct Weights<T> {
    qkv: Vec<T>,
    o: Vec<T>,
    gate: Vec<T>,
    up: Vec<T>,
    down: Vec<T>,
    norms: [Vec<f32>; 2],
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl<T: Element> Weights<T> {
    fn new(noise: &mut Noise) -> Self {
        let angle = |i: usize| (i / 32) as f32 * 1e5_f32.powf(-((i % 32) as f32) / 32.0);
        Self {
            qkv: noise.take(QKV * HIDDEN, 0.1),
            o: noise.take(HIDDEN * Q_HEADS * DIM, 0.1),
            gate: noise.take(INTERMEDIATE * HIDDEN, 0.1),
            up: noise.take(INTERMEDIATE * HIDDEN, 0.1),
            down: noise.take(HIDDEN * INTERMEDIATE, 0.1),
            norms: [noise.take(HIDDEN, 1.0), noise.take(HIDDEN, 1.0)],
            cos: (0..TOKENS * 32).map(|i| angle(i).cos()).collect(),
            sin: (0..TOKENS * 32).map(|i| angle(i).sin()).collect(),
        }
    }
}

/// The block with the kernels: a prefill, then the remaining tokens one at a time.
fn fused<T: Element>(pool: &Pool, w: &Weights<T>, xs: &[T], prefill: usize) -> Vec<T> {
    let qkv_proj = PackedLinear::new(pool, &[&w.qkv], HIDDEN, None);
    let o_proj = PackedLinear::new(pool, &[&w.o], Q_HEADS * DIM, None);
    let gate_up = PackedGateUp::new(pool, &w.gate, &w.up, HIDDEN, None);
    let down = PackedLinear::new(pool, &[&w.down], INTERMEDIATE, None);
    let [input_norm, post_norm] = w.norms.clone().map(|n| Norm::rms(n, 1e-5));
    let rope = RopeTable::new(w.cos.clone(), w.sin.clone(), 32, Pairing::HalfSplit);
    let mut cache =
        KvCache::new(CacheShape { batch: 1, kv_heads: KV_HEADS, head_dim: DIM, capacity: TOKENS });
    let mut hidden = xs.to_vec();
    let positions: Vec<u32> = (0..TOKENS as u32).collect();
    let mut first = 0;
    while first < TOKENS {
        let tokens = if first == 0 { prefill } else { 1 };
        let h = &mut hidden[first * HIDDEN..(first + tokens) * HIDDEN];
        let (mut x, mut qkv) = (vec![T::default(); tokens * HIDDEN], vec![T::default(); tokens * QKV]);
        let mut mixed = vec![T::default(); tokens * Q_HEADS * DIM];
        let mut gated = vec![T::default(); tokens * INTERMEDIATE];
        input_norm.forward(pool, h, &mut x);
        qkv_proj.forward(pool, &x, tokens, &mut qkv, Epilogue::Store);
        let layout = QkvLayout { tokens, q_heads: Q_HEADS, first_slot: first };
        rope_into_cache(pool, layout, &mut qkv, Some((&rope, &positions[first..first + tokens])), &mut cache);
        let keys = 0..first + tokens;
        let spec = Attention {
            tokens,
            q_heads: Q_HEADS,
            q_row: QKV,
            first_slot: first,
            scale: 0.125,
            softcap: None,
            relative: None,
            band: Band::CAUSAL,
            keys: std::slice::from_ref(&keys),
            visible: None,
        };
        attention(pool, &spec, &qkv, &cache, &mut mixed);
        o_proj.forward(pool, &mixed, tokens, h, Epilogue::Add(1.0));
        post_norm.forward(pool, h, &mut x);
        gate_up.forward(pool, &x, tokens, &mut gated, Activation::Silu);
        down.forward(pool, &gated, tokens, h, Epilogue::Add(1.0));
        first += tokens;
    }
    hidden
}

fn naive<T: Element>(w: &Weights<T>, xs: &[T]) -> Vec<f64> {
    let add = |a: &mut Vec<f64>, b: Vec<f64>| a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
    let linear = |x: &[f64], w: &[T], k: usize| reference::linear(x, &wide(w), k, None).0;
    let eps = f64::from(1e-5_f32);
    let mut h = wide(xs);
    let mut qkv = linear(&reference::rms_norm(&h, &wide(&w.norms[0]), eps), &w.qkv, HIDDEN);
    for (t, row) in qkv.chunks_exact_mut(QKV).enumerate() {
        for head in row[..(Q_HEADS + KV_HEADS) * DIM].chunks_exact_mut(DIM) {
            reference::rope(head, 32, false, |i| {
                (f64::from(w.cos[t * 32 + i]), f64::from(w.sin[t * 32 + i]))
            });
        }
    }
    let head = |t: usize, h: usize| qkv[t * QKV + h * DIM..][..DIM].to_vec();
    let mut mixed = Vec::new();
    for (t, h) in (0..TOKENS).flat_map(|t| (0..Q_HEADS).map(move |h| (t, h))) {
        let keys: Vec<_> = (0..=t).map(|s| head(s, Q_HEADS + h / 3)).collect();
        let values: Vec<_> = (0..=t).map(|s| head(s, Q_HEADS + KV_HEADS + h / 3)).collect();
        mixed.extend(reference::attention(&head(t, h), &keys, &values, |_| true, (0.125, None), |_| 0.0));
    }
    add(&mut h, linear(&mixed, &w.o, Q_HEADS * DIM));
    let x = reference::rms_norm(&h, &wide(&w.norms[1]), eps);
    let gate = linear(&x, &w.gate, HIDDEN);
    let up = linear(&x, &w.up, HIDDEN);
    let gated: Vec<f64> = gate.iter().zip(up).map(|(g, u)| reference::silu(*g) * u).collect();
    add(&mut h, linear(&gated, &w.down, INTERMEDIATE));
    h
}

fn check<T: Element>(limit: f64) {
    let mut noise = Noise::new(42);
    let weights = Weights::<T>::new(&mut noise);
    let xs = noise.take::<T>(TOKENS * HIDDEN, 1.0);
    let want = naive(&weights, &xs);
    let size = want.iter().map(|x| x * x).sum::<f64>().sqrt();
    for pool in super::pools() {
        for prefill in [TOKENS, 5] {
            let got = wide(&fused(&pool, &weights, &xs, prefill));
            let off = got.iter().zip(&want).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt() / size;
            assert!(off < limit, "{:?} prefill {prefill}: relative L2 {off:e}", pool.isa());
        }
    }
}

#[test]
fn a_llama_block_matches_its_formula() {
    // Relative L2. For f32, about the square root of a sum's length times the roundoff (at most 40 * 6e-8). For bf16,
    // about six intermediate tensors, each with an average error of 2^-9.
    check::<f32>(1e-6);
    check::<bf16>(1e-2);
}
