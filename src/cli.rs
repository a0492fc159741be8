//! The command line, as clap reads it; no logic.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use reference::protocol::Dtype;

use crate::variant::dtype_name;

/// Exit codes, as `--help` ends with them.
const EXIT_CODES: &str = "Exit codes:
  0    everything ran and agrees
  1    variants diverge or cannot be compared, or one regressed
  2    the command line or the config is wrong
  3    a cell failed
  130  interrupted; what was finished is kept, and `run --resume` completes it";

/// Who computes what, how fast, and who is wrong: one checkpoint and one frozen input through many variants of a transformer.
#[derive(Clone, Debug, PartialEq, Parser)]
#[command(name = "tfcheck", version, after_help = EXIT_CODES, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Colours in the output.
    #[arg(long, global = true, help_heading = "Global options", value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
    pub color: Color,
    /// Say more: each step's command and timing; twice for the workers' output as well.
    #[arg(short, long, global = true, help_heading = "Global options", action = clap::ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
    /// Say nothing but the result and errors.
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub quiet: bool,
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

/// What tfcheck does.
#[derive(Clone, Debug, PartialEq, Subcommand)]
pub enum Command {
    /// Run every cell of a config, compare the results and report.
    Run(Run),
    /// Show the cells that a config makes, without running anything.
    Plan(Selection),
    /// Write a commented config that says what happens without one.
    Init(Init),
    /// Print the JSON schema of the config.
    Schema,
    /// Compare saved runs anew; nothing is run.
    Compare(Compare),
    /// Judge tfcheck's models and candle-transformers' ports on synthetic checkpoints of every architecture.
    Scoreboard(Scoreboard),
    /// Time transformers (eager, compiled, frozen), candle-transformers and tfcheck's models in turns, with ratios.
    Bench(Bench),
    /// Serve one cell of a native model on the worker descriptors.
    #[command(hide = true)]
    Worker(Worker),
}

/// Which cells are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct Selection {
    /// The config; ./tfcheck.toml otherwise, and a built-in one where there is none.
    pub config: Option<PathBuf>,
    /// A checkpoint instead of the config's: hub id (or ID@REVISION), folder, GGUF file or synthetic:MODEL_TYPE; repeatable.
    #[arg(long = "checkpoint", value_name = "SOURCE")]
    pub checkpoints: Vec<String>,
    /// Keep only the cells that match: a glob over case/variant, or over either; repeatable.
    #[arg(long, value_name = "PATTERN")]
    pub only: Vec<String>,
    /// Drop the cells that match, whatever --only says; repeatable.
    #[arg(long, value_name = "PATTERN")]
    pub skip: Vec<String>,
}

/// Arguments of `tfcheck run`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct Run {
    /// Which cells.
    #[command(flatten)]
    pub selection: Selection,
    /// Show what would run, as `tfcheck plan` does, and stop.
    #[arg(long)]
    pub dry_run: bool,
    /// Build the config's environments anew, even those that exist already.
    #[arg(long)]
    pub clean: bool,
    /// Complete an interrupted run: its own config, its finished cells kept.
    #[arg(long, value_name = "RUN", conflicts_with_all = ["config", "checkpoints", "only", "skip", "dry_run", "results"])]
    pub resume: Option<PathBuf>,
    /// Folder in which the run makes its own.
    #[arg(long, value_name = "FOLDER", default_value = "results")]
    pub results: PathBuf,
}

/// Arguments of `tfcheck init`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Init {
    /// The file to write; one that exists is left alone.
    #[arg(default_value = "tfcheck.toml")]
    pub path: PathBuf,
}

/// Arguments of `tfcheck compare`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Compare {
    /// Run folders; those of the Python framework before tfcheck are read too.
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
}

/// Arguments of `tfcheck scoreboard`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct Scoreboard {
    /// The config whose newest version judges; ./tfcheck.toml otherwise, and a built-in one where there is none.
    pub config: Option<PathBuf>,
    /// Only this model_type; repeatable.
    #[arg(long, value_name = "MODEL_TYPE")]
    pub only: Vec<String>,
    /// Every synthetic checkpoint of a model type and not its default alone.
    #[arg(long)]
    pub all: bool,
    /// Complete an interrupted scoreboard: its finished cells are kept.
    #[arg(long, value_name = "RUN", conflicts_with_all = ["config", "only", "all", "results"])]
    pub resume: Option<PathBuf>,
    /// Folder in which the run makes its own.
    #[arg(long, value_name = "FOLDER", default_value = "results")]
    pub results: PathBuf,
}

/// Arguments of `tfcheck bench`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Bench {
    /// The config whose checkpoints and newest version are measured; ./tfcheck.toml otherwise, and a built-in one where there is none.
    pub config: Option<PathBuf>,
    /// A checkpoint instead of the config's, as for `run`; repeatable.
    #[arg(long = "checkpoint", value_name = "SOURCE")]
    pub checkpoints: Vec<String>,
    /// dtypes of weights and activations.
    #[arg(long, value_name = "DTYPE", value_delimiter = ',', default_value = "f32,bf16", value_parser = dtype)]
    pub dtypes: Vec<Dtype>,
    /// Tokens a row.
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "128,512")]
    pub lengths: Vec<usize>,
    /// Rows.
    #[arg(long, value_name = "ROWS", value_delimiter = ',', default_value = "1")]
    pub batch: Vec<usize>,
    /// Interleaved rounds of three passes.
    #[arg(long, default_value_t = 6)]
    pub rounds: usize,
    /// Complete an interrupted benchmark: its finished cells are kept.
    #[arg(long, value_name = "RUN", conflicts_with_all = ["config", "checkpoints", "dtypes", "lengths", "batch", "rounds", "results"])]
    pub resume: Option<PathBuf>,
    /// Folder in which the run makes its own.
    #[arg(long, value_name = "FOLDER", default_value = "results")]
    pub results: PathBuf,
}

/// A dtype by the name that tables use.
fn dtype(text: &str) -> Result<Dtype, String> {
    let known = [Dtype::F64, Dtype::F32, Dtype::Bf16, Dtype::F16];
    known
        .into_iter()
        .find(|&dtype| dtype_name(dtype) == text)
        .ok_or_else(|| "one of f64, f32, bf16, f16".to_owned())
}

/// Arguments of the hidden `tfcheck worker`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct Worker {
    /// Serve candle-transformers' port instead of tfcheck's own model.
    #[arg(long)]
    pub upstream: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_reads_well() {
        let mut command = Cli::command().term_width(100).version("0.0.0");
        command.build();
        let mut text = command.render_help().to_string();
        for name in ["run", "plan", "init", "schema", "compare", "scoreboard", "bench"] {
            let sub = command.find_subcommand_mut(name).unwrap().clone().term_width(100);
            text = format!("{text}\n=== {name}\n{}", sub.clone().render_help());
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn a_resumed_run_takes_no_other_cells() {
        let parse =
            |words: &[&str]| Cli::try_parse_from([&["tfcheck", "run", "--resume", "r"], words].concat());
        assert!(parse(&["--clean", "-q"]).is_ok());
        for words in [
            &["a.toml"][..],
            &["--only", "x"],
            &["--checkpoint", "gpt2"],
            &["--results", "x"],
            &["--dry-run"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }
}
