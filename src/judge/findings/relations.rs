//! Findings about broken relations.

use super::{Finding, What, subject};
use crate::execute::cell::{Cell, Outcome};
use crate::results::relations::{CellRelations, Held, Outcome as Broke};

/// Adds one finding per broken relation and set of variants that break it; the finding lists all cases in which exactly
/// these variants break the relation.
pub(super) fn add(all: &[CellRelations], findings: &mut Vec<Finding>) {
    struct Broken<'a> {
        relation: &'a str,
        case: &'a str,
        cells: Vec<Cell>,
        most: &'a Held,
    }
    let size = |held: &Held| held.measured.as_ref().map_or(0.0, |measured| measured.relative_l2);
    let mut broken: Vec<Broken> = Vec::new();
    for found in all {
        // Only the variant's name is used; the outcome is a placeholder.
        let cell = || Cell::new(&found.variant, "", Outcome::Unsupported { reason: String::new() });
        for held in found.relations.iter().filter(|held| held.outcome == Broke::Broken) {
            let is_it = |known: &&mut Broken| (known.relation, known.case) == (&*held.relation, &*found.case);
            match broken.iter_mut().find(is_it) {
                Some(known) => {
                    known.cells.push(cell());
                    if size(held) > size(known.most) {
                        known.most = held;
                    }
                }
                None => broken.push(Broken {
                    relation: &held.relation,
                    case: &found.case,
                    cells: vec![cell()],
                    most: held,
                }),
            }
        }
    }
    for Broken { relation, case, cells, most } in broken {
        let variants: Vec<String> = cells.iter().map(|cell| cell.name.clone()).collect();
        let is_same = |known: &&mut Finding| {
            matches!(&known.what, What::Relation { relation: other, .. } if other == relation)
                && known.variants == variants
        };
        if let Some(known) = findings.iter_mut().find(is_same) {
            known.cases.push(case.to_owned());
            continue;
        }
        let what = What::Relation {
            relation: relation.to_owned(),
            evidence: most.evidence.clone(),
            place: most.first_module.as_ref().map(|module| module.path.clone()),
        };
        let subject = subject(cells.iter());
        findings.push(Finding { what, variants, subject, cases: vec![case.to_owned()] });
    }
}
