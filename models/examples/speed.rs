//! How long a pass takes in both backends, interleaved: prefill (logits of every position, no cache) and one token after
//! a cache.
//!
//! `cargo run --release --example speed -- FOLDER [dtype=f32] [threads=2] [batch=1] [tokens=128] [cached=128]
//! [rounds=10] [backends=eager,fused] [decode=yes] [plain=no] [driven=no]`. Prints the median and the least milliseconds
//! and, of the fused backend by itself, its memory. With `plain=yes` it also times, beside each prefill, as many multiply-adds
//! in registers as it has of weights and rows, below which no pass in f32 can go, and beside each decode one plain read of
//! as many bytes as the fused backend's weights have. With `driven=yes` it runs one round for every line on stdin and
//! answers with a line of JSON, so that `tests/speed_torch.py` can take turns with it.

#![expect(clippy::print_stdout, reason = "a command-line program")]

use std::collections::BTreeMap;
use std::error::Error;
use std::hint::black_box;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use models::kernels::AlignedBuf;
use models::{Backend, Cache, Inputs, Loaded, Options, load};
use rayon::prelude::*;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Tokens timed after a prefill; one more goes before them, for which the cache grows.
const DECODED: usize = 8;

struct Arguments {
    folder: PathBuf,
    dtype: DType,
    threads: usize,
    batch: usize,
    tokens: usize,
    cached: usize,
    rounds: usize,
    backends: Vec<Backend>,
    decode: bool,
    plain: bool,
    driven: bool,
}

