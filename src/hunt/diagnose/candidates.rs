//! Drafts with mistakes, measured against the suspect: one more mistake each, or several combined.

use super::DiagnoseError;
use super::causes::Cause;
use super::draft::Draft;
use super::hypotheses::{Hypothesis, are_of_a_family, hypotheses};
use super::lab::{Lab, Stage};
use super::side::Apart;

/// Share of a difference that an explanation may leave, besides being within rounding: a small difference must not count as
/// explained because a mistake happens to lower it a little.
const MOST_LEFT: f64 = 0.05;
/// Largest share of the difference that one of two mistakes may leave, if the other is looked for first in its family.
const MOST_OF_ONE: f64 = 0.9;
/// Combinations of each size that are extended.
const BEAM: usize = 6;

/// Pairs of mistakes that are measured before the search looks whether one of them closes.
const PAIRS_AT_ONCE: usize = 16;

/// A draft with some mistakes, and how far it is from the suspect.
#[derive(Clone)]
pub(super) struct Candidate {
    pub(super) causes: Vec<Cause>,
    pub(super) draft: Draft,
    pub(super) apart: Apart,
}

/// Whether what is left of `base` is rounding.
pub(super) fn closes(left: Apart, base: Apart) -> bool {
    left.is_rounding && left.relative_l2 <= MOST_LEFT * base.relative_l2
}

/// The draft with these mistakes, made in their order.
pub(super) fn applied(plain: &Draft, causes: impl Iterator<Item = Cause>) -> Draft {
    causes.fold(plain.clone(), |draft, cause| cause.applied(&draft).unwrap_or(draft))
}

/// `from` with each further row of the table, measured on `stage`; rows with the same edit once.
pub(super) fn extended(
    lab: &mut Lab,
    from: &Candidate,
    stage: &Stage,
) -> Result<Vec<Candidate>, DiagnoseError> {
    extended_by(lab, from, stage, |_| true)
}

/// [`extended`] by some rows of the table.
fn extended_by(
    lab: &mut Lab,
    from: &Candidate,
    stage: &Stage,
    is_meant: impl Fn(&Hypothesis) -> bool,
) -> Result<Vec<Candidate>, DiagnoseError> {
    let mut edited: Vec<(&'static Hypothesis, Draft)> = Vec::new();
    for row in hypotheses().filter(|row| is_meant(row)) {
        if from.causes.iter().any(|known| known.name() == row.name) {
            continue;
        }
        let Some(draft) =
            row.applied(&from.draft).filter(|draft| edited.iter().all(|(_, known)| known != draft))
        else {
            continue;
        };
        // Inputs that an edit leaves as they are make no difference.
        if draft.has_the_files_of(&from.draft)
            && !draft.changes_outputs()
            && draft.deviations() == from.draft.deviations()
            && draft.inputs(&stage.tokens) == from.draft.inputs(&stage.tokens)
        {
            continue;
        }
        edited.push((row, draft));
    }
    let drafts: Vec<Draft> = edited.iter().map(|(_, draft)| draft.clone()).collect();
    let found = lab.apart_each(&drafts, stage)?;
    let candidate = |((row, draft), apart): ((&'static Hypothesis, Draft), Apart)| {
        let causes = from.causes.iter().copied().chain([Cause::Known(row)]).collect();
        Candidate { causes, draft, apart }
    };
    Ok(edited.into_iter().zip(found).map(candidate).collect())
}

/// The first candidate that leaves rounding alone.
pub(super) fn closing(candidates: &[Candidate], base: Apart) -> Option<Candidate> {
    candidates.iter().find(|candidate| closes(candidate.apart, base)).cloned()
}

/// Combinations of up to `depth` mistakes: those that lower the error most are extended, best first.
pub(super) fn combined(
    lab: &mut Lab,
    singles: &[Candidate],
    stage: &Stage,
    base: Apart,
    depth: usize,
) -> Result<Option<Candidate>, DiagnoseError> {
    let lowered = |candidates: Vec<Candidate>, than: f64| {
        let mut kept: Vec<Candidate> =
            candidates.into_iter().filter(|candidate| candidate.apart.relative_l2 < than).collect();
        kept.sort_by(|a, b| a.apart.relative_l2.total_cmp(&b.apart.relative_l2));
        kept.truncate(BEAM);
        kept
    };
    let mut beam = lowered(singles.to_vec(), base.relative_l2);
    for _ in 1..depth {
        let mut next: Vec<Candidate> = Vec::new();
        for candidate in &beam {
            let further = extended(lab, candidate, stage)?;
            if let Some(found) = closing(&further, base) {
                return Ok(Some(found));
            }
            for further in lowered(further, candidate.apart.relative_l2) {
                if next.iter().all(|known| known.draft != further.draft) {
                    next.push(further);
                }
            }
        }
        beam = lowered(next, f64::INFINITY);
        if beam.is_empty() || !lab.has_time() {
            break;
        }
    }
    pairs(lab, singles, stage, base)
}

/// The single mistake that lowers the error most with another one of its family: ports that have one of them often have both, and
/// these are few forward passes.
pub(super) fn kindred(
    lab: &mut Lab,
    singles: &[Candidate],
    stage: &Stage,
    base: Apart,
) -> Result<Option<Candidate>, DiagnoseError> {
    let least = singles.iter().min_by(|a, b| a.apart.relative_l2.total_cmp(&b.apart.relative_l2));
    let Some(least) = least.filter(|least| least.apart.relative_l2 < MOST_OF_ONE * base.relative_l2) else {
        return Ok(None);
    };
    let is_of_a_family =
        |row: &Hypothesis| least.causes.iter().any(|cause| are_of_a_family(cause.name(), row.name));
    Ok(closing(&extended_by(lab, least, stage, is_of_a_family)?, base))
}

/// Two mistakes of one family that explain a stage together, though each alone may raise the error.
fn pairs(
    lab: &mut Lab,
    singles: &[Candidate],
    stage: &Stage,
    base: Apart,
) -> Result<Option<Candidate>, DiagnoseError> {
    let mut both: Vec<(Vec<Cause>, Draft)> = Vec::new();
    for (at, first) in singles.iter().enumerate() {
        for second in &singles[at + 1..] {
            let [Some(one), Some(other)] = [first, second].map(|candidate| candidate.causes.last().copied())
            else {
                continue;
            };
            if are_of_a_family(one.name(), other.name())
                && let Some(draft) = other.applied(&first.draft)
            {
                both.push((first.causes.iter().copied().chain([other]).collect(), draft));
            }
        }
    }
    for some in both.chunks(PAIRS_AT_ONCE) {
        let drafts: Vec<Draft> = some.iter().map(|(_, draft)| draft.clone()).collect();
        let found = lab.apart_each(&drafts, stage)?;
        let closing = some.iter().zip(found).find(|(_, apart)| closes(*apart, base));
        if let Some(((causes, draft), apart)) = closing {
            return Ok(Some(Candidate { causes: causes.clone(), draft: draft.clone(), apart }));
        }
    }
    Ok(None)
}
