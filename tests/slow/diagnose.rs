//! A native model that makes a mistake, whatever checkpoint it is asked to load, beside the same model without it.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use compare::verdict::Tolerances;
use rayon::prelude::*;
use reference::protocol::{Forwarded, Load, Mode, Positions, Reply, Request as Ask};
use tfcheck::execute::runner::{NoResult, Runner, Session};
use tfcheck::hunt::diagnose::{
    Committed, Diagnosed, Diagnosis, Hypothesis, Request, Side, Tokens, committed, diagnose, hypotheses,
};

use crate::engine::InProcess;
use crate::setting::Tensors;

static NEVER: AtomicBool = AtomicBool::new(false);

/// What a suspect does to the checkpoint and the inputs that it is asked to load.
type Mistake<'a> = &'a (dyn Fn(&Load, &Path) -> Committed + Sync);

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
    fn start<'a>(&'a self, log: PathBuf, stop: &'a AtomicBool) -> Result<Box<dyn Session + 'a>, NoResult> {
        let session = InProcess.start(log, stop)?;
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
    let (dtype, device) = (candle_core::DType::F64, candle_core::Device::Cpu);
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
fn tokens(lengths: &[usize]) -> Tokens {
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
fn diagnosed(checkpoint: &str, tokens: &Tokens, mistake: Mistake) -> Diagnosed {
    let folder = tempfile::tempdir().unwrap();
    let (model_type, variant) = checkpoint.split_once(':').unwrap_or((checkpoint, ""));
    let path = folder.path().join("original");
    models::synthetic::write(model_type, variant, 0, &path).unwrap();
    let mistaken = Mistaken { mistake, folder: folder.path().join("mistaken"), loads: AtomicUsize::new(0) };
    let load = Load { threads: 1, ..Load::new(path, folder.path().join("inputs.safetensors")) };
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
        budget: Duration::from_mins(5),
        stop: &NEVER,
    })
    .unwrap()
}

