//! Turns a config into the cases, environments and cells of a run, with a digest for each cell.
//!
//! Planning uses neither the network nor the disk nor a model, so `tfcheck plan` prints a run's plan at once.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use reference::protocol::Dtype;

use crate::spec::config::{Config, Padding, TorchBackend, VersionSource};
use crate::spec::variant::Variant;

mod build;
mod columns;
mod filter;
mod saved;
mod text;

pub(crate) use columns::{release_numbers, release_order};
pub use filter::{FilterError, Filters};

/// Everything that a run computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The cases that have cells, in the order of the config.
    pub cases: Vec<CasePlan>,
    /// The environments that cells need, without duplicates.
    pub environments: Vec<EnvironmentPlan>,
    /// The cells: case by case, variants in the same order in each.
    pub cells: Vec<CellPlan>,
    /// Name of the variant that speed-ups are relative to.
    pub baseline: String,
}

/// One checkpoint with one batch of inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CasePlan {
    /// Short and safe as a file name: `llama-128`, `smollm2-135m-b4-512-left`.
    pub name: String,
    /// Index into [`Config::checkpoints`].
    pub checkpoint: usize,
    /// The batch.
    pub inputs: InputsPlan,
}

/// One batch of inputs before tokenisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "form", rename_all = "snake_case")]
pub enum InputsPlan {
    /// The config's prompts, a sequence each.
    Prompts {
        /// The padding that the config asks for; absent where shorter sequences are padded on the right.
        padding: Option<Padding>,
    },
    /// The config's token ids.
    TokenIds {
        /// As for prompts.
        padding: Option<Padding>,
    },
    /// The tensors of the config's file.
    Tensors,
    /// The config's pictures, sounds and prompts through the checkpoint's processor.
    Processed,
    /// Sequences cut from the text.
    Sweep {
        /// Sequence length in tokens; of the longest sequence if there is padding.
        length: usize,
        /// Batch size.
        batch: usize,
        /// The padding of the batch.
        padding: Padding,
        /// Tokens of the prefill before decoding through the KV cache; `None` for one full-sequence forward pass.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        prefill: Option<usize>,
    },
}

/// One Python environment; versions with equal content share it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EnvironmentPlan {
    /// Names of the versions that run in it.
    pub versions: Vec<String>,
    /// How the environment is obtained.
    pub origin: EnvironmentOrigin,
}

/// How an environment is obtained.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "origin", rename_all = "snake_case")]
pub enum EnvironmentOrigin {
    /// An existing environment is used unchanged.
    Existing {
        /// Its interpreter.
        python: PathBuf,
        /// The transformers version that the config expects in it; it is verified later.
        expected: Option<VersionSource>,
    },
    /// uv locks and installs it.
    Made {
        /// Source of transformers.
        source: VersionSource,
        /// torch release.
        torch: String,
        /// Where torch comes from.
        torch_backend: TorchBackend,
        /// Additional requirements.
        requirements: Vec<String>,
        /// The Python version requested from uv.
        python: Option<String>,
    },
}

/// One case computed by one variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellPlan {
    /// Index into [`Plan::cases`].
    pub case: usize,
    /// The variant that computes the case.
    pub variant: Variant,
    /// Index into [`Plan::environments`], for the transformers runner.
    pub environment: Option<usize>,
    /// Index into [`Config::commands`], for a command.
    pub command: Option<usize>,
    /// Whether the cell is timed and traced; false if it serves only as oracle.
    pub measured: bool,
    /// Whether the cell is its side's float64 reference ([`crate::spec::config::Run::oracle`]).
    pub oracle: bool,
    /// SHA-256 in hex of everything in the config that determines the cell's results. Content that the config only refers
    /// to (weights, locked packages, a text file) is not included.
    pub key: String,
}

impl InputsPlan {
    /// Tokens of the prefill before decoding through the KV cache; `None` for one full-sequence forward pass.
    pub fn prefill(self) -> Option<usize> {
        match self {
            Self::Prompts { .. } | Self::TokenIds { .. } | Self::Tensors | Self::Processed => None,
            Self::Sweep { prefill, .. } => prefill,
        }
    }

    /// Whether the config asks for padding on one side.
    pub fn is_padded(self) -> bool {
        let padding = match self {
            Self::Prompts { padding } | Self::TokenIds { padding } => padding,
            Self::Tensors | Self::Processed => None,
            Self::Sweep { padding, .. } => Some(padding),
        };
        matches!(padding, Some(Padding::Left | Padding::Right))
    }

