//! The one-screen overview of a run: a grid of variants × cases, then each finding once, then failures, then speed.
//!
//! At most [`MOST_LINES`] lines for any run size; the report files hold everything.

use compare::units::count;
use console::{Alignment, Style, measure_text_width, pad_str, truncate_str};

use super::Source;
use super::finding::sentence;
use super::preflight::{self, Part};
use super::sections::change_row;
use super::speed;
use super::wrap::wrap;
use crate::execute::cell::{Cell, FailureKind, Outcome};
use crate::judge::findings::{CaseGroups, Finding, Findings, Mark, What, subject, version};
use crate::judge::gates::Judged;
use crate::judge::view::RunView;

/// Maximum number of lines of the whole overview.
pub const MOST_LINES: usize = 40;
/// Maximum number of variant lines in the grid.
const MOST_ROWS: usize = 14;
/// Maximum number of lines per finding.
const MOST_OF_A_FINDING: usize = 4;
/// Maximum number of lines on speed.
const MOST_OF_SPEED: usize = 4;
/// Maximum number of changes since a baseline, and of gates.
const MOST_CHANGES: usize = 4;
/// Maximum width of a case's name in the grid, in terminal columns.
const WIDEST_CASE: usize = 14;

/// The overview as lines of at most `width` columns.
pub fn render(source: &Source<'_>, width: usize, color: bool) -> String {
    let Source { run, found, judged, .. } = *source;
    let mut page = Page { width, color, lines: Vec::new() };
    if run.has_cells() {
        page.grid(run, found);
    }
    // What follows the findings keeps its place, however many findings there are.
    let mut rest = Page { width, color, lines: Vec::new() };
    rest.gates(judged);
    rest.hints(run);
    rest.wrapped(&speed::sentence(run), "  ", MOST_OF_SPEED, None);
    rest.last(run);
    page.findings(run, found, MOST_LINES.saturating_sub(rest.lines.len()));
    page.lines.append(&mut rest.lines);
    page.lines.push(String::new());
    page.lines.join("\n")
}

/// The overview under construction.
struct Page {
    width: usize,
    color: bool,
    lines: Vec<String>,
}

impl Page {
    fn paint(&self, style: &Style, text: &str) -> String {
        style.clone().force_styling(self.color).apply_to(text).to_string()
    }

    /// Adds `text`, wrapped to the page's width and cut after `most` lines.
    fn wrapped(&mut self, text: &str, indent: &str, most: usize, style: Option<&Style>) {
        let mut parts = wrap(text, self.width.saturating_sub(indent.len()));
        if parts.len() > most {
            parts.truncate(most);
            if let Some(last) = parts.last_mut() {
                *last = truncate_str(&format!("{last} …"), self.width.saturating_sub(indent.len()), "…")
                    .into_owned();
            }
        }
        for (at, part) in parts.iter().enumerate() {
            let part = match style.filter(|_| at == 0) {
                Some(style) => self.paint(style, part),
                None => part.clone(),
            };
            let indent = if at == 0 { "" } else { indent };
            self.lines.push(format!("{indent}{part}"));
        }
    }

