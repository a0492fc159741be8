//! The result of a check as JSON and Markdown.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::path::Path;
use std::time::Duration;

use miette::{IntoDiagnostic, Result, WrapErr};
use models::cuda::driver::Driver;
use serde::Serialize;

use super::GpuCheckOptions;
use super::correctness::{ArchitectureRow, Architectures};
use super::items::Item;
use super::kernels::KernelCheck;
use super::speed::Speed;
use crate::commands::bench::table;
use crate::judge::exit_code::ExitCode;
use crate::spec::machine::Machine;
use compare::units::{bytes, count};

/// Version of the JSON's layout; raised with every change.
const SCHEMA_VERSION: u32 = 1;

/// Lines of a list that the Markdown shows.
const SHOWN: usize = 20;

/// The whole result.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    schema_version: u32,
    /// Name of the GPU or of the emulator.
    gpu: String,
    /// Properties reported by the driver: memory, clocks, versions.
    device: BTreeMap<&'static str, String>,
    machine: Machine,
    /// The interpreter whose torch was timed.
    python: String,
    limit_s: u64,
    items: Vec<Done>,
}

/// One item, run or not.
#[derive(Debug, Serialize)]
pub(super) struct Done {
    name: String,
    about: String,
    estimate_s: u64,
    seconds: f64,
    state: State,
    found: Option<Found>,
}

/// State in which an item ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "reason", rename_all = "snake_case")]
pub(super) enum State {
    /// The whole item ran.
    Done,
    /// The time limit or the user interrupted it; finished parts count.
    Cut,
    /// It was not started.
    Dropped(String),
    /// It could not be run.
    Failed(String),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::Cut => f.write_str("cut short"),
            Self::Dropped(reason) => write!(f, "dropped, {reason}"),
            Self::Failed(reason) => write!(f, "failed: {reason}"),
        }
    }
}

/// Result of an item.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Found {
    Kernels(Vec<KernelCheck>),
    Architectures(Architectures),
    Speed(Speed),
}

impl Found {
    /// Descriptions of failed comparisons.
    fn faults(&self) -> Vec<String> {
        match self {
            Self::Kernels(checks) => {
                checks.iter().filter(|check| !check.passed).map(KernelCheck::text).collect()
            }
            Self::Architectures(found) => {
                let wrong = |row: &&ArchitectureRow| {
                    !row.agrees() && !["unsupported", "not run"].contains(&row.word.as_str())
                };
                found.rows.iter().filter(wrong).map(row_text).collect()
            }
            Self::Speed(speed) if speed.diverges() => {
                let wrong =
                    speed.verdicts.iter().filter(|(_, word, _)| word == "diverged" || word == "incomparable");
                wrong.map(|(pair, word, evidence)| format!("{pair}: {word}; {evidence}")).collect()
            }
            Self::Speed(_) => Vec::new(),
        }
    }

    /// Descriptions of what could not be run.
    fn lacking(&self) -> Vec<String> {
        match self {
            Self::Kernels(checks) if checks.is_empty() => vec!["no kernel was checked".to_owned()],
            Self::Kernels(_) => Vec::new(),
            Self::Architectures(found) => {
                let lacking =
                    |row: &&ArchitectureRow| ["unsupported", "not run"].contains(&row.word.as_str());
                found.rows.iter().filter(lacking).map(row_text).collect()
            }
            Self::Speed(speed) => {
                let rows = speed.tables.iter().flat_map(|table| &table.rows);
                let failed = rows.filter_map(|row| {
                    let reason = row.measured.as_ref().err()?;
                    Some(format!("{}: {reason}", row.variant))
                });
                failed.collect()
            }
        }
    }
}

fn row_text(row: &ArchitectureRow) -> String {
    let module =
        row.module.as_ref().map(|module| format!("; first diverging module: {module}")).unwrap_or_default();
    format!("{} ({}, {}): {}; {}{module}", row.checkpoint, row.inputs, row.dtype, row.word, row.evidence)
}

impl Done {
    pub(super) fn new(item: &Item, took: Duration, state: State, found: Option<Found>) -> Self {
        Self {
            name: item.name.clone(),
            about: item.about.clone(),
            estimate_s: item.estimate.as_secs(),
            seconds: took.as_secs_f64(),
            state,
            found,
        }
    }
}

