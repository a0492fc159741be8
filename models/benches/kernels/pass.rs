//! A whole decoder pass on the kernels alone, random weights: what the layers of `models` add nothing to.

use models::kernels::{
    Activation, Attention, Band, CacheShape, Element, Embedding, Epilogue, KvCache, Norm, PackedGateUp,
    PackedLinear, Pairing, Pool, QkvLayout, RopeTable, attention, embed, rope_into_cache,
};

/// Sizes of a llama- or gemma-like decoder.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) layers: usize,
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) q_heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) vocab: usize,
}

pub(crate) const SMOLLM2_135M: Sizes = Sizes {
    layers: 30,
    hidden: 576,
    intermediate: 1536,
    q_heads: 9,
    kv_heads: 3,
    head_dim: 64,
    vocab: 49152,
};

pub(crate) const GEMMA3_270M: Sizes = Sizes {
    layers: 18,
    hidden: 640,
    intermediate: 2048,
    q_heads: 4,
    kv_heads: 1,
    head_dim: 256,
    vocab: 262_144,
};

struct Layer<T: Element> {
    input_norm: Norm,
    qkv: PackedLinear<T>,
    o: PackedLinear<T>,
    post_norm: Norm,
    gate_up: PackedGateUp<T>,
    down: PackedLinear<T>,
}

pub(crate) struct Decoder<T: Element> {
    sizes: Sizes,
    layers: Vec<Layer<T>>,
    norm: Norm,
    head: PackedLinear<T>,
    rope: RopeTable,
    caches: Vec<KvCache<T>>,
    buffers: [Vec<T>; 6],
    positions: Vec<u32>,
}

/// Uniform in -1/2..1/2, from a counter.
pub(crate) fn noise<T: Element>(len: usize, scale: f32) -> Vec<T> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64 ^ len as u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..len).map(|_| T::from_f32(next() * scale)).collect()
}

impl<T: Element> Decoder<T> {
    pub(crate) fn new(pool: &Pool, sizes: Sizes, tokens: usize) -> Self {
        let Sizes { hidden, intermediate, q_heads, kv_heads, head_dim, vocab, .. } = sizes;
        let (q, kv) = (q_heads * head_dim, kv_heads * head_dim);
        let linear = |n: usize, k: usize| PackedLinear::new(pool, &[&noise::<T>(n * k, 0.1)], k, None);
        let norm = || Norm::rms(vec![1.0; hidden], 1e-5);
        let layers = (0..sizes.layers)
            .map(|_| Layer {
                input_norm: norm(),
                qkv: linear(q + 2 * kv, hidden),
                o: linear(hidden, q),
                post_norm: norm(),
                gate_up: PackedGateUp::new(
                    pool,
                    &noise(intermediate * hidden, 0.1),
                    &noise(intermediate * hidden, 0.1),
                    hidden,
                    None,
                ),
                down: linear(hidden, intermediate),
            })
            .collect();
        let pairs = head_dim / 2;
        let angle = |i: usize| (i / pairs) as f32 * 1e5_f32.powf(-((i % pairs) as f32) / pairs as f32);
        let positions = tokens + 128;
        let rope = RopeTable::new(
            (0..positions * pairs).map(|i| angle(i).cos()).collect(),
            (0..positions * pairs).map(|i| angle(i).sin()).collect(),
            pairs,
            Pairing::HalfSplit,
        );
        let shape = CacheShape { batch: 1, kv_heads, head_dim, capacity: positions };
        let zeros = |n: usize| vec![T::default(); n * tokens];
        Self {
            sizes,
            layers,
            norm: norm(),
            head: linear(vocab, hidden),
            rope,
            caches: (0..sizes.layers).map(|_| KvCache::new(shape)).collect(),
            buffers: [
                zeros(hidden),
                zeros(hidden),
                zeros(q + 2 * kv),
                zeros(q),
                zeros(intermediate),
                zeros(vocab),
            ],
            positions: (0..positions as u32).collect(),
        }
    }

    /// Logits of every token; `first` tokens are in the cache already.
    pub(crate) fn forward(&mut self, pool: &Pool, first: usize, tokens: usize) -> &[T] {
        let Sizes { hidden, intermediate, q_heads, kv_heads, head_dim, vocab, .. } = self.sizes;
        let [h, x, qkv, attn, act, logits] = &mut self.buffers;
        let h = &mut h[..tokens * hidden];
        let x = &mut x[..tokens * hidden];
        let qkv = &mut qkv[..tokens * (q_heads + 2 * kv_heads) * head_dim];
        let attn = &mut attn[..tokens * q_heads * head_dim];
        let act = &mut act[..tokens * intermediate];
        let logits = &mut logits[..tokens * vocab];
        let ids: Vec<u32> = (0..tokens as u32).map(|i| i * 37 % 1000).collect();
        embed(pool, Embedding::Tied(&self.head), &ids, None, h).expect("ids are in the vocabulary");
        let keys = 0..first + tokens;
        for (layer, cache) in self.layers.iter().zip(&mut self.caches) {
            layer.input_norm.forward(pool, h, x);
            layer.qkv.forward(pool, x, tokens, qkv, Epilogue::Store);
            let layout = QkvLayout { tokens, q_heads, first_slot: first };
            rope_into_cache(
                pool,
                layout,
                qkv,
                Some((&self.rope, &self.positions[first..first + tokens])),
                cache,
            );
            let spec = Attention {
                tokens,
                q_heads,
                q_row: (q_heads + 2 * kv_heads) * head_dim,
                first_slot: first,
                scale: 1.0 / (head_dim as f32).sqrt(),
                softcap: None,
                relative: None,
                band: Band::CAUSAL,
                keys: std::slice::from_ref(&keys),
                visible: None,
            };
            attention(pool, &spec, qkv, cache, attn);
            layer.o.forward(pool, attn, tokens, h, Epilogue::Add(1.0));
            layer.post_norm.forward(pool, h, x);
            layer.gate_up.forward(pool, x, tokens, act, Activation::Silu);
            layer.down.forward(pool, act, tokens, h, Epilogue::Add(1.0));
        }
        self.norm.forward(pool, h, x);
        self.head.forward(pool, x, tokens, logits, Epilogue::Store);
        logits
    }
}
