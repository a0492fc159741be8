//! A case on the page: its variants with the commands that repeat them, its charts and its sections, and the matrix data
//! for the page's script.

use compare::matrix::PairOutcome;
use compare::metric::{Direction, Format, METRICS, Metric, RELATIVE_L2};
use compare::metrics::{PairMetrics, Side};
use compare::timing::quantile;
use compare::units::ms;
use serde_json::{Map, Value, json};

use super::blocks::section;
use super::charts::{Times, Trade, times, trade};
use super::grid::{tone, words};
use super::{Limits, class, escape, fragment, number, pairs, profile, put};
use crate::execute::cell::Outcome;
use crate::execute::runner::quoted;
use crate::judge::details::CaseDetails;
use crate::judge::findings::{CaseGroups, Mark};
use crate::judge::view::{CaseView, Performance};
use crate::report::document::Content;

/// One case of the page.
pub(super) struct CasePage<'a> {
    pub(super) case: &'a CaseView,
    pub(super) groups: &'a CaseGroups,
    pub(super) details: &'a CaseDetails,
    /// Path of the run folder, as used in commands.
    run: &'a str,
    limits: Limits,
    /// Indices of the variants: groups in their order, then float64 references, then variants without logits.
    pub(super) order: Vec<usize>,
    performances: Vec<Result<Performance<'a>, String>>,
}

impl<'a> CasePage<'a> {
    pub(super) fn new(
        case: &'a CaseView,
        groups: &'a CaseGroups,
        details: &'a CaseDetails,
        run: &'a str,
        limits: Limits,
    ) -> Self {
        let mut order: Vec<usize> =
            groups.groups.groups.iter().flat_map(|group| group.members.iter().copied()).collect();
        let is_listed = |order: &[usize], index: &usize| order.contains(index);
        let mut rest: Vec<usize> = (0..case.cells.len()).filter(|index| !is_listed(&order, index)).collect();
        rest.sort_by_key(|&index| groups.marks[index] != Mark::Reference);
        order.extend(rest);
        let performances = case.cells.iter().map(|cell| case.performance(cell)).collect();
        Self { case, groups, details, run, limits, order, performances }
    }

    /// The number of a variant in charts and in the matrix, from 1.
    fn number(&self, variant: usize) -> usize {
        self.order.iter().position(|&index| index == variant).map_or(0, |at| at + 1)
    }

    fn is_first(&self, variant: usize) -> bool {
        matches!(&self.groups.marks[variant], Mark::Member { letter, .. } if letter == "A")
    }

    /// Writes the case as a foldable element, unfolded if `is_open`.
    pub(super) fn text(&self, page: &mut String, contents: &[Content], is_open: bool) {
        let case = self.case;
        let open = if is_open { " open" } else { "" };
        let name = escape(&case.name);
        put(page, &format!("<details class=\"case\" id=\"case={name}\" data-case=\"{name}\"{open}>\n"));
        put(page, &format!("<summary><h3>{name}</h3> {}</summary>\n", self.tally()));
        put(
            page,
            &format!(
                "<p class=\"about\">{} · {} · <a href=\"#case={}\">link to this case</a></p>\n",
                escape(&case.checkpoint),
                escape(&case.inputs),
                fragment(&case.name)
            ),
        );
        self.variants(page);
        put(page, "<div class=\"interactive\"></div>\n");
        if !self.limits.is_large {
            self.charts(page);
        }
        put(page, "<div class=\"long\">\n");
        for content in contents {
            section(page, content, self.limits);
        }
        put(page, "</div>\n</details>\n");
    }

    /// The size of each group and the number of variants without logits: `A × 6, B × 2, 1 failed`.
    fn tally(&self) -> String {
        let groups = self.groups.groups.groups.iter().zip(&self.groups.letters).map(|(group, letter)| {
            let tone = if letter == "A" { "good" } else { "bad" };
            format!("<b class=\"{tone}\">{}</b> × {}", escape(letter), group.members.len())
        });
        let absent =
            [(Mark::Failed, "failed"), (Mark::Unsupported, "unsupported"), (Mark::NotStarted, "not started")];
        let absent = absent.into_iter().filter_map(|(mark, word)| {
            let count = self.groups.marks.iter().filter(|other| **other == mark).count();
            (count > 0).then(|| format!("{count} {word}"))
        });
        groups.chain(absent).collect::<Vec<_>>().join(", ")
    }

