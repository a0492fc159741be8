//! Evaluates a run's gates on every pair or cell that they apply to.

use compare::matrix::PairOutcome;
use compare::metric::Value;
use compare::metrics::PairMetrics;
use compare::timing;
use compare::verdict::{Decision, Verdict};
use serde::Serialize;

use super::against::{Against, ComparedCell};
use super::exit_code::ExitCode;
use super::view::{CaseView, RunView, Timed, side_by_side};
use crate::execute::cell::{self, Cell};
use crate::results::relations::{self, CellRelations};
use crate::spec::gate::{Gate, Metric, rank};

/// The result of a gate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// The condition does not hold.
    Passed,
    /// The condition holds.
    Failed {
        /// The evidence, with its number.
        evidence: String,
    },
    /// The run cannot decide the gate.
    Unknown {
        /// What is missing.
        reason: String,
    },
}

/// The data that a gate is evaluated on: two variants, the second compared with the first. A missing value holds the
/// reason, which becomes the gate's [`Outcome::Unknown`].
#[derive(Clone, Debug)]
pub struct Numbers<'a> {
    /// `Err` if the evaluated variant gave no logits.
    pub loads: Result<(), String>,
    /// The verdict on the pair.
    pub verdict: Result<&'a Decision, String>,
    /// The pair's metrics.
    pub pair: Result<&'a PairMetrics, String>,
    /// Times of both variants.
    pub times: Result<Times<'a>, String>,
    /// Peak memory in bytes of the baseline and of the evaluated variant.
    pub peak_bytes: Result<[u64; 2], String>,
}

/// Times of two variants, one list per round.
#[derive(Clone, Copy, Debug)]
pub struct Times<'a> {
    /// The baseline's forward passes in nanoseconds.
    pub baseline: &'a [Vec<u64>],
    /// The evaluated variant's forward passes in nanoseconds.
    pub variant: &'a [Vec<u64>],
    /// Whether round i of both sides was timed interleaved.
    pub paired: bool,
}

impl Default for Numbers<'_> {
    /// Nothing was measured.
    fn default() -> Self {
        let nothing = || "not measured".to_owned();
        Self {
            loads: Ok(()),
            verdict: Err(nothing()),
            pair: Err(nothing()),
            times: Err(nothing()),
            peak_bytes: Err(nothing()),
        }
    }
}

/// Evaluates a gate on one variant against another.
pub fn evaluate(gate: &Gate, numbers: &Numbers<'_>) -> Outcome {
    match gate.metric() {
        Metric::Loads => match &numbers.loads {
            Ok(()) => Outcome::Passed,
            Err(reason) => Outcome::Failed { evidence: reason.clone() },
        },
        // Relations are judged as records of their own.
        Metric::Relation => Outcome::Unknown { reason: "no relation was checked".into() },
        Metric::Verdict => match &numbers.verdict {
            Err(reason) | Ok(Decision::NotRun { reason }) => Outcome::Unknown { reason: reason.clone() },
            // Both have logits, of different inputs or shapes: the gate fails at any limit.
            Ok(Decision::Incomparable { reason }) => Outcome::Failed { evidence: reason.clone() },
            Ok(decision) => at(gate, rank(decision), || format!("the verdict is {}", decision.word())),
        },
        Metric::Pair(metric) => match &numbers.pair {
            Err(reason) => Outcome::Unknown { reason: reason.clone() },
            Ok(pair) => match metric.of(pair) {
                None => Outcome::Unknown { reason: format!("{} was not measured", metric.name) },
                Some(value) => at(gate, value, || {
                    format!("{} is {}", metric.name, Value::Number(value).precise(metric.format))
                }),
            },
        },
        Metric::Time(statistic) => match &numbers.times {
            Err(reason) => Outcome::Unknown { reason: reason.clone() },
            Ok(times) => at_times(gate, statistic, times),
        },
        Metric::PeakBytes => match &numbers.peak_bytes {
            Err(reason) => Outcome::Unknown { reason: reason.clone() },
            Ok([baseline, variant]) => {
                let change = *variant as f64 / *baseline as f64 - 1.0;
                at(gate, change, || format!("peak memory changed by {}", percent(change)))
            }
        },
    }
}

/// A time gate fails only if the change is above the limit *and* its bootstrap interval excludes "no change".
fn at_times(gate: &Gate, statistic: timing::Statistic, times: &Times<'_>) -> Outcome {
    let Some(change) = timing::change(times.baseline, times.variant, statistic, times.paired) else {
        return Outcome::Unknown { reason: "the two variants were not timed in the same rounds".into() };
    };
    let evidence = format!("{} {}", statistic.name(), change.text());
    match at(gate, change.ratio - 1.0, || evidence.clone()) {
        Outcome::Failed { evidence } if change.interval.low <= 1.0 => Outcome::Unknown {
            reason: format!("{evidence}; the interval includes \"no change\": time more rounds"),
        },
        outcome => outcome,
    }
}

