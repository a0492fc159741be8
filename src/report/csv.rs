//! `matrix.csv`: one line per ordered pair, for spreadsheets and scripts.

use super::{Report, Source};
use compare::matrix::PairOutcome;
use compare::metric::{Format, METRICS, Value};
use compare::metrics::PairMetrics;

/// Pairs as comma-separated values (RFC 4180); numbers with all their digits, an empty field for a missing number.
#[derive(Clone, Copy, Debug)]
pub struct Csv;

/// Columns before the metrics.
const PAIR: &str = "case,a,b,status,verdict,reason,positions,last_positions_only";
/// Columns after the metrics.
const NOISE: &str = "noise_a,noise_b,noise_multiple";

/// All columns: the pair, its metrics, its noise.
fn header() -> Vec<String> {
    let metrics = METRICS.iter().flat_map(|metric| {
        let keys = metric.csv.of(metric).into_iter();
        keys.flat_map(|(key, _)| {
            metric.format.csv_suffixes().iter().map(move |suffix| format!("{key}{suffix}"))
        })
    });
    let fixed = |names: &'static str| names.split(',').map(str::to_owned);
    fixed(PAIR).chain(metrics).chain(fixed(NOISE)).collect()
}

/// The fields of all metrics of a pair; empty for a metric that was not measured.
fn metrics(pair: &PairMetrics) -> impl Iterator<Item = String> {
    METRICS.iter().flat_map(|metric| {
        let keys = metric.csv.of(metric).into_iter();
        keys.flat_map(|(_, side)| {
            (metric.get)(pair, Some(side)).unwrap_or(Value::Undefined).csv(metric.format)
        })
    })
}

impl Report for Csv {
    fn file_name(&self) -> &'static str {
        "matrix.csv"
    }

    fn render(&self, source: &Source<'_>) -> String {
        let header = header();
        let columns = header.len();
        let mut text = format!("{}\n", header.join(","));
        for case in &source.run.cases {
            let matrix = &case.matrix;
            for a in 0..matrix.len() {
                for b in 0..matrix.len() {
                    let verdict = case.verdict(&matrix.names[a], &matrix.names[b]);
                    let outcome = matrix.oriented(a, b);
                    let (status, reason) = match &outcome {
                        PairOutcome::Compared(_) => ("compared", String::new()),
                        PairOutcome::Incomparable(reason) => ("incomparable", reason.to_string()),
                        PairOutcome::NotRun(reason) => ("not run", reason.clone()),
                    };
                    let mut fields = vec![
                        case.name.clone(),
                        matrix.names[a].clone(),
                        matrix.names[b].clone(),
                        status.to_owned(),
                        verdict.map(|verdict| verdict.decision.word().to_owned()).unwrap_or_default(),
                        reason,
                    ];
                    if let PairOutcome::Compared(pair) = &outcome {
                        fields.extend([pair.positions.to_string(), pair.last_positions_only.to_string()]);
                        fields.extend(metrics(pair));
                    }
                    fields.resize(columns - 3, String::new());
                    let noise = |row: usize| case.noise(row).and_then(compare::repeat::Noise::l2);
                    let number = |l2: Option<f64>| l2.map_or(Value::Undefined, Value::Number);
                    let noises = [noise(a), noise(b), case.multiple(a, b)].map(number);
                    fields.extend(noises.into_iter().flat_map(|l2| l2.csv(Format::Digits(3))));
                    let quoted: Vec<String> = fields.iter().map(|field| quote(field)).collect();
                    text.push_str(&quoted.join(","));
                    text.push('\n');
                }
            }
        }
        text
    }
}

fn quote(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}
