//! A native model that makes a mistake, whatever checkpoint it is asked to load, beside the same model without it.

// Each test binary uses a part of this module.
#![allow(dead_code, reason = "shared by a test binary and an example")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use compare::verdict::Tolerances;
use reference::protocol::{Dtype, Forwarded, Load, Positions, Reply, Request as Ask};
use tfcheck::execute::runner::{NoResult, Runner, Session, Start};
use tfcheck::hunt::diagnose::{
    Committed, Diagnosed, Hypothesis, Request, Side, Tokens, committed, diagnose, hypotheses,
};

use crate::engine::InProcess;
use crate::setting::Tensors;

pub(crate) static NEVER: AtomicBool = AtomicBool::new(false);

/// What a suspect does to the checkpoint and the inputs that it is asked to load.
pub(crate) type Mistake<'a> = &'a (dyn Fn(&Load, &Path) -> Committed + Sync);

struct Mistaken<'a> {
    mistake: Mistake<'a>,
    folder: PathBuf,
    loads: AtomicUsize,
}

struct MistakenSession<'a> {
    runner: &'a Mistaken<'a>,
    session: Box<dyn Session + 'a>,
    committed: Option<Committed>,
}

impl Runner for Mistaken<'_> {
    fn start<'a>(
        &'a self,
        log: PathBuf,
        stop: &'a AtomicBool,
        how: Start<'_>,
    ) -> Result<Box<dyn Session + 'a>, NoResult> {
        let session = InProcess.start(log, stop, how)?;
        Ok(Box::new(MistakenSession { runner: self, session, committed: None }))
    }
}

impl Session for MistakenSession<'_> {
    fn ask(&mut self, request: &Ask, timeout: Duration) -> Result<Reply, NoResult> {
        let load = match (request, &self.committed) {
            (Ask::Load(load), _) => load,
            (Ask::Forward(forward), Some(Committed { load, deviations })) if !deviations.is_empty() => {
                return Ok(deviating(load, deviations, &forward.logits));
            }
            _ => return self.session.ask(request, timeout),
        };
        let number = self.runner.loads.fetch_add(1, Ordering::Relaxed);
        let folder = self.runner.folder.join(number.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        let committed = (self.runner.mistake)(load, &folder);
        let reply = self.session.ask(&Ask::Load(committed.load.clone()), timeout);
        self.committed = Some(committed);
        reply
    }

    fn end(self: Box<Self>) {}
}

