//! `matrix.csv`: one line per ordered pair, for spreadsheets and scripts.

use super::Report;
use crate::judge::gates::Judged;
use crate::judge::view::RunView;
use compare::matrix::PairOutcome;
use compare::metrics::Side;

/// Pairs as comma-separated values (RFC 4180); numbers with all their digits, an empty field where there is none.
#[derive(Clone, Copy, Debug)]
pub struct Csv;

const HEADER: &str = "case,a,b,status,verdict,reason,positions,last_positions_only,l2,relative_l2_to_a,relative_l2_to_b,\
rmse,nmse_to_a,cosine,max_abs,max_abs_row,max_abs_position,max_abs_token,max_ulp,ulp_dtype,rounded_l2,rounded_max_abs,\
kl_a_b_mean,kl_a_b_median,kl_a_b_p999,kl_a_b_max,top1_agreement,top_k_agreement,k,first_greedy_divergence_row,\
first_greedy_divergence_position,nan_a,infinite_a,nan_b,infinite_b,noise_a,noise_b,noise_multiple\n";

impl Report for Csv {
    fn file_name(&self) -> &'static str {
        "matrix.csv"
    }

    fn render(&self, run: &RunView, _judged: &Judged) -> String {
        let columns = HEADER.matches(',').count() + 1;
        let mut text = HEADER.to_owned();
        for case in &run.cases {
            let matrix = &case.matrix;
            for a in 0..matrix.len() {
                for b in 0..matrix.len() {
                    let names = (&matrix.names[a.min(b)], &matrix.names[a.max(b)]);
                    let verdict = case.verdicts.iter().find(|verdict| (&verdict.a, &verdict.b) == names);
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
                        let at = pair.max_abs_at;
                        let rounded = pair.rounded;
                        fields.extend([
                            pair.positions.to_string(),
                            pair.last_positions_only.to_string(),
                            number(pair.l2),
                            number(pair.relative_l2(Side::A)),
                            number(pair.relative_l2(Side::B)),
                            number(pair.rmse()),
                            number(pair.nmse(Side::A)),
                            number(pair.cosine),
                            number(pair.max_abs),
                            optional(at.map(|at| at.at.row)),
                            optional(at.map(|at| at.at.position)),
                            optional(at.map(|at| at.token)),
                            optional(pair.max_ulp),
                            pair.lower_dtype.name().to_owned(),
                            optional(rounded.map(|rounded| number(rounded.l2))),
                            optional(rounded.map(|rounded| number(rounded.max_abs))),
                        ]);
                        if let Some(distribution) = &pair.distribution {
                            let first = distribution.first_greedy_divergence;
                            fields.extend([
                                number(distribution.kl.mean),
                                number(distribution.kl.median),
                                number(distribution.kl.p999),
                                number(distribution.kl.max),
                                number(distribution.top1_agreement),
                                number(distribution.top_k_agreement),
                                distribution.k.to_string(),
                                optional(first.map(|at| at.row)),
                                optional(first.map(|at| at.position)),
                                distribution.non_finite_a.nan.to_string(),
                                distribution.non_finite_a.infinite.to_string(),
                                distribution.non_finite_b.nan.to_string(),
                                distribution.non_finite_b.infinite.to_string(),
                            ]);
                        }
                    }
                    fields.resize(columns - 3, String::new());
                    let noise = |row: usize| case.noise(row).and_then(compare::repeat::Noise::l2);
                    fields
                        .extend([noise(a), noise(b), case.multiple(a, b)].map(|l2| optional(l2.map(number))));
                    let quoted: Vec<String> = fields.iter().map(|field| quote(field)).collect();
                    text.push_str(&quoted.join(","));
                    text.push('\n');
                }
            }
        }
        text
    }
}

/// The shortest text that reads back as the same number, `1.5e-9`, `NaN`, `inf`.
fn number(value: f64) -> String {
    format!("{value:?}")
}

fn optional(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

fn quote(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}
