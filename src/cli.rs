//! The command line, as clap reads it; no logic.

mod hunt;
mod share;
mod shell;

use std::path::PathBuf;

use bounds::limits::SECONDS;
use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};
use reference::protocol::Dtype;

pub use hunt::{Bisect, Diagnose, DtypeName, Localize};
pub use share::{EngineName, Merge, Plan, Sharing};
pub use shell::{Completions, Man, Schema, SchemaOf, asks_for_build};

use crate::spec::gate::Gate;
use crate::spec::units::Shard;
use crate::spec::variant::dtype_name;

/// Exit codes, as `--help` ends with them.
const EXIT_CODES: &str = "Exit codes:
  0    everything ran and agrees
  1    a gate failed: variants diverge or cannot be compared, or a result or time regressed
  2    the command line, the config or the checkpoint is invalid
  3    a cell failed and no gate did, or results cannot be written
  4    gpu-check: there is no GPU, or a required library is missing
  130  interrupted; finished cells are kept, and `run --resume` completes the run";

/// Runs one checkpoint on fixed inputs through many variants of a transformer, and reports which logits diverge and how fast each variant is.
#[derive(Clone, Debug, PartialEq, Parser)]
#[command(name = "tfcheck", version, after_help = EXIT_CODES, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
    /// When to colour the output.
    #[arg(long, global = true, help_heading = "Global options", value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
    pub color: Color,
    /// Print each step's command and time; given twice, also the workers' output.
    #[arg(short, long, global = true, help_heading = "Global options", action = clap::ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
    /// Print only the result and errors.
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub quiet: bool,
    /// Print the result as text, or as one JSON object with the exit code, the summary and the error (docs/agents.md).
    #[arg(long, global = true, help_heading = "Global options", value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    pub format: Format,
}

/// Form of the result on standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// When output is coloured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Color {
    /// Whether to colour; `None` where the terminal decides.
    pub fn forced(self) -> Option<bool> {
        match self {
            Self::Auto => None,
            Self::Always => Some(true),
            Self::Never => Some(false),
        }
    }

    /// What the arguments of this process ask for, before they are parsed: help and errors of the command line are
    /// coloured too.
    pub fn of_arguments(arguments: impl Iterator<Item = String>) -> Self {
        let mut named = None;
        let mut arguments = arguments.take_while(|argument| argument != "--");
        while let Some(argument) = arguments.next() {
            match argument.strip_prefix("--color") {
                Some("") => named = arguments.next(),
                Some(value) => named = value.strip_prefix('=').map(ToOwned::to_owned).or(named),
                None => {}
            }
        }
        named.and_then(|name| Self::from_str(&name, false).ok()).unwrap_or_default()
    }
}

/// What tfcheck does.
#[derive(Clone, Debug, PartialEq, Subcommand)]
pub enum Command {
    /// Run every cell of a config, compare the results and report.
    Run(Run),
    /// Check relations: invariants that each variant must keep by itself, such as causality, padding, batch and cache.
    Relations(Relations),
    /// List the cells that a config makes, without running anything.
    Plan(Plan),
    /// Merge runs of `--shard` or `--unit` into one run, and report it.
    Merge(Merge),
    /// Write a commented config file with all default values.
    Init(Init),
    /// Print the JSON schema of the config or of another file.
    Schema(Schema),
    /// Regenerate the comparison of saved runs, without running anything.
    Compare(Compare),
    /// Find the first module at which two variants diverge.
    Localize(Localize),
    /// Find what a variant that diverges computes instead, by making another one commit the same mistake.
    Diagnose(Diagnose),
    /// List what tfcheck has built in.
    #[command(subcommand)]
    List(List),
    /// Compare tfcheck's models and candle-transformers' ports with transformers on synthetic checkpoints of every architecture.
    Scoreboard(Scoreboard),
    /// Time transformers (eager, compiled, frozen), candle-transformers and tfcheck's models in interleaved rounds.
    Bench(Bench),
    /// Check kernels, architectures and speed on this machine's GPU; needs no network.
    GpuCheck(GpuCheck),
    /// Find the release or commit that changed a result, a speed, or whether a model loads.
    Bisect(Bisect),
    /// Save runs under a name, to compare later runs with.
    #[command(subcommand)]
    Baseline(Baseline),
    /// Print what a finished run contains about one pair of variants.
    Explain(Explain),
    /// Record transformers' logits, so that a port can be tested against them without Python.
    Record(Record),
    /// Check request by request whether a program speaks the worker protocol.
    CheckWorker(CheckWorker),
    /// Print a shell's completions of tfcheck's command line.
    Completions(Completions),
    /// Print tfcheck's man page, or write the pages of all commands into a folder.
    Man(Man),
    /// Serve one cell of a native model on the worker descriptors.
    #[command(hide = true)]
    Worker(Worker),
    /// Tokenise and render templates for another tfcheck, in a process that may die.
    #[command(hide = true)]
    Foreign,
}

