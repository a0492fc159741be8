//! The command line, as clap reads it; no logic.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use reference::protocol::Dtype;

use crate::spec::gate::Gate;
use crate::spec::variant::dtype_name;

/// Exit codes, as `--help` ends with them.
const EXIT_CODES: &str = "Exit codes:
  0    everything ran and agrees
  1    a gate failed: variants diverge or cannot be compared, or one regressed
  2    the command line or the config is wrong
  3    a cell failed
  4    gpu-check: there is no GPU, or something that it needs is missing
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
    /// Name the first module at which two variants depart.
    Localize(Localize),
    /// Judge tfcheck's models and candle-transformers' ports on synthetic checkpoints of every architecture.
    Scoreboard(Scoreboard),
    /// Time transformers (eager, compiled, frozen), candle-transformers and tfcheck's models in turns, with ratios.
    Bench(Bench),
    /// Check kernels, architectures and speed on the GPU of this machine, without a network.
    GpuCheck(GpuCheck),
    /// Find the release or commit that changed something.
    Bisect(Bisect),
    /// Keep runs under a name, to compare later ones with.
    #[command(subcommand)]
    Baseline(Baseline),
    /// Tell the story of one pair of variants from a run's folder.
    Explain(Explain),
    /// Record upstream's logits, so that a port can be tested against them without Python.
    Record(Record),
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
    /// Fail (exit code 1) where this holds, `verdict>=diverged`, `p50>5%`, `l2>1e-3`, `loads`; repeatable, in place of the config's.
    #[arg(long = "fail-on", value_name = "GATE")]
    pub fail_on: Vec<Gate>,
    /// Compare the run with this baseline when it ends.
    #[arg(long, value_name = "NAME")]
    pub against: Option<String>,
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
    /// Fail (exit code 1) where this holds, as in `tfcheck run`; repeatable, in place of the run's own.
    #[arg(long = "fail-on", value_name = "GATE")]
    pub fail_on: Vec<Gate>,
}

/// Arguments of `tfcheck bisect`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Bisect {
    /// The config that says on what; its versions play no part. ./tfcheck.toml otherwise, and a built-in one where there is none.
    pub config: Option<PathBuf>,
    /// A checkpoint instead of the config's, as in `tfcheck run`; repeatable.
    #[arg(long = "checkpoint", value_name = "SOURCE")]
    pub checkpoints: Vec<String>,
    /// The good side, against which all others are tested: a release of transformers, or a commit of the repository.
    #[arg(long, value_name = "REVISION", required_unless_present = "resume")]
    pub good: Option<String>,
    /// The bad side, a newer one that fails the test.
    #[arg(long, value_name = "REVISION", required_unless_present = "resume")]
    pub bad: Option<String>,
    /// A revision is bad where this holds against the good side: `verdict>=diverged`, `rel_l2>1e-5`, `p50>5%`, `loads`.
    #[arg(long, value_name = "GATE", default_value = "verdict>=diverged")]
    pub test: Gate,
    /// Test every revision and show each change, also one that went again.
    #[arg(long)]
    pub scan: bool,
    /// Pre-releases count too.
    #[arg(long)]
    pub pre: bool,
    /// Withdrawn releases count too.
    #[arg(long)]
    pub yanked: bool,
    /// Then search the commits between the two releases, or those between --good and --bad: a transformers repository.
    #[arg(long, value_name = "URL|FOLDER")]
    pub repository: Option<String>,
    /// Search the commits of a native port instead: the folder in its repository where the config's command is built and started.
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["repository", "pre", "yanked"])]
    pub command_repository: Option<PathBuf>,
    /// Which of the config's commands is the port, where there are several.
    #[arg(long, value_name = "NAME", requires = "command_repository")]
    pub command: Option<String>,
    /// What builds the port, such as 'cargo build --release'; a commit that does not build is skipped.
    #[arg(long, value_name = "COMMAND", requires = "command_repository")]
    pub build: Option<String>,
    /// Complete an interrupted bisection: its own question, its finished steps kept.
    #[arg(long, value_name = "BISECTION", conflicts_with_all = ["config", "checkpoints", "good", "bad", "test", "scan", "pre", "yanked", "repository", "command_repository", "command", "build", "results"])]
    pub resume: Option<PathBuf>,
    /// Folder in which the bisection makes its own.
    #[arg(long, value_name = "FOLDER", default_value = "results")]
    pub results: PathBuf,
}

/// What `tfcheck baseline` does.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Baseline {
    /// Save a run under a name; it may be removed afterwards.
    Save {
        /// The baseline's name; one of that name is replaced.
        name: String,
        /// The run; the newest of the results folder otherwise.
        run: Option<PathBuf>,
        /// Folder with the runs, the history and the baselines.
        #[arg(long, value_name = "FOLDER", default_value = "results")]
        results: PathBuf,
    },
    /// Show the saved baselines.
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
    /// The pair: `A..B` or two names, each a variant's name or enough of it; `CASE/A..B` of one case alone.
    #[arg(required = true, num_args = 1..=2, value_name = "PAIR")]
    pub pair: Vec<String>,
}

