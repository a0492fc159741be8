//! Generates logits of N variants and compares the time of the metric matrix with one read of the files:
//!
//! `cargo run --release --example matrix_scale -- FOLDER [N] [SEQ] [VOCAB] [l2|all]`
//!
//! Existing files are reused. Prints seconds, and the peak resident set (`VmHWM`) in MiB.
#![expect(clippy::print_stdout, reason = "what it measures is its output")]

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use compare::logits::Logits;
use compare::matrix::{Entry, MetricSet, Options, matrix};
use compare::{Dtype, Positions};
use models::kernels::AlignedBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let folder = PathBuf::from(arguments.first().ok_or("give a folder for the generated files")?);
    let number = |index: usize, default: usize| arguments.get(index).map_or(Ok(default), |text| text.parse());
    let (n, seq, vocab) = (number(1, 16)?, number(2, 512)?, number(3, 49152)?);
    std::fs::create_dir_all(&folder)?;

    let mut entries = Vec::new();
    let mut paths = Vec::new();
    for index in 0..n {
        let path = folder.join(format!("logits_{index}_{seq}_{vocab}.safetensors"));
        if !path.exists() {
            generate(&path, index as u64, seq, vocab)?;
        }
        let logits = Ok(Logits::open(&path, Positions::All)?);
        entries.push(Entry { name: format!("variant_{index}"), dtype: Dtype::F32, logits });
        paths.push(path);
    }

    // At the start of a cache line: a Zen 3 copies a file to most other addresses at a fifth of the speed.
    let mut buffer = AlignedBuf::<f32>::zeroed(1 << 18);
    let buffer: &mut [u8] = bytemuck::cast_slice_mut(&mut buffer);
    for _ in 0..2 {
        let start = Instant::now();
        for path in &paths {
            let mut file = File::open(path)?;
            while file.read(buffer)? > 0 {}
        }
        println!("one read on one thread: {:.3} s", start.elapsed().as_secs_f64());
    }
    let sets = [("l2", MetricSet::L2Family), ("all", MetricSet::All)];
    for (name, metrics) in
        sets.into_iter().filter(|(name, _)| arguments.get(4).is_none_or(|only| only == name))
    {
        for _ in 0..3 {
            let start = Instant::now();
            let measured = matrix(&entries, None, &Options { metrics, ..Options::default() })?;
            let seconds = start.elapsed().as_secs_f64();
            let l2 = measured.compared(0, n - 1).map_or(f64::NAN, |pair| pair.l2);
            println!(
                "{name}: {seconds:.3} s for {} pairs (L2 of the first and last {l2:.6})",
                n * (n - 1) / 2
            );
        }
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    if let Some(kib) = peak {
        println!("VmHWM_MiB {}", kib / 1024);
    }
    Ok(())
}

/// Writes logits `[1, seq, vocab]`: a common base plus noise of 1e-5, so that pairs resemble variants of one
/// model.
fn generate(path: &Path, seed: u64, seq: usize, vocab: usize) -> std::io::Result<()> {
    let header = format!(
        r#"{{"logits":{{"dtype":"F32","shape":[1,{seq},{vocab}],"data_offsets":[0,{}]}}}}"#,
        seq * vocab * 4
    );
    let header = format!("{header:width$}", width = header.len().next_multiple_of(8));
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let (mut base, mut noise) = (Sequence(1), Sequence(seed + 2));
    for _ in 0..seq * vocab {
        file.write_all(&(8.0 * base.next() + 1e-5 * noise.next()).to_le_bytes())?;
    }
    file.flush()
}

/// Uniform in [−1, 1) from a xorshift generator.
struct Sequence(u64);

impl Sequence {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}
