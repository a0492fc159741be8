//! The search for the mistakes under which the trusted side gives the suspect's logits: one by one, part by part of the
//! network, and combined.

use super::candidates::{Candidate, applied, closes, closing, combined, extended, kindred};
use super::causes::Cause;
use super::draft::Draft;
use super::hypotheses::hypotheses;
use super::lab::{Lab, Proof, Stage, whole};
use super::shrink::shrunk;
use super::side::Apart;
use super::surgery::{self, Peeled};
use super::tokens::Tokens;
use super::unread;
use super::{Alternative, DiagnoseError, Diagnosis, Mistake};

/// Most mistakes of the whole network that are combined by their errors alone.
const DEPTH: usize = 4;

/// Searches on inputs of which the first are the case's.
pub(super) fn search(lab: &mut Lab, proofs: &[Proof]) -> Result<Diagnosis, DiagnoseError> {
    let plain = lab.plain();
    if !plain.is_editable() {
        lab.notes.push(
            "the weights are too large to be edited, so mistakes of the config alone were tried".into(),
        );
    }
    let shrunk = match proofs.first() {
        Some(first) => shrunk(lab, first)?,
        None => None,
    };
    if let Some(shrunk) = &shrunk {
        lab.notes.push(format!("the smallest case that shows it: {}", shrunk.words));
    }
    let smallest = shrunk.as_ref().filter(|shrunk| shrunk.is_much_smaller).map(|shrunk| &shrunk.proof);
    let mut parts = None;
    // A mistake may hide on one input, such as a window on few tokens: each input is searched in turn.
    for proof in smallest.into_iter().chain(proofs) {
        let Proof { stage, base, .. } = proof;
        let none = Candidate { causes: Vec::new(), draft: plain.clone(), apart: *base };
        let singles = extended(lab, &none, stage)?;
        lab.hypotheses = lab.hypotheses.max(singles.len());
        let mut found = closing(&singles, *base);
        // Every row that closes by itself was found already.
        let alike: Vec<Candidate> =
            singles.iter().filter(|candidate| closes(candidate.apart, *base)).skip(1).cloned().collect();
        let is_single = found.is_some();
        if found.is_none() {
            found = kindred(lab, &singles, stage, *base)?;
        }
        if found.is_none() && parts.is_none() {
            unread::note(lab, stage)?;
            let peeled = surgery::peel(lab, &none, stage)?;
            if closes(lab.apart(&peeled.candidate.draft, stage)?, *base) {
                found = Some(peeled.candidate);
            } else {
                parts = Some(peeled);
            }
        }
        // Mistakes that explain the whole explain every part of it, and a part was searched with their combinations.
        let has_unexplained_part = parts.as_ref().is_some_and(|peeled| !peeled.parts.is_empty());
        if found.is_none() && !has_unexplained_part {
            found = combined(lab, &singles, stage, *base, DEPTH)?;
        }
        if let Some(found) = found {
            let found = needed(lab, found, &[(stage, *base)])?;
            let found = merged(&plain, found);
            if proofs.len() < 2 {
                lab.notes.push(format!(
                    "{} gives the suspect's logits on the case's inputs, but no other inputs showed the difference, so that it is not proven",
                    words(&found, &plain).join(" and ")
                ));
                continue;
            }
            // A mistake that the smallest case alone shows is not proven.
            let on: Vec<(&Stage, Apart)> = proofs.iter().map(|proof| (&proof.stage, proof.base)).collect();
            let causes = found.causes.len();
            let found = needed(lab, found, &on)?;
            let rivals = if is_single {
                alike
            } else if found.causes.len() == causes {
                rivals(lab, &found, stage, *base)?
            } else {
                rivals(lab, &found, &proofs[0].stage, proofs[0].base)?
            };
            if let Some(proven) = proven(lab, found, rivals, proofs)? {
                return Ok(proven);
            }
        }
    }
    match parts {
        Some(peeled) if !peeled.candidate.causes.is_empty() || !peeled.parts.is_empty() => {
            partly(lab, peeled, proofs)
        }
        _ => Ok(Diagnosis::Unexplained),
    }
}

/// Confirms on every input what explains one of them, or what explains that one as well; `None` if nothing does.
fn proven(
    lab: &mut Lab,
    found: Candidate,
    rivals: Vec<Candidate>,
    proofs: &[Proof],
) -> Result<Option<Diagnosis>, DiagnoseError> {
    let mut standing = Vec::new();
    'candidates: for candidate in std::iter::once(found).chain(rivals) {
        let mut left = Vec::new();
        for proof in proofs {
            let apart = lab.apart(&candidate.draft, &proof.stage)?;
            if !closes(apart, proof.base) {
                continue 'candidates;
            }
            left.push(apart.relative_l2);
        }
        standing.push((candidate, left));
    }
    let standing = told_apart(lab, standing, &proofs[0].stage.tokens)?;
    let Some(((found, left), others)) = standing.split_first() else { return Ok(None) };
    for (proof, left) in proofs.iter().zip(left) {
        lab.trials[proof.trial].after = Some(*left);
    }
    let mut mistakes = Vec::new();
    let plain = lab.plain();
    for (at, cause) in found.causes.iter().enumerate() {
        let without = without(lab, found, at, proofs)?;
        let differs = |other: &&(Candidate, Vec<f64>)| other.0.causes[at].name() != cause.name();
        let alternative = |other: &(Candidate, Vec<f64>)| Alternative {
            hypothesis: other.0.causes[at].name().to_owned(),
            words: other.0.causes[at].words(&other.0.draft, &plain),
        };
        mistakes.push(Mistake {
            hypothesis: cause.name().to_owned(),
            words: cause.words(&found.draft, &plain),
            without,
            alternatives: others.iter().filter(differs).map(alternative).collect(),
            on: None,
        });
    }
    Ok(Some(Diagnosis::Reproduced { mistakes }))
}