    /// Tokens of the longest row; `None` unless the config states it.
    pub fn length(self) -> Option<usize> {
        match self {
            Self::Prompts { .. } | Self::TokenIds { .. } | Self::Tensors | Self::Processed => None,
            Self::Sweep { length, .. } => Some(length),
        }
    }

    /// Batch size; `None` for prompts and token ids, a sequence each.
    pub fn batch(self) -> Option<usize> {
        match self {
            Self::Prompts { .. } | Self::TokenIds { .. } | Self::Tensors | Self::Processed => None,
            Self::Sweep { batch, .. } => Some(batch),
        }
    }
}

impl Plan {
    /// Plans the cells of `config`. `auto_device` is the device that `auto` selects on this machine: `cpu`, `cuda:0`.
    ///
    /// # Errors
    /// When the baseline is not a variant, two variants have the same name, or there is nothing to run.
    pub fn new(config: &Config, auto_device: &str) -> Result<Self, PlanError> {
        build::build(config, auto_device)
    }

    /// The plan with the dtypes that `auto` stands for. `of` tells the dtype of the checkpoint with this index into
    /// [`Config::checkpoints`].
    #[must_use]
    pub fn with_dtypes(mut self, of: impl Fn(usize) -> Dtype) -> Self {
        for cell in self.cells.iter_mut().filter(|cell| cell.variant.auto_dtype) {
            cell.variant.dtype = of(self.cases[cell.case].checkpoint);
        }
        self
    }

    /// The plan without the cells that `filters` rule out, nor the cases and environments that only those needed.
    /// A baseline that is ruled out gives way to the default one.
    ///
    /// # Errors
    /// When a pattern matches no cell, or nothing is left to run.
    pub fn filtered(&self, filters: &Filters, config: &Config) -> Result<Self, PlanError> {
        filter::filtered(self, filters, config)
    }

    /// Keeps the cells for which `is_wanted` returns true; removes the cases and environments that only the others
    /// needed. A baseline that is removed is replaced by the default one.
    ///
    /// # Errors
    /// When nothing is left to run.
    pub fn selected(
        mut self,
        config: &Config,
        mut is_wanted: impl FnMut(&CasePlan, &CellPlan) -> bool,
    ) -> Result<Self, PlanError> {
        let cases = std::mem::take(&mut self.cases);
        self.cells.retain(|cell| is_wanted(&cases[cell.case], cell));
        self.cases = cases;
        filter::settled(self, config)
    }

    /// Checks a plan from a run folder: every index must exist in the plan and in `config`, and the names of its cases
    /// must be safe as file names.
    ///
    /// # Errors
    /// When the plan is not a plan of `config`.
    pub fn check(&self, config: &Config) -> Result<(), PlanError> {
        saved::problem(self, config).map_or(Ok(()), |problem| Err(PlanError::Saved(problem)))
    }

    /// The cell's name in filters: `llama-128/4.54.0_eager_sdpa`.
    pub fn cell_name(&self, cell: &CellPlan) -> String {
        format!("{}/{}", self.cases[cell.case].name, cell.variant.name())
    }

    /// What `tfcheck plan` prints. `config` is the one that the plan was made of; `unsupported` has, for each cell, the
    /// reason for which its runner will not support it, where one is known.
    pub fn text(&self, config: &Config, unsupported: &[Option<String>]) -> String {
        text::text(self, config, unsupported)
    }
}

/// Why a plan cannot be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error, miette::Diagnostic)]
pub enum PlanError {
    /// The baseline is not a variant.
    #[error("the baseline `{name}` is not one of the variants")]
    Baseline {
        /// The baseline as written in the config.
        name: String,
        /// The remedy.
        #[help]
        hint: String,
    },
    /// The config makes more cells than a run may have.
    #[error("the config makes {0}")]
    #[diagnostic(help("split it into several runs, or list fewer lengths, versions or modes"))]
    TooMany(bounds::Exceeded),
    /// Two cells would have the same name.
    #[error("two cells are called `{0}`")]
    SameName(String),
    /// There is nothing to run.
    #[error("the config asks for no variant at all")]
    #[diagnostic(help(
        "list a version under [[versions]], a mode under [candle] or a program under [[commands]]"
    ))]
    Empty,
    /// The plan of a run folder is inconsistent.
    #[error("the plan in run.json {0}")]
    #[diagnostic(help("start a new run: this one cannot be resumed"))]
    Saved(String),
    /// A filter was refused.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Filter(#[from] FilterError),
}

#[cfg(test)]
mod tests;
