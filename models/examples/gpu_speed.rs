//! How long each kernel of the fused path takes on a GPU, and each pass of a synthetic llama, in bf16.
//!
//! `cargo run --release --example gpu_speed -- [shape=smollm2-135m,3b] [rows=1,128,512,2048] [passes=yes] [overlap=yes]`
//!
//! A kernel is recorded many times in a row over as many weights as do not fit into the device's cache, as a pass reads
//! them; its time is that of the recording by its number, the gap between two launches included. Bytes are those that
//! must move once, operations those of the product.

#![expect(clippy::print_stdout, reason = "a command-line program")]

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use models::cuda::driver::{Driver, Setting};
use models::cuda::kernels::{
    Activation, Attention, CacheRegions, Gate, Gemv, GemvEpilogue, Norm, NormForm, PassState, QkvLayout,
    RopeIntoCache, RopeTables, RowNorm,
};
use models::cuda::{Dtype, Gpu, MatMul, Region, matmul};
use models::synthetic::write;
use models::{Cache, Inputs, load_on_gpu};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const DTYPE: Dtype = Dtype::Bf16;
/// More than any device's second-level cache.
const UNCACHED_BYTES: usize = 160 << 20;
/// Launches of a recording.
const LAUNCHES: usize = 60;
const REPEATS: usize = 7;
/// Tokens in the cache that a decode reads.
const PAST: usize = 128;
const DECODED: usize = 30;

/// A llama's layer.
struct Shape {
    name: &'static str,
    hidden: usize,
    intermediate: usize,
    q_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab: usize,
}

const SHAPES: [Shape; 2] = [
    Shape {
        name: "smollm2-135m",
        hidden: 576,
        intermediate: 1536,
        q_heads: 9,
        kv_heads: 3,
        head_dim: 64,
        vocab: 49152,
    },
    Shape {
        name: "3b",
        hidden: 3072,
        intermediate: 8192,
        q_heads: 24,
        kv_heads: 8,
        head_dim: 128,
        vocab: 128_256,
    },
];

fn main() -> Result<()> {
    let (mut shapes, mut rows) = ("smollm2-135m,3b".to_owned(), "1,128,512,2048".to_owned());
    let (mut passes, mut is_serial) = (true, false);
    for word in std::env::args().skip(1) {
        match word.split_once('=') {
            Some(("shape", value)) => value.clone_into(&mut shapes),
            Some(("rows", value)) => value.clone_into(&mut rows),
            Some(("passes", value)) => passes = value == "yes",
            Some(("overlap", value)) => is_serial = value == "no",
            _ => return Err(format!("{word} is not an option").into()),
        }
    }
    let driver = Driver::open(0, &Setting { is_serial, ..Setting::default() })?;
    println!("{}", driver.description().name);
    for shape in SHAPES.iter().filter(|shape| shapes.split(',').any(|name| name == shape.name)) {
        for rows in rows.split(',') {
            println!("\n{} {rows} rows\n{:<34}{:>10}{:>10}{:>10}", shape.name, "", "us", "GB/s", "TFLOP/s");
            let bench = Bench::new(&driver, shape, rows.parse()?)?;
            if bench.rows <= 8 { bench.few()? } else { bench.many()? }
        }
        if passes {
            run_passes(&driver, shape, &rows)?;
        }
    }
    Ok(())
}

/// A shape, its rows and buffers that every kernel shares.
struct Bench<'a> {
    driver: &'a Arc<Driver>,
    gpu: Arc<dyn Gpu>,
    shape: &'a Shape,
    rows: usize,
    layout: QkvLayout,
    xs: Region,
    ys: Region,
    norm: Region,
    keys: Region,
    values: Region,
    first_slot: Region,
    ranges: Region,
    table: Region,
    positions: Region,
    scratch: Region,
    capacity: usize,
}

