//! How exact both backends are in f32 on sequences of several lengths, next to torch.
//!
//! `cargo run --release --example lengths -- CHECKPOINT FOLDER [NAME...]`, on the files that `tests/lengths.py` wrote.
//! Prints the RMSE against float64 over all positions and over the first position of each row, of torch and of both
//! backends, and each backend's as a multiple of torch's.

#![expect(clippy::print_stdout, reason = "a command-line program")]

use std::collections::HashMap;
use std::path::Path;
use std::process::ExitCode;

use candle_core::{DType, Device, Tensor};
use models::{Backend, Inputs, Loaded, Options, load};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// `tests/lengths.py` writes the logits of every 16th token of the vocabulary.
const STRIDE: usize = 16;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [checkpoint, folder, names @ ..] = words.as_slice() else {
        eprintln!("which checkpoint and which folder?");
        return ExitCode::from(2);
    };
    match run(Path::new(checkpoint), Path::new(folder), names) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn run(checkpoint: &Path, folder: &Path, names: &[String]) -> Result<()> {
    let options = |backend| Options { dtype: DType::F32, device: Device::Cpu, backend };
    let mut eager = load(checkpoint, &options(Backend::Eager))?;
    let mut fused = load(checkpoint, &options(Backend::Fused))?;
    println!(
        "RMSE of torch, eager and fused over all draws; geometric mean of eager / torch and fused / torch by draw"
    );
    println!("{:<8} {:>3}  {:<45}  first position", "", "", "all positions");
    for name in if names.is_empty() { all(folder)? } else { names.to_vec() } {
        let case = candle_core::safetensors::load(folder.join(format!("{name}.safetensors")), &Device::Cpu)?;
        let batch = shape(&name).0;
        let torch = errors(&case["f32"], &case, batch)?;
        let eager = errors(&logits(&mut eager, &case, batch)?, &case, batch)?;
        let fused = errors(&logits(&mut fused, &case, batch)?, &case, batch)?;
        print!("{name:<8} {:>3}", torch[0].len());
        for i in 0..2 {
            let [torch, eager, fused] = [&torch[i], &eager[i], &fused[i]];
            print!("  {:>9.2e} {:>9.2e} {:>9.2e}", pooled(torch), pooled(eager), pooled(fused));
            print!(" {:>6.2} {:>6.2}", ratio(eager, torch), ratio(fused, torch));
        }
        println!();
    }
    Ok(())
}

fn pooled(errors: &[f64]) -> f64 {
    (errors.iter().map(|error| error * error).sum::<f64>() / errors.len() as f64).sqrt()
}

fn ratio(errors: &[f64], others: &[f64]) -> f64 {
    let logs = errors.iter().zip(others).map(|(error, other)| (error / other).ln());
    (logs.sum::<f64>() / errors.len() as f64).exp()
}

/// Batch size and length of `BATCHxLENGTH`.
fn shape(name: &str) -> (usize, usize) {
    let number = |text: &str| text.parse().unwrap_or(usize::MAX);
    name.split_once('x').map_or((usize::MAX, usize::MAX), |(batch, length)| (number(batch), number(length)))
}

/// The names of the cases, by batch size and length.
fn all(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".safetensors").map(ToOwned::to_owned));
    }
    names.sort_by_key(|name| shape(name));
    Ok(names)
}

/// The logits that the case has, `[draws * batch, length, vocab_size / 16]`, computed `batch` rows at a time.
fn logits(loaded: &mut Loaded, case: &HashMap<String, Tensor>, batch: usize) -> Result<Tensor> {
    let every = Tensor::from_iter((0..case["f32"].dim(2)?).map(|i| (i * STRIDE) as u32), &Device::Cpu)?;
    let mut parts = Vec::new();
    for first in (0..case["input_ids"].dim(0)?).step_by(batch) {
        let ids = case["input_ids"].narrow(0, first, batch)?;
        parts.push(loaded.forward(&Inputs::new(ids))?.index_select(&every, 2)?);
    }
    Ok(Tensor::cat(&parts, 0)?)
}

/// RMSE of each draw over all positions, and over the first of each row.
fn errors(logits: &Tensor, case: &HashMap<String, Tensor>, batch: usize) -> Result<[Vec<f64>; 2]> {
    let squares = (logits.to_dtype(DType::F64)? - &case["f64"])?.sqr()?;
    let by_draw = |squares: &Tensor| -> Result<Vec<f64>> {
        let rows = squares.mean((1, 2))?.to_vec1::<f64>()?;
        Ok(rows.chunks(batch).map(|rows| (rows.iter().sum::<f64>() / rows.len() as f64).sqrt()).collect())
    };
    Ok([by_draw(&squares)?, by_draw(&squares.narrow(1, 0, 1)?)?])
}
