//! `summary.json`: everything that the tables show, for programs.
//!
//! Numbers that JSON cannot hold are the strings `"NaN"`, `"inf"` and `"-inf"`; `null` means "does not
//! exist", never "is not a number".

use serde_json::{Map, Value, json};

use super::preflight::{self, Part};
use super::sweep::{self, Mark, Sweep};
use super::{Report, Source};
use crate::execute::cell::{Cell, Outcome};
use crate::judge::against::{Against, ComparedCell};
use crate::judge::findings::CaseGroups;
use crate::judge::view::{CaseView, RunView};
use crate::results::SCHEMA_VERSION;
use compare::matrix::{Matrix, PairOutcome};
use compare::metric::{self, METRICS};
use compare::metrics::{PairMetrics, PositionIndex, PositionMetrics, Side};
use compare::timing::Summary;

/// Maximum number of curve points in the file, about 2 MB.
const MAX_CURVE_POINTS: usize = 50_000;

/// The summary as JSON.
#[derive(Clone, Copy, Debug)]
pub struct Json;

impl Report for Json {
    fn file_name(&self) -> &'static str {
        "summary.json"
    }

    fn render(&self, source: &Source<'_>) -> String {
        let Source { run, found, judged, .. } = *source;
        let tally = run.tally();
        let summary = json!({
            "schema_version": SCHEMA_VERSION,
            "run": run.id,
            "environment": run.environment.iter().cloned().map(|(key, value)| (key, Value::String(value))).collect::<Map<_, _>>(),
            "notes": run.notes,
            "gates": judged.gates,
            "against": judged.against.as_ref().map(against),
            "tally": {
                "identical": tally.identical,
                "same_mathematics": tally.same_mathematics,
                "worse_rounding": tally.worse_rounding,
                "diverged": tally.diverged,
                "incomparable": tally.incomparable,
                "not_run": tally.not_run,
                "failed": tally.failed,
                "unsupported": tally.unsupported,
                "not_started": tally.not_started,
            },
            "sweep": sweep::sweep(run).as_ref().map(collapsed),
            "preflight": preflight(run),
            "findings": found.findings,
            "relations": run.relations,
            "cases": run.cases.iter().zip(&found.cases).map(|(view, groups)| case(view, groups)).collect::<Vec<_>>(),
        });
        format!("{summary:#}\n")
    }
}

fn against(against: &Against) -> Value {
    let row = |row: &ComparedCell| {
        let (status, l2, relative) = match &row.pair {
            PairOutcome::Compared(pair) => {
                ("compared", Some(number(pair.l2)), Some(number(pair.relative_l2(Side::A))))
            }
            PairOutcome::Incomparable(_) => ("incomparable", None, None),
            PairOutcome::NotRun(_) => ("not_run", None, None),
        };
        json!({
            "case": row.case,
            "variant": row.variant,
            "status": status,
            "verdict": row.verdict,
            "l2": l2,
            "relative_l2_to_baseline": relative,
            "p50_change": row.change().map(|change| json!({
                "ratio": number(change.ratio),
                "interval": [number(change.interval.low), number(change.interval.high)],
                "rounds": change.rounds,
            })),
            "times_not_compared": row.times.as_ref().err(),
            "peak_bytes": row.peak_bytes.as_ref().ok(),
            "notes": row.notes,
        })
    };
    json!({
        "baseline": against.baseline,
        "run": against.run,
        "rows": against.rows.iter().map(row).collect::<Vec<_>>(),
        "notes": against.notes,
    })
}

