//! The summary on a terminal: short, aligned, in colour only where the caller has a terminal.

use std::fmt::Write;

use console::{Alignment, Style, measure_text_width, pad_str, truncate_str};

use super::gates::{change_rows, gate_rows, is_shown};
use super::{Report, entry, speed_up_text};
use crate::judge::gates::Judged;
use crate::judge::view::{CaseView, RunView};
use compare::metrics::{PairMetrics, Side};
use compare::repeat::times;
use compare::units::bytes;
use compare::verdict::{Decision, Verdict};

/// Below this many columns nothing is cut any more.
const NARROWEST: usize = 60;

/// The summary as text for a terminal.
#[derive(Clone, Copy, Debug)]
pub struct Terminal {
    /// Columns of the terminal.
    pub width: usize,
    /// Whether to colour.
    pub color: bool,
}

impl Report for Terminal {
    /// Terminal text is kept in the log when it is kept at all.
    fn file_name(&self) -> &'static str {
        "run.log"
    }

    fn render(&self, run: &RunView, judged: &Judged) -> String {
        let terminal = Self { width: self.width.max(NARROWEST), ..*self };
        let mut text = String::new();
        for case in &run.cases {
            terminal.case(&mut text, case);
        }
        terminal.sweep(&mut text, run);
        terminal.preflight(&mut text, run);
        for note in &run.notes {
            for part in wrap(&format!("note: {note}"), terminal.width) {
                terminal.line(&mut text, &part);
            }
        }
        let tally = run.tally();
        let pairs = tally.pairs();
        let cells = format!("{} failed, {} unsupported", tally.failed, tally.unsupported);
        terminal.gates(&mut text, &judged);
        text.push('\n');
        for part in wrap(&format!("pairs: {pairs}; cells: {cells}"), terminal.width) {
            terminal.line(&mut text, &part);
        }
        text
    }
}

impl Terminal {
    fn gates(&self, text: &mut String, judged: &Judged) {
        if !is_shown(judged) {
            return;
        }
        if let Some(against) = &judged.against {
            let title = format!("against baseline {} ({})", against.baseline, against.run);
            text.push('\n');
            self.line(text, &self.paint(&Style::new().bold(), &title));
            for [case, variant, word, l2, _, time, _, notes] in change_rows(against) {
                for (index, part) in
                    wrap(&format!("{case}: {variant}: {word}, L2 {l2}; p50 {time}"), self.width - 4)
                        .iter()
                        .enumerate()
                {
                    self.line(text, &format!("{}{part}", if index == 0 { "  " } else { "    " }));
                }
                for part in wrap(&notes, self.width - 4) {
                    self.line(text, &format!("    {part}"));
                }
            }
            for note in &against.notes {
                for part in wrap(note, self.width - 2) {
                    self.line(text, &format!("  {part}"));
                }
            }
        }
        if !text.ends_with("\n\n") {
            text.push('\n');
        }
        for [gate, word, found] in gate_rows(judged) {
            let style = match word.as_str() {
                "failed" => Style::new().red().bold(),
                "unknown" => Style::new().yellow(),
                _ => Style::new().green(),
            };
            self.line(text, &format!("  gate {gate}: {}", self.paint(&style, &word)));
            for part in wrap(&found, self.width - 4) {
                self.line(text, &format!("    {part}"));
            }
        }
    }

    fn case(&self, text: &mut String, case: &CaseView) {
        let title = format!("{} · {} · {}", case.name, case.checkpoint, case.inputs);
        self.line(text, &self.paint(&Style::new().bold(), &title));
        self.performance(text, case);
        self.decoding(text, case);
        self.differences(text, case);
        self.verdicts(text, case);
        for found in &case.localized {
            self.line(text, &format!("  first divergence  {} / {}", found.a, found.b));
            for part in wrap(&found.sentence, self.width - 4) {
                self.line(text, &format!("    {part}"));
            }
        }
    }

