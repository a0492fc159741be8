//! `tfcheck.toml` as typed structs.
//!
//! The doc comment of each field states its unit and default; it is also its description in the JSON
//! schema that `tfcheck schema` prints. A file is read once, by [`Config::load`]; nothing after that
//! looks at text again.

use std::path::{Path, PathBuf};

use reference::protocol::{Attention, Dtype, Mode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::spec::gate::Gate;
use compare::verdict::{Overrides, Tolerances};

mod device;
mod diagnose;
mod init;
mod load;
mod schema;
mod validate;

pub use crate::spec::checkpoint::{Source as CheckpointSource, SourceError};
pub use device::Device;
pub use diagnose::ConfigError;
pub use init::{InitError, init, init_text};
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
    /// What is computed; each checkpoint meets each batch of inputs. Default: `synthetic:llama`.
    pub checkpoints: Vec<Checkpoint>,
    /// What it is computed on. Default: one row of 128 tokens of a built-in text.
    pub inputs: Inputs,
    /// What all transformers versions have in common.
    pub environment: Environment,
    /// The transformers versions, oldest first by habit. Default: 4.54.0 and the newest one pinned; `versions = []` means none.
    pub versions: Vec<Version>,
    /// The native models.
    pub candle: Candle,
    /// Programs that speak the worker protocol. Default: none.
    pub commands: Vec<Command>,
    /// How the cells are run.
    pub run: Run,
    /// Limits of the verdicts.
    pub tolerances: Tolerances,
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
    /// Names the cases of this checkpoint, so safe as a file name. Default: the last part of the source, in lower case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Lets transformers run the Python code that the checkpoint brings (`auto_map`). Default: false, and such a checkpoint is refused.
    #[serde(default)]
    pub allow_remote_code: bool,
    /// Limits of this checkpoint's verdicts alone; what is not named is that of `[tolerances]`. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerances: Option<Overrides>,
}

/// The inputs: either `prompts` (one batch, a row each) or `lengths` (a sweep over token counts).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Inputs {
    /// Texts that make one batch, a row each; not together with `lengths`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompts: Option<Vec<String>>,
    /// Renders each prompt through the checkpoint's chat template; with `prompts` only. Default: false.
    pub chat: bool,
    /// Texts whose probability as the next token is tabled per variant; with `prompts` only. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choices: Option<Vec<String>>,
    /// Row lengths in tokens, a case each; not together with `prompts`. Default: `[128]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lengths: Option<Vec<usize>>,
    /// Batch sizes in rows, a case each; with `lengths` only. Default: `[1]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<Vec<usize>>,
    /// File of UTF-8 text that the rows of a sweep are cut from; with `lengths` only. Default: a built-in text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<PathBuf>,
    /// Sides on which shorter rows are padded, a case each; one row alone has no padding. Default: `["right"]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub padding: Option<Vec<Padding>>,
    /// Tokens of a prefill, below a row's length: the rest of the row goes through the KV cache token by token. A case each beside the one pass, compared but not timed; with `lengths` only. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefill: Option<Vec<usize>>,
    /// Seed that picks where rows are cut from the text, and the random tokens of a checkpoint without a tokenizer. Default: 0.
    pub seed: u64,
}

/// Which of the two forms [`Inputs`] has.
#[derive(Clone, Debug, PartialEq)]
pub enum InputsForm<'config> {
    /// One batch, a row per prompt.
    Prompts {
        /// The texts.
        prompts: &'config [String],
        /// Whether each is rendered through the chat template.
        chat: bool,
    },
    /// A case for each length, batch size and side.
    Sweep {
        /// Tokens a row.
        lengths: Vec<usize>,
        /// Rows a batch.
        batch: Vec<usize>,
        /// Tokens of each prefill that is followed by decoding; the one pass is always there too.
        prefill: &'config [usize],
        /// Where the rows come from; the built-in text when absent.
        text: Option<&'config Path>,
    },
}

/// The side on which shorter rows of a batch are filled up.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Padding {
    /// Before the first real token.
    Left,
    /// After the last real token.
    #[default]
    Right,
}

/// What all transformers versions have in common, so that a difference is the version's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Environment {
    /// The torch release that every environment gets. Default: `2.15.0`.
    pub torch: String,
    /// Further requirements that every environment gets, as pip writes them (`numpy<3`). Default: none.
    pub requirements: Vec<String>,
    /// Where torch comes from: `pypi`, `cpu` or `cu130` and the like (an index of PyTorch's), or `auto`. Default: `auto`, which goes by the GPU found and falls back to PyPI.
    #[schemars(with = "String")]
    pub torch_backend: TorchBackend,
    /// The Python that uv is asked for, `3.11`. Default: the one that uv picks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub python: Option<String>,
}

/// One transformers version in an environment of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Version {
    /// Names the version in tables and its folder in a run, so safe as a file name.
    pub name: String,
    /// `transformers==4.54.0`, `git+https://…@ref` or `-e transformers-fork/`; may be absent where `python` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub source: Option<VersionSource>,
    /// The interpreter of an environment that exists and is used as it is. Default: none, an environment is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub python: Option<PathBuf>,
    /// Modes of this version alone, as in `[run]`. Default: those of `[run]`.
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
    pub dtypes: Option<Vec<Dtype>>,
}

