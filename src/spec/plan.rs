//! Config -> the cases, environments and cells of a run, keyed by content.
//!
//! A plan is made without touching the network, the disk or a model, so `tfcheck plan` shows what a
//! run would do at once.

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
pub(crate) use filter::glob;
pub use filter::{FilterError, Filters};

/// Everything that a run will do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The cases that have cells, in the order of the config.
    pub cases: Vec<CasePlan>,
    /// The environments that cells need, each once.
    pub environments: Vec<EnvironmentPlan>,
    /// The cells: case by case, variants in the same order in each.
    pub cells: Vec<CellPlan>,
    /// Name of the variant that speed-ups are against.
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

/// One batch of inputs, still as text and numbers.
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
    /// Rows cut from the text.
    Sweep {
        /// Tokens of the longest row.
        length: usize,
        /// Rows.
        batch: usize,
        /// The padding of the batch.
        padding: Padding,
        /// Tokens of the prefill, where the rest is decoded through the KV cache; one pass otherwise.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        prefill: Option<usize>,
    },
}

/// One Python environment; versions of equal content share it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EnvironmentPlan {
    /// Names of the versions that run in it.
    pub versions: Vec<String>,
    /// How it comes to be.
    pub origin: EnvironmentOrigin,
}

/// How an environment comes to be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "origin", rename_all = "snake_case")]
pub enum EnvironmentOrigin {
    /// It exists and is used as it is.
    Existing {
        /// Its interpreter.
        python: PathBuf,
        /// What the config says of its transformers; to be verified.
        expected: Option<VersionSource>,
    },
    /// uv locks and syncs it.
    Made {
        /// Its transformers.
        source: VersionSource,
        /// Its torch release.
        torch: String,
        /// Where torch comes from.
        torch_backend: TorchBackend,
        /// Further requirements.
        requirements: Vec<String>,
        /// The Python that uv is asked for.
        python: Option<String>,
    },
}

/// One case in one variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellPlan {
    /// Index into [`Plan::cases`].
    pub case: usize,
    /// What computes it.
    pub variant: Variant,
    /// Index into [`Plan::environments`], for transformers.
    pub environment: Option<usize>,
    /// Index into [`Config::commands`], for a command.
    pub command: Option<usize>,
    /// True where the cell is timed and traced; false for one that is there as oracle alone.
    pub measured: bool,
    /// True where the cell is the f64 oracle of its side ([`crate::spec::config::Run::oracle`]).
    pub oracle: bool,
    /// SHA-256, in hex, of all that the config says of the cell. What the config only points to (weights, locked packages, a text file) is not in it.
    pub key: String,
}

impl InputsPlan {
    /// Tokens of the prefill, where the rest is decoded through the KV cache.
    pub fn prefill(self) -> Option<usize> {
        match self {
            Self::Prompts { .. } | Self::TokenIds { .. } => None,
            Self::Sweep { prefill, .. } => prefill,
        }
    }

    /// Whether the config asks for padding on one side.
    pub fn is_padded(self) -> bool {
        let padding = match self {
            Self::Prompts { padding } | Self::TokenIds { padding } => padding,
            Self::Sweep { padding, .. } => Some(padding),
        };
        matches!(padding, Some(Padding::Left | Padding::Right))
    }

    /// Tokens of the longest row; `None` for prompts and token ids.
    pub fn length(self) -> Option<usize> {
        match self {
            Self::Prompts { .. } | Self::TokenIds { .. } => None,
            Self::Sweep { length, .. } => Some(length),
        }
    }

    /// Batch size; `None` for prompts and token ids, a sequence each.
    pub fn batch(self) -> Option<usize> {
        match self {
            Self::Prompts { .. } | Self::TokenIds { .. } => None,
            Self::Sweep { batch, .. } => Some(batch),
        }
    }
}

impl Plan {
    /// The cells that `config` asks for. `auto_device` is what `auto` means on this machine: `cpu`, `cuda:0`.
    ///
    /// # Errors
    /// A baseline that is no variant, two variants of one name, or nothing to run.
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
    /// A pattern that matches no cell, or nothing left to run.
    pub fn filtered(&self, filters: &Filters, config: &Config) -> Result<Self, PlanError> {
        filter::filtered(self, filters, config)
    }

    /// The cells for which `is_wanted` holds, without the cases and environments that only the others needed. A baseline
    /// that is left out gives way to the default one.
    ///
    /// # Errors
    /// Nothing is left to run.
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

    /// A plan that was read from a run folder, checked: what it refers to exists, in itself and in `config`, and the
    /// names of its cases are safe as file names.
    ///
    /// # Errors
    /// The plan is not one of `config`.
    pub fn checked(self, config: &Config) -> Result<Self, PlanError> {
        match saved::problem(&self, config) {
            Some(problem) => Err(PlanError::Saved(problem)),
            None => Ok(self),
        }
    }

    /// The name by which filters know a cell: `llama-128/4.54.0_eager_sdpa`.
    pub fn cell_name(&self, cell: &CellPlan) -> String {
        format!("{}/{}", self.cases[cell.case].name, cell.variant.name())
    }

    /// What `tfcheck plan` prints. `config` is the one that the plan was made of; `unsupported` has, for each cell, the
    /// reason for which its runner will not support it, where one is known.
    pub fn text(&self, config: &Config, unsupported: &[Option<String>]) -> String {
        text::text(self, config, unsupported)
    }
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, thiserror::Error, miette::Diagnostic)]
pub enum PlanError {
    /// The baseline names no variant.
    #[error("the baseline `{name}` is not one of the variants")]
    Baseline {
        /// As the config has it.
        name: String,
        /// What to write instead.
        #[help]
        hint: String,
    },
    /// Two cells would bear one name.
    #[error("two cells are called `{0}`")]
    SameName(String),
    /// Nothing to run.
    #[error("the config asks for no variant at all")]
    #[diagnostic(help(
        "list a version under [[versions]], a mode under [candle] or a program under [[commands]]"
    ))]
    Empty,
    /// The plan of a run folder does not hold together.
    #[error("the plan in run.json {0}")]
    #[diagnostic(help("start a new run: this one cannot be resumed"))]
    Saved(String),
    /// A filter went wrong.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Filter(#[from] FilterError),
}

#[cfg(test)]
mod tests;