    fn performance(&self, text: &mut String, case: &CaseView) {
        let header =
            ["variant", "p50 ms", "p90 ms", "first ms", "memory", "speed-up"].map(str::to_owned).to_vec();
        let mut rows = vec![header];
        let mut absent = Vec::new();
        for cell in &case.cells {
            match case.performance(cell) {
                Ok(performance) => {
                    let time = |x: Option<f64>| x.map_or_else(|| "—".to_owned(), |x| format!("{x:.2}"));
                    rows.push(vec![
                        cell.name.clone(),
                        time(performance.timing.map(|timing| timing.p50_ms)),
                        time(performance.timing.map(|timing| timing.p90_ms)),
                        time(Some(compare::units::ms(performance.completed.first_call_ns))),
                        performance.completed.peak_bytes.map_or_else(|| "—".to_owned(), bytes),
                        speed_up_text(&performance),
                    ]);
                }
                Err(reason) => {
                    rows.push(vec![cell.name.clone()]);
                    absent.push((rows.len() - 1, reason));
                }
            }
        }
        // What a narrow terminal can do without, least needed first.
        for dropped in ["memory", "first ms", "p90 ms"] {
            let total: usize = widths(&rows).iter().map(|width| width + 2).sum();
            if total > self.width
                && let Some(column) = rows[0].iter().position(|title| title == dropped)
            {
                for row in rows.iter_mut().filter(|row| row.len() > column) {
                    row.remove(column);
                }
            }
        }
        let widths = widths(&rows);
        text.push('\n');
        for (index, row) in rows.iter().enumerate() {
            match absent.iter().find(|(at, _)| *at == index) {
                Some((_, reason)) => {
                    let name = pad_str(&row[0], widths[0], Alignment::Left, None);
                    self.line(text, &format!("  {name}  {}", self.paint(&Style::new().red(), reason)));
                }
                None => self.row(text, row, &widths, index == 0),
            }
        }
    }

    /// Nothing where no variant decoded.
    fn decoding(&self, text: &mut String, case: &CaseView) {
        let timed = case.decoding();
        if timed.is_empty() {
            return;
        }
        let mut rows = vec![["decoding", "p50 ms", "p90 ms", "speed-up"].map(str::to_owned).to_vec()];
        rows.extend(timed.iter().filter_map(|(cell, performance)| {
            let timing = performance.timing.as_ref()?;
            let (p50, p90) = (format!("{:.2}", timing.p50_ms), format!("{:.2}", timing.p90_ms));
            Some(vec![cell.name.clone(), p50, p90, speed_up_text(performance)])
        }));
        let widths = widths(&rows);
        text.push('\n');
        for (index, row) in rows.iter().enumerate() {
            self.row(text, row, &widths, index == 0);
        }
    }

    /// The L2 matrix where it fits, else each variant against the baseline.
    fn differences(&self, text: &mut String, case: &CaseView) {
        let matrix = &case.matrix;
        let names = &matrix.names;
        let l2 = |pair: &PairMetrics| format!("{:.6}", pair.l2);
        let cell = |row: usize, column: usize, in_noise: bool| {
            let multiple = case.multiple(row, column).filter(|_| in_noise);
            let multiple = multiple.map(|multiple| format!(" ({}×)", times(multiple))).unwrap_or_default();
            let itself = case.diagonal(row).filter(|_| row == column);
            itself.unwrap_or_else(|| format!("{}{multiple}", entry(matrix, row, column, l2)))
        };
        let square = |in_noise: bool| -> Vec<Vec<String>> {
            let numbers = (1..=names.len()).map(|i| format!("[{i}]"));
            let mut rows = vec![std::iter::once("L2".to_owned()).chain(numbers).collect()];
            for (row, name) in names.iter().enumerate() {
                let label = format!("[{}] {name}", row + 1);
                let cells = (0..names.len()).map(|column| cell(row, column, in_noise));
                rows.push(std::iter::once(label).chain(cells).collect());
            }
            rows
        };
        let fits =
            |rows: &[Vec<String>]| widths(rows).iter().map(|width| width + 2).sum::<usize>() <= self.width;
        // Without the multiples where it does not fit with them.
        let fitting = [true, false].map(square).into_iter().find(|rows| fits(rows));
        let mut rows = fitting.clone().unwrap_or_default();
        if fitting.is_none() {
            let baseline = case
                .baseline
                .as_ref()
                .and_then(|name| names.iter().position(|other| other == name))
                .unwrap_or(0);
            let Some(name) = names.get(baseline) else {
                return;
            };
            rows = vec![vec![
                format!("against {name}"),
                "L2".to_owned(),
                "relative".to_owned(),
                "max abs".to_owned(),
            ]];
            for other in (0..names.len()).filter(|&other| other != baseline) {
                let of = |number: &dyn Fn(&PairMetrics) -> String| entry(matrix, baseline, other, number);
                rows.push(vec![
                    names[other].clone(),
                    cell(baseline, other, true),
                    of(&|pair| format!("{:.2e}", pair.relative_l2(Side::A))),
                    of(&|pair| format!("{:.2e}", pair.max_abs)),
                ]);
            }
        }
        let widths = widths(&rows);
        text.push('\n');
        for (index, row) in rows.iter().enumerate() {
            self.row(text, row, &widths, index == 0);
        }
        if let Some(said) = case.noise_said() {
            for part in wrap(&said, self.width - 2) {
                self.line(text, &format!("  {part}"));
            }
        }
    }