/// Selects cells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct Selection {
    /// Config file, or a run folder whose config and cells are used. Default: ./tfcheck.toml, or a built-in config if that does not exist.
    pub config: Option<PathBuf>,
    /// Checkpoint that replaces the config's: hub id (or ID@REVISION), folder, GGUF file or synthetic:MODEL_TYPE; repeatable.
    #[arg(long = "checkpoint", value_name = "SOURCE")]
    pub checkpoints: Vec<String>,
    /// Run only cells that match this glob over case/variant, case or variant; repeatable.
    #[arg(long, value_name = "PATTERN")]
    pub only: Vec<String>,
    /// Skip cells that match this glob, even if --only selects them; repeatable.
    #[arg(long, value_name = "PATTERN")]
    pub skip: Vec<String>,
}

/// Arguments of `tfcheck run`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct Run {
    /// The selected cells.
    #[command(flatten)]
    pub selection: Selection,
    /// The part of a plan to compute.
    #[command(flatten)]
    pub sharing: Sharing,
    /// List the cells as `tfcheck plan` does, and stop.
    #[arg(long)]
    pub dry_run: bool,
    /// Gate: exit with 1 if this condition holds, such as `verdict>=diverged`, `p50>5%`, `l2>1e-3`, `loads`; repeatable; replaces the config's gates.
    #[arg(long = "fail-on", value_name = "GATE")]
    pub fail_on: Vec<Gate>,
    /// Compare the run with this baseline when it ends.
    #[arg(long, value_name = "NAME")]
    pub against: Option<String>,
    /// Rebuild the config's environments, even if they exist.
    #[arg(long)]
    pub clean: bool,
    /// Print every table of the results instead of what fits a screen.
    #[arg(long)]
    pub full: bool,
    /// Complete an interrupted run with its own config, keeping its finished cells.
    #[arg(long, value_name = "RUN", conflicts_with_all = ["config", "checkpoints", "only", "skip", "dry_run", "results"])]
    pub resume: Option<PathBuf>,
    /// Folder in which the run folder is created.
    #[arg(long, value_name = "FOLDER", default_value = "results")]
    pub results: PathBuf,
}

/// Arguments of `tfcheck relations`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct Relations {
    /// The selected cells.
    #[command(flatten)]
    pub selection: Selection,
    /// Check only this relation (docs/relations.md); repeatable; replaces the config's list.
    #[arg(long = "relation", value_name = "NAME")]
    pub relations: Vec<String>,
    /// Complete an interrupted run with its own config, keeping its finished cells.
    #[arg(long, value_name = "RUN", conflicts_with_all = ["config", "checkpoints", "only", "skip", "relations", "results"])]
    pub resume: Option<PathBuf>,
    /// Print every table of the results instead of what fits a screen.
    #[arg(long)]
    pub full: bool,
    /// Folder in which the run folder is created.
    #[arg(long, value_name = "FOLDER", default_value = "results")]
    pub results: PathBuf,
}

/// Arguments of `tfcheck init`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Init {
    /// File to write; an existing file is not overwritten.
    #[arg(default_value = "tfcheck.toml")]
    pub path: PathBuf,
}

/// Arguments of `tfcheck compare`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Compare {
    /// Run folders, including legacy runs of the Python framework that tfcheck replaces.
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// Gate, as in `tfcheck run`: exit with 1 if this condition holds; repeatable; replaces the run's gates.
    #[arg(long = "fail-on", value_name = "GATE")]
    pub fail_on: Vec<Gate>,
    /// Print every table of the results instead of what fits a screen.
    #[arg(long)]
    pub full: bool,
    /// Write what changed from the first of two runs to the second as one page, by default to compare.html.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "compare.html")]
    pub html: Option<PathBuf>,
}

