//! Each kernel at the real shapes of SmolLM2-135M and gemma-3-270m, and their whole passes.
//!
//! `cargo bench -p tfcheck-models --bench kernels -- pass/smollm2` for one group. Figures mean something on a
//! quiet machine only. rten-gemm, the best prepacked product among the crates, and rayon run beside ours.

mod pass;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use models::kernels::{
    Activation, Attention, Band, CacheShape, Element, Epilogue, KvCache, Norm, PackedGateUp, PackedLinear,
    Pairing, Pool, QkvLayout, RopeTable, attention, rope_into_cache,
};
use pass::{Decoder, GEMMA3_270M, SMOLLM2_135M, Sizes, noise};
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions};
use rten_tensor::NdTensor;
use rten_tensor::prelude::*;
use std::hint::black_box;
use std::thread::available_parallelism;
use std::time::Duration;

/// (n, k) of the joined q/k/v, o, and down projections of SmolLM2 and gemma 3, and SmolLM2's head.
const LINEARS: [(usize, usize); 7] =
    [(960, 576), (576, 576), (576, 1536), (1536, 640), (640, 1024), (640, 2048), (49152, 576)];
const ROWS: [usize; 6] = [1, 4, 16, 64, 128, 512];

fn pool() -> Pool {
    Pool::new(available_parallelism().map_or(1, usize::from))
}

fn name<T: Element>() -> &'static str {
    if T::PER_UNIT == 1 { "f32" } else { "bf16" }
}

fn linear<T: Element>(c: &mut Criterion) {
    let pool = pool();
    for (n, k) in LINEARS {
        let mut group = c.benchmark_group(format!("linear/{}/{n}x{k}", name::<T>()));
        let packed = PackedLinear::new(&pool, &[&noise::<T>(n * k, 0.1)], k, None);
        for m in ROWS.into_iter().filter(|m| n < 10_000 || *m <= 128) {
            let xs = noise::<T>(m * k, 1.0);
            let mut out = vec![T::default(); m * n];
            group.throughput(Throughput::Elements(2 * (m * n * k) as u64));
            group.bench_function(BenchmarkId::new("ours", m), |b| {
                b.iter(|| packed.forward(&pool, &xs, m, &mut out, Epilogue::Store));
            });
        }
    }
    let mut group = c.benchmark_group(format!("gate_up/{}/1536x576", name::<T>()));
    let (gate, up) = (noise::<T>(1536 * 576, 0.1), noise::<T>(1536 * 576, 0.1));
    let packed = PackedGateUp::new(&pool, &gate, &up, 576, None);
    for m in ROWS {
        let (xs, mut out) = (noise::<T>(m * 576, 1.0), vec![T::default(); m * 1536]);
        group.throughput(Throughput::Elements(4 * (m * 1536 * 576) as u64));
        group.bench_function(BenchmarkId::new("silu", m), |b| {
            b.iter(|| packed.forward(&pool, &xs, m, &mut out, Activation::Silu));
        });
    }
}

fn linear_rten(c: &mut Criterion) {
    let gemm = GemmExecutor::<f32, f32, f32>::default();
    for (n, k) in LINEARS {
        let mut group = c.benchmark_group(format!("linear/f32/{n}x{k}"));
        let weight = NdTensor::from_data([n, k], noise::<f32>(n * k, 0.1));
        let packed = gemm.prepack_b(weight.view().transposed());
        for m in ROWS.into_iter().filter(|m| n < 10_000 || *m <= 128) {
            let xs = NdTensor::from_data([m, k], noise::<f32>(m * k, 1.0));
            let mut out = vec![0.0_f32; m * n];
            group.throughput(Throughput::Elements(2 * (m * n * k) as u64));
            group.bench_function(BenchmarkId::new("rten-gemm", m), |b| {
                b.iter(|| {
                    let (a, w) = (GemmInputA::Unpacked(xs.view()), GemmInputB::Packed(&packed));
                    gemm.gemm(&mut out, a, w, GemmOptions::default()).expect("the shapes fit");
                });
            });
        }
    }
}

fn norm<T: Element>(c: &mut Criterion) {
    let pool = pool();
    let mut group = c.benchmark_group(format!("norm/{}/128x576", name::<T>()));
    let (xs, mut h, mut out) =
        (noise::<T>(128 * 576, 1.0), noise::<T>(128 * 576, 1.0), noise::<T>(128 * 576, 1.0));
    let rms = Norm::rms(vec![1.0; 576], 1e-5);
    let layer = Norm::layer(vec![1.0; 576], Some(vec![0.5; 576]), 1e-5);
    group.bench_function("rms", |b| b.iter(|| rms.forward(&pool, &xs, &mut out)));
    group.bench_function("add_rms", |b| b.iter(|| rms.add_forward(&pool, &xs, &mut h, &mut out)));
    group.bench_function("layer", |b| b.iter(|| layer.forward(&pool, &xs, &mut out)));
}