/// Relative L2 with all mistakes of a candidate but one, on the input where it is largest.
fn without(lab: &mut Lab, found: &Candidate, at: usize, proofs: &[Proof]) -> Result<f64, DiagnoseError> {
    let others = found.causes.iter().enumerate().filter(|(own, _)| *own != at).map(|(_, cause)| *cause);
    let draft = applied(&lab.plain(), others);
    let mut largest = 0.0_f64;
    for proof in proofs {
        largest = largest.max(lab.apart(&draft, &proof.stage)?.relative_l2);
    }
    Ok(largest)
}

/// What is proven on parts of the network alone, and the parts in which a difference is left.
fn partly(lab: &mut Lab, peeled: Peeled, proofs: &[Proof]) -> Result<Diagnosis, DiagnoseError> {
    let Peeled { candidate, proven, parts } = peeled;
    lab.trials[0].after = Some(lab.apart(&candidate.draft, &proofs[0].stage)?.relative_l2);
    let mut mistakes = Vec::new();
    for (at, (cause, on)) in candidate.causes.iter().zip(proven).enumerate() {
        mistakes.push(Mistake {
            hypothesis: cause.name().to_owned(),
            words: cause.words(&candidate.draft, &lab.plain()),
            without: without(lab, &candidate, at, proofs)?,
            alternatives: Vec::new(),
            on: Some(on),
        });
    }
    Ok(Diagnosis::Parts { mistakes, parts })
}

fn words(candidate: &Candidate, plain: &Draft) -> Vec<String> {
    candidate.causes.iter().map(|cause| cause.words(&candidate.draft, plain)).collect()
}

/// The candidate without the mistakes that it explains every one of these stages as well without.
fn needed(lab: &mut Lab, mut found: Candidate, on: &[(&Stage, Apart)]) -> Result<Candidate, DiagnoseError> {
    let mut at = 0;
    'causes: while found.causes.len() > 1 && at < found.causes.len() {
        let mut causes = found.causes.clone();
        causes.remove(at);
        let draft = applied(&lab.plain(), causes.iter().copied());
        let mut apart = found.apart;
        for (stage, base) in on {
            apart = lab.apart(&draft, stage)?;
            if !closes(apart, *base) {
                at += 1;
                continue 'causes;
            }
        }
        found = Candidate { causes, draft, apart };
    }
    Ok(found)
}

/// The candidate with pairs of mistakes replaced by the row of the table that is both of them.
fn merged(plain: &Draft, mut found: Candidate) -> Candidate {
    let mut pairs = (0..found.causes.len()).flat_map(|a| (0..a).map(move |b| (a, b))).collect::<Vec<_>>();
    while let Some((a, b)) = pairs.pop() {
        if a >= found.causes.len() {
            continue;
        }
        let mut rest = found.causes.clone();
        rest.remove(a);
        rest.remove(b);
        let draft = applied(plain, rest.iter().copied());
        let both = hypotheses().find(|row| row.applied(&draft).is_some_and(|draft| draft == found.draft));
        if let Some(row) = both {
            rest.push(Cause::Known(row));
            found.causes = rest;
        }
    }
    found
}

/// Candidates that explain a stage as well as `found` does, with another row in one place.
fn rivals(
    lab: &mut Lab,
    found: &Candidate,
    stage: &Stage,
    base: Apart,
) -> Result<Vec<Candidate>, DiagnoseError> {
    let mut all = Vec::new();
    for at in 0..found.causes.len() {
        let mut causes = found.causes.clone();
        causes.remove(at);
        let draft = applied(&lab.plain(), causes.iter().copied());
        let rest = Candidate { causes, draft, apart: base };
        for mut candidate in extended(lab, &rest, stage)? {
            if closes(candidate.apart, base) && candidate.draft != found.draft {
                let last = candidate.causes.pop();
                candidate.causes.splice(at..at, last);
                if candidate.causes[at].name() != found.causes[at].name() {
                    all.push(candidate);
                }
            }
        }
    }
    Ok(all)
}

/// Tells candidates apart by inputs made for it: short, long, and padded ones. What is left predicts the same on all.
fn told_apart(
    lab: &mut Lab,
    mut standing: Vec<(Candidate, Vec<f64>)>,
    tokens: &Tokens,
) -> Result<Vec<(Candidate, Vec<f64>)>, DiagnoseError> {
    let longest = lab.longest();
    let mut seed = 100;
    for seq in [4, tokens.seq * 3, tokens.seq * 6, longest.min(1024)] {
        if standing.len() < 2 || !lab.has_time() {
            break;
        }
        seed += 1;
        let other = tokens.other(seq.clamp(1, longest), lab.vocabulary(), seed);
        let Ok(stage) = lab.stage(&other, whole())? else { continue };
        let mut differ = false;
        for rival in &standing[1..] {
            let between = lab.between([&standing[0].0.draft, &rival.0.draft], &stage)?;
            differ |= !between.is_rounding;
        }
        if !differ {
            continue;
        }
        let mut kept = Vec::new();
        for candidate in standing.clone() {
            if lab.apart(&candidate.0.draft, &stage)?.is_rounding {
                kept.push(candidate);
            }
        }
        // Where none holds on this input, what was found is not what the suspect computes.
        standing = kept;
    }
    Ok(standing)
}