/// What `tfcheck baseline` does.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Baseline {
    /// Save a run under a name; the run may be deleted afterwards.
    Save {
        /// Name of the baseline; an existing baseline of that name is replaced.
        name: String,
        /// Run folder. Default: the newest run of the results folder.
        run: Option<PathBuf>,
        /// Folder with the runs, the history and the baselines.
        #[arg(long, value_name = "FOLDER", default_value = "results")]
        results: PathBuf,
    },
    /// List the saved baselines.
    List {
        /// Folder with the runs, the history and the baselines.
        #[arg(long, value_name = "FOLDER", default_value = "results")]
        results: PathBuf,
    },
    /// Remove a baseline and its files.
    Remove {
        /// The baseline's name.
        name: String,
        /// Folder with the runs, the history and the baselines.
        #[arg(long, value_name = "FOLDER", default_value = "results")]
        results: PathBuf,
    },
}

/// Arguments of `tfcheck explain`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Explain {
    /// The run's folder.
    pub run: PathBuf,
    /// Pair: `A..B` or two names, each a variant's name or an unambiguous part of it; `CASE/A..B` selects one case.
    #[arg(required = true, num_args = 1..=2, value_name = "PAIR")]
    pub pair: Vec<String>,
}

/// Arguments of `tfcheck record`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Record {
    /// The recorded case: one checkpoint with one batch of inputs, run with the newest of the config's versions.
    #[command(flatten)]
    pub selection: Selection,
    /// Folder of the new recording.
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// Number of real positions whose logits are kept, evenly spaced and including each sequence's last. Default: all.
    #[arg(long, value_name = "N")]
    pub positions: Option<usize>,
    /// Also keep the outputs of modules that match this glob over their paths, such as `model.layers.*`, so that a failing test names the first one that diverges; repeatable.
    #[arg(long = "modules", value_name = "GLOB")]
    pub modules: Vec<String>,
    /// Also keep logits of edited checkpoints in which parts of the network are switched off, so that a failing test names the part that differs.
    #[arg(long)]
    pub surgery: bool,
    /// Folder in which the run folder is created.
    #[arg(long, value_name = "FOLDER", default_value = "results")]
    pub results: PathBuf,
}

/// What `tfcheck list` lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub enum List {
    /// The native models by model_type: kind, heads, and the synthetic checkpoints with what each one switches on.
    Models,
}

/// Arguments of `tfcheck scoreboard`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct Scoreboard {
    /// Config whose newest version is the reference. Default: ./tfcheck.toml, or a built-in config if that does not exist.
    pub config: Option<PathBuf>,
    /// Only this model_type; repeatable.
    #[arg(long, value_name = "MODEL_TYPE")]
    pub only: Vec<String>,
    /// Run every synthetic checkpoint of a model type, not only its default.
    #[arg(long)]
    pub all: bool,
    /// Also judge the ports of this checkout of candle, or of its crate candle-transformers alone; compiles the adapters against it.
    #[arg(long = "crate", value_name = "PATH")]
    pub checkout: Option<PathBuf>,
    /// Compute one of N shares of about equal estimated time, to be put together by `tfcheck merge` and `tfcheck scoreboard --resume RUN`.
    #[arg(long, value_name = "K/N", conflicts_with = "resume")]
    pub shard: Option<Shard>,
    /// Submit the units as jobs, wait for them and merge them, as `tfcheck run` does; --resume takes the folder of the jobs.
    #[arg(long, value_name = "ENGINE", value_enum, conflicts_with = "shard")]
    pub engine: Option<EngineName>,
    /// Complete an interrupted scoreboard, keeping its finished cells.
    #[arg(long, value_name = "RUN", conflicts_with_all = ["config", "only", "all", "checkout", "results"])]
    pub resume: Option<PathBuf>,
    /// Folder in which the run folder is created.
    #[arg(long, value_name = "FOLDER", default_value = "results")]
    pub results: PathBuf,
}