/// Rope into the cache and attention of one layer, as a prefill and as one token at the end.
fn attend<T: Element>(c: &mut Criterion) {
    let pool = pool();
    for (model, sizes, band) in
        [("smollm2", SMOLLM2_135M, Band::CAUSAL), ("gemma3", GEMMA3_270M, Band::causal_window(512))]
    {
        let Sizes { q_heads, kv_heads, head_dim, .. } = sizes;
        let (width, pairs) = ((q_heads + 2 * kv_heads) * head_dim, head_dim / 2);
        let table = vec![0.5; 2048 * pairs];
        let rope = RopeTable::new(table.clone(), table, pairs, Pairing::HalfSplit);
        let positions: Vec<u32> = (0..2048).collect();
        let mut cache = KvCache::<T>::new(CacheShape { batch: 1, kv_heads, head_dim, capacity: 2048 });
        for (first, tokens) in [(0, 128), (0, 512), (128, 1), (2047, 1)] {
            let mut qkv = noise::<T>(tokens * width, 1.0);
            let mut out = vec![T::default(); tokens * q_heads * head_dim];
            let id = format!("{tokens} from {first}");
            let mut group = c.benchmark_group(format!("rope/{}/{model}", name::<T>()));
            group.bench_function(&id, |b| {
                let layout = QkvLayout { tokens, q_heads, first_slot: first };
                let at = &positions[first..first + tokens];
                b.iter(|| rope_into_cache(&pool, layout, &mut qkv, Some((&rope, at)), &mut cache));
            });
            group.finish();
            let keys = 0..first + tokens;
            let spec = Attention {
                tokens,
                q_heads,
                q_row: width,
                first_slot: first,
                scale: 0.125,
                softcap: None,
                relative: None,
                band,
                keys: std::slice::from_ref(&keys),
                visible: None,
            };
            let qkv = noise::<T>(tokens * width, 1.0);
            let mut group = c.benchmark_group(format!("attention/{}/{model}", name::<T>()));
            group.bench_function(&id, |b| b.iter(|| attention(&pool, &spec, &qkv, &cache, &mut out)));
        }
    }
}

/// Whole passes. Targets on two Zen 5 cores for SmolLM2: 128 tokens below 110 ms in f32 and 55 ms in bf16,
/// one token below 14 ms and 7 ms.
fn pass<T: Element>(c: &mut Criterion) {
    let pool = pool();
    for (model, sizes) in [("smollm2", SMOLLM2_135M), ("gemma3", GEMMA3_270M)] {
        let mut group = c.benchmark_group(format!("pass/{model}/{}", name::<T>()));
        group.sample_size(10).measurement_time(Duration::from_secs(8));
        let mut decoder = Decoder::<T>::new(&pool, sizes, 512);
        for (first, tokens) in [(0, 128), (0, 512), (128, 1)] {
            group.bench_function(format!("{tokens} from {first}"), |b| {
                b.iter(|| {
                    black_box(decoder.forward(&pool, first, tokens));
                });
            });
        }
    }
}

/// What a fork and join costs, ours against rayon's from outside and from inside of its pool.
fn dispatch(c: &mut Criterion) {
    let pool = pool();
    let threads = pool.threads();
    let rayon =
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("the system starts threads");
    let mut group = c.benchmark_group("dispatch");
    group.bench_function("ours", |b| b.iter(|| pool.run(threads, |task, _| _ = black_box(task))));
    group.bench_function("rayon broadcast", |b| b.iter(|| rayon.broadcast(|_| black_box(()))));
    group.bench_function("rayon scope inside", |b| {
        let fork = || rayon::scope(|s| (0..threads).for_each(|i| s.spawn(move |_| _ = black_box(i))));
        rayon.install(|| b.iter(fork));
    });
}

criterion_group! {
    name = kernels;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(2));
    targets = dispatch, linear::<f32>, linear_rten, linear::<bf16>, norm::<f32>, norm::<bf16>, attend::<f32>,
        attend::<bf16>, pass::<f32>, pass::<bf16>
}
criterion_main!(kernels);