impl<'a> Bench<'a> {
    fn new(driver: &'a Arc<Driver>, shape: &'a Shape, rows: usize) -> Result<Self> {
        let gpu: Arc<dyn Gpu> = driver.clone();
        let layout = QkvLayout::joined(shape.q_heads, shape.kv_heads, shape.head_dim);
        let past = if rows == 1 { PAST } else { 0 };
        let capacity = past + rows.max(PAST);
        let widest = (2 * shape.intermediate).max(layout.row).max(if rows == 1 { shape.vocab } else { 0 });
        let cache = shape.kv_heads * capacity * shape.head_dim;
        let scratch = Attention::scratch_len(&*gpu, 1, rows, layout, capacity).max(1);
        let positions: Vec<u32> = (past..past + rows).map(|slot| slot as u32).collect();
        Ok(Self {
            xs: noise(&gpu, rows * widest)?,
            ys: noise(&gpu, rows * widest)?,
            norm: Region::of(&gpu, &vec![1.0_f32; shape.hidden])?,
            keys: noise(&gpu, cache)?,
            values: noise(&gpu, cache)?,
            first_slot: Region::of(&gpu, &[past as i32])?,
            ranges: Region::of(&gpu, &[0, (past + rows) as i32])?,
            table: Region::of(&gpu, &vec![0.5_f32; (past + rows) * shape.head_dim / 2])?,
            positions: Region::of(&gpu, &positions)?,
            scratch: Region::room(&gpu, Dtype::F32, scratch)?,
            gpu,
            driver,
            shape,
            rows,
            layout,
            capacity,
        })
    }

    /// What a pass of a few rows launches in each layer.
    fn few(&self) -> Result<()> {
        let &Shape { hidden, intermediate, vocab, .. } = self.shape;
        let mixed = self.shape.q_heads * self.shape.head_dim;
        self.gemv("qkv, normed", self.layout.row, hidden, GemvEpilogue::Store, true)?;
        self.rope()?;
        self.attention()?;
        self.gemv("o_proj, added", hidden, mixed, GemvEpilogue::Add(1.0), false)?;
        self.gemv("gate and up, normed", intermediate, hidden, GemvEpilogue::Gate(Activation::Silu), true)?;
        self.gemv("down_proj, added", hidden, intermediate, GemvEpilogue::Add(1.0), false)?;
        self.gemv("lm_head, normed", vocab, hidden, GemvEpilogue::Store, true)
    }

    /// What a pass of many rows launches in each layer.
    fn many(&self) -> Result<()> {
        let &Shape { hidden, intermediate, vocab, .. } = self.shape;
        let mixed = self.shape.q_heads * self.shape.head_dim;
        self.norm()?;
        self.product("qkv", self.layout.row, hidden, 0.0)?;
        self.rope()?;
        self.attention()?;
        self.product("o_proj, added", hidden, mixed, 1.0)?;
        self.product("gate and up", 2 * intermediate, hidden, 0.0)?;
        self.gate()?;
        self.product("down_proj, added", hidden, intermediate, 1.0)?;
        self.product("lm_head", vocab, hidden, 0.0)
    }

    /// Times `launch`, which is given its turn.
    fn say(&self, name: &str, bytes: usize, flops: f64, launch: &dyn Fn(usize) -> Result<()>) -> Result<()> {
        launch(0)?;
        self.driver.synchronize()?;
        let mut failed = None;
        let graph = self.driver.record(&mut || {
            for turn in 0..LAUNCHES {
                if let Err(error) = launch(turn) {
                    failed = Some(error.to_string());
                    break;
                }
            }
            Ok(())
        })?;
        if let Some(failed) = failed {
            return Err(failed.into());
        }
        let mut seconds = Vec::new();
        for _ in 0..REPEATS {
            seconds.push(self.driver.time(&mut || graph.replay())?.as_secs_f64() / LAUNCHES as f64);
        }
        seconds.sort_by(f64::total_cmp);
        let median = seconds[REPEATS / 2];
        let (rate, work) = (bytes as f64 / median * 1e-9, flops / median * 1e-12);
        println!("{name:<34}{:>10.2}{rate:>10.0}{work:>10.1}", median * 1e6);
        Ok(())
    }

