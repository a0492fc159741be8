//! `tfcheck.toml` as typed structs.
//!
//! The doc comment of each field states its unit and default; it is also its description in the JSON
//! schema that `tfcheck schema` prints. A file is read once, by [`Config::load`]; nothing after that
//! looks at text again.

use std::path::PathBuf;

use reference::protocol::{Attention, Dtype, Mode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::spec::gate::Gate;
use crate::spec::relations::Relations;
use compare::verdict::{Overrides, Tolerances};

mod device;
mod diagnose;
mod dtype;
mod engine;
mod init;
mod inputs;
mod load;
mod schema;
mod validate;

pub use crate::spec::checkpoint::{Source as CheckpointSource, SourceError};
pub use device::Device;
pub use diagnose::ConfigError;
pub use dtype::LoadDtype;
pub use engine::{Engine, UnitOf};
pub use init::{InitError, init, init_text};
pub use inputs::{InputsConfig, InputsForm, Padding};
pub use load::Loaded;
use reference::Versions;
pub use reference::{Source as VersionSource, TorchBackend};
pub use schema::schema_text;
pub(crate) use validate::is_file_name;

/// The name of the file that is read when none is named.
pub const FILE_NAME: &str = "tfcheck.toml";
/// How long a case may look for quiet rounds where times matter: phases in which a guest's neighbour is busy last seconds.
pub const PATIENCE_S: u64 = 60;
/// A comparison: which checkpoints, on which inputs, in which variants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The checkpoints; each runs on each batch of inputs. Default: `synthetic:llama`.
    pub checkpoints: Vec<Checkpoint>,
    /// The inputs. Default: one sequence of 128 tokens of a built-in text.
    pub inputs: InputsConfig,
    /// Packages that all transformers versions share.
    pub environment: Environment,
    /// The transformers versions, usually oldest first. Default: 4.54.0 and the newest one pinned; `versions = []` means none.
    pub versions: Vec<Version>,
    /// The native models.
    pub candle: Candle,
    /// Programs that speak the worker protocol. Default: none.
    pub commands: Vec<Command>,
    /// How the cells are run.
    pub run: Run,
    /// Invariants of each variant by itself.
    pub relations: Relations,
    /// Limits of the verdicts.
    pub tolerances: Tolerances,
    /// What jobs of `tfcheck run --engine slurm` ask of the cluster. Default: nothing.
    pub engine: Engine,
    /// Folder of the file that this was read from; empty when that is the working directory or there is no file.
    #[serde(skip)]
    pub folder: PathBuf,
}

/// A model: config, weights and tokenizer at one fixed revision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// A hub id (`HuggingFaceTB/SmolLM2-135M`), a folder (`./folder`), a GGUF file (`model.gguf`) or `synthetic:<model_type>[:variant]`.
    #[schemars(with = "String")]
    pub source: CheckpointSource,
    /// Commit, tag or branch of a hub id; for hub ids only. Default: `main`, resolved to its commit when the run starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Name of this checkpoint's cases; must be a valid file name. Default: the last part of the source, in lower case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether transformers may run Python code from the checkpoint (`auto_map`). Default: false; such a checkpoint is then an error.
    #[serde(default)]
    pub allow_remote_code: bool,
    /// Whether config.json is translated into the form that each transformers release reads (`rope_parameters` and `rope_theta`, for example). With false, each release reads it as it is. Default: true.
    #[serde(default = "enabled", skip_serializing_if = "is_enabled")]
    pub translate: bool,
    /// Limits for this checkpoint's verdicts; limits not listed come from `[tolerances]`. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerances: Option<Overrides>,
}

/// What all transformers versions have in common, so that a difference is the version's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Environment {
    /// The torch release that every environment gets. Default: `2.15.0`.
    pub torch: String,
    /// Additional requirements of every environment, in pip's syntax (`numpy<3`). Default: none.
    pub requirements: Vec<String>,
    /// Source of torch: `pypi`, a PyTorch index such as `cpu` or `cu130`, or `auto`. Default: `auto`, which selects an index for the GPU found and falls back to PyPI.
    #[schemars(with = "String")]
    pub torch_backend: TorchBackend,
    /// Python version of the environments, such as `3.11`. Default: uv's choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub python: Option<String>,
}