/// The variants that compute the same function, by letter; `not_transitive` lists the pairs for which the grouping is
/// wrong, because agreement is not transitive.
fn groups(case: &CaseView, found: &CaseGroups) -> Value {
    let name = |index: usize| &case.cells[index].name;
    let rounds_worse = |&member: &usize| found.marks[member].rounds_worse();
    json!({
        "reference": found.reference.map(name),
        "groups": found.groups.groups.iter().zip(&found.letters).map(|(group, letter)| json!({
            "letter": letter,
            "leader": name(group.leader),
            "members": group.members.iter().copied().map(name).collect::<Vec<_>>(),
            "rounds_worse": group.members.iter().copied().filter(rounds_worse).map(name).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "not_transitive": found.groups.chains.iter().map(|chain| json!([name(chain.a), name(chain.b)])).collect::<Vec<_>>(),
    })
}

fn case(case: &CaseView, found: &CaseGroups) -> Value {
    let names = &case.matrix.names;
    json!({
        "name": case.name,
        "checkpoint": case.checkpoint,
        "inputs": case.inputs,
        "axes": case.axes,
        "baseline": case.baseline,
        "cells": case.cells.iter().map(|item| cell(case, item)).collect::<Vec<_>>(),
        "positions": case.matrix.positions.iter().copied().map(position).collect::<Vec<_>>(),
        "curves_left_out": curves_left_out(&case.matrix),
        "pairs": pairs(case),
        "groups": groups(case, found),
        "verdicts": case.verdicts,
        "localized": case.localized,
        "diagnosed": case.diagnosed,
        "accuracies": case.accuracies.iter().map(|accuracy| json!({
            "variant": names[accuracy.variant],
            "oracle": names[accuracy.oracle],
            "rmse": number(accuracy.rmse),
            "relative_l2": number(accuracy.relative_l2),
            "max_abs": number(accuracy.max_abs),
        })).collect::<Vec<_>>(),
        "outputs": case.outputs.iter().map(|output| json!({
            "name": output.name,
            "reference": output.reference,
            "rows": output.rows.iter().map(|row| json!({
                "variant": row.variant,
                "relative_l2": row.relative_l2.map(number),
                "verdict": row.verdict,
            })).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "embeddings": case.embeddings.as_ref().map(|found| json!({
            "pooling": found.pooling,
            "texts": found.texts,
            "questions": found.questions,
            "rows": found.rows.iter().map(|row| json!({
                "variant": row.variant,
                "cosine_change": number(row.cosine_change),
                "same_ranking": row.same_ranking,
                "retrieval": row.retrieval.map(|found| json!({
                    "same_first": found.same_first,
                    "tau_mean": number(found.tau_mean),
                    "tau_least": number(found.tau_least),
                    "cosine_change": number(found.cosine_change),
                    "answered": found.answered,
                })),
            })).collect::<Vec<_>>(),
        })),
        "choices": case.choices.as_ref().map(|choices| json!({
            "tokens": choices.tokens,
            "rows": choices.rows.iter().map(|row| json!({
                "variant": row.variant,
                "row": row.row,
                "probabilities": row.probabilities.iter().map(|p| p.map(number)).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
        })),
    })
}

fn cell(case: &CaseView, cell: &Cell) -> Value {
    let mut value = json!({ "name": cell.name, "variant": cell.variant });
    let more = match (&cell.outcome, case.performance(cell)) {
        (Outcome::Completed(completed), Ok(performance)) => json!({
            "outcome": "completed",
            "libraries": completed.libraries,
            "notes": completed.notes,
            "load_ms": compare::units::ms(completed.load_ns),
            "first_call_ms": compare::units::ms(completed.first_call_ns),
            "peak_bytes": completed.peak_bytes,
            "noise": completed.noise,
            "ignored_keys": completed.ignored_keys,
            "translated": completed.translated,
            "unread_tensors": completed.unread_tensors,
            "graphs": completed.graphs,
            "tokenizer": completed.tokenizer,
            "timing": performance.timing.as_ref().map(timing),
            "decode": timed_decoding(case, cell),
            "speed_up": performance.speed_up.map(|speed_up| json!({
                "ratio": number(speed_up.ratio),
                "interval": [number(speed_up.interval.low), number(speed_up.interval.high)],
            })),
        }),
        (Outcome::Unsupported { reason }, _) => {
            json!({ "outcome": "unsupported", "reason": reason })
        }
        (Outcome::Failed(failure), _) => json!({
            "outcome": "failed",
            "kind": failure.kind.words(),
            "reason": failure.reason,
            "detail": failure.detail,
            "log_tail": failure.log_tail,
        }),
        (Outcome::Completed(_), Err(reason)) => json!({ "outcome": "completed", "reason": reason }),
    };
    if let (Value::Object(value), Value::Object(more)) = (&mut value, more) {
        value.extend(more);
    }
    value
}

fn timing(timing: &Summary) -> Value {
    json!({
        "n": timing.n,
        "rounds": timing.rounds,
        "mean_ms": timing.mean_ms,
        "p50_ms": timing.p50_ms,
        "p90_ms": timing.p90_ms,
        "p99_ms": timing.p99_ms,
        "min_ms": timing.min_ms,
        "max_ms": timing.max_ms,
        "p50_interval_ms": [timing.median_interval_ms.low, timing.median_interval_ms.high],
        "outliers": timing.outliers,
    })
}

/// Decoding times of a cell; `null` if it decoded nothing.
fn timed_decoding(case: &CaseView, cell: &Cell) -> Value {
    let decoded = case.decoding();
    let found = decoded.iter().find(|(other, _)| other.name == cell.name);
    found.and_then(|(_, performance)| performance.timing.as_ref()).map_or(Value::Null, timing)
}

/// Every unordered pair, the diagonal included.
fn pairs(case: &CaseView) -> Vec<Value> {
    let matrix = &case.matrix;
    let mut values = Vec::new();
    for b in 0..matrix.len() {
        for a in 0..=b {
            let mut value = json!({
                "a": matrix.names[a],
                "b": matrix.names[b],
                "noise_multiple": case.multiple(a, b).map(number),
            });
            let more = match matrix.pair(a, b) {
                PairOutcome::Compared(pair) => metrics(pair, matrix),
                PairOutcome::Incomparable(reason) => {
                    json!({ "status": "incomparable", "reason": reason.to_string() })
                }
                PairOutcome::NotRun(reason) => json!({ "status": "not_run", "reason": reason }),
            };
            if let (Value::Object(value), Value::Object(more)) = (&mut value, more) {
                value.extend(more);
            }
            values.push(value);
        }
    }
    values
}

fn metrics(pair: &PairMetrics, matrix: &Matrix) -> Value {
    let mut found = Map::new();
    found.insert("status".into(), "compared".into());
    found.insert("positions".into(), pair.positions.into());
    found.insert("last_positions_only".into(), pair.last_positions_only.into());
    found.insert("elements".into(), pair.elements.into());
    found.insert("identical".into(), pair.identical.into());
    for metric in METRICS {
        for (key, side) in metric.json.of(metric) {
            insert(&mut found, key, (metric.get)(pair, Some(side)));
        }
    }
    found.insert("per_position".into(), per_position(pair, matrix));
    Value::Object(found)
}

/// Inserts a metric; `/` in its key separates nested objects. An object without any measured metric is `null`.
fn insert(object: &mut Map<String, Value>, key: &str, value: Option<metric::Value>) {
    let Some((outer, inner)) = key.split_once('/') else {
        object.insert(key.into(), value.map_or(Value::Null, of_metric));
        return;
    };
    let nested = object.entry(outer).or_insert(Value::Null);
    if value.is_none() {
        return;
    }
    if nested.is_null() {
        *nested = Value::Object(Map::new());
    }
    if let Value::Object(nested) = nested {
        insert(nested, inner, value);
    }
}

fn of_metric(value: metric::Value) -> Value {
    match value {
        metric::Value::Number(value) => number(value),
        metric::Value::Count(count) => count.into(),
        metric::Value::Word(word) => word.into(),
        metric::Value::Place(at) => at.map_or(Value::Null, position),
        metric::Value::Element(at) => at.map_or(
            Value::Null,
            |at| json!({ "row": at.at.row, "position": at.at.position, "token": at.token }),
        ),
        metric::Value::Undefined => Value::Null,
    }
}

/// The reason why per-position curves are `null`; `None` if they are written.
fn curves_left_out(matrix: &Matrix) -> Option<String> {
    let points = matrix.positions.len() * matrix.len() * matrix.len();
    (points > MAX_CURVE_POINTS).then(|| {
        format!(
            "per_position of all pairs is left out: {points} points where {MAX_CURVE_POINTS} are kept; the logits files have them"
        )
    })
}

/// A sweep's verdicts in one table.
fn collapsed(sweep: &Sweep) -> Value {
    let mark = |mark: &Mark| json!({ "verdict": mark.decision, "count": mark.count, "of": mark.of });
    json!({
        "columns": sweep.columns.iter().map(|(axis, value)| json!({ "axis": axis, "value": value })).collect::<Vec<_>>(),
        "rows": sweep.rows.iter().map(|row| json!({
            "a": row.a,
            "b": row.b,
            "worst": mark(&row.worst),
            "marks": row.marks.iter().map(|entry| entry.as_ref().map(mark)).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    })
}

fn preflight(run: &RunView) -> Value {
    json!({
        "config_keys": preflight::partly_read(run, Part::ConfigKey).iter().map(|found| json!({
            "checkpoint": found.checkpoint,
            "key": found.name,
            "ignored_by": found.ignored_by,
            "not_ignored_by": found.not_ignored_by,
        })).collect::<Vec<_>>(),
        "tensors": preflight::partly_read(run, Part::Tensor).iter().map(|found| json!({
            "checkpoint": found.checkpoint,
            "tensor": found.name,
            "not_read_by": found.ignored_by,
            "read_by": found.not_ignored_by,
        })).collect::<Vec<_>>(),
        "translated": preflight::translated(run).iter().map(|found| json!({
            "checkpoints": found.checkpoints,
            "versions": found.versions,
            "values": found.values,
        })).collect::<Vec<_>>(),
        "tokenizers": preflight::tokenizers(run).iter().map(|(checkpoint, version, parity)| json!({
            "checkpoint": checkpoint,
            "version": version,
            "class": parity.class,
            "tokens": parity.tokens,
            "difference": parity.difference,
        })).collect::<Vec<_>>(),
        "environments": preflight::environments(run).iter().map(|pair| json!({
            "a": pair.a,
            "b": pair.b,
            "relative_l2": pair.relative_l2.map(number),
            "packages": pair.packages.iter().map(|(name, a, b)| json!({ "name": name, "a": a, "b": b })).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    })
}

/// Per-position curves, in the case's order; `null` if the case's pairs exceed [`MAX_CURVE_POINTS`].
fn per_position(pair: &PairMetrics, matrix: &Matrix) -> Value {
    if curves_left_out(matrix).is_some() {
        return Value::Null;
    }
    let curve = |number_of: &dyn Fn(&PositionMetrics) -> f64| -> Vec<Value> {
        pair.per_position.iter().map(|at| number(number_of(at))).collect()
    };
    json!({
        "position": pair.per_position.iter().map(|at| at.position).collect::<Vec<_>>(),
        "l2": curve(&|at| at.l2),
        "max_abs": curve(&|at| at.max_abs),
        "kl_a_b": curve(&|at| at.kl),
    })
}

fn position(at: PositionIndex) -> Value {
    json!({ "row": at.row, "position": at.position })
}

fn number(value: f64) -> Value {
    serde_json::Number::from_f64(value).map_or_else(|| Value::String(value.to_string()), Value::Number)
}
