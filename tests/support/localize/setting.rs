//! A synthetic checkpoint with inputs, and changed copies of them.

// Each test binary uses a part of this module.
#![allow(dead_code, reason = "shared by two test binaries")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use candle_core::{Device, Tensor};
use compare::logits::Logits;
use compare::mask::Mask;
use compare::matrix::{self, Entry};
use compare::oracle::{Oracles, Origin};
use compare::verdict::{Tolerances, Verdict, verdicts};
use reference::protocol::{Attention, Dtype, Forward, Load, Mode, Request as Ask};
use serde_json::Value;
use tfcheck::execute::runner::{Runner, Start};
use tfcheck::hunt::localize::{LocalizeError, Localized, Options, Request, Side, localize};
use tfcheck::spec::checkpoint::{Checkpoint, Source};
use tfcheck::spec::inputs::{self, Padding, Spec};
use tfcheck::spec::variant::measured_dtype;

use crate::engine::InProcess;

/// Sequence lengths of the batch, padded on the left: the longer one exceeds the windows of 8 and the contexts of 32.
const LENGTHS: [usize; 2] = [40, 25];

/// A stop flag that is never set.
static NEVER: AtomicBool = AtomicBool::new(false);

pub(crate) type Tensors = HashMap<String, Tensor>;

pub(crate) struct Setting {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) model_type: String,
    variant: String,
}

impl Setting {
    /// Writes the synthetic checkpoint `name`, for example `llama:tiny`, and its inputs.
    pub(crate) fn new(name: &str) -> Self {
        let (model_type, variant) = name.split_once(':').unwrap_or((name, ""));
        let folder = tempfile::tempdir().unwrap();
        let setting = Self { folder, model_type: model_type.into(), variant: variant.into() };
        models::synthetic::write(model_type, variant, 0, &setting.checkpoint()).unwrap();
        write_inputs(&setting.inputs(), true);
        setting
    }

    /// As [`Setting::new`], with the inputs that a run makes for two rows of 22 tokens, padded on the left: an
    /// encoder-decoder, a model of speech or of images gets what it takes beside tokens.
    pub(crate) fn with_made_inputs(name: &str) -> Self {
        let setting = Self::new(name);
        let checkpoint = Checkpoint {
            name: format!("synthetic:{name}"),
            source: Source::Folder(setting.checkpoint()),
            revision: None,
            folder: setting.checkpoint(),
            config: models::synthetic::config(&setting.model_type, &setting.variant).unwrap(),
            model_type: setting.model_type.clone(),
            weights: Vec::new(),
            tokenizer: None,
            digest: String::new(),
            notes: Vec::new(),
        };
        let spec = Spec::Lengths {
            lengths: vec![22],
            batches: vec![2],
            paddings: vec![Some(Padding::Left)],
            text: None,
            seed: 0,
        };
        inputs::make(&spec, &checkpoint).unwrap()[0].save(setting.folder.path()).unwrap();
        setting
    }

    /// A copy of the inputs with changes.
    pub(crate) fn changed_inputs(&self, change: impl FnOnce(&mut Tensors)) -> PathBuf {
        let mut tensors = candle_core::safetensors::load(self.inputs(), &Device::Cpu).unwrap();
        change(&mut tensors);
        let path = self.folder.path().join("changed.safetensors");
        candle_core::safetensors::save(&tensors, &path).unwrap();
        path
    }

    pub(crate) fn checkpoint(&self) -> PathBuf {
        self.folder.path().join("checkpoint")
    }

    /// Whether the model is a mixture of experts.
    pub(crate) fn is_mixture(&self) -> bool {
        let config = models::synthetic::config(&self.model_type, &self.variant).unwrap();
        config["num_experts_per_tok"].is_u64()
    }

    pub(crate) fn inputs(&self) -> PathBuf {
        self.folder.path().join("inputs.safetensors")
    }

    /// A copy of the checkpoint with changes to its config and weights.
    pub(crate) fn changed(
        &self,
        config: impl FnOnce(&mut Value),
        weights: impl FnOnce(&mut Tensors),
    ) -> PathBuf {
        let folder = self.folder.path().join("changed");
        std::fs::create_dir_all(&folder).unwrap();
        let mut json = models::synthetic::config(&self.model_type, &self.variant).unwrap();
        config(&mut json);
        std::fs::write(folder.join("config.json"), json.to_string()).unwrap();
        let mut tensors =
            candle_core::safetensors::load(self.checkpoint().join("model.safetensors"), &Device::Cpu)
                .unwrap();
        weights(&mut tensors);
        candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
        folder
    }