    /// One row per variant and one column per case; variants of one version with equal rows share a row.
    fn grid(&mut self, run: &RunView, found: &Findings) {
        let mut rows = rows(run, found);
        let labels: Vec<String> = rows.iter().map(|row| row.label.clone()).collect();
        let label_width =
            labels.iter().map(|label| measure_text_width(label)).max().unwrap_or(0).min(self.width / 2);
        let mut columns: Vec<usize> = (0..run.cases.len()).collect();
        let room = self.width.saturating_sub(label_width + 2);
        let longest = run.cases.iter().map(|case| measure_text_width(&case.name)).max().unwrap_or(1);
        let column_width = longest.clamp(2, WIDEST_CASE);
        let is_named = columns.len() * (column_width + 2) <= room;
        let column_width = if is_named { column_width } else { 3 };
        let shown = columns.len().min(room / (column_width + 1 + usize::from(is_named)));
        // If not all cases fit, cases in which variants differ come first.
        if shown < columns.len() {
            columns.sort_by_key(|&case| is_plain(&found.cases[case]));
            columns.truncate(shown);
            columns.sort_unstable();
        }
        let head: Vec<String> = columns
            .iter()
            .map(|&case| {
                let name = if is_named { run.cases[case].name.clone() } else { (case + 1).to_string() };
                let name = truncate_str(&name, column_width, "…").into_owned();
                pad_str(&name, column_width, Alignment::Center, None).into_owned()
            })
            .collect();
        let gap = if is_named { "  " } else { " " };
        let bold = Style::new().bold();
        let title = pad_str("", label_width, Alignment::Left, None).into_owned();
        let head = self.paint(&bold, head.join(gap).trim_end());
        self.lines.push(format!("{title}  {head}"));
        let left_out = rows.len().saturating_sub(MOST_ROWS);
        if left_out > 0 {
            rows.sort_by_key(VariantRow::is_plain);
            rows.truncate(MOST_ROWS - 1);
        }
        for row in &rows {
            let label = truncate_str(&row.label, label_width, "…").into_owned();
            let label = pad_str(&label, label_width, Alignment::Left, None).into_owned();
            let cells: Vec<String> = columns
                .iter()
                .map(|&case| {
                    let (text, style) = sign(row.marks[case]);
                    self.paint(&style, &pad_str(&text, column_width, Alignment::Center, None))
                })
                .collect();
            self.lines.push(format!("{label}  {}", cells.join(gap)).trim_end().to_owned());
        }
        if left_out > 0 {
            self.lines.push(format!("{} more rows like these are in the report", left_out + 1));
        }
        let mut legend = Vec::new();
        if !is_named {
            let names: Vec<String> =
                columns.iter().map(|&case| format!("{}\u{a0}{}", case + 1, run.cases[case].name)).collect();
            self.wrapped(&names.join(", "), "", 3, None);
        }
        if shown < run.cases.len() {
            let left = run.cases.len() - shown;
            legend.push(format!(
                "{} in the report",
                if left == 1 { "1 more case is".to_owned() } else { format!("{left} more cases are") }
            ));
        }
        let marks: Vec<&Mark> = rows.iter().flat_map(|row| row.marks.iter().flatten().copied()).collect();
        let any = |is_it: &dyn Fn(&Mark) -> bool| marks.iter().any(|mark| is_it(mark));
        if any(&|mark| matches!(mark, Mark::Member { .. })) {
            legend.push("same letter: computes the same".to_owned());
        }
        if any(&|mark| matches!(mark, Mark::Member { rounds_worse: true, .. })) {
            legend.push("~ rounds worse".to_owned());
        }
        for (mark, words) in [
            (Mark::Failed, "! failed"),
            (Mark::Unsupported, "- unsupported"),
            (Mark::NotStarted, "· not started"),
        ] {
            if any(&|other| *other == mark) {
                legend.push(words.to_owned());
            }
        }
        let dim = Style::new().dim();
        self.wrapped(&legend.join("; "), "  ", 2, Some(&dim));
        self.lines.push(String::new());
    }

    /// Gates that the run sets, and changes since a baseline.
    fn gates(&mut self, judged: &Judged) {
        // The default gates only repeat the verdicts.
        if !judged.is_named && judged.against.is_none() {
            return;
        }
        if let Some(against) = &judged.against {
            let bold = Style::new().bold();
            let title = format!("against baseline {} ({})", against.baseline, against.run);
            self.wrapped(&title, "  ", 1, Some(&bold));
            let rows: Vec<_> = against.rows.iter().map(change_row).collect();
            for [case, variant, word, l2, _, time, _, notes] in rows.iter().take(MOST_CHANGES) {
                let notes = if notes.is_empty() { String::new() } else { format!("; {notes}") };
                let text = format!("  {case}: {variant}: {word}, L2 {l2}; p50 {time}{notes}");
                self.wrapped(&text, "    ", 2, None);
            }
            if rows.len() > MOST_CHANGES {
                self.lines.push(format!("  {} more variants: see summary.md", rows.len() - MOST_CHANGES));
            }
            for note in against.notes.iter().take(2) {
                self.wrapped(note, "    ", 2, None);
            }
        }
        for gate in judged.gates.iter().take(MOST_CHANGES) {
            let style = match gate.word() {
                "failed" => Style::new().red().bold(),
                "unknown" => Style::new().yellow(),
                _ => Style::new().green(),
            };
            let word = self.paint(&style, gate.word());
            self.wrapped(&format!("gate {}: {word}: {}", gate.gate, gate.text(1)), "    ", 2, None);
        }
    }

    /// Counts of pairs and cells.
    fn last(&mut self, run: &RunView) {
        let counts = run.relation_counts();
        if !counts.is_empty() {
            let words: Vec<String> =
                counts.iter().map(|(outcome, count)| format!("{count} {}", outcome.word())).collect();
            self.wrapped(&format!("relations: {}", words.join(", ")), "  ", 2, None);
        }
        if !run.has_cells() {
            return;
        }
        let tally = run.tally();
        let not_started = match tally.not_started {
            0 => String::new(),
            count => format!(", {count} not started"),
        };
        let text = format!(
            "pairs: {}; cells: {} failed, {} unsupported{not_started}",
            tally.pairs(),
            tally.failed,
            tally.unsupported
        );
        self.wrapped(&text, "  ", 2, None);
    }

