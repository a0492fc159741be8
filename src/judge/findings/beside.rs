//! Findings beside the groups: cached decoding against the full-sequence pass, and outputs other than the main one.

use compare::verdict::Decision;

use super::{CaseGroups, Finding, What, add, place};
use crate::judge::assess::ONE_PASS;
use crate::judge::view::CaseView;
use crate::results::localized::Localized;

/// Adds a finding for each variant whose cached decoding diverges from its own full-sequence pass.
pub(super) fn caches(case: &CaseView, findings: &mut Vec<Finding>) {
    for verdict in case.verdicts.iter().filter(|verdict| verdict.decision == Decision::Diverged) {
        let names = [&verdict.a, &verdict.b];
        if !names.iter().any(|name| name.ends_with(ONE_PASS)) {
            continue;
        }
        let index = case.cells.iter().position(|cell| names.contains(&&cell.name));
        let is_it = |found: &&Localized| names.contains(&&found.a) && names.contains(&&found.b);
        let place = case.localized.iter().find(is_it).and_then(place);
        if let Some(index) = index {
            add(findings, case, &[index], What::Cache { evidence: verdict.evidence.clone(), place });
        }
    }
}

/// Adds a finding for each further output that differs in variants whose main output agrees with group A.
pub(super) fn outputs(case: &CaseView, found: &CaseGroups, findings: &mut Vec<Finding>) {
    for output in &case.outputs {
        for row in output.rows.iter().filter(|row| row.verdict.decision == Decision::Diverged) {
            let index = case.cells.iter().position(|cell| cell.name == row.variant);
            let is_in_a = |index: &usize| found.groups.of(*index) == Some(0);
            if let Some(index) = index.filter(is_in_a) {
                let what = What::Output { output: output.name.clone(), relative_l2: row.relative_l2 };
                add(findings, case, &[index], what);
            }
        }
    }
}