/// A forward pass that makes mistakes which no checkpoint expresses.
fn deviating(load: &Load, deviations: &[models::Deviation], path: &Path) -> Reply {
    let dtype = match load.dtype {
        Dtype::F64 => candle_core::DType::F64,
        Dtype::F32 => candle_core::DType::F32,
        Dtype::Bf16 => candle_core::DType::BF16,
        Dtype::F16 => candle_core::DType::F16,
    };
    let device = candle_core::Device::Cpu;
    let options = models::Options { dtype, device, backend: models::Backend::Eager };
    let mut model = models::load(&load.checkpoint, &options).unwrap();
    model.deviations = deviations.to_vec();
    let tensors = candle_core::safetensors::load(&load.inputs, &candle_core::Device::Cpu).unwrap();
    let config = std::fs::read_to_string(load.checkpoint.join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let is_decoder = models::kind(config["model_type"].as_str().unwrap()) == Some(models::Kind::Decoder);
    let logits = model
        .forward(&models::Inputs {
            attention_mask: Some(tensors["attention_mask"].clone()),
            position_ids: is_decoder.then(|| tensors["position_ids"].clone()),
            ..models::Inputs::new(tensors["input_ids"].clone())
        })
        .unwrap();
    let shape = logits.dims().to_vec();
    candle_core::safetensors::save(&[("logits", logits)].into(), path).unwrap();
    Reply::Forwarded(Forwarded {
        elapsed_ns: 1,
        shape,
        positions: Positions::All,
        prefill: None,
        chunks: Vec::new(),
        peak_bytes: None,
        outputs: Vec::new(),
        graphs: None,
        notes: Vec::new(),
    })
}

/// `lengths` tokens in each sequence, padded on the left.
pub(crate) fn tokens(lengths: &[usize]) -> Tokens {
    let seq = lengths.iter().copied().max().unwrap();
    let mut made =
        Tokens { batch: lengths.len(), seq, input_ids: vec![], attention_mask: vec![], position_ids: vec![] };
    for (row, length) in lengths.iter().enumerate() {
        let padding = seq - length;
        for at in 0..seq {
            let is_real = at >= padding;
            // Token 1 is roberta's padding token, which it skips when it counts positions.
            made.input_ids.push(if is_real { 3 + ((row + 3) * 7919 + at * 104_729) as i64 % 270 } else { 1 });
            made.attention_mask.push(i64::from(is_real));
            made.position_ids.push(at.saturating_sub(padding) as i64);
        }
    }
    made
}

/// Diagnoses the native model of a synthetic checkpoint that makes `mistake`.
pub(crate) fn diagnosed(checkpoint: &str, tokens: &Tokens, mistake: Mistake) -> Diagnosed {
    diagnosed_in(Dtype::F32, checkpoint, tokens, mistake)
}

/// As [`diagnosed`], of a variant in `dtype`.
pub(crate) fn diagnosed_in(dtype: Dtype, checkpoint: &str, tokens: &Tokens, mistake: Mistake) -> Diagnosed {
    diagnosed_within(Duration::from_mins(5), dtype, checkpoint, tokens, mistake)
}

/// As [`diagnosed_in`], with this much time to try mistakes.
pub(crate) fn diagnosed_within(
    budget: Duration,
    dtype: Dtype,
    checkpoint: &str,
    tokens: &Tokens,
    mistake: Mistake,
) -> Diagnosed {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("original");
    write_checkpoint(checkpoint, &path);
    let mistaken = Mistaken { mistake, folder: folder.path().join("mistaken"), loads: AtomicUsize::new(0) };
    let load = Load { threads: 1, dtype, ..Load::new(path, folder.path().join("inputs.safetensors")) };
    let side = |name: &str, runner, is_native| {
        let (name, load) = (name.to_owned(), load.clone());
        Side { name, runner, load, computes_f64: true, is_native }
    };
    diagnose(&Request {
        case: "case",
        trusted: side("right", &InProcess, true),
        suspect: side("wrong", &mistaken, false),
        tokens: tokens.clone(),
        tolerances: &Tolerances::default(),
        folder: folder.path(),
        timeout: Duration::from_mins(1),
        budget,
        stop: &NEVER,
    })
    .unwrap()
}

fn write_checkpoint(checkpoint: &str, path: &Path) {
    let (model_type, variant) = checkpoint.split_once(':').unwrap_or((checkpoint, ""));
    models::synthetic::write(model_type, variant, 0, path).unwrap();
}

/// The mistake of these rows; a row that makes no difference to a checkpoint leaves it as it is.
pub(crate) fn rows(names: &[&str]) -> impl Fn(&Load, &Path) -> Committed + Sync + use<> {
    let rows: Vec<&'static Hypothesis> = names
        .iter()
        .map(|name| hypotheses().find(|row| row.name == *name).unwrap_or_else(|| panic!("no row {name}")))
        .collect();
    move |load, folder| {
        // Surgery may take away what a row changes.
        (0..=rows.len())
            .rev()
            .find_map(|count| committed(&rows[..count], load, folder).unwrap())
            .unwrap_or_else(|| unchanged(load))
    }
}

pub(crate) fn unchanged(load: &Load) -> Committed {
    Committed { load: load.clone(), deviations: Vec::new() }
}

/// The mistake of a bug of the table of plants.
pub(crate) fn planted(plant: &crate::plants::Plant) -> impl Fn(&Load, &Path) -> Committed + Sync {
    move |load, folder| Committed { load: plant.committed(load, folder), deviations: Vec::new() }
}

/// Checkpoints of every architecture of one text, small ones first.
pub(crate) fn checkpoints() -> Vec<String> {
    let entries = models::synthetic::catalogue().iter().filter(|entry| !entry.bench && entry.is_one_text());
    let name = |entry: &models::synthetic::Entry| match entry.variant {
        "" => entry.model_type.to_owned(),
        variant => format!("{}:{variant}", entry.model_type),
    };
    // The default llama has 10 M parameters.
    entries.map(name).filter(|name| name != "llama").collect()
}

/// Checkpoints that show most rows, then the others.
fn telling_first() -> Vec<String> {
    let telling = [
        "mistral",
        "gemma2",
        "gemma3_text",
        "llama:llama3",
        "llama:bias",
        "gpt2",
        "bert",
        "phi3:longrope",
        "phi",
        "granite:bias",
        "qwen2:window",
        "qwen2:window-off",
        "qwen3_moe",
        "stablelm:qk-norm",
        "smollm3",
        "roberta",
        "modernbert:bias",
        "cohere",
        "starcoder2:untied",
        "gpt_neox",
        "qwen2:tied",
    ];
    let others = checkpoints().into_iter().filter(|name| !telling.contains(&name.as_str()));
    telling.iter().map(|name| (*name).to_owned()).chain(others).collect()
}

/// Rows that no synthetic checkpoint shows: the architectures that they are about have no native model, or they change logits
/// after the model.
pub(crate) const NOT_SHOWN: &[&str] = &[
    "probabilities",
    "log-probabilities",
    "router-correction-ignored",
    "router-factor-1",
    "layer-scalar-1",
    "shared-expert-gate-absent",
    "shared-expert-absent",
    "classifier-bias-absent",
    "head-untied",
    "rope-used-though-off",
    "decoder-not-causal",
    "bias-mixer-absent",
    "bias-convolution-absent",
    // In 40 tokens every position is exact in bf16.
    "rope-positions-bf16",
];

/// A row that was planted into the first checkpoint that shows it.
pub(crate) struct Shown {
    pub(crate) checkpoint: String,
    pub(crate) found: Diagnosed,
    /// Whether the row alone is named, or one that makes the same files.
    pub(crate) is_named: bool,
}

/// Diagnoses a row where it is planted; `None` if no checkpoint shows it.
pub(crate) fn shown(row: &Hypothesis) -> Option<Shown> {
    let mistake = rows(&[row.name]);
    // Padding where the row needs it, one long sequence elsewhere.
    let batches = [tokens(&[40]), tokens(&[40, 25])];
    let (checkpoint, batch, found) = telling_first().into_iter().find_map(|checkpoint| {
        batches.iter().find_map(|batch| {
            let found = quick(&checkpoint, batch, &mistake)
                .then(|| diagnosed(&checkpoint, batch, &mistake))
                .filter(|found| found.trials[0].before > 1e-6)?;
            Some((checkpoint.clone(), batch, found))
        })
    })?;
    let is_it = |name: &str| name == row.name || same_files(&checkpoint, batch, name, row.name);
    let is_reproduced = matches!(found.finding, tfcheck::hunt::diagnose::Diagnosis::Reproduced { .. });
    let is_named = match found.mistakes() {
        [mistake] if is_reproduced => {
            is_it(&mistake.hypothesis) || mistake.alternatives.iter().any(|other| is_it(&other.hypothesis))
        }
        _ => false,
    };
    Some(Shown { checkpoint, found, is_named })
}

/// Whether the files that two rows make of a checkpoint are the same.
fn same_files(checkpoint: &str, inputs: &Tokens, one: &str, other: &str) -> bool {
    if [one, other].iter().any(|name| hypotheses().all(|row| row.name != *name)) {
        return false;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("original");
    write_checkpoint(checkpoint, &path);
    let file = folder.path().join("inputs.safetensors");
    write(inputs, &file);
    let files = [one, other].map(|name| {
        let folder = folder.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let Committed { load, deviations } = rows(&[name])(&Load::new(path.clone(), file.clone()), &folder);
        let config = std::fs::read_to_string(load.checkpoint.join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let weights = std::fs::read(load.checkpoint.join("model.safetensors")).unwrap();
        (config, weights, std::fs::read(load.inputs).unwrap(), deviations)
    });
    files[0] == files[1]
}

fn write(tokens: &Tokens, path: &Path) {
    let tensor = |values: &[i64]| {
        candle_core::Tensor::from_slice(values, (tokens.batch, tokens.seq), &candle_core::Device::Cpu)
            .unwrap()
    };
    let tensors: Tensors = [
        ("input_ids", &tokens.input_ids),
        ("attention_mask", &tokens.attention_mask),
        ("position_ids", &tokens.position_ids),
    ]
    .map(|(name, values)| (name.to_owned(), tensor(values)))
    .into();
    candle_core::safetensors::save(&tensors, path).unwrap();
}

/// Whether a mistake changes anything that the checkpoint's model is given.
fn quick(checkpoint: &str, batch: &Tokens, mistake: Mistake) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("original");
    write_checkpoint(checkpoint, &path);
    let inputs = folder.path().join("inputs.safetensors");
    write(batch, &inputs);
    let load = Load::new(path, inputs);
    let committed = mistake(&load, folder.path());
    // A mistake that the model refuses is none that it makes.
    let loads = |load: &Load| {
        let mut session = InProcess.start(PathBuf::new(), &NEVER, Start::default()).ok()?;
        session.ask(&Ask::Load(load.clone()), Duration::from_mins(1)).ok()
    };
    committed != unchanged(&load) && loads(&committed.load).is_some()
}
