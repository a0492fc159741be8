//! Of a whole pass in the fused form only its output is new memory: the second pass of a shape runs under a counting
//! allocator, and may allocate as often as making a tensor of the output's shape does.

#![expect(unsafe_code, reason = "a global allocator")]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor};
use models::{Cache, Form, Inputs, Loaded, Options, load, synthetic};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// From any thread, until the result is there; it is dropped afterwards.
fn allocations<T>(body: impl FnOnce() -> T) -> usize {
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    let result = body();
    let count = ALLOCATIONS.load(Ordering::SeqCst) - before;
    drop(result);
    count
}

/// What an output of this shape costs by itself.
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

fn check(name: &str, loaded: &mut Loaded) -> Option<String> {
let mut bad=None;
    for (batch, seq) in [(1, 40), (3, 7), (1, 1)] {
        let inputs = ids(batch, seq);
        // The first pass of a shape may still move buffers between lengths.
        let shape = loaded.forward(&inputs).unwrap().dims().to_vec();
        loaded.forward(&inputs).unwrap();
        let count = allocations(|| loaded.forward(&inputs).unwrap());
        if count != output(&shape) {bad = Some(format!("{name}: {batch} rows of {seq} {count}"));}
    }
    let mut cache = Cache::new();
    let token = ids(1, 1);
    // A growth makes room for as many tokens again.
    for seq in [20, 1, 1, 20, 1, 1] {
        loaded.forward_with(&ids(1, seq), Some(&mut cache), None).unwrap();
    }
    let shape = loaded.forward(&token).unwrap().dims().to_vec();
    for _ in 0..4 {
        let count = allocations(|| loaded.forward_with(&token, Some(&mut cache), None).unwrap());
        if count != output(&shape) {bad = Some(format!("{name}: a token after {} {count}", cache.len()));}
    }
bad
}

// One test, so that the harness starts no other thread that allocates meanwhile.
#[test]
fn the_second_pass_of_a_shape_allocates_its_output_only() {
    let mut bad = Vec::new();
    for entry in synthetic::catalogue().iter().filter(|entry| !entry.bench) {
        let (model_type, variant) = (entry.model_type, entry.variant);
        let config = synthetic::config(model_type, variant).unwrap();
        let architecture = config["architectures"][0].as_str().unwrap();
        let decoder = architecture.ends_with("ForCausalLM") || architecture.ends_with("LMHeadModel");
        if !decoder {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        synthetic::write(model_type, variant, 0, folder.path()).unwrap();
        for dtype in [DType::F32, DType::BF16] {
            let options = Options { dtype, device: Device::Cpu, form: Form::Fused };
            let name = format!("{model_type}:{variant} {dtype:?}");
            let mut loaded = load(folder.path(), &options).unwrap();
            bad.extend(check(&name, &mut loaded));
        }
    }
    panic!("{bad:#?}");
}
