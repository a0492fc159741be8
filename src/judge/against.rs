//! Compares a run with a saved baseline, variant by variant.
//!
//! Numbers are compared if checkpoint and inputs are equal, on any machine. Times are compared only between equal
//! machines with equal numbers of threads. The two runs were not timed interleaved, so the ratio includes changes of
//! the machine between them; the history shows their size.

use std::path::Path;

use miette::{Result, miette};

use crate::execute::cell::{Cell, Completed, Outcome};
use crate::execute::quiet::{self, best_ns, readings};
use crate::judge::assess::{self, Known, bears_on};
use crate::judge::baseline::Saved;
use crate::judge::history::History;
use crate::judge::view::CaseView;
use crate::results::{Case, Manifest, RunFolder};
use crate::spec::variant::Variant;
use compare::matrix::{Entry, PairOutcome};
use compare::timing::{Change, Statistic, change, summarize};
use compare::verdict::{Tolerances, Verdict};

/// Number of earlier runs in the history that a time is compared with.
const REMEMBERED: usize = 10;

/// Minimum number of quiet rounds for a median; fewer give no useful interval.
const FEWEST_QUIET: usize = 5;

/// Times in nanoseconds per round, of the baseline and of the run.
pub type BothRounds = [Vec<Vec<u64>>; 2];

/// A run compared with a baseline.
#[derive(Clone, Debug)]
pub struct Against {
    /// The baseline's name.
    pub baseline: String,
    /// The run that it was saved from.
    pub run: String,
    /// One per variant that both have.
    pub rows: Vec<ComparedCell>,
    /// Variants and cases that only one of the two has, and the reason if times are not compared.
    pub notes: Vec<String>,
}

/// One variant of one case, in the baseline and in the run.
#[derive(Clone, Debug)]
pub struct ComparedCell {
    /// The case.
    pub case: String,
    /// The variant.
    pub variant: String,
    /// The verdict on the pair of baseline and run.
    pub verdict: Verdict,
    /// Their metrics; side A is the baseline.
    pub pair: PairOutcome,
    /// Both sides' times, or the reason why they are not compared.
    pub times: Result<BothRounds, String>,
    /// Peak memory in bytes of the baseline and of the run, or the reason why it is not compared.
    pub peak_bytes: Result<[u64; 2], String>,
    /// Caveats on the times.
    pub notes: Vec<String>,
}

impl ComparedCell {
    /// Change of the median forward pass.
    pub fn change(&self) -> Option<Change> {
        let [baseline, variant] = self.times.as_ref().ok()?;
        change(baseline, variant, Statistic::P50, false)
    }
}

/// Compares a run, whose cases are `cases`, with the baseline `name` of the same results folder.
///
/// # Errors
/// When there is no such baseline, its files are missing or changed, or logits cannot be read.
pub fn compare(
    name: &str,
    folder: &RunFolder,
    manifest: &Manifest,
    cases: &[CaseView],
    tolerances: &Tolerances,
) -> Result<Against> {
    let results = folder.path().parent().unwrap_or(Path::new("."));
    let history = History::open(results)?;
    let saved = Saved::open(&history, results, name)?;
    beside(&saved, Some(&history), (folder, manifest), cases, tolerances)
}