fn at(gate: &Gate, value: f64, evidence: impl Fn() -> String) -> Outcome {
    if gate.fails_at(value) { Outcome::Failed { evidence: evidence() } } else { Outcome::Passed }
}

/// `+5.2 %`.
fn percent(change: f64) -> String {
    format!("{:+.1} %", 100.0 * change)
}

/// By how much a median time must rise to fail the default gate against a saved baseline, `p50>3%`: more than two runs of
/// the same variant on a quiet machine may differ.
pub(crate) const SLOW_DOWN_PERCENT: u32 = 3;
/// Default gate of every run.
const VERDICT: &str = "verdict>=worse_rounding";
/// What fails a run that checks relations and names no gates.
const RELATION: &str = "relation_broken";

/// The results of a run's gates.
#[derive(Clone, Debug, Default)]
pub struct Judged {
    /// One per gate.
    pub gates: Vec<GateResult>,
    /// Whether the run sets its own gates; otherwise these are the default ones.
    pub is_named: bool,
    /// The comparison with a saved baseline, if requested.
    pub against: Option<Against>,
}

/// The results of one gate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GateResult {
    /// The gate's text.
    pub gate: String,
    /// One per pair or cell that it applies to.
    pub findings: Vec<Finding>,
}

/// The result of one gate on one pair or cell.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The pair or cell: `llama-128: a / b`.
    pub subject: String,
    /// The result.
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl Judged {
    /// Whether any gate failed.
    pub fn has_failed(&self) -> bool {
        self.gates.iter().any(|gate| gate.failed().next().is_some())
    }
}

/// The exit code of a run; a failed gate has precedence over a failed cell.
pub fn exit_code(run: &RunView, judged: &Judged) -> ExitCode {
    if judged.has_failed() {
        ExitCode::Diverged
    } else if run.tally().failed + run.tally().not_started + run.failed_relations() > 0 {
        ExitCode::CellFailed
    } else {
        ExitCode::Agree
    }
}

impl GateResult {
    /// The subjects that failed, with the evidence.
    pub fn failed(&self) -> impl Iterator<Item = (&str, &str)> {
        self.findings.iter().filter_map(|finding| match &finding.outcome {
            Outcome::Failed { evidence } => Some((finding.subject.as_str(), evidence.as_str())),
            _ => None,
        })
    }

    /// The subjects that are unknown, with the reason.
    pub fn unknown(&self) -> impl Iterator<Item = (&str, &str)> {
        self.findings.iter().filter_map(|finding| match &finding.outcome {
            Outcome::Unknown { reason } => Some((finding.subject.as_str(), reason.as_str())),
            _ => None,
        })
    }

    /// `failed`, `unknown` or `passed`: the worst of its findings.
    pub fn word(&self) -> &'static str {
        if self.failed().next().is_some() {
            "failed"
        } else if self.unknown().next().is_some() {
            "unknown"
        } else {
            "passed"
        }
    }

    /// `2 of 6 failed: llama-128: a / b: l2 is 3.0e-1; …`, with at most `most` subjects.
    pub fn text(&self, most: usize) -> String {
        let all = self.findings.len();
        let named = |word: &str, found: Vec<(&str, &str)>| {
            let shown: Vec<String> =
                found.iter().take(most).map(|(subject, why)| format!("{subject}: {why}")).collect();
            let more = found.len().saturating_sub(most);
            let more = if more > 0 { format!("; and {more} more") } else { String::new() };
            format!("{} of {all} {word}: {}{more}", found.len(), shown.join("; "))
        };
        match self.word() {
            "failed" => named("failed", self.failed().collect()),
            "unknown" => named("unknown", self.unknown().collect()),
            _ => format!("all {all} passed"),
        }
    }
}

/// Evaluates `gates`, or the default ones if empty. Without a baseline, gates apply to the run's own pairs, and time
/// and memory gates to each variant against the run's baseline variant. With a baseline, they apply to the changes
/// since it.
pub fn of_run(run: &RunView, gates: &[Gate], against: Option<Against>) -> Judged {
    let is_named = !gates.is_empty();
    let relation = (!run.relations.is_empty()).then_some(RELATION);
    let slow_down = against.is_some().then(|| format!("p50>{SLOW_DOWN_PERCENT}%"));
    let usual: Vec<Gate> = [Some(VERDICT), relation, slow_down.as_deref()]
        .into_iter()
        .flatten()
        .filter_map(|text| Gate::parse(text).ok())
        .collect();
    let gates = if is_named { gates } else { &usual };
    let result = |gate: &Gate| GateResult {
        gate: gate.text().to_owned(),
        findings: match &against {
            _ if gate.is_on_relations() => run.relations.iter().map(of_relations).collect(),
            // Whether a variant loads is said of the run alone.
            Some(against) if !gate.is_loads() => against.rows.iter().map(|row| of_row(gate, row)).collect(),
            _ => run.cases.iter().flat_map(|case| of_case(gate, case)).collect(),
        },
    };
    Judged { gates: gates.iter().map(result).collect(), is_named, against }
}

