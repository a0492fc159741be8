//! Writes the reports of a run: each format renders one [`RunView`] into one file.

pub mod changes;
pub mod csv;
mod document;
mod finding;
pub mod github;
pub mod html;
pub mod json;
pub mod junit;
pub mod markdown;
mod preflight;
pub mod overview;
mod sections;
mod speed;
mod sweep;
pub mod terminal;
mod wrap;

use std::borrow::Cow;
use std::time::Instant;

use compare::matrix::{Matrix, PairOutcome};
use compare::metrics::PairMetrics;
use compare::timing::SpeedUp;
use compare::verdict::Tolerances;
use console::Term;
use miette::Result;

use crate::execute::answer;
use crate::execute::cell::Cell;
use crate::execute::progress::Progress;
use crate::judge::details::{self, Details};
use crate::judge::exit_code::ExitCode;
use crate::judge::findings::{Findings, findings};
use crate::judge::gates::{self as judge_gates, Judged};
use crate::judge::view::{Performance, RunView};
use crate::judge::{against, assess};
use crate::results::{Manifest, RunFolder};
use terminal::Terminal;

/// A report format.
pub trait Report {
    /// The file's name in the run folder.
    fn file_name(&self) -> &'static str;
    /// The whole file.
    fn render(&self, source: &Source<'_>) -> String;
}

/// What every format is made from.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The run.
    pub run: &'a RunView,
    /// Its groups and findings.
    pub found: &'a Findings,
    /// What its gates found.
    pub judged: &'a Judged,
    /// What a page shows beyond that.
    pub details: &'a Details,
}

/// The formats that every run folder holds.
pub fn all() -> [&'static dyn Report; 5] {
    [&markdown::Markdown, &json::Json, &html::Html, &csv::Csv, &junit::Junit]
}

/// Compares the cells of each case, writes every report into the run folder and prints the terminal report.
///
/// # Errors
/// When logits cannot be read or a report cannot be written; the terminal report is still printed if a file report fails.
pub fn write(
    folder: &RunFolder,
    manifest: &Manifest,
    cells: &[Vec<Cell>],
    tolerances: &Tolerances,
    progress: &Progress,
) -> Result<ExitCode> {
    publish(folder, manifest, &assess::view(folder, manifest, cells, tolerances)?, tolerances, progress)
}

/// Evaluates the run's gates on a view, writes every report into the run folder and prints the terminal report.
///
/// # Errors
/// When a report cannot be written; the terminal report is still printed.
pub fn publish(
    folder: &RunFolder,
    manifest: &Manifest,
    view: &RunView,
    tolerances: &Tolerances,
    progress: &Progress,
) -> Result<ExitCode> {
    let run = &manifest.config.run;
    let against =
        run.against.as_ref().map(|name| against::compare(name, folder, manifest, &view.cases, tolerances));
    // The run's own reports do not depend on the baseline.
    let (against, lost) = match against.transpose() {
        Ok(against) => (against, None),
        Err(error) => (None, Some(error)),
    };
    let judged = judge_gates::of_run(view, &run.fail_on, against);
    let found = findings(view);
    // The terminal comes first: it has no details of single pairs, for which logits are read again.
    let nothing = Details::default();
    let source = Source { run: view, found: &found, judged: &judged, details: &nothing };
    show(&source, progress);
    // Without details of single pairs a page still has everything else.
    let begun = Instant::now();
    let (details, unread) = match details::of_run(folder, manifest, view, &found) {
        Ok(details) => (details, None),
        Err(error) => (Details::default(), Some(error)),
    };
    progress
        .detail(&format!("logits read for the details of pairs in {:.2} s", begun.elapsed().as_secs_f64()));
    let source = Source { details: &details, ..source };
    answer::set_run(folder.path());
    for format in all() {
        let begun = Instant::now();
        let text = format.render(&source);
        // A person reads these two as they are; the others escape what they hold.
        let is_plain = [".md", ".csv"].iter().any(|ending| format.file_name().ends_with(ending));
        let text = if is_plain { bounds::styled(&text) } else { Cow::Borrowed(&*text) };
        folder.write(format.file_name(), text.as_bytes())?;
        progress.detail(&format!("{} written in {:.2} s", format.file_name(), begun.elapsed().as_secs_f64()));
    }
    progress.line(&format!(
        "{} and report.html are in {}",
        markdown::Markdown.file_name(),
        folder.path().display()
    ));
    lost.or(unread).map_or(Ok(judge_gates::exit_code(view, &judged)), Err)
}

/// Shows a run on the terminal, and to GitHub Actions where it runs there.
pub fn show(source: &Source<'_>, progress: &Progress) {
    let term = Term::stderr();
    let width = term.size_checked().map_or(100, |(_, columns)| usize::from(columns));
    let terminal = Terminal { width, color: console::colors_enabled() };
    progress.result(&if progress.shows_all() {
        terminal.render(source)
    } else {
        overview::render(source, width, terminal.color)
    });
    answer::set_summary(|| json::Json.render(source));
    // Annotations are lines on standard output.
    if !answer::is_collected() {
        github::publish(source, progress);
    }
}

/// An entry of a matrix of numbers, or a word that gives the reason for a missing number.
pub(crate) fn entry(
    matrix: &Matrix,
    row: usize,
    column: usize,
    number: impl Fn(&PairMetrics) -> String,
) -> String {
    match matrix.oriented(row, column) {
        PairOutcome::Compared(pair) => number(&pair),
        PairOutcome::Incomparable(_) => "incomparable".to_owned(),
        PairOutcome::NotRun(_) => "not run".to_owned(),
    }
}

/// `1.52× (1.48–1.56)`.
pub(crate) fn speed_up_text(performance: &Performance<'_>) -> String {
    match &performance.speed_up {
        Some(SpeedUp { ratio, interval }) => {
            format!("{ratio:.2}× ({:.2}–{:.2})", interval.low, interval.high)
        }
        None if performance.is_baseline => "baseline".to_owned(),
        None => "—".to_owned(),
    }
}