    /// Adds findings in order while the page has fewer than `most` lines.
    fn findings(&mut self, run: &RunView, found: &Findings, most: usize) {
        let numbers = found.findings.iter().filter(|finding| !is_absence(finding));
        let absences = found.findings.iter().filter(|finding| is_absence(finding));
        let paragraphs: Vec<(String, Style)> = numbers
            .map(|finding| (diagnosed(finding, run), style(finding)))
            .chain(notes(run).into_iter().map(|note| (note, Style::new())))
            .chain(absences.map(|finding| (sentence(finding, run), style(finding))))
            .collect();
        if !run.has_cells() {
            if found.findings.is_empty() {
                let green = Style::new().green();
                self.wrapped("No relation is broken.", "  ", 1, Some(&green));
            }
        } else if found.cases.iter().all(is_plain) && found.findings.is_empty() {
            let marks = || found.cases.iter().flat_map(|case| &case.marks);
            let ran = marks().any(|mark| matches!(mark, Mark::Member { .. }));
            let (text, style) = match (ran, marks().any(|mark| *mark == Mark::NotStarted)) {
                (true, false) => ("All variants compute the same.", Style::new().green()),
                (true, true) => ("All variants that ran compute the same.", Style::new()),
                (false, _) => ("No variant has logits to compare.", Style::new()),
            };
            self.wrapped(text, "  ", 1, Some(&style));
        }
        let all = paragraphs.len();
        for (at, (text, style)) in paragraphs.into_iter().enumerate() {
            let room = most.saturating_sub(self.lines.len());
            // One line is reserved for the count of findings that do not fit.
            if room <= 1 + usize::from(at + 1 < all) {
                self.lines.push(format!("… and {} more findings: see summary.md", all - at));
                return;
            }
            self.wrapped(&text, "    ", MOST_OF_A_FINDING.min(room - 1), Some(&style));
        }
    }

    /// What to do about each kind of failure.
    fn hints(&mut self, run: &RunView) {
        for (kind, hint) in hints(run) {
            self.wrapped(&format!("help: {}: {hint}", kind.words()), "    ", 2, None);
        }
    }
}

/// A finding with what the group computes instead.
fn diagnosed(finding: &Finding, run: &RunView) -> String {
    let text = sentence(finding, run);
    match &finding.what {
        What::Diverges { diagnosis: Some(diagnosis), .. } => format!("{text}. {diagnosis}"),
        _ => text,
    }
}

/// Variants with the same marks in every case.
struct VariantRow<'a> {
    cells: Vec<&'a Cell>,
    label: String,
    /// One per case; `None` if the case has no such variant.
    marks: Vec<Option<&'a Mark>>,
}

impl VariantRow<'_> {
    /// Whether every mark is plain, that is, in group A.
    fn is_plain(&self) -> bool {
        self.marks.iter().flatten().all(|mark| mark.is_plain())
    }
}

fn rows<'a>(run: &'a RunView, found: &'a Findings) -> Vec<VariantRow<'a>> {
    let mut rows: Vec<VariantRow> = Vec::new();
    for (cell, marks) in found.grid(run) {
        let of_version = |other: &Cell| version(other) == version(cell);
        match rows.iter_mut().find(|row| row.marks == marks && of_version(row.cells[0])) {
            Some(row) => row.cells.push(cell),
            None => rows.push(VariantRow { cells: vec![cell], label: String::new(), marks }),
        }
    }
    // The version alone labels a row if it has only one row.
    let versions: Vec<String> = rows.iter().map(|row| version(row.cells[0])).collect();
    for row in &mut rows {
        let own = version(row.cells[0]);
        let is_whole = versions.iter().filter(|known| **known == own).count() == 1;
        row.label = if is_whole && row.cells.len() > 1 {
            format!("{own} (all {})", row.cells.len())
        } else {
            subject(row.cells.iter().copied())
        };
    }
    rows
}

/// The grid's symbol for a cell, and its style.
fn sign(mark: Option<&Mark>) -> (String, Style) {
    let plain = Style::new();
    let Some(mark) = mark else { return (String::new(), plain) };
    let style = match mark {
        mark if mark.is_plain() => plain.green(),
        Mark::Member { letter, .. } if letter == "A" => plain.yellow(),
        Mark::Member { .. } => plain.red().bold(),
        Mark::Failed => plain.red(),
        Mark::Reference | Mark::Unsupported | Mark::NotStarted => plain.dim(),
    };
    (mark.text(), style)
}