/// Compares a run, whose cases are `cases`, with another run that serves as its baseline; without a history nothing is
/// known of earlier runs on this machine.
///
/// # Errors
/// When logits cannot be read.
pub fn beside(
    saved: &Saved,
    history: Option<&History>,
    (folder, manifest): (&RunFolder, &Manifest),
    cases: &[CaseView],
    tolerances: &Tolerances,
) -> Result<Against> {
    let then = Place::of(&saved.folder);
    let now = Place::of(folder);
    let is_comparable = then.is_comparable(&now);
    let mut known = readings(cases.iter().flat_map(|case| &case.cells));
    for case in &saved.manifest.cases {
        known.extend(readings(saved.folder.cells(&saved.manifest, case)?.iter()));
    }
    let earlier =
        history.map(|history| history.yardstick_ns(&now.fingerprint, now.threads as usize)).transpose()?;
    let quiet_ns = best_ns(&known).into_iter().chain(earlier.flatten()).min();
    let mut against = Against {
        baseline: saved.name.clone(),
        run: saved.run.clone(),
        rows: Vec::new(),
        notes: is_comparable
            .clone()
            .err()
            .map(|why| format!("times are not compared: {why}"))
            .into_iter()
            .collect(),
    };
    for (case, view) in manifest.cases.iter().zip(cases) {
        let is_same = |other: &&Case| {
            (&other.checkpoint_digest, &other.inputs_digest) == (&case.checkpoint_digest, &case.inputs_digest)
        };
        let Some(before) = saved.manifest.cases.iter().find(is_same) else {
            let note = format!("{}: the baseline has no case of this checkpoint and these inputs", case.name);
            against.notes.push(note);
            continue;
        };
        let sides = Sides {
            saved,
            before,
            files_before: saved.folder.case_folder(&saved.manifest, &before.name),
            before_cells: saved.folder.cells(&saved.manifest, before)?,
            case,
            view,
            files: folder.case_folder(manifest, &case.name),
            tolerances,
            quiet_ns,
        };
        for cell in &view.cells {
            let Some(old) =
                sides.before_cells.iter().find(|old| is_same_variant(&old.variant, &cell.variant))
            else {
                against.notes.push(format!("{}: {} is not in the baseline", case.name, cell.name));
                continue;
            };
            let mut row = sides.row(old, cell, &is_comparable)?;
            if let (Some(change), Some(now_ms)) = (row.change(), p50_ms(cell)) {
                let remembered = |history: &History| {
                    history.p50s(&now.fingerprint, now.threads, case, cell, folder.path(), REMEMBERED)
                };
                let known = history.map(remembered).transpose()?.unwrap_or_default();
                row.notes.extend(noise(&change, now_ms, &known));
            }
            against.rows.push(row);
        }
        for old in &sides.before_cells {
            if !view.cells.iter().any(|cell| is_same_variant(&old.variant, &cell.variant)) {
                against.notes.push(format!("{}: {} is in the baseline only", case.name, old.name));
            }
        }
    }
    against.notes.extend(common_shift(&against.rows));
    Ok(against)
}

/// The machine and the number of threads of a run's timing.
struct Place {
    fingerprint: String,
    threads: u64,
}

impl Place {
    fn of(run: &RunFolder) -> Self {
        let record = run.environment();
        let (fingerprint, threads) =
            record.map(|record| (record.fingerprint, record.threads as u64)).unwrap_or_default();
        Self { fingerprint, threads }
    }

    fn is_comparable(&self, now: &Self) -> Result<(), String> {
        if self.fingerprint.is_empty() || self.fingerprint != now.fingerprint {
            return Err("the baseline was timed on another machine".into());
        }
        if self.threads != now.threads {
            return Err(format!(
                "the baseline was timed with {} threads, this run with {}",
                self.threads, now.threads
            ));
        }
        Ok(())
    }
}

struct Sides<'a> {
    saved: &'a Saved,
    before: &'a Case,
    files_before: std::path::PathBuf,
    before_cells: Vec<Cell>,
    case: &'a Case,
    view: &'a CaseView,
    files: std::path::PathBuf,
    tolerances: &'a Tolerances,
    /// Calibration loop's time on the quiet machine.
    quiet_ns: Option<u64>,
}

