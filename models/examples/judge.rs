//! Judges checkpoint folders against what transformers computed for them.
//!
//! `cargo run --release --example judge -- FOLDER...`. A folder holds a checkpoint, `inputs_<name>.safetensors`
//! (`input_ids`, `attention_mask`, `position_ids` and what else the model takes) and `logits_<name>.<dtype>.safetensors` as `tests/truths.py`
//! writes them, the f64 ones exact. Every figure is a relative L2 against the f64 truth over the positions that are
//! no padding: ours, torch's own in that dtype, and ours at the worst position. Decoders are also run through a
//! cache, in chunks of 7 and token by token, and in f32 and bf16 every model in the fused backend too. A table of each
//! checkpoint's largest figures ends it. Exits with 1 if a bound is broken or a tensor stays unread.
//!
//! The 16-bit bound is a ratio of two rounding errors. Where a folder has `inputs_many`, because a classifier gives two
//! or three numbers a row or a router's near-tie moves a whole token, it is asked of those 64 rows, and the ratios of
//! the few rows are shown without a verdict.

#![expect(clippy::print_stdout, reason = "a command-line program")]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use candle_core::{DType, Device, IndexOp, Tensor};
use models::{Backend, Cache, Error, Inputs, Loaded, Options, kind_of, load};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Limits of native models.
const F64_BOUND: f64 = 1e-12;
const F32_BOUND: f64 = 5e-6;
const OF_TORCH: f64 = 1.5;
/// The inputs that a 16-bit bound is asked of, where there are such.
const MANY: &str = "many";

const RUNS: [(&str, DType, Backend); 6] = [
    ("f64", DType::F64, Backend::Eager),
    ("f32", DType::F32, Backend::Eager),
    ("f32", DType::F32, Backend::Fused),
    ("bf16", DType::BF16, Backend::Eager),
    ("bf16", DType::BF16, Backend::Fused),
    ("f16", DType::F16, Backend::Eager),
];

fn main() -> ExitCode {
    let mut failed = 0;
    let mut summary = Summary::default();
    println!(
        "{:<28} {:<12} {:<5} {:>9} {:>9} {:>6}  {:<18} verdict",
        "checkpoint", "inputs", "dtype", "ours", "torch", "ratio", "worst [row, seq]"
    );
    for folder in std::env::args().skip(1) {
        match judge(Path::new(&folder), &mut summary) {
            Ok(broken) => failed += broken,
            Err(error) => {
                println!("{folder}: {error}");
                failed += 1;
            }
        }
    }
    println!("{failed} failed\n\n{}", summary.markdown());
    ExitCode::from(u8::from(failed > 0))
}

/// How many bounds a folder breaks.
fn judge(folder: &Path, summary: &mut Summary) -> Result<usize> {
    let config = std::fs::read_to_string(folder.join("config.json"))?;
    let config: serde_json::Value = serde_json::from_str(&config)?;
    let architecture = config["architectures"][0].as_str().unwrap_or_default();
    let decoder = architecture.ends_with("ForCausalLM") || architecture.ends_with("LMHeadModel");
    let kind = kind_of(&config);
    let decodes =
        decoder || kind.is_some_and(|kind| kind.follows_decoder() || kind == models::Kind::ImageTextDecoder);
    let case = Case {
        name: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        folder: folder.to_owned(),
        decoder,
    };
    let mut broken = 0;
    for (dtype_name, dtype, backend) in RUNS {
        if !case.truth("b1", dtype_name).exists() {
            continue;
        }
        let mut loaded = load(folder, &Options { dtype, device: Device::Cpu, backend })?;
        if dtype == DType::F64 {
            broken += usize::from(!loaded.unread_tensors.is_empty());
            for unread in loaded.unread_keys.iter().chain(&loaded.unread_tensors) {
                println!("{:<28} unread: {unread}", case.name);
            }
        }
        for inputs in case.inputs_names()? {
            let label = if backend == Backend::Fused { format!("{inputs} fused") } else { inputs.clone() };
            broken += usize::from(!case.row(&mut loaded, &inputs, &label, dtype_name, None, summary)?);
            if dtype == DType::F64 && decodes {
                for chunk in [7, 1] {
                    let label = format!("{inputs} by {chunk}");
                    let kept = case.row(&mut loaded, &inputs, &label, dtype_name, Some(chunk), summary)?;
                    broken += usize::from(!kept);
                }
            }
        }
    }
    Ok(broken)
}

struct Case {
    name: String,
    folder: PathBuf,
    decoder: bool,
}

impl Case {
    fn truth(&self, inputs: &str, dtype: &str) -> PathBuf {
        self.folder.join(format!("logits_{inputs}.{dtype}.safetensors"))
    }