/// Arguments of `tfcheck record`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Record {
    /// What is recorded: one checkpoint with one batch of inputs, in the newest of the config's versions.
    #[command(flatten)]
    pub selection: Selection,
    /// The folder to write the recording into.
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// Keep the logits of this many real positions, spread evenly and with each row's last; all otherwise.
    #[arg(long, value_name = "N")]
    pub positions: Option<usize>,
    /// Folder in which the run behind the recording makes its own.
    #[arg(long, value_name = "FOLDER", default_value = "results")]
    pub results: PathBuf,
}

/// Arguments of `tfcheck localize`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Localize {
    /// The config (./tfcheck.toml otherwise, and a built-in one where there is none), then the two variants as `tfcheck plan` names them.
    #[arg(required = true, num_args = 2..=3, value_names = ["CONFIG", "A", "B"])]
    pub names: Vec<String>,
    /// The variants of a finished run, whose reports are written anew.
    #[arg(long, value_name = "RUN")]
    pub run: Option<PathBuf>,
    /// Only this case; every case otherwise.
    #[arg(long, value_name = "NAME")]
    pub case: Option<String>,
    /// Look only into modules whose path matches; repeatable.
    #[arg(long, value_name = "GLOB")]
    pub modules: Vec<String>,
    /// dtype of both sides; f64 otherwise, where both have it.
    #[arg(long, value_enum)]
    pub dtype: Option<DtypeName>,
    /// Disk that captured tensors may take: 512MiB, 2GiB.
    #[arg(long, value_name = "SIZE", default_value = "2GiB", value_parser = size)]
    pub max_disk: u64,
}

/// dtypes as the command line names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DtypeName {
    /// float64.
    F64,
    /// float32.
    F32,
    /// bfloat16.
    Bf16,
    /// float16.
    F16,
}

/// Bytes of `2GiB`, `512MiB`, `100000`.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor: u64 = match &text[digits.len()..] {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        unit => return Err(format!("`{unit}` is none of B, KiB, MiB and GiB")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("`{digits}` is no whole number"))?;
    number.checked_mul(factor).ok_or_else(|| "larger than any disk".to_owned())
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

/// Seconds that `tfcheck gpu-check` takes at most: within ten minutes, which is what a lent machine gives a command.
pub const GPU_CHECK_SECONDS: u64 = 570;

/// Arguments of `tfcheck gpu-check`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct GpuCheck {
    /// Folder for the result, gpu_check.json and gpu_check.md.
    #[arg(long, value_name = "FOLDER", default_value = "results/gpu_check")]
    pub out: PathBuf,
    /// The interpreter whose torch and transformers are timed; a bare name is looked up on PATH.
    #[arg(long, value_name = "PYTHON", default_value = "python3")]
    pub python: PathBuf,
    /// Seconds that all of it may take: what does not fit is dropped from the end and said.
    #[arg(long, value_name = "SECONDS", default_value_t = GPU_CHECK_SECONDS)]
    pub seconds: u64,
    /// Run only the parts that match, `kernels`, `architectures`, `smollm2-*` and the like; repeatable.
    #[arg(long, value_name = "PATTERN")]
    pub only: Vec<String>,
    /// List what would run, and what of CUDA is missing, and stop.
    #[arg(long, conflicts_with = "emulate")]
    pub dry_run: bool,
    /// Check correctness on an emulated GPU, whose kernels this machine's C++ compiler compiles; nothing is timed.
    #[arg(long)]
    pub emulate: bool,
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
    /// An interpreter in whose environment CUDA's libraries may lie; repeatable.
    #[arg(long = "python", value_name = "PYTHON")]
    pub pythons: Vec<PathBuf>,
    /// Folder for kernels compiled for the GPU.
    #[arg(long, value_name = "FOLDER")]
    pub cubins: Option<PathBuf>,
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
        let names = [
            "run",
            "plan",
            "init",
            "schema",
            "compare",
            "localize",
            "scoreboard",
            "bench",
            "bisect",
            "baseline",
            "explain",
            "record",
        ];
        for name in names {
            let sub = command.find_subcommand_mut(name).unwrap().clone().term_width(100);
            text = format!("{text}\n=== {name}\n{}", sub.clone().render_help());
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn sizes_have_binary_units() {
        for (text, bytes) in [("2GiB", Ok(2 << 30)), ("512MiB", Ok(512 << 20)), ("7", Ok(7)), ("0B", Ok(0))] {
            assert_eq!(size(text), bytes, "{text}");
        }
        for text in ["2GB", "GiB", "-1", "1.5GiB", "99999999999GiB"] {
            assert!(size(text).is_err(), "{text}");
        }
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