    /// Writes the table of variants: one row per variant, with the command that repeats it.
    fn variants(&self, page: &mut String) {
        let case = self.case;
        put(
            page,
            "<div class=\"scroll\"><table class=\"variants\">\n<thead><tr><th>#</th><th>Group</th><th>Variant</th><th class=\"number\">p50 (ms)</th><th class=\"number\">Error</th><th>Command that repeats it</th></tr></thead>\n<tbody>\n",
        );
        for (at, &index) in self.order.iter().enumerate() {
            let (cell, mark) = (&case.cells[index], &self.groups.marks[index]);
            let time = match &self.performances[index] {
                Ok(Performance { timing: Some(timing), .. }) => format!("{:.2}", timing.p50_ms),
                Ok(_) => "not timed".to_owned(),
                Err(_) => "—".to_owned(),
            };
            let error = match &cell.outcome {
                Outcome::Completed(_) => {
                    self.error(index).map_or_else(|| "—".to_owned(), |e| RELATIVE_L2.written(e))
                }
                outcome => outcome.reason(),
            };
            let command = format!(
                "tfcheck run {} --only {}",
                quoted(self.run),
                quoted(&format!("{}/{}", case.name, cell.name))
            );
            let sign = if *mark == Mark::Reference { "f64".to_owned() } else { mark.text() };
            put(
                page,
                &format!(
                    "<tr id=\"case={}&amp;cell={}\"><td>{}</td><td class=\"{}\" title=\"{}\"><b>{}</b></td><th scope=\"row\"><a href=\"#case={}&amp;cell={}\">{}</a></th><td class=\"number\">{time}</td><td class=\"number\">{}</td><td><code>{}</code></td></tr>\n",
                    escape(&case.name),
                    escape(&cell.name),
                    at + 1,
                    class(tone(mark)),
                    escape(&words(mark)),
                    escape(&sign),
                    fragment(&case.name),
                    fragment(&cell.name),
                    escape(&cell.name),
                    escape(&error),
                    escape(&command)
                ),
            );
        }
        put(page, &format!("</tbody></table></div>\n<p>Error: {}.</p>\n", self.error_words()));
    }

    /// A variant's relative L2 against its float64 reference, or against the case's reference if the case has no float64
    /// result.
    fn error(&self, variant: usize) -> Option<f64> {
        if self.case.accuracies.is_empty() {
            let reference = self.groups.reference?;
            return RELATIVE_L2.of(self.case.matrix.compared(reference, variant)?);
        }
        let known = self.case.accuracies.iter().find(|accuracy| accuracy.variant == variant)?;
        Some(known.relative_l2)
    }

    fn error_words(&self) -> String {
        if !self.case.accuracies.is_empty() {
            return "relative L2 against float64".to_owned();
        }
        let reference = self.groups.reference.map_or("the reference", |index| &self.case.cells[index].name);
        format!("relative L2 against {}; the run has no float64 reference", escape(reference))
    }

    fn charts(&self, page: &mut String) {
        for (title, svg) in self.drawn() {
            put(page, &format!("<figure><figcaption>{}</figcaption>{svg}</figure>\n", escape(&title)));
        }
        for found in &self.case.localized {
            profile::profile(page, found);
        }
    }

    /// The captions and SVGs of the case's charts, without empty charts.
    fn drawn(&self) -> Vec<(String, String)> {
        let timed = self.order.iter().filter_map(|&index| {
            let performance = self.performances[index].as_ref().ok()?;
            Some((index, performance.timing.as_ref()?, performance.completed))
        });
        let rows: Vec<Times> = timed
            .clone()
            .map(|(index, timing, completed)| Times {
                label: format!("{} {}", self.number(index), self.case.cells[index].name),
                rounds: completed.rounds_ns.iter().filter_map(|round| median(round)).collect(),
                median: timing.p50_ms,
                interval: [timing.median_interval_ms.low, timing.median_interval_ms.high],
                is_first: self.is_first(index),
            })
            .collect();
        let points: Vec<Trade> = timed
            .filter_map(|(index, timing, _)| {
                let (number, is_first) = (self.number(index), self.is_first(index));
                Some(Trade { number, ms: timing.p50_ms, error: self.error(index)?, is_first })
            })
            .collect();
        let blue = "blue: group A; orange: other groups";
        [
            (
                format!("Time of a forward pass: the median of each round, the median of all and its 95 % interval ({blue})"),
                times(&rows),
            ),
            (
                format!("Speed against error: {}. Numbers are those of the list of variants", self.error_words()),
                trade(&points, "p50 in ms"),
            ),
        ]
        .into_iter()
        .filter(|(_, svg)| !svg.is_empty())
        .collect()
    }