impl Sides<'_> {
    /// Compares one variant of the baseline with that of the run, together with the cells of both that the verdict
    /// depends on.
    fn row(&self, old: &Cell, cell: &Cell, is_comparable: &Result<(), String>) -> Result<ComparedCell> {
        let is_needed = |other: &&Cell, of: &Cell| {
            bears_on(&other.variant, [&of.variant, &of.variant]) && other.variant != of.variant
        };
        let then = std::iter::once(old).chain(self.before_cells.iter().filter(|other| is_needed(other, old)));
        let now = std::iter::once(cell).chain(self.view.cells.iter().filter(|other| is_needed(other, cell)));
        let mark = format!("@{}", self.saved.name);
        let mut cells = Vec::new();
        let mut entries: Vec<Entry> = Vec::new();
        for old in then {
            let mut renamed = old.clone();
            renamed.name.push_str(&mark);
            // The baseline gets a family of its own, so that each side is compared with its own float64 reference.
            renamed.variant.version.push_str(&mark);
            entries.push(Entry { name: renamed.name.clone(), ..assess::entry(old, &self.files_before) });
            cells.push(renamed);
        }
        let at = cells.len();
        for cell in now {
            entries.push(assess::entry(cell, &self.files));
            cells.push(cell.clone());
        }
        let mask = assess::mask(&self.files, &cells)?;
        let view = assess::case_view(
            (self.case, Known::default()),
            None,
            cells,
            &entries,
            mask.as_ref(),
            self.tolerances,
        )?;
        let names = &view.matrix.names;
        let verdict = view.verdict(&names[0], &names[at]).cloned();
        let verdict = verdict.ok_or_else(|| miette!("{}: no verdict on {}", self.before.name, cell.name))?;
        let both = completed(old).and_then(|old| Ok((old, completed(cell)?)));
        Ok(ComparedCell {
            case: self.case.name.clone(),
            variant: cell.name.clone(),
            verdict,
            pair: view.matrix.oriented(0, at),
            times: is_comparable.clone().and_then(|()| {
                let (old, now) = both.clone()?;
                for of in [old, now] {
                    if of.rounds_ns.is_empty() {
                        return Err("not timed in both runs".to_owned());
                    }
                }
                let quiet = |of, whose| quiet_rounds(of, self.quiet_ns, whose);
                Ok([quiet(old, "the baseline")?, quiet(now, "this run")?])
            }),
            peak_bytes: both.and_then(|(old, now)| {
                let peaks = old.peak_bytes.zip(now.peak_bytes);
                peaks.map(|(then, now)| [then, now]).ok_or_else(|| "not known of both runs".to_owned())
            }),
            notes: Vec::new(),
        })
    }
}

/// The rounds of a cell that were timed on a quiet machine; all rounds if the calibration loop was not timed with
/// them.
fn quiet_rounds(of: &Completed, quiet_ns: Option<u64>, whose: &str) -> Result<Vec<Vec<u64>>, String> {
    let rounds = &of.rounds_ns;
    let Some(quiet_ns) = quiet_ns.filter(|_| of.yardstick_ns.len() == rounds.len()) else {
        return Ok(rounds.clone());
    };
    let is_quiet = |(_, reading): &(&Vec<u64>, &u64)| quiet::is_quiet(**reading, quiet_ns);
    let quiet: Vec<_> =
        rounds.iter().zip(&of.yardstick_ns).filter(is_quiet).map(|(round, _)| round.clone()).collect();
    if quiet.len() >= FEWEST_QUIET.min(rounds.len()) {
        return Ok(quiet);
    }
    let busy = rounds.len() - quiet.len();
    Err(format!("the machine was busy during {busy} of the {} rounds of {whose}", rounds.len()))
}

fn completed(cell: &Cell) -> Result<&Completed, String> {
    match &cell.outcome {
        Outcome::Completed(completed) => Ok(completed),
        outcome => Err(outcome.reason()),
    }
}

fn p50_ms(cell: &Cell) -> Option<f64> {
    summarize(&completed(cell).ok()?.rounds_ns).map(|summary| summary.p50_ms)
}

/// Names say dtype and device only where a run has several; here only what runs counts.
pub(crate) fn is_same_variant(a: &Variant, b: &Variant) -> bool {
    Variant { qualified: false, ..a.clone() } == Variant { qualified: false, ..b.clone() }
}