fn main() -> ExitCode {
    match Arguments::read().and_then(|arguments| run(&arguments)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

impl Arguments {
    fn read() -> Result<Self> {
        let mut words = std::env::args().skip(1);
        let folder = words.next().ok_or("which checkpoint folder?")?.into();
        let mut arguments = Self {
            folder,
            dtype: DType::F32,
            threads: 2,
            batch: 1,
            tokens: 128,
            cached: 128,
            rounds: 10,
            backends: vec![Backend::Eager, Backend::Fused],
            decode: true,
            plain: false,
            driven: false,
        };
        for word in words {
            match word.split_once('=').ok_or_else(|| format!("{word} is not key=value"))? {
                ("dtype", "f32") => arguments.dtype = DType::F32,
                ("dtype", "bf16") => arguments.dtype = DType::BF16,
                ("threads", value) => arguments.threads = value.parse()?,
                ("batch", value) => arguments.batch = value.parse()?,
                ("tokens", value) => arguments.tokens = value.parse()?,
                ("cached", value) => arguments.cached = value.parse()?,
                ("rounds", value) => arguments.rounds = value.parse()?,
                ("backends", value) => {
                    arguments.backends = value.split(',').map(backend).collect::<Result<_>>()?;
                }
                ("decode", value) => arguments.decode = value == "yes",
                ("plain", value) => arguments.plain = value == "yes",
                ("driven", value) => arguments.driven = value == "yes",
                _ => return Err(format!("unknown argument {word}").into()),
            }
        }
        Ok(arguments)
    }
}

fn backend(name: &str) -> Result<Backend> {
    match name {
        "eager" => Ok(Backend::Eager),
        "fused" => Ok(Backend::Fused),
        _ => Err(format!("unknown backend {name}").into()),
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    // candle and rayon read the number of threads from the environment, before anything else runs; the spin limit as
    // in `tfcheck run`.
    let threads = arguments.threads.to_string();
    if std::env::var("RAYON_NUM_THREADS").as_ref() != Ok(&threads) {
        let status = Command::new(std::env::current_exe()?)
            .args(std::env::args().skip(1))
            .env("RAYON_NUM_THREADS", threads)
            .env("CANDLE_BARRIER_POOL_SPIN_LIMIT", "1000")
            .status()?;
        return Ok(ExitCode::from(u8::from(!status.success())));
    }
    let mut backends = Vec::new();
    for backend in &arguments.backends {
        let options = Options { dtype: arguments.dtype, device: Device::Cpu, backend: *backend };
        backends.push((*backend, load(&arguments.folder, &options)?));
    }
    let packed = |(_, loaded): &(Backend, Loaded)| loaded.fused_bytes().map(|(packed, _)| packed);
    let packed = backends.iter().find_map(packed).filter(|_| arguments.plain);
    let as_large = packed.map(|bytes| {
        let mut weights = AlignedBuf::zeroed(bytes / size_of::<f32>());
        // Memory that was never written is one page of zeros, which stays in the cache.
        weights.fill(1.0);
        weights
    });
    let mut round = || round(arguments, &mut backends, as_large.as_deref());
    // Warms up; a second pass of a shape moves no buffers.
    round()?;
    if arguments.driven {
        println!("ready");
        for line in std::io::stdin().lock().lines() {
            line?;
            println!("{}", serde_json::to_string(&round()?)?);
            std::io::stdout().flush()?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut all = BTreeMap::<String, Vec<f64>>::new();
    for _ in 0..arguments.rounds {
        for (name, samples) in round()? {
            all.entry(name).or_default().extend(samples);
        }
    }
    println!("{:<16} {:>10} {:>10}", "ms", "median", "least");
    for (name, mut samples) in all {
        samples.sort_by(f64::total_cmp);
        println!("{name:<16} {:>10.2} {:>10.2}", samples[samples.len() / 2], samples[0]);
    }
    // Beside another backend the most that was resident means nothing.
    if !arguments.plain
        && let [(Backend::Fused, loaded)] = backends.as_slice()
        && let Some((packed, buffers)) = loaded.fused_bytes()
    {
        let ratio = peak_bytes() as f64 / (packed + buffers) as f64;
        println!("{packed} bytes packed, {buffers} in buffers; at most {ratio:.3} times that resident");
    }
    Ok(ExitCode::SUCCESS)
}

/// Milliseconds of each backend's prefill and decode, the backends taking turns, and of the plain work that goes with weights
/// `as_large` where there are any.
fn round(
    arguments: &Arguments,
    backends: &mut [(Backend, Loaded)],
    as_large: Option<&[f32]>,
) -> Result<BTreeMap<String, Vec<f64>>> {
    let mut samples = BTreeMap::new();
    let Arguments { batch, tokens, cached, .. } = *arguments;
    let (prompt, past) = (inputs(batch, tokens)?, inputs(batch, cached)?);
    for (backend, loaded) in backends.iter_mut() {
        let start = Instant::now();
        black_box(loaded.forward(&prompt)?);
        let name = format!("{backend:?} prefill").to_lowercase();
        samples.insert(name, vec![start.elapsed().as_secs_f64() * 1e3]);
    }
    if let Some(weights) = as_large {
        let values = size_of_val(weights) / arguments.dtype.size_in_bytes();
        let start = Instant::now();
        black_box(multiply_adds(values * batch * tokens));
        samples.insert("plain arithmetic".to_owned(), vec![start.elapsed().as_secs_f64() * 1e3]);
    }
    if !arguments.decode {
        return Ok(samples);
    }
    let token = inputs(batch, 1)?;
    for (backend, loaded) in backends.iter_mut() {
        let mut cache = Cache::new();
        loaded.forward_with(&past, Some(&mut cache), None)?;
        loaded.forward_with(&token, Some(&mut cache), None)?;
        let mut times = Vec::new();
        for _ in 0..DECODED {
            let start = Instant::now();
            black_box(loaded.forward_with(&token, Some(&mut cache), None)?);
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        samples.insert(format!("{backend:?} decode").to_lowercase(), times);
    }
    if let Some(as_large) = as_large {
        let times = (0..DECODED).map(|_| {
            let start = Instant::now();
            black_box(read(as_large));
            start.elapsed().as_secs_f64() * 1e3
        });
        samples.insert("plain read".to_owned(), times.collect());
    }
    Ok(samples)
}

/// So many multiply-adds of f32, in the machine's widest vectors and enough sums that none waits for the one before.
fn multiply_adds(count: usize) -> f32 {
    const SUMS: usize = 12;
    const PART: usize = 1 << 26;
    struct Sums;
    impl pulp::WithSimd for Sums {
        type Output = f32;

        #[expect(
            clippy::inline_always,
            reason = "pulp compiles it once per instruction set only where it is inlined"
        )]
        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, simd: S) -> f32 {
            let x = simd.splat_f32s(black_box(1e-9));
            let mut sums = [simd.splat_f32s(0.0); SUMS];
            for _ in 0..PART / (SUMS * S::F32_LANES) {
                for sum in &mut sums {
                    *sum = simd.mul_add_f32s(x, x, *sum);
                }
            }
            sums.into_iter().map(|sum| simd.reduce_sum_f32s(sum)).sum()
        }
    }
    let arch = pulp::Arch::new();
    (0..count.div_ceil(PART)).into_par_iter().map(|_| arch.dispatch(Sums)).sum()
}

/// Takes every value into account, in parts as long as those that decoding streams and in the machine's widest vectors.
fn read(values: &[f32]) -> f32 {
    let part = |part: &[f32]| {
        let mut sums = [0_f32; 64];
        for values in part.as_chunks::<64>().0 {
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += value;
            }
        }
        sums.iter().sum::<f32>()
    };
    let arch = pulp::Arch::new();
    values.par_chunks(96 << 10).map(|values| arch.dispatch(|| part(values))).sum()
}

/// The same ids as in `tests/speed_torch.py`.
fn inputs(batch: usize, seq: usize) -> Result<Inputs> {
    let ids: Vec<u32> = (0..(batch * seq) as u32).map(|i| i * 37 % 1000).collect();
    Ok(Inputs::new(Tensor::from_vec(ids, (batch, seq), &Device::Cpu)?))
}

/// The most memory that this process has had resident, 0 where the system does not report it (`VmHWM` of Linux).
fn peak_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<usize>().ok())
        .map_or(0, |kib| kib * 1024)
}
