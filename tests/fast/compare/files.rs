//! Writes logits files for tests and generates values for them.

use std::path::Path;

use compare::logits::Logits;
use compare::mask::Mask;
use compare::matrix::{Entry, Matrix, Options, matrix};
use compare::metrics::PairMetrics;
use compare::{Dtype, Positions};
use reference::protocol::LOGITS;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

/// The logits files of a test and the entries that describe them.
pub(crate) struct Files {
    folder: TempDir,
    pub(crate) entries: Vec<Entry>,
}

impl Files {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), entries: Vec::new() }
    }

    pub(crate) fn add(&mut self, name: &str, dtype: Dtype, shape: [usize; 3], values: &[f64]) -> &mut Self {
        let positions = if shape[1] == 1 { Positions::Last } else { Positions::All };
        let path = self.folder.path().join(format!("{name}.safetensors"));
        write(&path, dtype, shape, values);
        let logits = Logits::open(&path, positions).map_err(|error| error.to_string());
        self.entries.push(Entry { name: name.to_owned(), dtype, logits });
        self
    }

    pub(crate) fn matrix(&self, mask: Option<&Mask>) -> Matrix {
        matrix(&self.entries, mask, &Options::default()).unwrap()
    }
}

/// Writes logits as a worker does: f64 for a float64 variant, otherwise f32.
pub(crate) fn write(path: &Path, dtype: Dtype, shape: [usize; 3], values: &[f64]) {
    let (stored, bytes): (_, Vec<u8>) = match dtype {
        Dtype::F64 => (safetensors::Dtype::F64, values.iter().flat_map(|x| x.to_le_bytes()).collect()),
        _ => (safetensors::Dtype::F32, values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect()),
    };
    let view = TensorView::new(stored, shape.to_vec(), &bytes).unwrap();
    safetensors::serialize_to_file([(LOGITS, view)], None, path).unwrap();
}

pub(crate) fn pair(matrix: &Matrix, a: usize, b: usize) -> &PairMetrics {
    matrix.compared(a, b).unwrap_or_else(|| panic!("pair ({a}, {b}): {:?}", matrix.pair(a, b)))
}

/// A reproducible sequence in [−1, 1).
pub(crate) fn noise(seed: u64, n: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
        })
        .collect()
}

pub(crate) fn added(a: &[f64], b: &[f64], factor: f64) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + factor * b).collect()
}

pub(crate) fn bf16(values: &[f64]) -> Vec<f64> {
    values.iter().map(|&x| half::bf16::from_f64(x).to_f64()).collect()
}
