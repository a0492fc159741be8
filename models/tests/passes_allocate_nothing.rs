//! A repeated forward pass of the fused backend allocates only its output: under a counting allocator it makes as many
//! allocations as constructing a tensor of the output's shape.

#![expect(unsafe_code, reason = "a global allocator")]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor};
use models::{Backend, Cache, Inputs, Kind, Loaded, Options, kind, load, synthetic};

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

/// Number of allocations by any thread while `body` runs; its result is dropped after counting.
fn allocations<T>(body: impl FnOnce() -> T) -> usize {
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    let result = body();
    let count = ALLOCATIONS.load(Ordering::SeqCst) - before;
    drop(result);
    count
}

/// Number of allocations that a tensor of this shape needs.
fn output(shape: &[usize]) -> usize {
    let &[batch, seq, vocab] = shape else { panic!("{shape:?}") };
    allocations(|| {
        Tensor::from_vec(vec![0_f32; batch * seq * vocab], (batch, seq, vocab), &Device::Cpu).unwrap()
    })
}

fn ids(batch: usize, seq: usize) -> Inputs {
    let ids: Vec<u32> = (0..batch * seq).map(|i| (i * 37 % 280) as u32).collect();
    Inputs::new(Tensor::from_vec(ids, (batch, seq), &Device::Cpu).unwrap())
}

fn check(name: &str, loaded: &mut Loaded) {
    for (batch, seq) in [(1, 40), (3, 7), (1, 1)] {
        let inputs = ids(batch, seq);
        // The first pass of a shape may still resize buffers.
        let shape = loaded.forward(&inputs).unwrap().dims().to_vec();
        loaded.forward(&inputs).unwrap();
        // The minimum of three counts, because a worker thread may still be starting.
        let counts = [(); 3].map(|()| allocations(|| loaded.forward(&inputs).unwrap()));
        assert_eq!(counts.into_iter().min(), Some(output(&shape)), "{name}: {batch} rows of {seq}");
    }
    let token = ids(1, 1);
    let shape = loaded.forward(&token).unwrap().dims().to_vec();
    let mut cache = Cache::new();
    // The first token after the prefill doubles the cache's capacity.
    for seq in [40, 1, 1] {
        loaded.forward_with(&ids(1, seq), Some(&mut cache), None).unwrap();
    }
    let counts =
        [(); 4].map(|()| allocations(|| loaded.forward_with(&token, Some(&mut cache), None).unwrap()));
    assert_eq!(counts.into_iter().min(), Some(output(&shape)), "{name}: a token after a cache");
}

/// Checkpoints that allocate tensors in the fused backend: routers, attention biases and rope frequencies that depend on
/// the forward pass, and the lookup of learned positions.
const TENSORS: [&str; 5] = ["mixtral:", "qwen3_moe:", "falcon:alibi", "llama:dynamic", "gpt2:"];

// A single test, so that the harness starts no other thread that allocates at the same time.
#[test]
fn the_second_pass_of_a_shape_allocates_its_output_only() {
    for entry in synthetic::catalogue().iter().filter(|entry| !entry.bench) {
        let (model_type, variant) = (entry.model_type, entry.variant);
        // The other kinds allocate: positions of encoders, and masks, biases and patches of models of more than one sequence.
        if kind(model_type) != Some(Kind::Decoder) {
            continue;
        }
        let name = format!("{model_type}:{variant}");
        if TENSORS.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        synthetic::write(model_type, variant, 0, folder.path()).unwrap();
        for dtype in [DType::F32, DType::BF16] {
            let options = Options { dtype, device: Device::Cpu, backend: Backend::Fused };
            check(&format!("{name} {dtype:?}"), &mut load(folder.path(), &options).unwrap());
        }
    }
}