/// Reasons to doubt a change.
fn noise(change: &Change, now_ms: f64, known: &[f64]) -> Vec<String> {
    let mut notes = Vec::new();
    if change.rounds < 5 {
        notes.push(format!(
            "{} rounds are too few to estimate the noise; use `run.rounds = 30` with `run.iterations = 1`",
            change.rounds
        ));
    } else if change.resolution() > 0.05 {
        notes
            .push(format!("noisy: a slow-down below {:.0} % is not detectable", 100.0 * change.resolution()));
    }
    let low = known.iter().copied().fold(f64::INFINITY, f64::min);
    let high = known.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if known.len() >= 3 && low <= now_ms && now_ms <= high {
        notes.push(format!(
            "its median of {now_ms:.2} ms is within the {low:.2} to {high:.2} ms of the last {} runs here",
            known.len()
        ));
    }
    notes
}

/// If all variants change by the same factor, the cause is the machine or something that all of them share.
fn common_shift(rows: &[ComparedCell]) -> Option<String> {
    let ratios: Vec<f64> = rows.iter().filter_map(ComparedCell::change).map(|change| change.ratio).collect();
    let low = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let high = ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let same_way = low > 1.03 || high < 0.97;
    (ratios.len() >= 3 && same_way && high / low < 1.05).then(|| {
        format!(
            "all {} variants changed by about the same factor ({:+.0} % to {:+.0} %): the machine is the likelier cause",
            ratios.len(),
            100.0 * (low - 1.0),
            100.0 * (high - 1.0)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use compare::timing::Interval;

    fn of(ratio: f64, rounds: usize) -> Change {
        Change { ratio, interval: Interval { low: ratio * 0.99, high: ratio * 1.01 }, rounds }
    }

    #[test]
    fn a_time_within_the_range_of_the_last_runs_is_noted() {
        let notes = noise(&of(1.1, 10), 10.5, &[10.0, 10.2, 11.0]);
        assert_eq!(notes, ["its median of 10.50 ms is within the 10.00 to 11.00 ms of the last 3 runs here"]);
        assert!(noise(&of(1.1, 10), 11.5, &[10.0, 10.2, 11.0]).is_empty());
        assert!(noise(&of(1.1, 10), 10.5, &[10.0, 11.0]).is_empty(), "two runs are no history");
        assert_eq!(noise(&of(1.1, 3), 11.5, &[]).len(), 1);
    }

    #[test]
    fn rounds_on_a_loaded_machine_are_not_compared() {
        let of = |readings: &[u64]| Completed {
            rounds_ns: readings.iter().map(|reading| vec![10 * reading]).collect(),
            yardstick_ns: readings.to_vec(),
            ..Completed::default()
        };
        let quiet = |readings: &[u64]| quiet_rounds(&of(readings), Some(100), "this run");
        let mixed = [100, 101, 102, 103, 104, 130, 140];
        assert_eq!(quiet(&mixed).unwrap().len(), 5);
        assert_eq!(
            quiet(&mixed[1..]).unwrap_err(),
            "the machine was busy during 2 of the 6 rounds of this run"
        );
        assert_eq!(quiet(&[100]).unwrap(), [[1000]], "one round is not made more by patience");
        let unread = Completed { yardstick_ns: vec![], ..of(&mixed) };
        assert_eq!(quiet_rounds(&unread, Some(100), "the baseline").unwrap().len(), 7);
    }

    #[test]
    fn times_are_compared_only_on_equal_machines_with_equal_threads() {
        let place = |fingerprint: &str, threads| Place { fingerprint: fingerprint.into(), threads };
        assert_eq!(place("a", 2).is_comparable(&place("a", 2)), Ok(()));
        assert!(place("a", 2).is_comparable(&place("b", 2)).unwrap_err().contains("another machine"));
        assert!(place("", 2).is_comparable(&place("", 2)).is_err(), "an unknown machine equals none");
        assert!(
            place("a", 2).is_comparable(&place("a", 4)).unwrap_err().contains("2 threads, this run with 4")
        );
    }
}