    /// As many weights as the cache does not hold, or as there are turns.
    fn weights(&self, n: usize, k: usize) -> Result<Vec<Region>> {
        let count = UNCACHED_BYTES.div_ceil(n * k * DTYPE.size()).min(LAUNCHES);
        (0..count).map(|_| noise(&self.gpu, n * k)).collect()
    }

    fn gemv(&self, name: &str, n: usize, k: usize, epilogue: GemvEpilogue, norm: bool) -> Result<()> {
        let columns = if matches!(epilogue, GemvEpilogue::Gate(_)) { 2 * n } else { n };
        let weights = self.weights(columns, k)?;
        let flops = 2.0 * (self.rows * columns * k) as f64;
        self.say(name, columns * k * DTYPE.size(), flops, &|turn| {
            let gemv = Gemv {
                dtype: DTYPE,
                out_dtype: DTYPE,
                rows: self.rows,
                n,
                k,
                xs: &self.xs,
                xs_row: k,
                weight: &weights[turn % weights.len()],
                bias: None,
                norm: norm.then_some(RowNorm {
                    weight: Some(&self.norm),
                    bias: None,
                    centred: false,
                    eps: 1e-5,
                }),
                epilogue,
                out: &self.ys,
                out_row: n,
            };
            Ok(gemv.launch()?)
        })
    }

    fn product(&self, name: &str, n: usize, k: usize, beta: f32) -> Result<()> {
        let weights = self.weights(n, k)?;
        let out = Region::room(&self.gpu, DTYPE, self.rows * n)?;
        out.zero()?;
        let bytes = (n * k + self.rows * (n + k)) * DTYPE.size();
        let spec = MatMul {
            m: self.rows,
            n,
            k,
            xs_row: k,
            out_row: n,
            dtype: DTYPE,
            out_dtype: DTYPE,
            alpha: 1.0,
            beta,
        };
        self.say(name, bytes, 2.0 * (self.rows * n * k) as f64, &|turn| {
            Ok(matmul(&spec, &self.xs, &weights[turn % weights.len()], None, &out)?)
        })
    }

    fn cache(&self) -> CacheRegions<'_> {
        CacheRegions { keys: &self.keys, values: &self.values, capacity: self.capacity }
    }

    fn state(&self) -> PassState<'_> {
        PassState { first_slot: &self.first_slot, keys: &self.ranges, visible: None }
    }

    fn rope(&self) -> Result<()> {
        let bytes = 2 * self.rows * self.layout.row * DTYPE.size();
        self.say("rope, cache", bytes, 0.0, &|_| {
            let rope = RopeIntoCache {
                dtype: DTYPE,
                batch: 1,
                tokens: self.rows,
                qkv: &self.xs,
                layout: self.layout,
                cache: self.cache(),
                state: self.state(),
                rope: Some(RopeTables {
                    cos: &self.table,
                    sin: &self.table,
                    rows: self.ranges_end(),
                    pairs: self.shape.head_dim / 2,
                    interleaved: false,
                    positions: &self.positions,
                }),
                q_norm: None,
                k_norm: None,
            };
            Ok(rope.launch()?)
        })
    }

    fn ranges_end(&self) -> usize {
        self.rows + if self.rows == 1 { PAST } else { 0 }
    }

    fn attention(&self) -> Result<()> {
        let &Shape { q_heads, kv_heads, head_dim, .. } = self.shape;
        let keys = self.ranges_end();
        let bytes = (2 * keys * kv_heads + 2 * self.rows * q_heads) * head_dim * DTYPE.size();
        let pairs = if self.rows == 1 { keys as f64 } else { 0.5 * (keys * keys) as f64 };
        let flops = 4.0 * pairs * (q_heads * head_dim) as f64;
        self.say("attention", bytes, flops, &|_| {
            let attention = Attention {
                dtype: DTYPE,
                batch: 1,
                tokens: self.rows,
                layout: self.layout,
                qkv: &self.xs,
                turn: None,
                cache: self.cache(),
                state: self.state(),
                bias: None,
                scale: 1.0 / (head_dim as f32).sqrt(),
                soft_cap: None,
                before: None,
                after: Some(0),
                out: &self.ys,
                scratch: Some(&self.scratch),
            };
            Ok(attention.launch()?)
        })
    }

    fn norm(&self) -> Result<()> {
        let hidden = self.shape.hidden;
        self.say("norm", 2 * self.rows * hidden * DTYPE.size(), 0.0, &|_| {
            let norm = Norm {
                dtype: DTYPE,
                form: NormForm::Norm,
                centred: false,
                eps: 1e-5,
                rows: self.rows,
                heads: 1,
                size: hidden,
                xs: &self.xs,
                xs_row: hidden,
                residual: None,
                weight: Some(&self.norm),
                weight_per_head: false,
                bias: None,
                out: &self.ys,
                out_row: hidden,
            };
            Ok(norm.launch()?)
        })
    }

    fn gate(&self) -> Result<()> {
        let n = self.shape.intermediate;
        self.say("gate", 3 * self.rows * n * DTYPE.size(), 0.0, &|_| {
            let gate = Gate {
                dtype: DTYPE,
                activation: Activation::Silu,
                rows: self.rows,
                n,
                xs: &self.xs,
                xs_row: 2 * n,
                up_first: n,
                out: &self.ys,
                out_row: n,
            };
            Ok(gate.launch()?)
        })
    }
}

