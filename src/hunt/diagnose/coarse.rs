//! What a variant rounds that the trusted side does not, where both compute the same in a wider dtype: a table, a sum or a
//! softmax kept in the narrow one.
//!
//! No fixed limit tells such a mistake from rounding. The trusted side is repeated with its embedding moved by one unit in the
//! last place, which measures what rounding does to this checkpoint on these inputs: how far a result may be from the one in the
//! wider dtype, and how far two results that round differently may be from each other.

use reference::protocol::Dtype;

use super::candidates::{Candidate, applied};
use super::causes::Cause;
use super::draft::Draft;
use super::hypotheses::{coarse, with_nudged_embeddings};
use super::lab::{Lab, Stage, whole};
use super::side::{Apart, Output, apart};
use super::tokens::Tokens;
use super::{Alternative, DiagnoseError, Diagnosis, Mistake};
use crate::results::diagnosed::Trial;
use crate::spec::variant::dtype_name;

/// Multiple of the largest distance among the repetitions that is still rounding: four of them are few.
const MARGIN: f64 = 1.5;
/// Share of the difference that a mistake may leave.
const MOST_LEFT: f64 = 0.5;
/// The share that no other rounding leaves: two results that round differently by chance do not come this close to each other.
const REPRODUCED: f64 = 0.1;

/// One input in the narrow dtype.
struct Measured {
    stage: Stage,
    /// Relative L2 between the two sides as they are.
    base: Apart,
    /// Relative L2 of the suspect's logits to the trusted side's in the wider dtype.
    error: f64,
    /// The largest such error of the trusted side's repetitions.
    largest_error: f64,
    /// How far two results that round differently may be from each other: the largest relative L2 between two repetitions, or
    /// that of two independent errors as large as the largest.
    spread: f64,
}

impl Measured {
    /// Whether the suspect's error is more than rounding.
    fn is_worse(&self) -> bool {
        self.error > MARGIN * self.largest_error
    }

    /// The largest relative L2 that a mistake may leave.
    fn limit(&self) -> f64 {
        let reproduced = REPRODUCED * self.base.relative_l2;
        let rounding = (MARGIN * self.spread).min(MOST_LEFT * self.base.relative_l2);
        if self.is_worse() { rounding.max(reproduced) } else { reproduced }
    }

    fn closes(&self, left: f64) -> bool {
        left <= self.limit()
    }
}

/// Searches for what the suspect rounds; the sides agree in `lab.dtype`, and the suspect's own dtype is narrower.
pub(super) fn search(lab: &mut Lab) -> Result<Diagnosis, DiagnoseError> {
    let (wide, own) = (lab.dtype, lab.request.suspect.load.dtype);
    let is_narrow = [Dtype::Bf16, Dtype::F16].contains(&own);
    if !is_narrow || wide == own || !lab.request.trusted.is_native || !lab.plain().is_editable() {
        return Ok(Diagnosis::Nothing);
    }
    let tokens = unpadded(&lab.request.tokens);
    let longest = lab.longest().max(1);
    let other = tokens.other((tokens.seq + tokens.seq / 3).clamp(1, longest), lab.vocabulary(), 7);
    let mut all = Vec::new();
    for tokens in [tokens, other] {
        // Sides that are equal have nothing to search.
        let found = measured(lab, &tokens, wide)?;
        all.extend(found.filter(|found| found.base.relative_l2 > 0.0));
    }
    let [first, second] = all.as_slice() else {
        lab.dtype = wide;
        return Ok(Diagnosis::Nothing);
    };
    lab.dtype = own;
    let found = explained(lab, first, second)?;
    if matches!(found, Diagnosis::Nothing) {
        let unexplained = if first.is_worse() { ", and none of the known roundings explains it" } else { "" };
        lab.notes.push(format!(
            "its error in {} is {:.1e}; that of {} is up to {:.1e} if its embedding moves by one unit in the last place{unexplained}",
            dtype_name(own),
            first.error,
            lab.request.trusted.name,
            first.largest_error
        ));
        lab.dtype = wide;
        return Ok(found);
    }
    lab.limit = Some(first.limit());
    Ok(found)
}

/// The first sequence that has no padding, or else all of them.
fn unpadded(tokens: &Tokens) -> Tokens {
    let rows = (0..tokens.batch).map(|row| tokens.part(row, tokens.seq));
    rows.into_iter().find(|row| !row.is_padded()).unwrap_or_else(|| tokens.clone())
}