/// One transformers version in an environment of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Version {
    /// Name of the version in tables and of its folder in a run; must be a valid file name.
    pub name: String,
    /// `transformers==4.54.0`, `git+https://…@ref` or `-e transformers-fork/`; optional if `python` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub source: Option<VersionSource>,
    /// Interpreter of an existing environment, which is used unchanged. Default: none; tfcheck creates an environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub python: Option<PathBuf>,
    /// Modes of this version, as in `[run]`. Default: those of `[run]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<schema::ModeName>>")]
    pub modes: Option<Vec<Mode>>,
    /// Attention implementations of this version alone. Default: those of `[run]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<schema::AttentionName>>")]
    pub attention: Option<Vec<Attention>>,
    /// dtypes of this version alone. Default: those of `[run]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<schema::DtypeName>>")]
    pub dtypes: Option<Vec<LoadDtype>>,
}

/// The native models on candle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Candle {
    /// Modes of tfcheck's own models, `eager` and `fused`. Default: both; `modes = []` leaves them out.
    #[schemars(with = "Vec<schema::ModeName>")]
    pub modes: Vec<Mode>,
    /// Whether the ports of candle-transformers run as well. Default: false.
    pub upstream: bool,
}

/// A program that speaks the worker protocol.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// Name of the program in tables and of its folder in a run; must be a valid file name.
    pub name: String,
    /// The program and its arguments; it is started in the folder of this file.
    pub program: Vec<String>,
    /// Whether the program computes in float64 when asked to, so that `oracle = true` asks it too. A program with `tfcheck_port::serve` does. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub float64: bool,
}

/// How the cells are run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Run {
    /// Modes of the transformers versions: `eager`, and of `torch.compile` `compiled`, `frozen` (weights as constants), `reduce_overhead` and `max_autotune` (its modes of those names, for GPUs). Default: the first two.
    #[schemars(with = "Vec<schema::ModeName>")]
    pub modes: Vec<Mode>,
    /// Attention implementations of the transformers versions: `eager`, `sdpa`, and `default`, which is what transformers selects if it is given none. Default: `["sdpa"]`.
    #[schemars(with = "Vec<schema::AttentionName>")]
    pub attention: Vec<Attention>,
    /// dtypes of weights and activations: `f64`, `f32`, `bf16`, `f16`, and `auto`, which is the checkpoint's. Default: `["f32"]`.
    #[schemars(with = "Vec<schema::DtypeName>")]
    pub dtypes: Vec<LoadDtype>,
    /// Devices, `cpu`, `cuda:0` and the like, or `auto`. Default: `["auto"]`, the first GPU found, else the CPU.
    #[schemars(with = "Vec<String>")]
    pub devices: Vec<Device>,
    /// Compute threads of each worker. Default: the physical cores of the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Warm-up forward passes in each round, not timed. Default: 3.
    pub warm_up: usize,
    /// Timed passes in each round. Default: 10.
    pub iterations: usize,
    /// Tokens that each round also decodes through the KV cache, each timed; 0 turns decoding off. Default: 0.
    pub decode: usize,
    /// Timing rounds; each round times every variant; 0 turns timing off. Default: 3.
    pub rounds: usize,
    /// Seconds that a case may spend on rounds beyond `rounds` while the machine is busy. If one variant is timed, only its quietest rounds count; if several are, all rounds count. Default: 60 if `fail_on` has a gate on times or `against` is set, else 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience_s: Option<u64>,
    /// Variants of a case that may load and compile at the same time, before anything is timed; above 1, load and first-call times are upper bounds, because variants share the cores. Default: 2.
    pub first_passes_at_once: usize,
    /// Whether a profiler trace of one forward pass of each variant is written. Default: true.
    pub trace: bool,
    /// Outputs beside the main one that a model computes only if asked to, such as `router_logits` of a mixture of experts; they are compared too. Default: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<String>,
    /// Whether float64 references of both sides are computed, against which every variant's error is measured. Default: false.
    pub oracle: bool,
    /// Whether each variant repeats its forward pass, once in the same process and once in a second one, to measure the noise floor; costs one forward pass, plus start, load and first forward pass of a second worker. Default: true.
    pub noise: bool,
    /// Variant that speed-ups are relative to, by its name in the tables. Default: eager mode of the newest transformers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<String>,
    /// Gates: conditions under which the run fails, such as `verdict>=diverged`, `l2>1e-3`, `p50>5%` or `loads`. Default: `verdict>=worse_rounding`, and with `against` also `p50>3%`.
    #[schemars(with = "Vec<String>")]
    pub fail_on: Vec<Gate>,
    /// Seconds that may be spent to find what the groups that diverge compute instead (`tfcheck diagnose`); 0 turns it off. Default: 60.
    pub diagnose_s: u64,
    /// The saved baseline that the run is compared with when it ends. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<String>,
    /// Time limit of a request to a worker in seconds; loading and the first forward pass have separate limits. Default: 600.
    pub timeout_s: u64,
    /// GB (10^9 bytes) that loaded workers may hold while they wait between rounds. Default: half of the machine's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_budget_gb: Option<f64>,
    /// Seed of the workers' random generators. Default: 0.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            checkpoints: vec![Checkpoint::new(CheckpointSource::Synthetic {
                model_type: "llama".to_owned(),
                variant: None,
            })],
            inputs: InputsConfig::default(),
            environment: Environment::default(),
            versions: Versions::known().default.iter().map(|number| Version::release(number)).collect(),
            candle: Candle::default(),
            commands: Vec::new(),
            run: Run::default(),
            relations: Relations::default(),
            tolerances: Tolerances::default(),
            engine: Engine::default(),
            folder: PathBuf::new(),
        }
    }
}