/// What to do about the run's failures, each remedy once, with the kind of failure.
fn hints(run: &RunView) -> Vec<(FailureKind, &'static str)> {
    let mut hints = Vec::new();
    for cell in run.cases.iter().flat_map(|case| &case.cells) {
        let failure = match &cell.outcome {
            Outcome::Failed(failure) if !cell.is_not_started() => Some(failure),
            Outcome::Completed(completed) => completed.unfinished.as_ref(),
            _ => None,
        };
        if let Some(failure) = failure
            && let Some(hint) = failure.hint()
            && !hints.contains(&(failure.kind, hint))
        {
            hints.push((failure.kind, hint));
        }
    }
    hints
}

fn is_plain(case: &CaseGroups) -> bool {
    case.groups.groups.len() < 2 && case.marks.iter().all(|mark| !matches!(mark, Mark::Failed))
}

fn is_absence(finding: &Finding) -> bool {
    matches!(finding.what, What::Failed { .. } | What::Unsupported { .. })
}

fn style(finding: &Finding) -> Style {
    match finding.what {
        What::Diverges { .. }
        | What::Cache { .. }
        | What::Relation { .. }
        | What::Output { .. }
        | What::Failed { .. } => Style::new().red(),
        What::RoundsWorse { .. } | What::Chain { .. } => Style::new().yellow(),
        What::Unsupported { .. } => Style::new().dim(),
    }
}

/// Config keys or tensors that the same versions leave unread: the versions, those that do not, and each name with its
/// checkpoints.
struct Unread {
    by: String,
    not_by: String,
    keys: Vec<(String, Vec<String>)>,
}

/// Config keys or tensors that some versions leave unread and others do not, once for the versions: `config keys ignored
/// by 4.40.2 and not by 5.23.0: head_dim (synthetic:llama, synthetic:mistral)`.
fn unread(run: &RunView, part: Part) -> Vec<String> {
    let mut sides: Vec<Unread> = Vec::new();
    for found in preflight::partly_read(run, part) {
        let (by, not_by) = (found.ignored_by.join(", "), found.not_ignored_by.join(", "));
        let at = sides.iter().position(|known| (&known.by, &known.not_by) == (&by, &not_by));
        let at = at.unwrap_or_else(|| {
            sides.push(Unread { by, not_by, keys: Vec::new() });
            sides.len() - 1
        });
        let keys = &mut sides[at].keys;
        match keys.iter_mut().find(|(key, _)| *key == found.name) {
            Some((_, checkpoints)) => checkpoints.push(found.checkpoint),
            None => keys.push((found.name, vec![found.checkpoint])),
        }
    }
    let told = |Unread { by, not_by, keys }: Unread| {
        let keys: Vec<String> =
            keys.iter().map(|(key, checkpoints)| format!("{key} ({})", checkpoints.join(", "))).collect();
        let (what, keys) = (part.plural(), keys.join(", "));
        match part {
            Part::ConfigKey => format!("{what} ignored by {by} and not by {not_by}: {keys}"),
            Part::Tensor => format!("{what} not read by {by} but by {not_by}: {keys}"),
        }
    };
    sides.into_iter().map(told).collect()
}

/// Config keys, tensors and token ids that are not the same for all, and what holds for the whole run.
fn notes(run: &RunView) -> Vec<String> {
    let keys = [Part::Tensor, Part::ConfigKey].into_iter().flat_map(|part| unread(run, part));
    let translated = preflight::translated(run).into_iter().map(|found| {
        format!(
            "{} alone would read the config of {} otherwise, so tfcheck translated it: {}",
            found.versions.join(", "),
            found.checkpoints.join(", "),
            found.values.join("; ")
        )
    });
    let tokenizers = preflight::tokenizers(run)
        .into_iter()
        .filter(|(_, _, found)| found.difference.is_some())
        .map(|(checkpoint, version, found)| format!("{checkpoint}, {version}: {}", found.said()));
    let unread = preflight::unread_by_all(run).into_iter().map(|(checkpoint, names)| {
        format!(
            "note: no variant reads {} of {checkpoint}, such as {}: config.json may describe a smaller model",
            count(names.len(), "tensor"),
            names[0]
        )
    });
    let noisy = run.cases.iter().filter(|case| {
        (0..case.cells.len()).any(|row| case.noise(row).is_some_and(|noise| !noise.is_bitwise()))
    });
    let noise = noisy.filter_map(|case| Some(format!("{}: {}", case.name, case.noise_said()?)));
    keys.chain(unread)
        .chain(tokenizers)
        .chain(translated)
        .chain(noise)
        .chain(run.notes.iter().map(|note| format!("note: {note}")))
        .collect()
}