    fn inputs_names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let name = name.strip_prefix("inputs_").and_then(|name| name.strip_suffix(".safetensors"));
            names.extend(name.map(ToOwned::to_owned));
        }
        names.sort();
        Ok(names)
    }

    /// Prints one row; whether it keeps its bound.
    fn row(
        &self,
        loaded: &mut Loaded,
        name: &str,
        label: &str,
        dtype: &str,
        chunk: Option<usize>,
        summary: &mut Summary,
    ) -> Result<bool> {
        let path = self.folder.join(format!("inputs_{name}.safetensors"));
        let tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
        let mask = &tensors["attention_mask"];
        let inputs = Inputs {
            input_ids: tensors["input_ids"].clone(),
            attention_mask: Some(mask.clone()),
            // Nobody passes position ids to an encoder, and `truth.py` does not.
            position_ids: tensors.get("position_ids").filter(|_| self.decoder).cloned(),
            tensors: others(&tensors),
        };
        let ours = match chunk {
            Some(chunk) => cached(loaded, &inputs, chunk)?,
            None => match loaded.forward(&inputs) {
                Err(Error::Unsupported(reason)) => {
                    println!("{:<28} {label:<12} {dtype:<5} refused: {reason}", self.name);
                    return Ok(true);
                }
                ours => ours?,
            },
        };
        // Where frequencies follow the length of each pass, a cache gives something else than one pass.
        let by_chunk = chunk.map(|chunk| self.truth(&format!("{name}_by_{chunk}"), "f64"));
        let exact = by_chunk.filter(|path| path.exists()).unwrap_or_else(|| self.truth(name, "f64"));
        // The output of an encoder-decoder follows the decoder's tokens.
        let mask = tensors.get("decoder_attention_mask").unwrap_or(mask);
        let exact = Output::new(&read(&exact)?, mask)?;
        let ours = Output::new(&ours, mask)?;
        let torch = Output::new(&read(&self.truth(name, dtype))?, mask)?.error(&exact);
        let error = ours.error(&exact);
        let is_asked = matches!(dtype, "f64" | "f32") || name == MANY || !self.truth(MANY, dtype).exists();
        let kept = match dtype {
            "f64" => error <= F64_BOUND,
            // What a deep model rounds in torch too is no fault of ours.
            "f32" => error <= F32_BOUND.max(OF_TORCH * torch),
            _ => error <= OF_TORCH * torch,
        };
        let backend = if label.ends_with("fused") { " fused" } else { "" };
        match dtype {
            "f64" if chunk.is_some() => summary.note(&self.name, "f64 cached", error),
            "f64" | "f32" => summary.note(&self.name, &format!("{dtype}{backend}"), error),
            _ if is_asked => summary.note(&self.name, &format!("{dtype}{backend} / torch"), error / torch),
            _ => {}
        }
        let (place, worst) = ours.worst(&exact);
        println!(
            "{:<28} {label:<12} {dtype:<5} {error:>9.2e} {torch:>9.2e} {:>6.2}  {:<18} {}",
            self.name,
            error / torch,
            format!("{worst:.1e} at {place:?}"),
            if !is_asked {
                "few"
            } else if kept {
                "ok"
            } else {
                "FAILED"
            }
        );
        Ok(kept || !is_asked)
    }
}

/// The largest figure of each kind for each checkpoint.
#[derive(Default)]
struct Summary(BTreeMap<String, BTreeMap<String, f64>>);

impl Summary {
    const COLUMNS: [&str; 7] =
        ["f64", "f64 cached", "f32", "f32 fused", "bf16 / torch", "bf16 fused / torch", "f16 / torch"];

    fn note(&mut self, checkpoint: &str, column: &str, figure: f64) {
        let row = self.0.entry(checkpoint.to_owned()).or_default();
        let largest = row.entry(column.to_owned()).or_insert(figure);
        // A NaN stays.
        *largest = if figure > *largest || figure.is_nan() { figure } else { *largest };
    }

    fn markdown(&self) -> String {
        let mut lines = vec![
            format!("| Checkpoint | {} |", Self::COLUMNS.join(" | ")),
            format!("| --- |{}", " ---: |".repeat(Self::COLUMNS.len())),
        ];
        for (checkpoint, row) in &self.0 {
            let figure = |column: &&str| match row.get(*column) {
                Some(ratio) if column.ends_with("torch") => format!("{ratio:.2}"),
                Some(error) => format!("{error:.1e}"),
                None => String::new(),
            };
            let figures: Vec<String> = Self::COLUMNS.iter().map(figure).collect();
            lines.push(format!("| {checkpoint} | {} |", figures.join(" | ")));
        }
        lines.join("\n")
    }
}

fn read(path: &Path) -> Result<Tensor> {
    let tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
    tensors.into_values().next().ok_or_else(|| format!("{} is empty", path.display()).into())
}