impl Default for Environment {
    fn default() -> Self {
        Self {
            torch: Versions::known().torch.clone(),
            requirements: Vec::new(),
            torch_backend: TorchBackend::Auto,
            python: None,
        }
    }
}

impl Default for Candle {
    fn default() -> Self {
        Self { modes: vec![Mode::Eager, Mode::Fused], upstream: false }
    }
}

impl Run {
    /// [`Self::patience_s`], or its default.
    pub fn patience_s(&self) -> u64 {
        let looks_at_times = self.against.is_some() || self.fail_on.iter().any(Gate::is_on_times);
        self.patience_s.unwrap_or(if looks_at_times { PATIENCE_S } else { 0 })
    }
}

impl Default for Run {
    fn default() -> Self {
        Self {
            modes: vec![Mode::Eager, Mode::Compiled],
            attention: vec![Attention::Sdpa],
            dtypes: vec![LoadDtype::Named(Dtype::F32)],
            devices: vec![Device::Auto],
            threads: None,
            warm_up: 3,
            iterations: 10,
            decode: 0,
            rounds: 3,
            patience_s: None,
            diagnose_s: 60,
            first_passes_at_once: 2,
            trace: true,
            outputs: Vec::new(),
            oracle: false,
            noise: true,
            baseline: None,
            fail_on: Vec::new(),
            against: None,
            timeout_s: 600,
            memory_budget_gb: None,
            seed: 0,
        }
    }
}

impl Checkpoint {
    /// A checkpoint of which only the source is said.
    pub fn new(source: CheckpointSource) -> Self {
        Self {
            source,
            revision: None,
            name: None,
            allow_remote_code: false,
            translate: true,
            tolerances: None,
        }
    }

    /// What the names of its cases begin with: its `name`, else the last part of its source in lower case.
    pub fn case_name(&self) -> String {
        if let Some(name) = &self.name {
            return name.clone();
        }
        let last = match &self.source {
            CheckpointSource::Hub(id) => id.rsplit('/').next().unwrap_or(id).to_owned(),
            CheckpointSource::Folder(path) => file_part(path.file_name()),
            CheckpointSource::Gguf(path) => file_part(path.file_stem()),
            CheckpointSource::Synthetic { model_type, variant: None } => model_type.clone(),
            CheckpointSource::Synthetic { model_type, variant: Some(variant) } => {
                format!("{model_type}-{variant}")
            }
        };
        let safe = |c: char| {
            if c.is_ascii_alphanumeric() || "._+-".contains(c) { c.to_ascii_lowercase() } else { '-' }
        };
        let name: String = last.chars().take(100).map(safe).collect();
        // `..` and the like have no last part.
        Some(name.trim_matches(|c: char| !c.is_ascii_alphanumeric()))
            .filter(|name| !name.is_empty())
            .unwrap_or("checkpoint")
            .to_owned()
    }
}

impl Version {
    /// A release from PyPI under its own number.
    pub fn release(number: &str) -> Self {
        Self {
            name: number.to_owned(),
            source: Some(VersionSource::Release(number.to_owned())),
            python: None,
            modes: None,
            attention: None,
            dtypes: None,
        }
    }
}

fn enabled() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_enabled(value: &bool) -> bool {
    *value
}

fn file_part(part: Option<&std::ffi::OsStr>) -> String {
    part.unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
