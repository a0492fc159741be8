//! The changes between two runs: each variant's group, logits, error and time.

use std::path::Path;

use compare::metric::RELATIVE_L2;
use compare::timing::Change;
use compare::verdict::Decision;
use miette::Result;

use super::against::{self, ComparedCell, is_same_variant};
use super::assess;
use super::baseline::Saved;
use super::findings::{Findings, Mark, findings};
use super::gates::SLOW_DOWN_PERCENT;
use super::view::RunView;
use crate::execute::cell::Cell;
use crate::results::environment::EnvironmentRecord;
use crate::results::{Case, Manifest, RunFolder};

/// The changes between two runs.
#[derive(Clone, Debug)]
pub struct Changes {
    /// Names of the run folders, the earlier one first.
    pub runs: [String; 2],
    /// Differences between the machines and environments: name, value before, value after.
    pub environment: Vec<[String; 3]>,
    /// A row per variant that both runs have; variants that got worse come first.
    pub rows: Vec<ChangedCell>,
    /// Cases and variants that only one run has, and the reasons why times are not compared.
    pub notes: Vec<String>,
}

/// One variant of one case that both runs have.
#[derive(Clone, Debug)]
pub struct ChangedCell {
    /// Verdict, metrics and times of the later run against the earlier one.
    pub compared: ComparedCell,
    /// The variant's mark (group or failure) in its case, before and after.
    pub marks: [Mark; 2],
    /// The variant's relative L2 against its float64 reference, before and after; `None` without a float64 reference.
    pub errors: [Option<f64>; 2],
    /// How its logits changed.
    pub numbers: Direction,
    /// How its median time changed.
    pub time: Direction,
}

/// Direction of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// Worse than before.
    Worse,
    /// The logits differ, and neither run is known to be better.
    Other,
    /// Better than before.
    Better,
    /// Unchanged, or not known.
    Same,
}

impl Changes {
    /// Counts of the rows: `2 worse, 1 better, 0 changed, 5 unchanged; 1 slower, 0 faster`.
    pub fn summary(&self) -> String {
        let count = |of: fn(&ChangedCell) -> Direction, is: Direction| {
            self.rows.iter().filter(|row| of(row) == is).count()
        };
        let numbers = |is| count(|row| row.numbers, is);
        let time = |is| count(|row| row.time, is);
        format!(
            "{} worse, {} better, {} changed, {} unchanged; {} slower, {} faster",
            numbers(Direction::Worse),
            numbers(Direction::Better),
            numbers(Direction::Other),
            numbers(Direction::Same),
            time(Direction::Worse),
            time(Direction::Better)
        )
    }
}

/// Compares the run in `after` with the one in `before`.
///
/// # Errors
/// A folder does not contain a run, or logits cannot be read.
pub fn between(before: &Path, after: &Path) -> Result<Changes> {
    let saved = Saved::of_run(before)?;
    let folder = RunFolder::open(after)?;
    let manifest = folder.manifest()?;
    let views = [assess::saved(&saved.folder)?, assess::saved(&folder)?];
    let found = views.each_ref().map(findings);
    let tolerances = &manifest.config.tolerances;
    let against = against::beside(&saved, None, (&folder, &manifest), &views[1].cases, tolerances)?;
    let sides = [
        Side { manifest: &saved.manifest, view: &views[0], found: &found[0] },
        Side { manifest: &manifest, view: &views[1], found: &found[1] },
    ];
    let mut rows: Vec<ChangedCell> =
        against.rows.into_iter().filter_map(|row| changed(row, &sides)).collect();
    rows.sort_by_key(|row| (row.numbers, row.time));
    let records = [saved.folder.environment(), folder.environment()];
    Ok(Changes {
        runs: [saved.run, views[1].id.clone()],
        environment: environment(records.each_ref().map(Option::as_ref)),
        rows,
        notes: against.notes,
    })
}

struct Side<'a> {
    manifest: &'a Manifest,
    view: &'a RunView,
    found: &'a Findings,
}

impl Side<'_> {
    /// The mark and the float64 error of `cell`'s variant in this run's case with the checkpoint and inputs of `case`.
    /// `None` if this run lacks the case or the variant.
    fn cell(&self, case: &Case, cell: &Cell) -> Option<(Mark, Option<f64>)> {
        let digests = |case: &Case| (case.checkpoint_digest.clone(), case.inputs_digest.clone());
        let at = self.manifest.cases.iter().position(|known| digests(known) == digests(case))?;
        let view = &self.view.cases[at];
        let index = view.cells.iter().position(|known| is_same_variant(&known.variant, &cell.variant))?;
        let accuracy = view.accuracies.iter().find(|accuracy| accuracy.variant == index);
        Some((self.found.cases[at].marks[index].clone(), accuracy.map(|accuracy| accuracy.relative_l2)))
    }
}