fn of_relations(found: &CellRelations) -> Finding {
    let named = |outcome: relations::Outcome| -> Vec<String> {
        let is_it = |held: &&relations::Held| held.outcome == outcome;
        let told = |held: &relations::Held| format!("{}: {}", held.relation, held.evidence);
        found.relations.iter().filter(is_it).map(told).collect()
    };
    let (broken, unproven) = (named(relations::Outcome::Broken), named(relations::Outcome::Unproven));
    let outcome = match (broken.is_empty(), unproven.is_empty()) {
        (false, _) => Outcome::Failed { evidence: broken.join("; ") },
        (true, false) => Outcome::Unknown { reason: unproven.join("; ") },
        (true, true) => Outcome::Passed,
    };
    Finding { subject: format!("{}: {}", found.case, found.variant.name()), outcome }
}

fn of_row(gate: &Gate, row: &ComparedCell) -> Finding {
    let pair = match &row.pair {
        PairOutcome::Compared(pair) => Ok(&**pair),
        PairOutcome::Incomparable(reason) => Err(reason.to_string()),
        PairOutcome::NotRun(reason) => Err(reason.clone()),
    };
    let times = row.times.as_ref().map_err(Clone::clone);
    let numbers = Numbers {
        verdict: Ok(&row.verdict.decision),
        pair,
        times: times.map(|[baseline, variant]| Times { baseline, variant, paired: false }),
        peak_bytes: row.peak_bytes.clone(),
        ..Numbers::default()
    };
    Finding { subject: format!("{}: {}", row.case, row.variant), outcome: evaluate(gate, &numbers) }
}

fn of_case(gate: &Gate, case: &CaseView) -> Vec<Finding> {
    if gate.is_on_pairs() {
        return case.verdicts.iter().map(|verdict| of_pair(gate, case, verdict)).collect();
    }
    if gate.is_loads() {
        let loads = |cell: &Cell| Numbers {
            loads: match &cell.outcome {
                cell::Outcome::Completed(_) => Ok(()),
                outcome => Err(outcome.reason()),
            },
            ..Numbers::default()
        };
        let finding = |cell: &Cell| Finding {
            subject: format!("{}: {}", case.name, cell.name),
            outcome: evaluate(gate, &loads(cell)),
        };
        return case.cells.iter().map(finding).collect();
    }
    let anchor = case.cells.iter().find(|cell| Some(&cell.name) == case.baseline.as_ref());
    let judged = case.cells.iter().filter(|cell| Some(&cell.name) != case.baseline.as_ref());
    // Oracles are not timed, and so have no time gate.
    let timed = judged.filter(
        |cell| !matches!(&cell.outcome, cell::Outcome::Completed(known) if known.rounds_ns.is_empty()),
    );
    timed.map(|cell| of_cell(gate, case, anchor, cell)).collect()
}

fn of_pair(gate: &Gate, case: &CaseView, verdict: &Verdict) -> Finding {
    let index = |name: &str| case.matrix.names.iter().position(|known| known == name);
    let pair = index(&verdict.a).zip(index(&verdict.b)).and_then(|(a, b)| case.matrix.compared(a, b));
    let numbers = Numbers {
        verdict: Ok(&verdict.decision),
        pair: pair.ok_or_else(|| verdict.evidence.clone()),
        ..Numbers::default()
    };
    Finding {
        subject: format!("{}: {} / {}", case.name, verdict.a, verdict.b),
        outcome: evaluate(gate, &numbers),
    }
}

fn of_cell(gate: &Gate, case: &CaseView, anchor: Option<&Cell>, cell: &Cell) -> Finding {
    let completed = |cell: &Cell| match &cell.outcome {
        cell::Outcome::Completed(completed) => Ok(completed.clone()),
        outcome => Err(format!("{}: {}", cell.name, outcome.reason())),
    };
    let both = anchor
        .ok_or_else(|| "the run's baseline variant did not run".to_owned())
        .and_then(|anchor| Ok((completed(anchor)?, completed(cell)?)));
    let common =
        both.as_ref().map(|(anchor, cell)| side_by_side(Timed::Prefill, anchor, cell)).map_err(Clone::clone);
    let times = common.as_ref().map_err(Clone::clone);
    let numbers = Numbers {
        times: times.map(|(baseline, variant)| Times { baseline, variant, paired: true }),
        peak_bytes: both.as_ref().map_err(Clone::clone).and_then(|(anchor, cell)| {
            anchor
                .peak_bytes
                .zip(cell.peak_bytes)
                .map(|(a, b)| [a, b])
                .ok_or_else(|| "its peak memory is not known".to_owned())
        }),
        ..Numbers::default()
    };
    let against = anchor.map_or("no baseline", |anchor| anchor.name.as_str());
    Finding {
        subject: format!("{}: {} against {against}", case.name, cell.name),
        outcome: evaluate(gate, &numbers),
    }
}

#[cfg(test)]
mod tests;
