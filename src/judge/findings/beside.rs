//! Findings beside the groups: cached decoding against the full-sequence pass, and outputs other than the main one.

use compare::verdict::Decision;

use super::{CaseGroups, Finding, What, add, place};
use crate::judge::view::CaseView;
use crate::results::localized::Localized;

/// Adds a finding for each variant whose cached decoding diverges from its own full-sequence pass.
pub(super) fn caches(case: &CaseView, findings: &mut Vec<Finding>) {
    for (index, verdict) in
        case.cache_verdicts().filter(|(_, verdict)| verdict.decision == Decision::Diverged)
    {
        let names = [&verdict.a, &verdict.b];
        let is_it = |found: &&Localized| names.contains(&&found.a) && names.contains(&&found.b);
        let place = case.localized.iter().find(is_it).and_then(place);
        add(findings, case, &[index], What::Cache { evidence: verdict.evidence.clone(), place });
    }
}

/// Adds a finding for each further output that differs between two variants of one group, whose main outputs agree.
pub(super) fn outputs(case: &CaseView, found: &CaseGroups, findings: &mut Vec<Finding>) {
    let at = |name: &str| case.cells.iter().position(|cell| cell.name == name);
    for output in &case.outputs {
        let Some(group) = at(&output.reference).and_then(|index| found.groups.of(index)) else { continue };
        for row in output.rows.iter().filter(|row| row.verdict.decision == Decision::Diverged) {
            let Some(index) = at(&row.variant).filter(|index| found.groups.of(*index) == Some(group)) else {
                continue;
            };
            let (output, letter) = (output.name.clone(), found.letters[group].clone());
            add(findings, case, &[index], What::Output { output, letter, relative_l2: row.relative_l2 });
        }
    }
}
