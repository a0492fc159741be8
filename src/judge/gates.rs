//! What a run's gates find: every gate on every pair or cell that it is about.

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

/// What a gate found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// The condition does not hold.
    Passed,
    /// The condition holds.
    Failed {
        /// The number that it rests on, in words.
        evidence: String,
    },
    /// There is nothing to judge, or too little.
    Unknown {
        /// What is missing.
        reason: String,
    },
}

/// What a gate is evaluated on: two variants, the second judged against the first. What there is not
/// says why, which then is the gate's [`Outcome::Unknown`].
#[derive(Clone, Debug)]
pub struct Numbers<'a> {
    /// `Err` where the judged variant gave no logits.
    pub loads: Result<(), String>,
    /// The verdict on the pair.
    pub verdict: Result<&'a Decision, String>,
    /// The pair's metrics.
    pub pair: Result<&'a PairMetrics, String>,
    /// Both sides' times.
    pub times: Result<Times<'a>, String>,
    /// Peak memory in bytes, the baseline's and the judged variant's.
    pub peak_bytes: Result<[u64; 2], String>,
}

/// Times of two variants, a list per round.
#[derive(Clone, Copy, Debug)]
pub struct Times<'a> {
    /// The baseline's passes in nanoseconds.
    pub baseline: &'a [Vec<u64>],
    /// The judged variant's passes in nanoseconds.
    pub variant: &'a [Vec<u64>],
    /// Whether round i of one was timed beside round i of the other.
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

/// What the gate says of one variant against another.
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
            // Both have logits, and not about the same thing: that is a finding whatever the limit.
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

/// Times fail only where the change is above the limit *and* its bootstrap interval leaves out "no change".
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

/// A slow-down against a saved baseline that fails a run which names no gates: half of it again is what two
/// runs of the same variant on a quiet machine may differ by.
const SLOW_DOWN: &str = "p50>3%";
/// What fails a run which names no gates.
const VERDICT: &str = "verdict>=worse_rounding";
/// What fails a run that checks relations and names no gates.
const RELATION: &str = "relation_broken";

/// What the gates of a run found.
#[derive(Clone, Debug, Default)]
pub struct Judged {
    /// One per gate.
    pub gates: Vec<GateResult>,
    /// True where the run names its gates; else these are the usual ones.
    pub is_named: bool,
    /// The comparison with a saved baseline, where one was asked for.
    pub against: Option<Against>,
}

/// What one gate found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GateResult {
    /// The gate as it was written.
    pub gate: String,
    /// One per pair or cell that it is about.
    pub findings: Vec<Finding>,
}

/// What one gate found on one pair or cell.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// Which: `llama-128: a / b`.
    pub subject: String,
    /// What.
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl Judged {
    /// Whether any gate failed.
    pub fn has_failed(&self) -> bool {
        self.gates.iter().any(|gate| gate.failed().next().is_some())
    }
}

/// What the process should tell its caller; a gate that failed counts more than a cell that is missing.
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

    /// The subjects of which nothing can be said, with the reason.
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

    /// `2 of 6 failed: llama-128: a / b: l2 is 3.0e-1; …`; at most `most` subjects are named.
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

/// Evaluates `gates`, or the usual ones where there are none. Without a baseline a gate is on the run's own
/// pairs, its times and memory on each variant against the run's anchor; with one it is on what changed since.
pub fn judge(run: &RunView, gates: &[Gate], against: Option<Against>) -> Judged {
    let is_named = !gates.is_empty();
    let relation = (!run.relations.is_empty()).then_some(RELATION);
    let usual: Vec<Gate> = [Some(VERDICT), relation, against.is_some().then_some(SLOW_DOWN)]
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
    // An oracle is there for its numbers alone.
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
