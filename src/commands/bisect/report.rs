//! The report of a bisection, for terminal and file.

use std::fmt::Write;

use crate::hunt::bisect::record::{ChangePoint, Localization, Log, Over, Phase, Step};
use crate::hunt::bisect::search::{Answer, Change};
use compare::units::count;

/// Files of a commit that are listed at most.
const MOST_FILES: usize = 12;

/// The report for a terminal.
pub(super) fn terminal(log: &Log) -> String {
    let mut text = String::new();
    for phase in &log.phases {
        let _ = writeln!(text, "\n{}", title(log, phase));
        let rows: Vec<[String; 5]> = in_order(phase).map(|step| row(phase, step)).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths = [width(0), width(1), width(2), width(3)];
        for row in &rows {
            // A column without content is left out, such as times if nothing was timed.
            let cells: Vec<String> = row
                .iter()
                .zip(widths)
                .filter(|(_, width)| *width > 0)
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            let line = format!("  {}  {}", cells.join("  "), row[4]);
            let _ = writeln!(text, "{}", line.trim_end());
        }
        for sentence in sentences(log, phase) {
            let _ = writeln!(text, "{sentence}");
        }
    }
    text
}

/// The report as Markdown.
pub(super) fn markdown(log: &Log) -> String {
    let mut text = String::from("# Bisection\n");
    for phase in &log.phases {
        let _ = writeln!(text, "\n## {}\n", title(log, phase));
        for sentence in sentences(log, phase) {
            let item = sentence.trim_start();
            let _ = match sentence.len() - item.len() {
                0 => writeln!(text, "\n{sentence}\n"),
                // Two blanks per level.
                blanks => writeln!(text, "{}- {item}", &sentence[2..blanks]),
            };
        }
        text.push_str("\n| Revision | Answer | Relative L2 | p50 | Evidence |\n|---|---|---:|---:|---|\n");
        for step in in_order(phase) {
            let cells = row(phase, step).map(|cell| cell.replace('|', "\\|"));
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        }
    }
    text
}

/// `93 releases from 4.40.2 to 5.23.0, test verdict>=diverged`.
fn title(log: &Log, phase: &Phase) -> String {
    let what = match phase.over {
        Over::Releases => "releases",
        Over::Commits => "commits of transformers",
        Over::Port => "commits of the port",
    };
    let name = |index: usize| phase.revisions[index].name.as_str();
    format!(
        "{} {what} from {} to {}, test `{}`",
        phase.revisions.len(),
        name(0),
        name(phase.revisions.len() - 1),
        log.question.test.text()
    )
}

/// The tested revisions in the order of the history.
fn in_order(phase: &Phase) -> impl Iterator<Item = &Step> {
    (0..phase.revisions.len()).filter_map(|index| phase.step(index))
}

fn row(phase: &Phase, step: &Step) -> [String; 5] {
    let answer = match step.answer {
        Answer::Good => "good",
        Answer::Bad => "bad",
        Answer::Skipped => "skipped",
    };
    let pair = step.worst();
    let l2 = pair.and_then(|pair| pair.relative_l2).map_or_else(String::new, number);
    let time = pair.and_then(|pair| pair.time).map_or_else(String::new, percent);
    let reason = step.reason.lines().next().unwrap_or_default().to_owned();
    [phase.revisions[step.revision].name.clone(), answer.to_owned(), l2, time, reason]
}

/// `5.87e-1`; zero is `0`.
fn number(value: f64) -> String {
    if value == 0.0 { "0".to_owned() } else { format!("{value:.2e}") }
}

/// `+5.1 % (+4.0 to +6.3)`.
fn percent([ratio, low, high]: [f64; 3]) -> String {
    let percent = |ratio: f64| 100.0 * (ratio - 1.0);
    format!("{:+.1} % ({:+.1} to {:+.1})", percent(ratio), percent(low), percent(high))
}

