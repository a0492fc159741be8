//! What a command answers with `--format json`: one JSON object on standard output instead of text.
//!
//! Standard output belongs to the process, and so does this: commands print and report as ever, and what they would print is
//! collected until the process ends.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use miette::Report;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::cell::SCHEMA_VERSION;

/// The answer of one command.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Answer {
    /// Version of this format and of the formats in it.
    pub schema_version: u32,
    /// The exit code of the process.
    pub exit_code: u8,
    /// The run folder that the command wrote; null for other commands.
    pub run: Option<PathBuf>,
    /// The run's `summary.json`, or the same of the runs that `tfcheck compare` compared; null for other commands.
    pub summary: Option<Value>,
    /// What the command found, as a structure: the plan, localisations, diagnoses; null if there is only text.
    pub data: Option<Value>,
    /// What the command prints without `--format json`.
    pub text: String,
    /// Why the command failed; null if it did not.
    pub error: Option<Problem>,
}

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Problem {
    /// The error.
    pub message: String,
    /// Its causes, the nearest first.
    pub causes: Vec<String>,
    /// The remedy, if there is a general one.
    pub hint: Option<String>,
}

impl Problem {
    /// An error of a command.
    pub fn of(report: &Report) -> Self {
        Self {
            message: report.to_string(),
            causes: report.chain().skip(1).map(ToString::to_string).collect(),
            hint: report.help().map(|hint| hint.to_string()),
        }
    }
}

/// What was collected; `None` if text is printed as ever.
static COLLECTED: Mutex<Option<Answer>> = Mutex::new(None);

fn with<T>(change: impl FnOnce(&mut Answer) -> T) -> Option<T> {
    COLLECTED.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(change)
}

/// From now on, collects what would be printed.
pub fn collect() {
    let answer = Answer { schema_version: SCHEMA_VERSION, ..Answer::default() };
    *COLLECTED.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
}

/// Whether output is collected.
pub fn is_collected() -> bool {
    with(|_| ()).is_some()
}

/// Adds text that would be printed; false if it must be printed.
pub fn add_text(text: &str) -> bool {
    let plain = console::strip_ansi_codes(text).into_owned();
    with(|answer| answer.text.push_str(&plain)).is_some()
}

/// Records the run folder of the command.
pub fn set_run(folder: &Path) {
    with(|answer| answer.run = Some(folder.to_owned()));
}

/// Records the summary of the command; `summary` is called only if it is needed.
pub fn set_summary(summary: impl FnOnce() -> String) {
    if is_collected() {
        let value = serde_json::from_str(&summary()).ok();
        with(|answer| answer.summary = value);
    }
}

/// Records what the command found.
pub fn set_data(data: &impl Serialize) {
    if is_collected() {
        let value = serde_json::to_value(data).ok();
        with(|answer| answer.data = value);
    }
}

/// Ends collecting: the answer as JSON; `None` if nothing was collected.
pub fn take(exit_code: u8, error: Option<Problem>) -> Option<String> {
    let answer = COLLECTED.lock().unwrap_or_else(PoisonError::into_inner).take()?;
    let answer = Answer { exit_code, error, ..answer };
    Some(serde_json::to_string(&answer).unwrap_or_else(|_| "null".to_owned()) + "\n")
}

/// The JSON schema of an answer, which `tfcheck schema answer` prints.
pub fn schema() -> String {
    format!("{:#}\n", schemars::schema_for!(Answer).as_value())
}
