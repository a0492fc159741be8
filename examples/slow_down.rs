//! Measures how often a slow-down of 5 % is detected, and how often one is reported without a slow-down.
//!
//! `cargo run --release --example slow_down [RUNS]`, with nothing else running. Two variants run the same
//! fixed work (a loop of small matrix products, about 25 ms); one does 5 % more of it. An ordinary run times
//! them: separate worker processes, interleaved rounds, the gate `p50>3%`. First both variants are in one
//! run, then one variant is compared with a baseline saved from an earlier run. 10 runs take about three
//! minutes on a quiet machine; on a loaded machine the run waits for a quiet one.

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use miette::{IntoDiagnostic, Result, miette};
use reference::protocol::{Failed, Forward, Forwarded, LOGITS, Load, Positions, Ready, Trace};
use safetensors::tensor::TensorView;
use tfcheck::commands::run::{Destination, RunRequest, run};
use tfcheck::execute::progress::Progress;
use tfcheck::execute::worker::{Engine, run as serve};
use tfcheck::judge::baseline;
use tfcheck::judge::exit_code::ExitCode;
use tfcheck::results;
use tfcheck::spec::config::Config;
use tfcheck::spec::plan::Plan;

/// Shape of the inputs and logits, all zeros: batch size, sequence length, logits per position.
const SHAPE: [usize; 3] = [1, 12, 8];
/// Side of the matrices.
const SIDE: usize = 96;
/// Units of work per forward pass; the slower variant does 5 % more.
const UNITS: usize = 100;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("worker") => {
            let number = |text: Option<String>| text.and_then(|text| text.parse().ok()).unwrap_or(1);
            let (units, repeats) = (number(arguments.next()), number(arguments.next()));
            serve(&mut Work { units, repeats, ..Work::default() }).into_diagnostic()
        }
        Some(runs) => measure(runs.parse().into_diagnostic()?),
        None => measure(10),
    }
}

fn measure(runs: usize) -> Result<()> {
    let repeats = calibrated();
    // One results folder, so that its history has the calibration loop's best time.
    let results = tempfile::tempdir().into_diagnostic()?;
    println!("{UNITS} units of {repeats} products of {SIDE} by {SIDE} a pass");
    let ways: [(&str, Way); 2] = [("side by side", side_by_side), ("against a baseline", against_a_baseline)];
    for (way, is_called) in ways {
        for (units, what) in [(UNITS + UNITS / 20, "5 % slower"), (UNITS, "equal")] {
            let mut called = 0;
            for run in 1..=runs {
                let start = Instant::now();
                let found = is_called(results.path(), units, repeats)?;
                called += usize::from(found);
                let word = if found { "called" } else { "not called" };
                println!("{way}, {what}, run {run}: {word} ({:.0} s)", start.elapsed().as_secs_f64());
            }
            println!("{way}, {what}: a slow-down is called in {called} of {runs} runs");
        }
    }
    Ok(())
}

/// Whether a slow-down is reported for a variant that does this many units.
type Way = fn(&Path, usize, usize) -> Result<bool>;

/// Both variants in one run.
fn side_by_side(results: &Path, units: usize, repeats: usize) -> Result<bool> {
    let finished = once(results, &[("one", UNITS), ("two", units)], repeats, "baseline = \"one_eager\"")?;
    Ok(finished == ExitCode::Diverged)
}

/// One variant, saved as a baseline, and the same variant with `units` units in a later run.
fn against_a_baseline(results: &Path, units: usize, repeats: usize) -> Result<bool> {
    once(results, &[("one", UNITS)], repeats, "")?;
    baseline::save(results, "before", None)?;
    Ok(once(results, &[("one", units)], repeats, "against = \"before\"")? == ExitCode::Diverged)
}

