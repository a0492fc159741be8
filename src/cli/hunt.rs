//! Arguments of the commands that look for where and why variants diverge.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::EngineName;
use crate::spec::gate::Gate;

/// Arguments of `tfcheck localize`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Localize {
    /// One variant, as `tfcheck plan` lists it; the other one is replayed with its inputs.
    pub a: String,
    /// The other variant.
    pub b: String,
    /// Config file. Default: ./tfcheck.toml, or a built-in config if that does not exist.
    #[arg(long, value_name = "FILE", conflicts_with = "run")]
    pub config: Option<PathBuf>,
    /// Take the variants from this finished run, and regenerate its reports.
    #[arg(long, value_name = "RUN")]
    pub run: Option<PathBuf>,
    /// Localise only in this case. Default: every case.
    #[arg(long, value_name = "NAME")]
    pub case: Option<String>,
    /// Capture only modules whose path matches; repeatable.
    #[arg(long, value_name = "GLOB")]
    pub modules: Vec<String>,
    /// dtype of both sides. Default: f64 if both sides support it, else f32.
    #[arg(long, value_enum)]
    pub dtype: Option<DtypeName>,
    /// Disk space for captured tensors: 512MiB, 2GiB.
    #[arg(long, value_name = "SIZE", default_value = "2GiB", value_parser = size)]
    pub max_disk: u64,
}

/// Arguments of `tfcheck diagnose`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Diagnose {
    /// The variant that is made to commit mistakes, as `tfcheck plan` lists it: a transformers version or a native model.
    pub trusted: String,
    /// The variant that diverges from it, of any kind.
    pub suspect: String,
    /// Config file. Default: ./tfcheck.toml, or a built-in config if that does not exist.
    #[arg(long, value_name = "FILE", conflicts_with = "run")]
    pub config: Option<PathBuf>,
    /// Take the variants from this finished run, and regenerate its reports.
    #[arg(long, value_name = "RUN")]
    pub run: Option<PathBuf>,
    /// Diagnose only in this case. Default: every case.
    #[arg(long, value_name = "NAME")]
    pub case: Option<String>,
    /// Time limit for each case in seconds; what was found until then is reported.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = super::seconds())]
    pub seconds: u64,
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
pub(super) fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor: u64 = match &text[digits.len()..] {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        unit => return Err(format!("`{unit}` is none of B, KiB, MiB and GiB")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("`{digits}` is not a whole number"))?;
    number.checked_mul(factor).ok_or_else(|| "larger than any disk".to_owned())
}

/// Arguments of `tfcheck bisect`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Bisect {
    /// Config that supplies checkpoints and inputs; its `versions` are ignored. Default: ./tfcheck.toml, or a built-in config if that does not exist.
    pub config: Option<PathBuf>,
    /// Take checkpoints and inputs from this run instead.
    #[arg(long, value_name = "RUN", conflicts_with = "config")]
    pub run: Option<PathBuf>,
    /// Checkpoint that replaces the config's, as in `tfcheck run`; repeatable.
    #[arg(long = "checkpoint", value_name = "SOURCE")]
    pub checkpoints: Vec<String>,
    /// Good revision, with which all others are compared: a transformers release, or a commit of the repository.
    #[arg(long, value_name = "REVISION", required_unless_present = "resume")]
    pub good: Option<String>,
    /// Bad revision: newer than --good, and failing the test.
    #[arg(long, value_name = "REVISION", required_unless_present = "resume")]
    pub bad: Option<String>,
    /// A revision is bad if this condition holds against the good revision: `verdict>=diverged`, `rel_l2>1e-5`, `p50>5%`, `loads`.
    #[arg(long, value_name = "GATE", default_value = "verdict>=diverged")]
    pub test: Gate,
    /// Test every revision and report every change, including changes that were later reverted.
    #[arg(long)]
    pub scan: bool,
    /// Include pre-releases.
    #[arg(long)]
    pub pre: bool,
    /// Include yanked releases.
    #[arg(long)]
    pub yanked: bool,
    /// Transformers repository in which to search the commits between the two releases found, or between --good and --bad.
    #[arg(long, value_name = "URL|FOLDER")]
    pub repository: Option<String>,
    /// Search the commits of a port instead: the folder of its repository in which the config's command is built and started.
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["repository", "pre", "yanked"])]
    pub command_repository: Option<PathBuf>,
    /// Which of the config's commands is the port, if there are several.
    #[arg(long, value_name = "NAME", requires = "command_repository")]
    pub command: Option<String>,
    /// Command that builds the port, such as 'cargo build --release'; a commit that does not build is skipped.
    #[arg(long, value_name = "COMMAND", requires = "command_repository")]
    pub build: Option<String>,
    /// With --scan, compute the revisions as jobs of a cluster and compare them here; `[engine]` of the config has the options (docs/machines.md).
    #[arg(long, value_name = "ENGINE", value_enum)]
    pub engine: Option<EngineName>,
    /// Complete an interrupted bisection with its own options, keeping its finished steps.
    #[arg(long, value_name = "BISECTION", conflicts_with_all = ["config", "run", "checkpoints", "good", "bad", "test", "scan", "pre", "yanked", "repository", "command_repository", "command", "build", "engine", "results"])]
    pub resume: Option<PathBuf>,
    /// Folder in which the bisection folder is created.
    #[arg(long, value_name = "FOLDER", default_value = "results")]
    pub results: PathBuf,
}
