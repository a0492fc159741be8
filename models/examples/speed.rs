//! How long a pass takes in both forms, interleaved: prefill (logits of every position, no cache) and one token after
//! a cache.
//!
//! `cargo run --release --example speed -- FOLDER [dtype=f32] [threads=2] [batch=1] [tokens=128] [cached=128]
//! [rounds=10] [forms=eager,fused] [read=no] [driven=no]`. Prints the median and the least milliseconds and, of the
//! fused form by itself, its memory. With `read=yes` it also times, beside each decode, one plain read of as many bytes
//! as the fused form's weights have, below which no decode can go. With `driven=yes` it says `ready`, runs what every line on
//! stdin names (`fused decode`) and answers with a line of JSON, so that `tests/speed_torch.py` can take turns with it.

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
use models::{Cache, Form, Inputs, Loaded, Options, load};
use rayon::prelude::*;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Tokens timed after a prefill; one more goes before them, for which the cache grows.
const DECODED: usize = 8;

/// The name of the read of as many bytes as the fused form's weights have.
const PLAIN_READ: &str = "plain read";

struct Arguments {
    folder: PathBuf,
    dtype: DType,
    threads: usize,
    batch: usize,
    tokens: usize,
    cached: usize,
    rounds: usize,
    forms: Vec<Form>,
    read: bool,
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
            forms: vec![Form::Eager, Form::Fused],
            read: false,
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
                ("forms", value) => arguments.forms = value.split(',').map(form).collect::<Result<_>>()?,
                ("read", value) => arguments.read = value == "yes",
                ("driven", value) => arguments.driven = value == "yes",
                _ => return Err(format!("unknown argument {word}").into()),
            }
        }
        Ok(arguments)
    }
}

fn form(name: &str) -> Result<Form> {
    match name {
        "eager" => Ok(Form::Eager),
        "fused" => Ok(Form::Fused),
        _ => Err(format!("unknown form {name}").into()),
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
    let mut timed = Timed::load(arguments)?;
    // Warms up; a second pass of a shape moves no buffers.
    for name in timed.names() {
        timed.pass(&name)?;
    }
    if arguments.driven {
        println!("ready");
        std::io::stdout().flush()?;
        for line in std::io::stdin().lock().lines() {
            let times = timed.pass(&line?)?;
            println!("{}", serde_json::to_string(&times)?);
            std::io::stdout().flush()?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut all = BTreeMap::<String, Vec<f64>>::new();
    for _ in 0..arguments.rounds {
        for name in timed.names() {
            let times = timed.pass(&name)?;
            all.entry(name).or_default().extend(times);
        }
    }
    println!("{:<16} {:>10} {:>10}", "ms", "median", "least");
    for (name, mut samples) in all {
        samples.sort_by(f64::total_cmp);
        println!("{name:<16} {:>10.2} {:>10.2}", samples[samples.len() / 2], samples[0]);
    }
    // Beside another form the most that was resident says nothing.
    if !arguments.read
        && let [(Form::Fused, loaded)] = timed.forms.as_slice()
        && let Some((packed, buffers)) = loaded.fused_bytes()
    {
        let ratio = peak_bytes() as f64 / (packed + buffers) as f64;
        println!("{packed} bytes packed, {buffers} in buffers; at most {ratio:.3} times that resident");
    }
    Ok(ExitCode::SUCCESS)
}

/// What is timed: the forms, and as many bytes as the fused one's weights have.
struct Timed<'a> {
    arguments: &'a Arguments,
    forms: Vec<(Form, Loaded)>,
    as_large: Option<AlignedBuf<f32>>,
}

impl<'a> Timed<'a> {
    fn load(arguments: &'a Arguments) -> Result<Self> {
        let mut forms = Vec::new();
        for form in &arguments.forms {
            let options = Options { dtype: arguments.dtype, device: Device::Cpu, form: *form };
            forms.push((*form, load(&arguments.folder, &options)?));
        }
        let packed = |(_, loaded): &(Form, Loaded)| loaded.fused_bytes().map(|(packed, _)| packed);
        let packed = forms.iter().find_map(packed).filter(|_| arguments.read);
        let as_large = packed.map(|bytes| AlignedBuf::zeroed(bytes / size_of::<f32>()));
        Ok(Self { arguments, forms, as_large })
    }

    /// The names of all passes, in the order of a round: `fused prefill`.
    fn names(&self) -> Vec<String> {
        let passes = ["prefill", "decode"].into_iter();
        let of = |pass| self.forms.iter().map(move |(form, _)| format!("{form:?} {pass}").to_lowercase());
        passes.flat_map(of).chain(self.as_large.iter().map(|_| PLAIN_READ.to_owned())).collect()
    }

    /// Milliseconds of the passes of this name.
    fn pass(&mut self, name: &str) -> Result<Vec<f64>> {
        if name == PLAIN_READ {
            let as_large = self.as_large.as_deref().ok_or("no read=yes")?;
            return (0..DECODED).map(|_| timed(|| Ok(read(as_large)))).collect();
        }
        let (wanted, pass) = name.split_once(' ').ok_or_else(|| format!("{name} is no form and pass"))?;
        let wanted = form(wanted)?;
        let found = self.forms.iter_mut().find(|(form, _)| *form == wanted);
        let (_, loaded) = found.ok_or_else(|| format!("{name}: that form is not loaded"))?;
        let Arguments { batch, tokens, cached, .. } = *self.arguments;
        match pass {
            "prefill" => {
                let prompt = inputs(batch, tokens)?;
                Ok(vec![timed(|| Ok(loaded.forward(&prompt)?))?])
            }
            "decode" => {
                let (past, token) = (inputs(batch, cached)?, inputs(batch, 1)?);
                let mut cache = Cache::new();
                loaded.forward_with(&past, Some(&mut cache), None)?;
                loaded.forward_with(&token, Some(&mut cache), None)?;
                (0..DECODED)
                    .map(|_| timed(|| Ok(loaded.forward_with(&token, Some(&mut cache), None)?)))
                    .collect()
            }
            _ => Err(format!("{name} is no pass").into()),
        }
    }
}

/// Milliseconds of `pass`.
fn timed<T>(pass: impl FnOnce() -> Result<T>) -> Result<f64> {
    let start = Instant::now();
    black_box(pass()?);
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// Takes every value into account, in parts as long as those that decoding streams.
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
    values.par_chunks(96 << 10).map(part).sum()
}

/// The same ids as in `tests/speed_torch.py`.
fn inputs(batch: usize, seq: usize) -> Result<Inputs> {
    let ids: Vec<u32> = (0..(batch * seq) as u32).map(|i| i * 37 % 1000).collect();
    Ok(Inputs::new(Tensor::from_vec(ids, (batch, seq), &Device::Cpu)?))
}

/// The most memory that this process has had resident, 0 where the system does not say (`VmHWM` of Linux).
fn peak_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<usize>().ok())
        .map_or(0, |kib| kib * 1024)
}
