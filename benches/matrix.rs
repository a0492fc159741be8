//! Benchmarks the matrix over N variants with a small vocabulary: `cargo bench --bench matrix`.

use std::hint::black_box;
use std::path::Path;

use compare::logits::Logits;
use compare::matrix::{Entry, MetricSet, Options, matrix};
use compare::{Dtype, Positions};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use reference::protocol::LOGITS;
use safetensors::tensor::TensorView;

const SEQ: usize = 64;
const VOCAB: usize = 8192;

fn write(path: &Path, seed: u32) {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    let bytes: Vec<u8> = (0..SEQ * VOCAB)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            ((state as f32 / u32::MAX as f32) * 20.0 - 10.0).to_le_bytes()
        })
        .collect();
    let view = TensorView::new(safetensors::Dtype::F32, vec![1, SEQ, VOCAB], &bytes)
        .expect("the bytes fill the shape");
    safetensors::serialize_to_file([(LOGITS, view)], None, path).expect("the temporary folder is writable");
}

fn scale(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut group = criterion.benchmark_group("matrix");
    group.sample_size(10);
    for n in [4, 16, 64] {
        let entries: Vec<Entry> = (0..n)
            .map(|index| {
                let path = folder.path().join(format!("{index}.safetensors"));
                write(&path, index + 1);
                let logits = Logits::open(&path, Positions::All).map_err(|error| error.to_string());
                Entry { name: index.to_string(), dtype: Dtype::F32, logits }
            })
            .collect();
        group.throughput(Throughput::Bytes(u64::from(n) * (SEQ * VOCAB * 4) as u64));
        for (name, metrics) in [("l2_family", MetricSet::L2Family), ("all", MetricSet::All)] {
            let options = Options { metrics, ..Options::default() };
            group.bench_with_input(BenchmarkId::new(name, n), &entries, |bencher, entries| {
                bencher.iter(|| black_box(matrix(entries, None, &options).expect("the files are readable")));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, scale);
criterion_main!(benches);