fn measured(lab: &mut Lab, tokens: &Tokens, wide: Dtype) -> Result<Option<Measured>, DiagnoseError> {
    let own = lab.request.suspect.load.dtype;
    let plain = lab.plain();
    lab.dtype = wide;
    let exact = lab.output(&plain, tokens)?;
    lab.dtype = own;
    let Ok(stage) = lab.stage(tokens, whole())? else { return Ok(None) };
    let mut repeated = vec![lab.output(&plain, tokens)?];
    for moved in with_nudged_embeddings(&plain, own) {
        repeated.push(lab.output(&moved, tokens)?);
    }
    let (Ok(exact), Ok(repeated)) = (exact, repeated.into_iter().collect::<Result<Vec<Output>, _>>()) else {
        return Ok(None);
    };
    let at = stage.positions();
    let between = |a: &Output, b: &Output| {
        let sides = [a.at(at), b.at(at)];
        apart([&sides[0], &sides[1]], tokens, own, lab.request.tolerances)
    };
    let errors = repeated.iter().map(|output| between(output, &exact).relative_l2);
    let largest_error = errors.fold(0.0, f64::max);
    let spread = repeated[1..].iter().map(|output| between(output, &repeated[0]).relative_l2);
    Ok(Some(Measured {
        base: between(&repeated[0], stage.suspect()),
        error: between(stage.suspect(), &exact).relative_l2,
        largest_error,
        // Repetitions share the kernels of the trusted side, and another implementation rounds every operation by itself.
        spread: spread.fold(largest_error * std::f64::consts::SQRT_2, f64::max),
        stage,
    }))
}

/// The roundings, one or two of them, under which the trusted side gives the suspect's logits on both inputs.
fn explained(lab: &mut Lab, first: &Measured, second: &Measured) -> Result<Diagnosis, DiagnoseError> {
    let plain = lab.plain();
    let none = Candidate { causes: Vec::new(), draft: plain.clone(), apart: first.base };
    let singles = extended(lab, &none, &first.stage)?;
    lab.hypotheses = singles.len();
    let mut closing = proven(lab, &singles, first, second)?;
    if closing.is_empty() {
        let mut pairs = Vec::new();
        for single in singles.iter().filter(|one| one.apart.relative_l2 < first.base.relative_l2).take(4) {
            pairs.extend(extended(lab, single, &first.stage)?);
        }
        closing = proven(lab, &pairs, first, second)?;
    }
    let Some(((found, left), others)) = closing.split_first() else { return Ok(Diagnosis::Nothing) };
    lab.trials.clear();
    for (measured, left) in [first, second].into_iter().zip(left) {
        lab.trials.push(Trial {
            inputs: measured.stage.tokens.words(),
            positions: measured.base.positions,
            before: measured.base.relative_l2,
            after: Some(*left),
        });
    }
    let mut mistakes = Vec::new();
    for (at, cause) in found.causes.iter().enumerate() {
        let rest = found.causes.iter().enumerate().filter(|(own, _)| *own != at).map(|(_, cause)| *cause);
        let draft = applied(&plain, rest);
        let mut without = 0.0_f64;
        for measured in [first, second] {
            without = without.max(lab.apart(&draft, &measured.stage)?.relative_l2);
        }
        // What rounds by as little as this cannot be told apart from the others.
        let alternative = |(other, _): &(Candidate, [f64; 2])| {
            let other = other.causes.get(at).filter(|other| other.name() != cause.name())?;
            Some(Alternative {
                hypothesis: other.name().to_owned(),
                words: other.words(&found.draft, &plain),
            })
        };
        let mut alternatives: Vec<Alternative> = others.iter().filter_map(alternative).collect();
        alternatives.dedup();
        mistakes.push(Mistake {
            hypothesis: cause.name().to_owned(),
            words: cause.words(&found.draft, &plain),
            without,
            alternatives,
            on: None,
        });
    }
    Ok(Diagnosis::Reproduced { mistakes })
}

/// Those that explain both inputs, best first, and what each leaves.
fn proven(
    lab: &mut Lab,
    candidates: &[Candidate],
    first: &Measured,
    second: &Measured,
) -> Result<Vec<(Candidate, [f64; 2])>, DiagnoseError> {
    let mut closing = Vec::new();
    for candidate in candidates.iter().filter(|candidate| first.closes(candidate.apart.relative_l2)) {
        let left = lab.apart(&candidate.draft, &second.stage)?.relative_l2;
        if second.closes(left) {
            closing.push((candidate.clone(), [candidate.apart.relative_l2, left]));
        }
    }
    closing.sort_by(|(_, a), (_, b)| a[0].total_cmp(&b[0]));
    Ok(closing)
}

/// `from` with each further row of the table that rounds, best first.
fn extended(lab: &mut Lab, from: &Candidate, stage: &Stage) -> Result<Vec<Candidate>, DiagnoseError> {
    let rows = coarse().filter(|row| from.causes.iter().all(|known| known.name() != row.name));
    let drafts: Vec<(Cause, Draft)> =
        rows.filter_map(|row| Some((Cause::Known(row), row.applied(&from.draft)?))).collect();
    let edited: Vec<Draft> = drafts.iter().map(|(_, draft)| draft.clone()).collect();
    let found = lab.apart_each(&edited, stage)?;
    let candidate = |((cause, draft), apart): ((Cause, Draft), Apart)| {
        let causes = from.causes.iter().copied().chain([cause]).collect();
        Candidate { causes, draft, apart }
    };
    let mut all: Vec<Candidate> = drafts.into_iter().zip(found).map(candidate).collect();
    all.sort_by(|a, b| a.apart.relative_l2.total_cmp(&b.apart.relative_l2));
    Ok(all)
}