    /// The script's data for the matrix, as JSON; pairs `a < b` are in the order (0,1) (0,2) (1,2) (0,3) …
    pub(super) fn base(&self) -> Value {
        let case = self.case;
        let all = case.cells.len();
        let pairs = || (0..all).flat_map(|b| (0..b).map(move |a| (a, b)));
        let names = &case.matrix.names;
        let verdict = |(a, b): (usize, usize)| case.verdict(&names[a], &names[b]);
        let of_pairs: Vec<_> = pairs().map(verdict).collect();
        let reason = |(a, b): (usize, usize)| match case.matrix.pair(a, b) {
            PairOutcome::Compared(_) => Value::Null,
            PairOutcome::Incomparable(reason) => reason.to_string().into(),
            PairOutcome::NotRun(reason) => reason.clone().into(),
        };
        let metrics = METRICS.iter().filter(|metric| metric.is_gate).map(|metric| self.metric(metric));
        let charts = if self.limits.is_large { self.drawn() } else { Vec::new() };
        let profiles = if self.limits.is_large { case.localized.as_slice() } else { &[] };
        let profiles = profiles.iter().map(|found| {
            let mut text = String::new();
            profile::profile(&mut text, found);
            text
        });
        json!({
            "names": case.matrix.names,
            "order": self.order,
            "groups": self.groups.marks.iter().map(|mark| match mark {
                Mark::Member { letter, .. } => letter.as_str(),
                Mark::Reference => "f64",
                _ => "",
            }).collect::<Vec<_>>(),
            "verdicts": of_pairs.iter().map(|verdict| verdict.map(|verdict| verdict.decision.word())).collect::<Vec<_>>(),
            "evidence": of_pairs.iter().map(|verdict| verdict.map(|verdict| &verdict.evidence)).collect::<Vec<_>>(),
            "absent": pairs().map(reason).collect::<Vec<_>>(),
            "noise": case.noise_said(),
            "diagonal": (0..all).map(|row| case.diagonal(row)).collect::<Vec<_>>(),
            "metrics": metrics.collect::<Vec<_>>(),
            "positions": case.matrix.positions.iter().map(|at| [at.row, at.position]).collect::<Vec<_>>(),
            "tokens": pairs::tokens(case, self.details),
            "charts": charts.into_iter().map(|(title, svg)| json!({ "title": title, "svg": svg })).collect::<Vec<_>>(),
            "profiles": profiles.collect::<Vec<_>>(),
        })
    }

    fn metric(&self, metric: &Metric) -> Value {
        let of = |side: Side| -> Vec<Value> {
            let pairs = (0..self.case.cells.len()).flat_map(|b| (0..b).map(move |a| (a, b)));
            pairs
                .map(|(a, b)| {
                    self.case.matrix.compared(a, b).map_or(Value::Null, |pair| value(metric, pair, side))
                })
                .collect()
        };
        let (there, back) = (of(Side::A), of(Side::B));
        let mut found = Map::new();
        found.insert("name".into(), metric.name.into());
        let title =
            if metric.title.is_empty() { metric.name.replace('_', " ") } else { metric.title.to_owned() };
        found.insert("title".into(), title.into());
        found.insert("unit".into(), metric.unit.into());
        let (kind, digits) = match metric.format {
            Format::Decimals(decimals) => ("decimals", decimals),
            Format::Digits(digits) => ("digits", digits),
            Format::Percent => ("percent", 2),
            _ => ("count", 0),
        };
        found.insert("format".into(), json!([kind, digits]));
        found.insert("larger".into(), (metric.direction == Direction::LargerIsCloser).into());
        // Only metrics that depend on which side is the reference need the second direction.
        if there != back {
            found.insert("back".into(), back.into());
        }
        found.insert("values".into(), there.into());
        Value::Object(found)
    }

    /// The pairs that have details, the most important first.
    pub(super) fn pairs(&self) -> Vec<Value> {
        self.details.pairs.iter().map(|pair| pairs::pair(self.case, self.details, pair)).collect()
    }
}

/// A metric's value as [`number`] writes it; null if the metric has no value for the pair.
fn value(metric: &Metric, pair: &PairMetrics, side: Side) -> Value {
    if pair.identical {
        return u8::from(metric.direction == Direction::LargerIsCloser).into();
    }
    (metric.get)(pair, Some(side)).map_or(Value::Null, |value| number(value.number()))
}

/// The median of a round's times in milliseconds; `None` for an empty round.
fn median(round: &[u64]) -> Option<f64> {
    let mut sorted: Vec<f64> = round.iter().map(|&ns| ms(ns)).collect();
    sorted.sort_by(f64::total_cmp);
    (!sorted.is_empty()).then(|| quantile(&sorted, 0.5))
}