    pub(crate) fn load(&self, mode: Mode, dtype: Dtype) -> Load {
        Load { mode, dtype, threads: 2, ..Load::new(self.checkpoint(), self.inputs()) }
    }

    pub(crate) fn transformers(&self) -> Load {
        Load { attention: Some(Attention::Eager), ..self.load(Mode::Eager, Dtype::F32) }
    }

    /// The verdict on `a` and `b`; the oracle of each is its own checkpoint in the eager backend in float64.
    pub(crate) fn verdict(&self, a: &Load, b: &Load) -> Verdict {
        let mut session =
            InProcess.start(self.folder.path().join("worker.log"), &NEVER, Start::default()).unwrap();
        let (mut entries, mut origins) = (Vec::new(), Vec::new());
        for (load, is_oracle) in [(a, false), (b, false), (a, true), (b, true)] {
            let family = if origins.len() % 2 == 0 { "right" } else { "wrong" };
            let oracle = Load { dtype: Dtype::F64, mode: Mode::Eager, ..load.clone() };
            let load = if is_oracle { &oracle } else { load };
            let path = self.folder.path().join(format!("verdict-{}.safetensors", entries.len()));
            for ask in [Ask::Load(load.clone()), Ask::Forward(Forward::new(path.clone()))] {
                session.ask(&ask, Duration::from_mins(5)).unwrap();
            }
            let logits = Ok(Logits::open(&path, compare::Positions::All).unwrap());
            entries.push(Entry {
                name: format!("{family} {:?}", load.dtype),
                dtype: measured_dtype(load.dtype),
                logits,
            });
            origins.push(Origin { family: family.into(), path: format!("{family} {:?}", load.mode) });
        }
        let [batch, seq, _] = entries[0].logits.as_ref().unwrap().shape();
        let mask = Mask::fitting(Mask::of_inputs(&self.inputs()).unwrap(), (batch, seq));
        let matrix = matrix::matrix(&entries, Some(&mask), &matrix::Options::default()).unwrap();
        verdicts(&matrix, &Oracles::new(&matrix, &origins), &Tolerances::default()).remove(0)
    }

    /// Localises `b` against `a`, both run in this process.
    pub(crate) fn localize(&self, a: Load, b: Load) -> Localized {
        self.localize_with((&InProcess, a), (&InProcess, b), &Options::default()).unwrap()
    }

    pub(crate) fn localize_with(
        &self,
        a: (&dyn Runner, Load),
        b: (&dyn Runner, Load),
        options: &Options,
    ) -> Result<Localized, LocalizeError> {
        self.localize_through_caches((a.0, a.1, None), (b.0, b.1, None), options)
    }

    /// Like [`Setting::localize_with`]; a side with a prefill length is run through its KV cache after that prefill.
    pub(crate) fn localize_through_caches(
        &self,
        a: (&dyn Runner, Load, Option<usize>),
        b: (&dyn Runner, Load, Option<usize>),
        options: &Options,
    ) -> Result<Localized, LocalizeError> {
        let side = |name: &str, (runner, load, prefill)| Side { name: name.into(), runner, load, prefill };
        localize(&Request {
            case: "case",
            sides: [side("right", a), side("wrong", b)],
            options,
            tolerances: &Tolerances::default(),
            folder: self.folder.path(),
            timeout: Duration::from_mins(5),
            stop: &NEVER,
        })
    }
}

/// Writes the inputs; without `is_masked` the attention mask marks the padding as real.
pub(crate) fn write_inputs(path: &Path, is_masked: bool) {
    let seq = LENGTHS[0];
    let (mut ids, mut mask, mut positions) = (Vec::new(), Vec::new(), Vec::new());
    for (row, length) in LENGTHS.into_iter().enumerate() {
        let padding = seq - length;
        // Token 1 is roberta's padding token, which it skips when it counts positions.
        ids.extend(
            (0..seq).map(
                |at| {
                    if at < padding { 1 } else { 3 + ((row + 3) * 7919 + at * 104_729) as i64 % 270 }
                },
            ),
        );
        mask.extend((0..seq).map(|at| i64::from(!is_masked || at >= padding)));
        positions.extend((0..seq).map(|at| at.saturating_sub(padding) as i64));
    }
    let tensor = |values: Vec<i64>| Tensor::from_vec(values, (LENGTHS.len(), seq), &Device::Cpu).unwrap();
    let tensors = [("input_ids", ids), ("attention_mask", mask), ("position_ids", positions)];
    let tensors: Tensors = tensors.map(|(name, values)| (name.to_owned(), tensor(values))).into();
    candle_core::safetensors::save(&tensors, path).unwrap();
}