/// Arguments of `tfcheck bench`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Bench {
    /// Config whose checkpoints and newest version are timed. Default: ./tfcheck.toml, or a built-in config if that does not exist.
    pub config: Option<PathBuf>,
    /// Checkpoint that replaces the config's, as in `tfcheck run`; repeatable.
    #[arg(long = "checkpoint", value_name = "SOURCE")]
    pub checkpoints: Vec<String>,
    /// dtypes of weights and activations.
    #[arg(long, value_name = "DTYPE", value_delimiter = ',', default_value = "f32,bf16", value_parser = dtype)]
    pub dtypes: Vec<Dtype>,
    /// Sequence lengths in tokens.
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "128,512")]
    pub lengths: Vec<usize>,
    /// Batch sizes.
    #[arg(long, value_name = "SEQUENCES", value_delimiter = ',', default_value = "1")]
    pub batch: Vec<usize>,
    /// Interleaved timing rounds of three forward passes each.
    #[arg(long, default_value_t = 6)]
    pub rounds: usize,
    /// Complete an interrupted benchmark, keeping its finished cells.
    #[arg(long, value_name = "RUN", conflicts_with_all = ["config", "checkpoints", "dtypes", "lengths", "batch", "rounds", "results"])]
    pub resume: Option<PathBuf>,
    /// Folder in which the run folder is created.
    #[arg(long, value_name = "FOLDER", default_value = "results")]
    pub results: PathBuf,
}

/// Default time limit of `tfcheck gpu-check`, below ten minutes: remote GPU machines often limit a command to that.
pub const GPU_CHECK_SECONDS: u64 = 570;

/// Arguments of `tfcheck gpu-check`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct GpuCheck {
    /// Folder for gpu_check.json and gpu_check.md.
    #[arg(long, value_name = "FOLDER", default_value = "results/gpu_check")]
    pub out: PathBuf,
    /// Python interpreter whose torch and transformers are timed; a bare name is searched on PATH.
    #[arg(long, value_name = "PYTHON", default_value = "python3")]
    pub python: PathBuf,
    /// Time limit in seconds; parts that do not fit are dropped, starting from the last, and listed in the result.
    #[arg(long, value_name = "SECONDS", default_value_t = GPU_CHECK_SECONDS, value_parser = seconds())]
    pub seconds: u64,
    /// Run only parts that match this glob, such as `kernels`, `architectures` or `smollm2-*`; repeatable.
    #[arg(long, value_name = "PATTERN")]
    pub only: Vec<String>,
    /// List the parts and the missing CUDA libraries, and stop.
    #[arg(long, conflicts_with = "emulate")]
    pub dry_run: bool,
    /// Check correctness on an emulated GPU: the kernels' sources are compiled by this machine's C++ compiler; nothing is timed.
    #[arg(long)]
    pub emulate: bool,
}

/// Seconds of a wait.
fn seconds() -> RangedU64ValueParser {
    value_parser!(u64).range(1..=SECONDS.most)
}

/// A dtype by the name that tables use.
fn dtype(text: &str) -> Result<Dtype, String> {
    let known = [Dtype::F64, Dtype::F32, Dtype::Bf16, Dtype::F16];
    known
        .into_iter()
        .find(|&dtype| dtype_name(dtype) == text)
        .ok_or_else(|| "one of f64, f32, bf16, f16".to_owned())
}

/// Arguments of `tfcheck check-worker`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct CheckWorker {
    /// Checkpoint that the program loads: hub id, folder, GGUF file or synthetic:MODEL_TYPE.
    #[arg(long, value_name = "SOURCE", default_value = "synthetic:llama:tiny")]
    pub checkpoint: String,
    /// Seconds that one request may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = seconds())]
    pub timeout: u64,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "PROGRAM")]
    pub program: Vec<String>,
}

/// Arguments of the hidden `tfcheck worker`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct Worker {
    /// Run the candle-transformers port instead of tfcheck's own model.
    #[arg(long)]
    pub upstream: bool,
    /// Of the ports, run the one that reads a GGUF file.
    #[arg(long, requires = "upstream")]
    pub gguf: bool,
    /// Python interpreter whose environment may contain the CUDA libraries; repeatable.
    #[arg(long = "python", value_name = "PYTHON")]
    pub pythons: Vec<PathBuf>,
    /// Folder for kernels compiled for the GPU.
    #[arg(long, value_name = "FOLDER")]
    pub cubins: Option<PathBuf>,
}

#[cfg(test)]
mod tests;
