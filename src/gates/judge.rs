//! A run's gates: every gate on every pair or cell that it is about.

use serde::Serialize;

use super::{Gate, Numbers, Outcome, Times};
use crate::against::{Against, Row};
use crate::compare::matrix::PairOutcome;
use crate::report::{self, CaseView, RunView, Timed, side_by_side};
use crate::results::{self, Cell};

/// A slow-down against a saved baseline that fails a run which names no gates: half of it again is what two
/// runs of the same variant on a quiet machine may differ by.
const SLOW_DOWN: &str = "p50>3%";
/// What fails a run which names no gates.
const VERDICT: &str = "verdict>=worse_rounding";

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
    let usual: Vec<Gate> = [Some(VERDICT), against.is_some().then_some(SLOW_DOWN)]
        .into_iter()
        .flatten()
        .filter_map(|text| Gate::parse(text).ok())
        .collect();
    let gates = if is_named { gates } else { &usual };
    let result = |gate: &Gate| GateResult {
        gate: gate.text().to_owned(),
        findings: match &against {
            // Whether a variant loads is said of the run alone.
            Some(against) if !gate.is_loads() => against.rows.iter().map(|row| of_row(gate, row)).collect(),
            _ => run.cases.iter().flat_map(|case| of_case(gate, case)).collect(),
        },
    };
    Judged { gates: gates.iter().map(result).collect(), is_named, against }
}

fn of_row(gate: &Gate, row: &Row) -> Finding {
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
    Finding { subject: format!("{}: {}", row.case, row.variant), outcome: gate.evaluate(&numbers) }
}

fn of_case(gate: &Gate, case: &CaseView) -> Vec<Finding> {
    if gate.is_on_pairs() {
        return case.verdicts.iter().map(|verdict| of_pair(gate, case, verdict)).collect();
    }
    if gate.is_loads() {
        let loads = |cell: &Cell| Numbers {
            loads: match &cell.outcome {
                results::Outcome::Completed(_) => Ok(()),
                outcome => Err(report::reason(outcome)),
            },
            ..Numbers::default()
        };
        let finding = |cell: &Cell| Finding {
            subject: format!("{}: {}", case.name, cell.name),
            outcome: gate.evaluate(&loads(cell)),
        };
        return case.cells.iter().map(finding).collect();
    }
    let anchor = case.cells.iter().find(|cell| Some(&cell.name) == case.baseline.as_ref());
    let judged = case.cells.iter().filter(|cell| Some(&cell.name) != case.baseline.as_ref());
    // An oracle is there for its numbers alone.
    let timed = judged.filter(
        |cell| !matches!(&cell.outcome, results::Outcome::Completed(known) if known.rounds_ns.is_empty()),
    );
    timed.map(|cell| of_cell(gate, case, anchor, cell)).collect()
}

fn of_pair(gate: &Gate, case: &CaseView, verdict: &crate::compare::verdict::Verdict) -> Finding {
    let index = |name: &str| case.matrix.names.iter().position(|known| known == name);
    let pair = index(&verdict.a).zip(index(&verdict.b)).and_then(|(a, b)| case.matrix.compared(a, b));
    let numbers = Numbers {
        verdict: Ok(&verdict.decision),
        pair: pair.ok_or_else(|| verdict.evidence.clone()),
        ..Numbers::default()
    };
    Finding {
        subject: format!("{}: {} / {}", case.name, verdict.a, verdict.b),
        outcome: gate.evaluate(&numbers),
    }
}

fn of_cell(gate: &Gate, case: &CaseView, anchor: Option<&Cell>, cell: &Cell) -> Finding {
    let completed = |cell: &Cell| match &cell.outcome {
        results::Outcome::Completed(completed) => Ok(completed.clone()),
        outcome => Err(format!("{}: {}", cell.name, report::reason(outcome))),
    };
    let both = anchor
        .ok_or_else(|| "the run has no baseline variant that was run".to_owned())
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
        outcome: gate.evaluate(&numbers),
    }
}
