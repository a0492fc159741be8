//! Findings in words: the same sentence on the terminal and in the files.

use crate::judge::findings::{Finding, What};
use crate::judge::view::RunView;
use crate::spec::relations::Relation;

/// Maximum number of case names that a finding lists.
const MOST_NAMES: usize = 3;

/// A finding in one sentence, with the cases that it applies to.
pub(super) fn sentence(finding: &Finding, run: &RunView) -> String {
    let subject = &finding.subject;
    let cases = cases(finding, run);
    match &finding.what {
        What::Diverges { letter, relative_l2, incomparable, place, .. } => {
            let apart = match (relative_l2, incomparable) {
                (_, Some(reason)) => format!("cannot be compared with A: {reason}"),
                (Some(relative_l2), None) if relative_l2.is_nan() => {
                    "has logits that are not finite where those of A are".to_owned()
                }
                (Some(relative_l2), None) => {
                    let several = if finding.cases.len() > 1 { "up to " } else { "" };
                    format!("diverges from A by {several}{relative_l2:.1e}")
                }
                (None, None) => "diverges from A".to_owned(),
            };
            let place = place.as_ref().map(|place| format!(", first at {place}")).unwrap_or_default();
            format!("{letter} = {subject}{cases}: {apart}{place}")
        }
        What::RoundsWorse { evidence } => format!("~ {subject}{cases}: rounds worse: {evidence}"),
        What::Chain { sentence } => format!("not transitive{cases}: {sentence}"),
        What::Cache { evidence, place } => {
            let place = place.as_ref().map(|place| format!(", first at {place}")).unwrap_or_default();
            format!(
                "{subject}{cases}: cached decoding diverges from the full-sequence pass{place}: {evidence}"
            )
        }
        What::Relation { relation, evidence, place } => {
            let broken = Relation::named(relation).map_or(relation.as_str(), |relation| relation.broken);
            let place = place.as_ref().map(|place| format!("; first at {place}")).unwrap_or_default();
            let each = if finding.variants.len() > 1 { "each of " } else { "" };
            format!("{each}{subject}{cases} {broken} ({relation}): {evidence}{place}")
        }
        What::Output { output, letter, relative_l2 } => {
            let apart = relative_l2.map(|apart| format!(" by {apart:.1e}")).unwrap_or_default();
            format!(
                "{subject}{cases}: {output} diverges from that of {letter}{apart}, though the main output agrees"
            )
        }
        What::Failed { reason } => format!("failed: {subject}{cases}: {reason}"),
        What::Unsupported { reason } => format!("unsupported: {subject}{cases}: {reason}"),
    }
}

/// ` in mistral_sw, 2 of 7 cases`; empty for a run of one case.
fn cases(finding: &Finding, run: &RunView) -> String {
    let all = run.cases.len();
    let of = finding.cases.len();
    if all < 2 {
        return String::new();
    }
    if of == all {
        return format!(" in all {all} cases");
    }
    let names = finding.cases.iter().take(MOST_NAMES).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = if of > MOST_NAMES { " …" } else { "" };
    if of == 1 { format!(" in {names}") } else { format!(" in {names}{more} ({of} of {all} cases)") }
}