/// The findings, one line each; a line that begins with blanks is an item of the line before it.
fn sentences(log: &Log, phase: &Phase) -> Vec<String> {
    let mut said = Vec::new();
    let changes = phase.changes.as_deref().unwrap_or_default();
    if log.question.scan && changes.is_empty() {
        said.push(format!("no change among {} revisions", phase.revisions.len()));
    }
    for change in changes {
        said.extend(about(phase, change));
        if phase.over == Over::Releases && log.question.repository.is_none() {
            let name = |index: usize| &phase.revisions[index].name;
            let (before, after) = (name(change.found.before), name(change.found.after));
            said.push(format!(
                "  to find the commit: run again with --good {before} --bad {after} --repository URL (or the folder of a clone)"
            ));
        }
    }
    let skipped = match phase.skipped() {
        0 => String::new(),
        1 => ", 1 revision could not be tested".to_owned(),
        several => format!(", {several} revisions could not be tested"),
    };
    let seconds = phase.steps.iter().map(|step| step.elapsed_ns).sum::<u64>() as f64 / 1e9;
    said.push(format!(
        "{} of at most {}{skipped}; {seconds:.0} s in steps",
        count(phase.runs(), "run"),
        phase.bound
    ));
    said.extend(phase.notes.iter().map(|note| format!("note: {note}")));
    said
}

fn about(phase: &Phase, change: &ChangePoint) -> Vec<String> {
    let name = |index: usize| phase.revisions[index].name.as_str();
    let (before, after) = (name(change.found.before), name(change.found.after));
    let what = match change.change {
        Change::Came => "the fault came",
        Change::Went => "the fault went",
        Change::Another => "another fault came",
    };
    let mut said = vec![if change.is_exact() {
        format!("{what} with {after}; {before} is the last one before")
    } else {
        let between = change.found.after - change.found.before - 1;
        format!(
            "{what} with one of the {} revisions after {before} up to {after}; {between} of them could not be tested",
            between + 1
        )
    }];
    for index in [change.found.before, change.found.after] {
        if let Some(pair) = phase.step(index).and_then(Step::worst) {
            let verdict = pair.verdict.as_deref().unwrap_or("no logits");
            let l2 =
                pair.relative_l2.map_or_else(String::new, |value| format!(", relative L2 {}", number(value)));
            let max = pair
                .max_abs
                .map_or_else(String::new, |value| format!(", largest difference {}", number(value)));
            let time = pair.time.map_or_else(String::new, |time| format!(", p50 {}", percent(time)));
            let run = phase.step(index).and_then(|step| step.run.as_ref());
            let run = run.map_or_else(String::new, |run| format!(" (steps/{run})"));
            said.push(format!(
                "  {}: {} against {}: {verdict}{l2}{max}{time}{run}",
                name(index),
                pair.variant,
                pair.good
            ));
        }
    }
    said.extend(change.localization.iter().flat_map(place));
    if let Some(diagnosed) = &change.diagnosis {
        said.push(format!("  {}", diagnosed.sentence));
        said.extend(diagnosed.notes.iter().map(|note| format!("    note: {note}")));
    }
    for commit in &change.commits {
        said.push(format!("  commit {} of {}: {}", commit.hash, commit.author_date, commit.subject));
        said.extend(
            commit.files.iter().take(MOST_FILES).map(|file| format!("    {}", file.replace('\t', " "))),
        );
        if commit.files.len() > MOST_FILES {
            said.push(format!("    and {} more", count(commit.files.len() - MOST_FILES, "file")));
        }
    }
    if !change.packages.is_empty() {
        let difference = |(name, [before, after]): (&String, &[Option<String>; 2])| {
            let version = |side: &Option<String>| side.clone().unwrap_or_else(|| "none".to_owned());
            format!("{name} {} → {}", version(before), version(after))
        };
        let packages: Vec<String> = change.packages.iter().map(difference).collect();
        said.push(format!("  packages: {}", packages.join(", ")));
    }
    said
}

/// Where in the model a change is located.
fn place(localization: &Localization) -> Vec<String> {
    let localized = match localization {
        Localization::Localized(localized) => localized,
        Localization::NotLocalized(reason) => return vec![format!("  not localised: {reason}")],
    };
    let mut said = match localized.path() {
        Some(path) => {
            vec![format!("  first module that diverges: {path}"), format!("    {}", localized.sentence)]
        }
        None => vec![format!("  localised: {}", localized.sentence)],
    };
    said.extend(localized.notes.iter().map(|note| format!("    note: {note}")));
    said
}