    /// Every pair of a sweep that does not agree everywhere, or the first of those that do.
    fn sweep(&self, text: &mut String, run: &RunView) {
        let Some(sweep) = super::sweep::sweep(run) else { return };
        let (good, bad): (Vec<_>, Vec<_>) = sweep.rows.iter().partition(|row| row.worst.is_good());
        text.push('\n');
        self.line(
            text,
            &self.paint(&Style::new().bold(), "sweep: the worst verdict for each value of an axis"),
        );
        if bad.is_empty() {
            let values: Vec<String> =
                sweep.columns.iter().map(|(axis, value)| format!("{axis} {value}")).collect();
            let said = format!("all {} pairs agree at {}", good.len(), values.join(", "));
            for part in wrap(&said, self.width - 2) {
                self.line(text, &format!("  {part}"));
            }
            return;
        }
        for row in &bad {
            self.line(text, &format!("  {} / {}: {}", row.a, row.b, row.worst.text()));
            let mut axis = "";
            let mut parts: Vec<String> = Vec::new();
            for ((name, value), mark) in sweep.columns.iter().zip(&row.marks) {
                let Some(mark) = mark else { continue };
                if *name != axis {
                    axis = name;
                    parts.push(format!("{name}:"));
                }
                parts.push(format!("{value} {};", mark.text()));
            }
            for part in wrap(&parts.join(" "), self.width - 4) {
                self.line(text, &format!("    {part}"));
            }
        }
        if !good.is_empty() {
            self.line(text, &format!("  {} other pairs agree everywhere", good.len()));
        }
    }

    /// Config keys and token ids that are not the same on all sides.
    fn preflight(&self, text: &mut String, run: &RunView) {
        let keys = super::preflight::partly_read(run).into_iter().map(|found| {
            let (ignored, read) = (found.ignored_by.join(", "), found.not_ignored_by.join(", "));
            format!(
                "{}: config key {} is ignored by {ignored} and not by {read}",
                found.checkpoint, found.key
            )
        });
        let tokenizers = super::preflight::tokenizers(run)
            .into_iter()
            .filter(|(_, _, found)| found.difference.is_some())
            .map(|(checkpoint, version, found)| format!("{checkpoint}, {version}: {}", found.said()));
        for said in keys.chain(tokenizers) {
            for part in wrap(&format!("preflight: {said}"), self.width) {
                self.line(text, &part);
            }
        }
    }

    /// Whatever needs a person's eye, with its evidence; agreement is counted at the end.
    fn verdicts(&self, text: &mut String, case: &CaseView) {
        let style = |decision: &Decision| match decision {
            Decision::Identical | Decision::SameMathematics => None,
            Decision::WorseRounding { .. } | Decision::NotRun { .. } => Some(Style::new().yellow()),
            Decision::Diverged | Decision::Incomparable { .. } => Some(Style::new().red().bold()),
        };
        text.push('\n');
        // One broken variant diverges from all others for one reason, which is said once.
        let mut groups: Vec<(&Verdict, Vec<String>)> = Vec::new();
        for verdict in &case.verdicts {
            let pair = format!("{} / {}", verdict.a, verdict.b);
            match groups.iter_mut().find(|(first, _)| first.evidence == verdict.evidence) {
                Some((_, pairs)) => pairs.push(pair),
                None => groups.push((verdict, vec![pair])),
            }
        }
        for (verdict, pairs) in groups {
            if matches!(verdict.decision, Decision::NotRun { .. }) {
                // The failed cell's own line says why.
                continue;
            }
            let Some(style) = style(&verdict.decision) else {
                continue;
            };
            let word = self.paint(&style, verdict.decision.word());
            for (index, pair) in pairs.iter().enumerate() {
                let word = if index == 0 { word.clone() } else { " ".repeat(verdict.decision.word().len()) };
                self.line(text, &format!("  {word}  {pair}"));
            }
            for part in wrap(&verdict.evidence, self.width - 4) {
                self.line(text, &format!("    {part}"));
            }
        }
    }

    fn row(&self, text: &mut String, cells: &[String], widths: &[usize], is_header: bool) {
        let padded: Vec<String> = cells
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(column, (cell, &width))| {
                let side = if column == 0 { Alignment::Left } else { Alignment::Right };
                pad_str(cell, width, side, None).into_owned()
            })
            .collect();
        let line = format!("  {}", padded.join("  "));
        let line = truncate_str(line.trim_end(), self.width, "…");
        if is_header {
            self.line(text, &self.paint(&Style::new().dim(), &line));
        } else {
            self.line(text, &line);
        }
    }

    fn paint(&self, style: &Style, text: &str) -> String {
        style.clone().force_styling(self.color).apply_to(text).to_string()
    }

    fn line(&self, text: &mut String, content: &str) {
        writeln!(text, "{}", truncate_str(content, self.width, "…")).expect("a String takes every write");
    }
}

fn widths(rows: &[Vec<String>]) -> Vec<usize> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    (0..columns)
        .map(|column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| measure_text_width(cell))
                .max()
                .unwrap_or(0)
        })
        .collect()
}

/// Words in lines of at most `width` columns.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if measure_text_width(line) + 1 + measure_text_width(word) <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