fn changed(compared: ComparedCell, sides: &[Side<'_>; 2]) -> Option<ChangedCell> {
    let now = &sides[1];
    let at = now.view.cases.iter().position(|case| case.name == compared.case)?;
    let cell = now.view.cases[at].cells.iter().find(|cell| cell.name == compared.variant)?;
    let case = &now.manifest.cases[at];
    let [before, after] = sides.each_ref().map(|side| side.cell(case, cell));
    let ((then, error_then), (now, error_now)) = (before?, after?);
    let numbers = numbers(&compared, &then, &now);
    let time = compared.change().map_or(Direction::Same, |change| time(&change));
    Some(ChangedCell { compared, marks: [then, now], errors: [error_then, error_now], numbers, time })
}

/// Rank of a mark: 0 is best, a higher rank is worse. `None` for float64 references and variants that were not started.
fn rank(mark: &Mark) -> Option<u8> {
    match mark {
        Mark::Member { letter, rounds_worse } if letter == "A" => Some(u8::from(*rounds_worse)),
        Mark::Member { .. } => Some(2),
        Mark::Unsupported => Some(3),
        Mark::Failed => Some(4),
        Mark::Reference | Mark::NotStarted => None,
    }
}

fn numbers(compared: &ComparedCell, then: &Mark, now: &Mark) -> Direction {
    match (rank(then), rank(now)) {
        (Some(then), Some(now)) if now > then => return Direction::Worse,
        (Some(then), Some(now)) if now < then => return Direction::Better,
        _ => {}
    }
    match &compared.verdict.decision {
        Decision::Diverged | Decision::Incomparable { .. } => Direction::Other,
        Decision::WorseRounding { worse } if *worse == compared.variant => Direction::Worse,
        Decision::WorseRounding { .. } => Direction::Better,
        Decision::Identical | Decision::SameMathematics | Decision::NotRun { .. } => Direction::Same,
    }
}

fn time(change: &Change) -> Direction {
    // A smaller change is none, as in the default gate of a run with a baseline.
    let smallest = f64::from(SLOW_DOWN_PERCENT) / 100.0;
    if change.is_slower_by(smallest) {
        Direction::Worse
    } else if change.is_faster_by(smallest) {
        Direction::Better
    } else {
        Direction::Same
    }
}

/// Rows and packages that differ between the two records, as name, before, after; `—` replaces a missing value.
fn environment(records: [Option<&EnvironmentRecord>; 2]) -> Vec<[String; 3]> {
    let rows = records.map(|record| {
        let mut rows = record.map(EnvironmentRecord::rows).unwrap_or_default();
        for (version, packages) in record.map(EnvironmentRecord::packages).unwrap_or_default() {
            rows.extend(packages.into_iter().map(|(name, found)| (format!("{version}: {name}"), found)));
        }
        rows
    });
    let [before, after] = &rows;
    let value = |side: &[(String, String)], key: &str| {
        side.iter().find(|(known, _)| known == key).map_or_else(|| "—".to_owned(), |(_, value)| value.clone())
    };
    let mut keys: Vec<&String> = Vec::new();
    for (key, _) in before.iter().chain(after) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys.into_iter()
        .map(|key| [key.clone(), value(before, key), value(after, key)])
        .filter(|[_, before, after]| before != after)
        .collect()
}

/// The relative L2 of the later run against the earlier one as text, or the reason why the two are incomparable.
pub fn apart(row: &ChangedCell) -> String {
    match &row.compared.pair {
        compare::matrix::PairOutcome::Compared(pair) => RELATIVE_L2.text(pair, compare::metrics::Side::A),
        compare::matrix::PairOutcome::Incomparable(reason) => reason.to_string(),
        compare::matrix::PairOutcome::NotRun(_) => "—".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use compare::matrix::PairOutcome;
    use compare::timing::Interval;
    use compare::verdict::Verdict;

    use super::*;

    fn member(letter: &str, rounds_worse: bool) -> Mark {
        Mark::Member { letter: letter.to_owned(), rounds_worse }
    }

    #[test]
    fn a_variant_is_worse_if_it_leaves_group_a_fails_or_rounds_worse() {
        let verdict = |decision: Decision| Verdict {
            a: "v@old".to_owned(),
            b: "v".to_owned(),
            decision,
            evidence: String::new(),
            basis: compare::evidence::Basis {
                evidence: compare::evidence::Evidence::Identical { elements: 1 },
                noise: None,
            },
        };
        let compared = |decision| ComparedCell {
            case: "case".to_owned(),
            variant: "v".to_owned(),
            verdict: verdict(decision),
            pair: PairOutcome::NotRun(String::new()),
            times: Err(String::new()),
            peak_bytes: Err(String::new()),
            notes: Vec::new(),
        };
        let check = |decision, then: Mark, now: Mark, expected| {
            assert_eq!(numbers(&compared(decision), &then, &now), expected, "{then:?} {now:?}");
        };
        check(Decision::Diverged, member("A", false), member("B", false), Direction::Worse);
        check(Decision::Diverged, member("C", false), member("A", true), Direction::Better);
        check(Decision::Diverged, member("B", false), member("B", false), Direction::Other);
        check(Decision::Identical, member("A", false), member("A", false), Direction::Same);
        check(Decision::NotRun { reason: String::new() }, member("A", false), Mark::Failed, Direction::Worse);
        let worse = |worse: &str| Decision::WorseRounding { worse: worse.to_owned() };
        check(worse("v"), member("A", false), member("A", false), Direction::Worse);
        check(worse("v@old"), member("A", false), member("A", false), Direction::Better);
    }

    #[test]
    fn a_time_change_needs_three_percent_and_an_interval_without_1() {
        let of = |ratio: f64, low, high| time(&Change { ratio, interval: Interval { low, high }, rounds: 9 });
        assert_eq!(of(1.05, 1.02, 1.08), Direction::Worse);
        assert_eq!(of(1.05, 0.98, 1.12), Direction::Same);
        assert_eq!(of(1.02, 1.01, 1.03), Direction::Same);
        assert_eq!(of(0.9, 0.85, 0.95), Direction::Better);
    }
}