/// One run of these variants below `results`.
fn once(results: &Path, variants: &[(&str, usize)], repeats: usize, more: &str) -> Result<ExitCode> {
    let program = std::env::current_exe().into_diagnostic()?;
    let mut text = String::from(
        "versions = []\n[[checkpoints]]\nsource = \"synthetic:llama:tiny\"\n[inputs]\nlengths = [12]\n[candle]\nmodes = []\n",
    );
    text.extend(variants.iter().map(|(name, units)| {
        let program =
            format!("[{:?}, \"worker\", \"{units}\", \"{repeats}\"]", program.display().to_string());
        format!("[[commands]]\nname = \"{name}\"\nprogram = {program}\n")
    }));
    text.extend([
        "[run]\nfail_on = [\"p50>3%\"]\nwarm_up = 2\niterations = 1\nrounds = 30\npatience_s = 20\ntrace = false\nthreads = 1\n",
        more,
    ]);
    let config = Config::parse(&text, Path::new("tfcheck.toml"))?;
    let plan = Plan::new(&config, "cpu")?;
    let request = RunRequest {
        config: &config,
        text: &text,
        plan: &plan,
        cache: &results.join("cache"),
        clean: false,
        localize: false,
        stop: &Arc::new(AtomicBool::new(false)),
        progress: &Progress::new(true).without_results(),
        turn: None,
        sharing: None,
    };
    let finished = run(&request, Destination::New(results.to_owned()))?;
    match finished.code {
        ExitCode::Agree | ExitCode::Diverged => Ok(finished.code),
        other => Err(miette!("the run in {} ended with {other:?}", finished.folder.display())),
    }
}

/// Matrix products per unit, so that a forward pass takes about 25 ms on this machine.
fn calibrated() -> usize {
    let mut work = Work { units: UNITS, repeats: 1, ..Work::default() };
    let pass = |work: &mut Work| {
        let start = Instant::now();
        work.work();
        start.elapsed().as_secs_f64()
    };
    let fastest = (0..20).map(|_| pass(&mut work)).fold(f64::INFINITY, f64::min);
    ((0.025 / fastest).round() as usize).max(1)
}

/// A worker whose forward pass is a fixed amount of arithmetic.
struct Work {
    units: usize,
    repeats: usize,
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
}

impl Default for Work {
    fn default() -> Self {
        let matrix = |seed: usize| (0..SIDE * SIDE).map(|i| ((i * seed) % 13) as f32 * 0.01 - 0.06).collect();
        Self { units: 1, repeats: 1, a: matrix(7), b: matrix(11), c: vec![0.0; SIDE * SIDE] }
    }
}

impl Work {
    fn work(&mut self) {
        for _ in 0..self.units * self.repeats {
            for (row, out) in self.a.chunks_exact(SIDE).zip(self.c.chunks_exact_mut(SIDE)) {
                for (&x, b) in row.iter().zip(self.b.chunks_exact(SIDE)) {
                    out.iter_mut().zip(b).for_each(|(out, &b)| *out += x * b);
                }
            }
            // Keeps the values finite, and prevents the compiler from folding the loop.
            for x in std::hint::black_box(&mut self.c) {
                *x *= 0.5;
            }
        }
    }
}

impl Engine for Work {
    fn load(&mut self, _: &Load) -> Result<Ready, Failed> {
        Ok(Ready::default())
    }

    fn forward(&mut self, forward: &Forward) -> Result<Forwarded, Failed> {
        let zeros = vec![0; 4 * SHAPE.iter().product::<usize>()];
        let failed = |error: String| tfcheck::execute::worker::exception(error);
        let view = TensorView::new(safetensors::Dtype::F32, SHAPE.to_vec(), &zeros);
        let file = view.and_then(|view| safetensors::serialize([(LOGITS, view)], None));
        let file = file.map_err(|error| failed(error.to_string()))?;
        results::write_file(&forward.logits, &file).map_err(|error| failed(error.to_string()))?;
        Ok(Forwarded {
            elapsed_ns: 1,
            shape: SHAPE.to_vec(),
            prefill: None,
            chunks: Vec::new(),
            positions: Positions::All,
            peak_bytes: None,
            outputs: Vec::new(),
            graphs: None,
            notes: Vec::new(),
        })
    }

    fn pass(&mut self) -> Result<(), Failed> {
        self.work();
        Ok(())
    }

    fn decode(&mut self, _: usize) -> Result<Vec<u64>, Failed> {
        Ok(Vec::new())
    }

    fn trace(&mut self, _: &Trace) -> Result<(), Failed> {
        Err(tfcheck::execute::worker::exception("this work has no trace"))
    }
}
