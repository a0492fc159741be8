//! Arguments that divide a plan among machines, and those that put its parts together.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Selection;
use crate::spec::gate::Gate;
use crate::spec::units::Shard;

/// Arguments of `tfcheck plan`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct Plan {
    /// The selected cells.
    #[command(flatten)]
    pub selection: Selection,
    /// Prepare checkpoints, inputs and environments, and print the plan with their digests and its units as JSON (docs/machines.md).
    #[arg(long)]
    pub json: bool,
    /// Folder whose history gives the units' estimated seconds.
    #[arg(long, value_name = "FOLDER", default_value = "results", requires = "json")]
    pub results: PathBuf,
}

/// The part of a plan that `tfcheck run` computes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct Sharing {
    /// Compute one of N shares of about equal estimated time; `tfcheck merge` merges the runs of all shares.
    #[arg(long, value_name = "K/N", conflicts_with_all = ["unit", "dry_run", "resume"])]
    pub shard: Option<Shard>,
    /// Compute one unit of the plan, by its name or its number from 1 (docs/machines.md).
    #[arg(long, value_name = "UNIT", conflicts_with_all = ["dry_run", "resume"])]
    pub unit: Option<String>,
    /// Plan of `tfcheck plan --json`, which replaces the config; its digests are checked.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["config", "checkpoints", "only", "skip", "resume"])]
    pub plan: Option<PathBuf>,
    /// Submit the units as jobs, wait for them and merge them; `[engine]` of the config has the options. --dry-run writes the scripts only, --resume takes the folder of the jobs.
    #[arg(long, value_name = "ENGINE", value_enum, conflicts_with_all = ["shard", "unit"])]
    pub engine: Option<EngineName>,
}

/// Where units are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineName {
    /// A Slurm cluster, from one of its hosts.
    Slurm,
}

/// Arguments of `tfcheck merge`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Merge {
    /// Run folders of `tfcheck run` with `--shard` or `--unit`, or folders that contain them.
    #[arg(required = true, value_name = "FOLDER")]
    pub folders: Vec<PathBuf>,
    /// The plan, if the runs were started with `--plan`.
    #[arg(long, value_name = "FILE")]
    pub plan: Option<PathBuf>,
    /// Localise and diagnose diverging pairs on this machine, as a run does at its end.
    #[arg(long)]
    pub localize: bool,
    /// File that gives the reason why a unit is missing: one unit per line, its name, a tab and the reason.
    #[arg(long, value_name = "FILE")]
    pub reasons: Option<PathBuf>,
    /// Gate, as in `tfcheck run`: exit with 1 if this condition holds; repeatable; replaces the plan's gates.
    #[arg(long = "fail-on", value_name = "GATE")]
    pub fail_on: Vec<Gate>,
    /// Print every table of the results instead of what fits a screen.
    #[arg(long)]
    pub full: bool,
    /// Folder in which the merged run is created.
    #[arg(long, value_name = "FOLDER", default_value = "results")]
    pub results: PathBuf,
}