/// The native models on candle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Candle {
    /// Modes of tfcheck's own models, `eager` and `fused`. Default: both; `modes = []` leaves them out.
    #[schemars(with = "Vec<schema::ModeName>")]
    pub modes: Vec<Mode>,
    /// Also runs the ports that candle-transformers ships. Default: false.
    pub upstream: bool,
}

/// A program that speaks the worker protocol.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// Names the program in tables and its folder in a run, so safe as a file name.
    pub name: String,
    /// The program and its arguments; it is started in the folder of this file.
    pub program: Vec<String>,
}

/// How the cells are run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Run {
    /// Modes of the transformers versions: `eager`, and of `torch.compile` `compiled`, `frozen` (weights as constants), `reduce_overhead` and `max_autotune` (its modes of those names, for GPUs). Default: the first two.
    #[schemars(with = "Vec<schema::ModeName>")]
    pub modes: Vec<Mode>,
    /// Attention implementations of the transformers versions, `eager` and `sdpa`. Default: `["sdpa"]`.
    #[schemars(with = "Vec<schema::AttentionName>")]
    pub attention: Vec<Attention>,
    /// dtypes of weights and activations, `f64`, `f32`, `bf16` and `f16`. Default: `["f32"]`.
    #[schemars(with = "Vec<schema::DtypeName>")]
    pub dtypes: Vec<Dtype>,
    /// Devices, `cpu`, `cuda:0` and the like, or `auto`. Default: `["auto"]`, the first GPU found, else the CPU.
    #[schemars(with = "Vec<String>")]
    pub devices: Vec<Device>,
    /// Compute threads of each worker. Default: the physical cores of the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Passes before the clock counts, in each round. Default: 3.
    pub warm_up: usize,
    /// Timed passes in each round. Default: 10.
    pub iterations: usize,
    /// Tokens that each round also decodes one by one through the KV cache, each timed; 0 leaves decoding out. Default: 0.
    pub decode: usize,
    /// Timing rounds; within a round the variants take turns, and 0 leaves timing out. Default: 3.
    pub rounds: usize,
    /// Seconds that a case may spend on more rounds than `rounds`, where the machine was busy with something else. One variant alone waits, and its quietest rounds count; of several all do. Default: 60 where `fail_on` looks at times or `against` names a baseline, else 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience_s: Option<u64>,
    /// Variants of a case that may load and make their first pass at the same time: compilers then share the cores, and what is said of loading and first passes is no measurement. Default: 1.
    pub first_passes_at_once: usize,
    /// Also profiles one pass of each variant. Default: true.
    pub trace: bool,
    /// Also computes each case in f64 on both sides, against which every variant's own error is measured. Default: false.
    pub oracle: bool,
    /// Also repeats each variant's forward, once in the same process and once in a second one, which says how far a variant is from itself; costs that pass, and a start, load and first pass of a worker. Default: true.
    pub noise: bool,
    /// The variant that speed-ups are against, by its name in the tables. Default: eager mode of the newest transformers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<String>,
    /// Conditions on which the run fails, `verdict>=diverged`, `l2>1e-3`, `p50>5%`, `loads` and the like. Default: `verdict>=worse_rounding`, and with `against` also `p50>3%`.
    #[schemars(with = "Vec<String>")]
    pub fail_on: Vec<Gate>,
    /// The saved baseline that the run is compared with when it ends. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<String>,
    /// Seconds that a request to a worker may take; loading and the first pass have limits of their own. Default: 600.
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
            inputs: Inputs::default(),
            environment: Environment::default(),
            versions: Versions::known().default.iter().map(|number| Version::release(number)).collect(),
            candle: Candle::default(),
            commands: Vec::new(),
            run: Run::default(),
            tolerances: Tolerances::default(),
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
            dtypes: vec![Dtype::F32],
            devices: vec![Device::Auto],
            threads: None,
            warm_up: 3,
            iterations: 10,
            decode: 0,
            rounds: 3,
            patience_s: None,
            first_passes_at_once: 1,
            trace: true,
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
        Self { source, revision: None, name: None, allow_remote_code: false, tolerances: None }
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

impl Inputs {
    /// The form that the inputs have, defaults filled in.
    pub fn form(&self) -> InputsForm<'_> {
        match &self.prompts {
            Some(prompts) => InputsForm::Prompts { prompts, chat: self.chat },
            None => InputsForm::Sweep {
                lengths: self.lengths.clone().unwrap_or_else(|| vec![128]),
                batch: self.batch.clone().unwrap_or_else(|| vec![1]),
                prefill: self.prefill.as_deref().unwrap_or_default(),
                text: self.text.as_deref(),
            },
        }
    }

    /// The padding sides, default filled in.
    pub fn padding(&self) -> Vec<Padding> {
        self.padding.clone().unwrap_or_else(|| vec![Padding::Right])
    }
}

fn file_part(part: Option<&std::ffi::OsStr>) -> String {
    part.unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