impl Report {
    pub(super) fn new(
        options: &GpuCheckOptions,
        driver: Option<&Driver>,
        machine: Machine,
        items: Vec<Done>,
    ) -> Self {
        let mut device = BTreeMap::new();
        if let Some(driver) = driver {
            let known = driver.description();
            device.insert("compute capability", format!("{}.{}", known.capability[0], known.capability[1]));
            device.insert("multiprocessors", known.multiprocessors.to_string());
            device.insert("memory", bytes(known.memory_bytes as u64));
            device.insert("highest clock", format!("{} MHz", known.clock_mhz));
            device.insert("highest memory clock", format!("{} MHz", known.memory_clock_mhz));
            device.insert("driver's CUDA", known.driver_cuda.clone());
            device.insert("NVRTC", known.nvrtc.clone());
            device.insert("cuBLASLt", known.cublaslt.clone());
        }
        Self {
            schema_version: SCHEMA_VERSION,
            gpu: driver
                .map_or_else(|| "none (emulated GPU)".to_owned(), |driver| driver.description().name.clone()),
            device,
            machine,
            python: options.python.display().to_string(),
            limit_s: options.limit.as_secs(),
            items,
        }
    }

    /// The exit code of the process.
    pub(super) fn code(&self, is_interrupted: bool) -> ExitCode {
        let found = || self.items.iter().filter_map(|item| item.found.as_ref());
        if found().any(|found| !found.faults().is_empty()) {
            ExitCode::Diverged
        } else if is_interrupted {
            ExitCode::Interrupted
        } else if self.items.iter().any(|item| matches!(item.state, State::Failed(_)))
            || found().any(|found| {
                matches!(found, Found::Kernels(_) | Found::Speed(_)) && !found.lacking().is_empty()
            })
        {
            ExitCode::CellFailed
        } else {
            ExitCode::Agree
        }
    }

    /// Writes both files and returns the Markdown.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(super) fn write(&self, folder: &Path) -> Result<String> {
        let json = serde_json::to_vec_pretty(self).into_diagnostic().wrap_err("the result as JSON")?;
        let markdown = self.markdown();
        for (name, content) in [("gpu_check.json", json.as_slice()), ("gpu_check.md", markdown.as_bytes())] {
            let path = folder.join(name);
            crate::results::write_file(&path, content)
                .into_diagnostic()
                .wrap_err_with(|| format!("cannot write {}", path.display()))?;
        }
        Ok(markdown)
    }

    fn markdown(&self) -> String {
        let mut text = format!("# GPU check: {}\n\n", self.gpu);
        for (name, value) in &self.device {
            line(&mut text, &format!("- {name}: {value}"));
        }
        for gpu in &self.machine.gpu_details {
            line(
                &mut text,
                &format!(
                    "- GPU {}, driver {}, clock {}, memory clock {}, power limit {}",
                    gpu.name, gpu.driver, gpu.clock, gpu.memory_clock, gpu.power_limit
                ),
            );
        }
        line(&mut text, &format!("- CPU: {}, {}", self.machine.cpu, count(self.machine.cores, "core")));
        line(&mut text, &format!("- tfcheck {}, {}", self.machine.tfcheck, self.machine.rustc));
        line(&mut text, &format!("- torch and transformers of `{}`", self.python));
        let policy =
            "- f32 products are computed in f32 on both sides: TF32 is off, as it is by default in torch";
        line(&mut text, policy);
        line(&mut text, "\n| Part | Result | Seconds |\n|---|---|--:|");
        for item in &self.items {
            line(&mut text, &format!("| {} | {} | {:.0} |", item.name, summary(item), item.seconds));
        }
        for item in &self.items {
            line(&mut text, &format!("\n## {}\n\n{}", item.name, item.about));
            match &item.found {
                Some(Found::Kernels(checks)) => kernels(&mut text, checks),
                Some(Found::Architectures(found)) => architectures(&mut text, found),
                Some(Found::Speed(speed)) => speeds(&mut text, speed),
                None => line(&mut text, &format!("\n{}.", item.state)),
            }
            list(&mut text, "Wrong", &item.found.as_ref().map(Found::faults).unwrap_or_default());
            list(&mut text, "Not run", &item.found.as_ref().map(Found::lacking).unwrap_or_default());
        }
        text
    }
}

