//! Kernels allocate nothing for a shape that they have run before: every kernel runs repeatedly under a counting
//! allocator, and a repetition must make no allocation from any thread.

#![expect(unsafe_code, reason = "a global allocator")]

use half::bf16;
use models::kernels::{
    Activation, Attention, Band, CacheShape, Element, Embedding, Epilogue, KvCache, Norm, PackedGateUp,
    PackedLinear, Pairing, Pool, QkvLayout, RopeTable, activate, add, attention, embed, rope_into_cache,
    softcap, softmax,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is forwarded to the system allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller upholds the same contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the same contract.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const TOKENS: usize = 37;
const DIM: usize = 32;
const HIDDEN: usize = 6 * DIM;
const QKV: usize = (6 + 2 * 2) * DIM;

struct Layer<T: Element> {
    pool: Pool,
    norm: Norm,
    qkv: PackedLinear<T>,
    o: PackedLinear<T>,
    gate_up: PackedGateUp<T>,
    rope: RopeTable,
    cache: KvCache<T>,
}

fn ones<T: Element>(len: usize) -> Vec<T> {
    vec![T::from_f32(0.01); len]
}

impl<T: Element> Layer<T> {
    fn new(threads: usize) -> Self {
        let pool = Pool::new(threads);
        Self {
            norm: Norm::rms(vec![1.0; HIDDEN], 1e-5),
            qkv: PackedLinear::new(&pool, &[&ones(QKV * HIDDEN)], HIDDEN, None),
            o: PackedLinear::new(&pool, &[&ones(HIDDEN * HIDDEN)], HIDDEN, None),
            gate_up: PackedGateUp::new(&pool, &ones(HIDDEN * HIDDEN), &ones(HIDDEN * HIDDEN), HIDDEN, None),
            rope: RopeTable::new(vec![0.5; 2000 * 16], vec![0.5; 2000 * 16], 16, Pairing::HalfSplit),
            cache: KvCache::new(CacheShape { batch: 1, kv_heads: 2, head_dim: DIM, capacity: 2000 }),
            pool,
        }
    }

    /// Runs every kernel once on `tokens` tokens, starting at cache slot `first`.
    fn run(
        &mut self,
        first: usize,
        tokens: usize,
        buffers: &mut [Vec<T>; 4],
        ids: &[u32],
        positions: &[u32],
    ) {
        let Self { pool, norm, qkv, o, gate_up, rope, cache } = self;
        let [h, x, joined, mixed] = buffers;
        let (h, x) = (&mut h[..tokens * HIDDEN], &mut x[..tokens * HIDDEN]);
        let (joined, mixed) = (&mut joined[..tokens * QKV], &mut mixed[..tokens * HIDDEN]);
        embed(pool, Embedding::Tied(o), &ids[..tokens], Some(2.0), h).expect("ids are rows");
        norm.forward(pool, h, x);
        qkv.forward(pool, x, tokens, joined, Epilogue::Store);
        let layout = QkvLayout { tokens, q_heads: 6, first_slot: first };
        rope_into_cache(pool, layout, joined, Some((rope, &positions[first..first + tokens])), cache);
        let keys = 0..first + tokens;
        let spec = Attention {
            tokens,
            q_heads: 6,
            q_row: QKV,
            first_slot: first,
            scale: 0.2,
            softcap: Some(30.0),
            relative: None,
            band: Band::CAUSAL,
            keys: std::slice::from_ref(&keys),
            visible: None,
        };
        attention(pool, &spec, joined, cache, mixed);
        o.forward(pool, mixed, tokens, h, Epilogue::Add(1.0));
        norm.add_forward(pool, mixed, h, x);
        gate_up.forward(pool, x, tokens, mixed, Activation::GeluErf);
        norm.forward_add(pool, mixed, h);
        norm.heads_in_place(pool, h, HIDDEN, 0, 1);
        add(pool, h, x, 0.5);
        activate(pool, h, Activation::Tanh);
        softcap(pool, h, 30.0);
        softmax(pool, h, HIDDEN);
    }
}

fn check<T: Element>(threads: usize) {
    let mut layer = Layer::<T>::new(threads);
    let mut buffers = [HIDDEN, HIDDEN, QKV, HIDDEN].map(|width| ones::<T>(TOKENS * width));
    let ids: Vec<u32> = (0..TOKENS as u32).collect();
    let positions: Vec<u32> = (0..2000).collect();
    // A prefill, and one token over so many keys that attention is split among threads and merged.
    for (first, tokens) in [(0, TOKENS), (1500, 1)] {
        layer.run(first, tokens, &mut buffers, &ids, &positions);
        // The minimum of five: a kernel's allocation occurs every time, one by the thread pool's queue only occasionally.
        let count = (0..5)
            .map(|_| {
                let before = ALLOCATIONS.load(Ordering::SeqCst);
                layer.run(first, tokens, &mut buffers, &ids, &positions);
                ALLOCATIONS.load(Ordering::SeqCst) - before
            })
            .min();
        assert_eq!(count, Some(0), "allocations of {tokens} tokens on {threads} threads");
    }
}

fn main() {
    for threads in [1, 3] {
        check::<f32>(threads);
        check::<bf16>(threads);
    }
}