/// Numbers that no product meets with zeros.
fn noise(gpu: &Arc<dyn Gpu>, len: usize) -> Result<Region> {
    let mut state = 1_u32;
    let values: Vec<half::bf16> = (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            half::bf16::from_f32((state >> 8) as f32 * (1.0 / (1 << 23) as f32) - 1.0)
        })
        .collect();
    Ok(Region::of(gpu, &values)?)
}

/// Whole passes: by the device's events, and by the clock, from an idle device to an idle device.
fn run_passes(driver: &Arc<Driver>, shape: &Shape, rows: &str) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("tfcheck-gpu-speed-{}", shape.name));
    if !folder.join("config.json").is_file() {
        write("llama", shape.name, 0, &folder)?;
    }
    let mut loaded = load_on_gpu(&folder, DType::BF16, driver.clone())?;
    println!("\n{} passes\n{:<34}{:>10}{:>10}", shape.name, "", "events us", "clock us");
    let time = |name: &str, body: &mut dyn FnMut() -> Result<()>| -> Result<()> {
        let (mut events, mut clock) = (Vec::new(), Vec::new());
        for _ in 0..DECODED {
            let start = Instant::now();
            let mut failed = Ok(());
            let took = driver.time(&mut || {
                failed = body();
                Ok(())
            })?;
            failed?;
            clock.push(start.elapsed().as_secs_f64() * 1e6);
            events.push(took.as_secs_f64() * 1e6);
        }
        for times in [&mut events, &mut clock] {
            times.drain(..5);
            times.sort_by(f64::total_cmp);
        }
        println!("{name:<34}{:>10.1}{:>10.1}", events[events.len() / 2], clock[clock.len() / 2]);
        Ok(())
    };
    for tokens in rows.split(',') {
        let tokens: usize = tokens.parse()?;
        if tokens == 1 {
            let mut cache = Cache::new();
            loaded.run(&inputs(0..PAST)?, Some(&mut cache), None)?;
            let mut past = PAST;
            time("decode", &mut || {
                loaded.run(&inputs(past..past + 1)?, Some(&mut cache), None)?;
                past += 1;
                Ok(())
            })?;
        } else {
            let inputs = inputs(0..tokens)?;
            time(&format!("prefill {tokens}"), &mut || Ok(loaded.run(&inputs, None, None).map(drop)?))?;
        }
    }
    Ok(())
}

fn inputs(positions: std::ops::Range<usize>) -> Result<Inputs> {
    let ids: Vec<u32> = positions.clone().map(|at| (at * 37 % 1000) as u32).collect();
    let positions: Vec<i64> = positions.map(|at| at as i64).collect();
    Ok(Inputs {
        position_ids: Some(Tensor::new(positions, &Device::Cpu)?.unsqueeze(0)?),
        ..Inputs::new(Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?)
    })
}