/// The mistake of these rows; a row that makes no difference to a checkpoint leaves it as it is.
fn rows(names: &[&str]) -> impl Fn(&Load, &Path) -> Committed + Sync + use<> {
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

fn unchanged(load: &Load) -> Committed {
    Committed { load: load.clone(), deviations: Vec::new() }
}

fn names(found: &Diagnosed) -> Vec<String> {
    found.mistakes().iter().map(|mistake| mistake.hypothesis.clone()).collect()
}

/// Checkpoints of every architecture of one text, small ones first.
fn checkpoints() -> Vec<String> {
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

/// Whether the files that two rows make of a checkpoint are the same.
fn same_files(checkpoint: &str, inputs: &Tokens, one: &str, other: &str) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let (model_type, variant) = checkpoint.split_once(':').unwrap_or((checkpoint, ""));
    let path = folder.path().join("original");
    models::synthetic::write(model_type, variant, 0, &path).unwrap();
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

/// Rows that no synthetic checkpoint shows: the architectures that they are about have no native model, or they change logits
/// after the model.
const NOT_SHOWN: &[&str] = &[
    "probabilities",
    "log-probabilities",
    "router-correction-ignored",
    "router-factor-1",
    "shared-expert-gate-absent",
    "shared-expert-absent",
    "classifier-bias-absent",
    "head-untied",
];

#[test]
fn every_row_is_named_where_it_is_planted() {
    let wrong: Mutex<Vec<String>> = Mutex::default();
    let all: Vec<&'static Hypothesis> = hypotheses().collect();
    all.par_iter().filter(|row| !NOT_SHOWN.contains(&row.name)).for_each(|row| {
        let mistake = rows(&[row.name]);
        // Padding where the row needs it, one long sequence elsewhere.
        let batches = [tokens(&[40]), tokens(&[40, 25])];
        let shown = telling_first().into_iter().find_map(|checkpoint| {
            batches.iter().find_map(|batch| {
                let found = quick(&checkpoint, batch, &mistake)
                    .then(|| diagnosed(&checkpoint, batch, &mistake))
                    .filter(|found| found.trials[0].before > 1e-6)?;
                Some((checkpoint.clone(), batch, found))
            })
        });
        let Some((checkpoint, batch, found)) = shown else {
            wrong.lock().unwrap().push(format!("{}: no checkpoint shows it", row.name));
            return;
        };
        let mistakes = found.mistakes();
        let is_it = |name: &str| name == row.name || same_files(&checkpoint, batch, name, row.name);
        let is_named = matches!(found.finding, Diagnosis::Reproduced { .. })
            && mistakes.len() == 1
            && (is_it(&mistakes[0].hypothesis)
                || mistakes[0].alternatives.iter().any(|other| is_it(&other.hypothesis)));
        if !is_named {
            wrong.lock().unwrap().push(format!("{} in {checkpoint}: {}", row.name, found.sentence));
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether a mistake changes anything that the checkpoint's model is given.
fn quick(checkpoint: &str, batch: &Tokens, mistake: Mistake) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let (model_type, variant) = checkpoint.split_once(':').unwrap_or((checkpoint, ""));
    let path = folder.path().join("original");
    models::synthetic::write(model_type, variant, 0, &path).unwrap();
    let inputs = folder.path().join("inputs.safetensors");
    write(batch, &inputs);
    let load = Load::new(path, inputs);
    let committed = mistake(&load, folder.path());
    // A mistake that the model refuses is none that it makes.
    let loads = |load: &Load| {
        let mut session = InProcess.start(PathBuf::new(), &NEVER).ok()?;
        session.ask(&Ask::Load(load.clone()), Duration::from_mins(1)).ok()
    };
    committed != unchanged(&load) && loads(&committed.load).is_some()
}

#[test]
fn several_mistakes_are_named_together() {
    for (checkpoint, planted) in [
        ("gemma2", &["window-one-more", "window-in-every-layer"][..]),
        ("mistral", &["window-one-more", "rope-base-10000"]),
        ("granite:bias", &["bias-linear-absent", "embedding-multiplier-1", "logits-scaling-1"]),
        ("llama:bias", &["bias-attention-absent", "norm-eps-1e-6"]),
        ("gpt2", &["activation-gelu", "scale-toggled"]),
    ] {
        let mistake = rows(planted);
        let found = diagnosed(checkpoint, &tokens(&[40]), &mistake);
        assert!(matches!(found.finding, Diagnosis::Reproduced { .. }), "{checkpoint}: {}", found.sentence);
        let mut named = names(&found);
        named.sort();
        let mut planted: Vec<&str> = planted.to_vec();
        planted.sort_unstable();
        assert_eq!(named, planted, "{checkpoint}: {}", found.sentence);
    }
}

/// A suspect whose weights are changed in a way that no row describes.
fn weights(edit: fn(&mut Tensors)) -> impl Fn(&Load, &Path) -> Committed + Sync {
    move |load, folder| {
        let path = load.checkpoint.join("model.safetensors");
        let mut tensors = candle_core::safetensors::load(path, &candle_core::Device::Cpu).unwrap();
        edit(&mut tensors);
        std::fs::copy(load.checkpoint.join("config.json"), folder.join("config.json")).unwrap();
        candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
        unchanged(&Load { checkpoint: folder.to_owned(), ..load.clone() })
    }
}

/// Multiplies the tensors whose names end in `end` by a factor, in float64.
fn times(tensors: &mut Tensors, end: &str, factor: f64) {
    for (_, tensor) in tensors.iter_mut().filter(|(name, _)| name.ends_with(end)) {
        *tensor = (tensor.to_dtype(candle_core::DType::F64).unwrap() * factor).unwrap();
    }
}

#[test]
fn a_mistake_outside_the_table_is_localised_and_not_named() {
    type Edit = fn(&mut Tensors);
    let cases: [(&str, Edit, &str); 5] = [
        ("llama:tiny", |tensors| times(tensors, "layers.1.mlp.up_proj.weight", 1.3), "layer 1's MLP"),
        (
            "llama:tiny",
            |tensors| times(tensors, "layers.2.self_attn.v_proj.weight", 1.3),
            "layer 2's values or output projection",
        ),
        ("llama:tiny", |tensors| times(tensors, "layers.0.self_attn.k_proj.weight", 1.3), "layer 0's scores"),
        (
            "gemma3_text",
            |tensors| {
                let weight = &tensors["model.norm.weight"];
                let count = weight.dim(0).unwrap();
                let reversed: Vec<u32> = (0..count as u32).rev().collect();
                let reversed = candle_core::Tensor::new(reversed, weight.device()).unwrap();
                let weight = weight.index_select(&reversed, 0).unwrap();
                tensors.insert("model.norm.weight".to_owned(), weight);
            },
            "embedding, norms and head",
        ),
        (
            "mistral",
            |tensors| {
                let head = tensors["lm_head.weight"].clone();
                tensors.insert("lm_head.weight".to_owned(), head.abs().unwrap());
            },
            "embedding, norms and head",
        ),
    ];
    for (checkpoint, edit, part) in cases {
        let found = diagnosed(checkpoint, &tokens(&[40]), &weights(edit));
        assert!(found.mistakes().is_empty(), "{checkpoint}: {}", found.sentence);
        let Diagnosis::Parts { parts, .. } = &found.finding else {
            panic!("{checkpoint}: {}", found.sentence)
        };
        assert_eq!(
            parts.iter().map(|part| part.part.as_str()).collect::<Vec<_>>(),
            [part],
            "{}",
            found.sentence
        );
    }
}

#[test]
fn a_factor_is_fitted_and_compared_with_the_configs_numbers() {
    type Edit = fn(&mut Tensors);
    let cases: [(&str, Edit, &str, &str); 3] = [
        // 1.37 is no simple expression of the config's numbers.
        ("mistral", |tensors| times(tensors, "o_proj.weight", 1.37), "fitted-attention-output", "1.370000"),
        ("mistral", |tensors| times(tensors, "lm_head.weight", 0.81), "fitted-logits", "0.810000"),
        ("llama:tiny", |tensors| times(tensors, "q_proj.weight", 0.6), "fitted-scores", "0.600000"),
    ];
    for (checkpoint, edit, knob, factor) in cases {
        let found = diagnosed(checkpoint, &tokens(&[40]), &weights(edit));
        assert_eq!(names(&found), [knob], "{checkpoint}: {}", found.sentence);
        assert!(found.sentence.contains(factor), "{checkpoint}: {}", found.sentence);
    }
}

#[test]
fn pairs_that_compute_the_same_are_not_diagnosed() {
    let mut pairs = 0;
    for checkpoint in checkpoints() {
        // The fused backend rounds otherwise; it does not pool over padding on the left.
        for (mode, lengths) in [(Mode::Eager, [40, 25]), (Mode::Fused, [40, 40])] {
            let in_mode = |load: &Load, _: &Path| unchanged(&Load { mode, ..load.clone() });
            let found = diagnosed(&checkpoint, &tokens(&lengths), &in_mode);
            assert_eq!(found.finding, Diagnosis::Nothing, "{checkpoint}: {}", found.sentence);
            pairs += 1;
        }
    }
    assert!(pairs >= 100, "{pairs}");
}