/// One line on an item.
fn summary(item: &Done) -> String {
    let Some(found) = &item.found else { return item.state.to_string() };
    let (faults, lacking) = (found.faults().len(), found.lacking().len());
    let mut text = match found {
        Found::Kernels(checks) => format!("{} of {} checks passed", checks.len() - faults, checks.len()),
        Found::Architectures(found) => {
            let agree = found.rows.iter().filter(|row| row.agrees()).count();
            format!("{agree} of {} compute the same mathematics", found.rows.len())
        }
        Found::Speed(speed) => {
            let target = |target: &super::speed::Target| match target.found {
                Some(found) => format!(
                    "{} {found:.3} of the best of torch (wanted: at most {}, {})",
                    target.pass,
                    target.wanted,
                    if found <= target.wanted { "met" } else { "not met" }
                ),
                None => format!("{} not measured", target.pass),
            };
            let targets: Vec<String> = speed.targets.iter().map(target).collect();
            if targets.is_empty() { "timed".to_owned() } else { targets.join("; ") }
        }
    };
    if faults > 0 {
        let _ = write!(text, ", {faults} wrong");
    }
    if lacking > 0 {
        let _ = write!(text, ", {lacking} not run");
    }
    if item.state != State::Done {
        let _ = write!(text, " ({})", item.state);
    }
    text
}

fn kernels(text: &mut String, checks: &[KernelCheck]) {
    line(text, "\n| Check | dtype | Error | Limit | |\n|---|---|--:|--:|---|");
    for check in checks {
        line(
            text,
            &format!(
                "| {} | {} | {:.1e} | {:.1e} | {} |",
                check.name,
                check.dtype,
                check.error,
                check.limit,
                if check.passed { "ok" } else { "WRONG" }
            ),
        );
    }
}

/// The largest error of each checkpoint and dtype, over its inputs.
fn architectures(text: &mut String, found: &Architectures) {
    line(text, "\nRelative L2 against float64, GPU / CPU in the same dtype, the largest over the inputs:\n");
    let dtypes = ["f32", "bf16", "f16"];
    line(text, &format!("| Checkpoint | {} |", dtypes.join(" | ")));
    line(text, "|---|--:|--:|--:|");
    let mut names: Vec<&str> = found.rows.iter().map(|row| row.checkpoint.as_str()).collect();
    names.dedup();
    for name in names {
        let cells = dtypes.map(|dtype| {
            let rows = || found.rows.iter().filter(|row| row.checkpoint == name && row.dtype == dtype);
            let worst = rows().filter(|row| row.relative_l2.is_some()).max_by(|a, b| {
                a.relative_l2.unwrap_or_default().total_cmp(&b.relative_l2.unwrap_or_default())
            });
            match worst {
                Some(row) => {
                    // A case that a model does not have (an encoder has no cache) is listed below the table.
                    let is_meant = |row: &&ArchitectureRow| row.word != "unsupported";
                    let mark =
                        if rows().filter(is_meant).all(ArchitectureRow::agrees) { "" } else { " **!**" };
                    format!(
                        "{:.1e} / {:.1e}{mark}",
                        row.relative_l2.unwrap_or(f64::NAN),
                        row.cpu_relative_l2.unwrap_or(f64::NAN)
                    )
                }
                None => rows().next().map_or_else(String::new, |row| row.word.clone()),
            }
        });
        line(text, &format!("| {name} | {} |", cells.join(" | ")));
    }
}

fn speeds(text: &mut String, speed: &Speed) {
    for one in &speed.tables {
        table::one(text, "###", one);
    }
    line(
        text,
        "\nVariants took turns in rounds; times are the GPU's, between two idle moments; a ratio is time over time in \
         shared rounds with its 95 % bootstrap interval.\n",
    );
    for (pair, word, evidence) in &speed.verdicts {
        line(text, &format!("- {pair}: {word}; {evidence}"));
    }
    for note in &speed.notes {
        line(text, &format!("- {note}"));
    }
}

fn list(text: &mut String, title: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    line(text, &format!("\n{title}:\n"));
    for one in lines.iter().take(SHOWN) {
        line(text, &format!("- {one}"));
    }
    if lines.len() > SHOWN {
        line(text, &format!("- and {} more, in gpu_check.json", lines.len() - SHOWN));
    }
}

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}