/// The inputs beside token ids, mask and positions.
fn others(tensors: &HashMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let others = tensors
        .iter()
        .filter(|(name, _)| !["input_ids", "attention_mask", "position_ids"].contains(&name.as_str()));
    others.map(|(name, tensor)| (name.clone(), tensor.clone())).collect()
}

/// The same inputs through a cache, `chunk` tokens at a time, of the decoder if there is an encoder too. The first part has all
/// images.
fn cached(loaded: &mut Loaded, inputs: &Inputs, chunk: usize) -> Result<Tensor> {
    let (of_decoder, of_mask) = ("decoder_input_ids", "decoder_attention_mask");
    let seq = inputs.tensors.get(of_decoder).unwrap_or(&inputs.input_ids).dim(1)?;
    let mut cache = Cache::new();
    let mut parts = Vec::new();
    let (mut start, mut end) = (0, images_end(inputs)?.max(chunk).min(seq));
    while start < seq {
        let cut = |tensor: &Option<Tensor>, start: usize| {
            tensor.as_ref().map(|tensor| tensor.i((.., start..end))).transpose()
        };
        let part = match (inputs.tensors.get(of_decoder), inputs.tensors.get(of_mask)) {
            (Some(ids), Some(mask)) => {
                inputs.clone().with(of_decoder, ids.i((.., start..end))?).with(of_mask, mask.i((.., ..end))?)
            }
            _ => Inputs {
                attention_mask: cut(&inputs.attention_mask, 0)?,
                position_ids: cut(&inputs.position_ids, start)?,
                tensors: if start == 0 { first_tensors(inputs, end)? } else { BTreeMap::new() },
                ..Inputs::new(inputs.input_ids.i((.., start..end))?)
            },
        };
        parts.push(loaded.forward_with(&part, Some(&mut cache), None)?);
        (start, end) = (end, (end + chunk).min(seq));
    }
    Ok(Tensor::cat(&parts, 1)?)
}

const TOKEN_TYPES: &str = "mm_token_type_ids";

/// The column behind the last token that stands for an image; 0 without images.
fn images_end(inputs: &Inputs) -> Result<usize> {
    let Some(types) = inputs.tensors.get(TOKEN_TYPES) else { return Ok(0) };
    let rows: Vec<Vec<i64>> = types.to_vec2()?;
    Ok(rows.iter().filter_map(|row| row.iter().rposition(|kind| *kind != 0)).max().map_or(0, |last| last + 1))
}

/// The further inputs of the first `end` columns.
fn first_tensors(inputs: &Inputs, end: usize) -> Result<BTreeMap<String, Tensor>> {
    let mut tensors = inputs.tensors.clone();
    if let Some(types) = tensors.get_mut(TOKEN_TYPES) {
        *types = types.i((.., ..end))?;
    }
    Ok(tensors)
}

/// What a model gave at the positions that are no padding.
struct Output(Vec<([usize; 2], Vec<f64>)>);

impl Output {
    /// `[batch, seq, features]`, or `[batch, labels]`, which has no padding.
    fn new(values: &Tensor, mask: &Tensor) -> Result<Self> {
        let values = values.to_dtype(DType::F64)?;
        if values.rank() == 2 {
            let rows = values.to_vec2()?;
            return Ok(Self(rows.into_iter().enumerate().map(|(row, labels)| ([row, 0], labels)).collect()));
        }
        let mask = mask.to_dtype(DType::I64)?.to_vec2::<i64>()?;
        let mut places = Vec::new();
        for (row, (positions, mask)) in values.to_vec3()?.into_iter().zip(mask).enumerate() {
            for (seq, (features, real)) in positions.into_iter().zip(mask).enumerate() {
                if real != 0 {
                    places.push(([row, seq], features));
                }
            }
        }
        Ok(Self(places))
    }

    /// Relative L2 to `exact`; NaN where a value is NaN, which keeps no bound.
    fn error(&self, exact: &Self) -> f64 {
        let (mut difference, mut norm) = (0.0, 0.0);
        for ((_, values), (_, exact)) in self.0.iter().zip(&exact.0) {
            difference += squares(values.iter().zip(exact).map(|(value, exact)| value - exact));
            norm += squares(exact.iter().copied());
        }
        (difference / norm).sqrt()
    }

    /// Where, and how large, the relative L2 of a single position is largest.
    fn worst(&self, exact: &Self) -> ([usize; 2], f64) {
        let errors = self.0.iter().zip(&exact.0).map(|((place, values), (_, exact))| {
            let difference = squares(values.iter().zip(exact).map(|(value, exact)| value - exact));
            (*place, (difference / squares(exact.iter().copied())).sqrt())
        });
        errors.max_by(|(_, left), (_, right)| left.total_cmp(right)).unwrap_or(([0, 0], f64::NAN))
    }
}

fn squares(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum()
}
