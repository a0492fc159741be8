//! Localisation by surgery: edited checkpoints, given to both sides, in which most of the network is switched off.
//!
//! With the last matrices of every attention and MLP at zero, a model is its embedding, its norms and its head; with one of
//! them kept it is that block alone. With queries and keys of zero, attention is the mean over the keys that the mask admits. Blocks
//! are examined from the outside in; a mistake that makes a block agree is kept for those that follow, so that several
//! faults are found one after the other, and a block that no mistake of the table makes agree is named.

use std::collections::BTreeMap;
use std::sync::Arc;

use tfcheck_port::surgery::{Piece, words};

use super::candidates::{Candidate, closes, combined, extended};
use super::draft::Draft;
use super::edits::{divides_attention, edit, has_experts, has_key_bias, is_off, scales_rotation};
use super::fit::fitted;
use super::lab::{Lab, Stage, Surgery};
use super::parts::{end_of, layers};
use super::side::Apart;
use super::tokens::Tokens;
use super::{DiagnoseError, Part};

/// Seed of the tokens on which a part is looked at again.
const OTHER_SEED: u64 = 50;
/// Most mistakes that are combined on one part of the network.
const DEPTH: usize = 3;

/// What examining part after part showed.
pub(super) struct Peeled {
    /// The mistakes that make parts agree.
    pub(super) candidate: Candidate,
    /// The part on which each of them was proven.
    pub(super) proven: Vec<String>,
    /// Parts in which a difference is left.
    pub(super) parts: Vec<Part>,
}

/// One state of the network in which both sides are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct View {
    layer: usize,
    piece: Piece,
}

impl View {
    fn surgery(self) -> Surgery {
        Arc::new(move |draft| self.operate(draft))
    }

    /// Switches everything else off.
    fn operate(self, draft: &mut Draft) {
        let is_off = |name: &str| end_of(name).is_some_and(|end| is_off(end, self.piece, Some(self.layer)));
        draft.edit_all(is_off, |values| values.fill(0.0));
        draft.apply(&edit(self.piece, draft));
    }
}

/// Examines the network part by part, beginning with the mistakes of `from`; `whole` has the case's inputs.
pub(super) fn peel(lab: &mut Lab, from: &Candidate, whole: &Stage) -> Result<Peeled, DiagnoseError> {
    let mut peeled = Peeled { candidate: from.clone(), proven: Vec::new(), parts: Vec::new() };
    let plain = lab.plain();
    let known = plain.names().iter().filter(|name| end_of(name).is_some()).count();
    if !plain.is_editable() || known < 2 {
        return Ok(peeled);
    }
    // Where queries or keys are not known by their names, nothing makes scores equal.
    let pieces = if divides_attention(&plain) {
        &[Piece::Mlp, Piece::Uniform, Piece::Attention][..]
    } else {
        &[Piece::Mlp, Piece::Attention]
    };
    let views = std::iter::once(View { layer: 0, piece: Piece::Ends }).chain(
        (pieces.iter().copied())
            .flat_map(|piece| (0..layers(&plain)).map(move |layer| View { layer, piece })),
    );
    // Views in which something is left, how much, and how many mistakes were known then.
    let mut left: Vec<(View, f64, usize)> = Vec::new();
    for view in views {
        // What is left of a fault that was named already is no further part.
        let covered = |other: &(View, f64, usize)| {
            other.0.piece == Piece::Ends
                || other.0.layer == view.layer
                    && other.0.piece == Piece::Uniform
                    && view.piece == Piece::Attention
        };
        if left.iter().any(covered) {
            continue;
        }
        if !lab.has_time() {
            lab.notes.push("the time ran out before every part of the network was examined".into());
            break;
        }
        let known = peeled.candidate.causes.len();
        left.extend(examined(lab, &mut peeled, view, whole)?.map(|relative_l2| (view, relative_l2, known)));
    }
    // A mistake that was found later may be one of two that an earlier part has.
    let mut rest = Vec::new();
    for (view, relative_l2, known) in left {
        let is_new = known < peeled.candidate.causes.len() && lab.has_time();
        let again = if is_new { examined(lab, &mut peeled, view, whole)? } else { Some(relative_l2) };
        rest.extend(again.map(|relative_l2| (view, relative_l2)));
        // What a mask or a value hid of the same attention.
        if again.is_none() && view.piece == Piece::Uniform {
            let whole_block = View { piece: Piece::Attention, ..view };
            let found = examined(lab, &mut peeled, whole_block, whole)?;
            rest.extend(found.map(|relative_l2| (whole_block, relative_l2)));
        }
    }
    peeled.parts = parts(lab, &rest, whole, &peeled.candidate)?;
    Ok(peeled)
}

/// Compares both sides in a view and adds the mistakes that make them agree there; what is left of the difference if none do.
fn examined(
    lab: &mut Lab,
    peeled: &mut Peeled,
    view: View,
    whole: &Stage,
) -> Result<Option<f64>, DiagnoseError> {
    let Ok(stage) = lab.stage(&whole.tokens, view.surgery())? else { return Ok(None) };
    let base = lab.apart(&peeled.candidate.draft, &stage)?;
    if base.is_rounding || base.relative_l2.is_infinite() {
        return Ok(None);
    }
    match explained(lab, &peeled.candidate, view, &stage, base)? {
        Some(candidate)
            if shows_all(lab, &peeled.candidate, &candidate, view, whole)?
                && !spoils(lab, &peeled.candidate, &candidate, view, whole)? =>
        {
            let new = candidate.causes.len() - peeled.candidate.causes.len();
            peeled.proven.extend(vec![alone(view); new]);
            peeled.candidate = candidate;
            Ok(None)
        }
        _ => Ok(Some(base.relative_l2)),
    }
}

/// Whether a view shows all that its new mistakes change. Where queries and keys are zero, a mistake in the order of key heads
/// looks the same as one in that of values alone, so that the whole attention must agree as well.
fn shows_all(
    lab: &mut Lab,
    before: &Candidate,
    after: &Candidate,
    view: View,
    whole: &Stage,
) -> Result<bool, DiagnoseError> {
    let is_of_heads = |cause: &super::causes::Cause| cause.name().starts_with("kv-heads");
    if view.piece != Piece::Uniform || !after.causes[before.causes.len()..].iter().any(is_of_heads) {
        return Ok(true);
    }
    let attention = View { piece: Piece::Attention, ..view };
    let Ok(stage) = lab.stage(&whole.tokens, attention.surgery())? else { return Ok(false) };
    Ok(lab.apart(&after.draft, &stage)?.is_rounding)
}

/// Whether what makes one layer's block agree makes the same block of another layer depart: a mistake of the table or a factor
/// concerns every layer.
fn spoils(
    lab: &mut Lab,
    before: &Candidate,
    after: &Candidate,
    view: View,
    whole: &Stage,
) -> Result<bool, DiagnoseError> {
    for layer in (0..layers(&lab.plain())).filter(|layer| *layer != view.layer) {
        let Ok(stage) = lab.stage(&whole.tokens, View { layer, ..view }.surgery())? else { continue };
        if lab.apart(&before.draft, &stage)?.is_rounding && !lab.apart(&after.draft, &stage)?.is_rounding {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `candidate` with further mistakes that make the view agree, on the stage and on other tokens: on one position alone, a factor
/// replaces whatever scales it.
fn explained(
    lab: &mut Lab,
    candidate: &Candidate,
    view: View,
    stage: &Stage,
    base: Apart,
) -> Result<Option<Candidate>, DiagnoseError> {
    let seq = stage.tokens.seq;
    let longest = lab.longest().max(seq);
    let tokens = stage.tokens.other((seq + 3).min(longest), lab.vocabulary(), OTHER_SEED);
    let Ok(other) = lab.stage(&tokens, view.surgery())? else { return Ok(None) };
    // Tokens on which nothing differs prove nothing.
    if lab.apart(&candidate.draft, &other)?.is_rounding {
        return Ok(None);
    }
    let holds =
        |lab: &mut Lab, found: &Candidate| lab.apart(&found.draft, &other).map(|apart| apart.is_rounding);
    let singles = extended(lab, candidate, stage)?;
    for found in singles.iter().filter(|found| closes(found.apart, base)) {
        if holds(lab, found)? {
            return Ok(Some(found.clone()));
        }
    }
    if let Some(found) = fitted(lab, candidate, stage, base)?
        && holds(lab, &found)?
    {
        return Ok(Some(found));
    }
    let found = combined(lab, &singles, stage, base, DEPTH)?;
    Ok(match found {
        Some(found) if holds(lab, &found)? => Some(found),
        _ => None,
    })
}

/// `layer 1's MLP alone`.
fn alone(view: View) -> String {
    match view.piece {
        Piece::Ends => format!("{} alone", words::ENDS),
        Piece::Mlp => format!("layer {}'s MLP alone", view.layer),
        Piece::Uniform => format!("layer {}'s attention alone, with queries and keys of zero", view.layer),
        Piece::Unrotated | Piece::Attention | Piece::NoKeyBias => {
            format!("layer {}'s attention alone", view.layer)
        }
    }
}

/// The parts in words: one line a kind, with the layers.
fn parts(
    lab: &mut Lab,
    left: &[(View, f64)],
    whole: &Stage,
    candidate: &Candidate,
) -> Result<Vec<Part>, DiagnoseError> {
    let mut kinds: BTreeMap<(Piece, &'static str), Vec<(usize, f64)>> = BTreeMap::new();
    for (view, relative_l2) in left {
        let kind = match view.piece {
            Piece::Uniform => mask_or_values(lab, *view, whole, candidate)?,
            Piece::Attention => rotation_or_scores(lab, *view, whole, candidate)?,
            Piece::Mlp => words::of_mlp(has_experts(&lab.plain(), view.layer)),
            Piece::Ends | Piece::Unrotated | Piece::NoKeyBias => words::ENDS,
        };
        kinds.entry((view.piece, kind)).or_default().push((view.layer, *relative_l2));
    }
    let count = layers(&lab.plain());
    let words = |((piece, kind), found): ((Piece, &str), Vec<(usize, f64)>)| {
        let largest = found.iter().map(|(_, relative_l2)| *relative_l2).fold(0.0, f64::max);
        let all: Vec<usize> = found.iter().map(|(layer, _)| *layer).collect();
        let part = words::part(piece, kind, &all, count);
        Part { part, how: words::how(piece).to_owned(), relative_l2: largest }
    };
    Ok(kinds.into_iter().map(words).collect())
}

/// Attention over equal scores differs: if it agrees within few tokens, the mask does.
fn mask_or_values(
    lab: &mut Lab,
    view: View,
    whole: &Stage,
    candidate: &Candidate,
) -> Result<&'static str, DiagnoseError> {
    let one = whole.tokens.part(0, 1);
    Ok(words::of_uniform(differs(lab, view, &unpadded(&one), candidate)?))
}

/// Scores differ: without rotation too, or only with it.
fn rotation_or_scores(
    lab: &mut Lab,
    view: View,
    whole: &Stage,
    candidate: &Candidate,
) -> Result<&'static str, DiagnoseError> {
    if !divides_attention(&lab.plain()) {
        return Ok("attention");
    }
    // Tokens at one position are not rotated against each other. A program may count positions itself, so that is asked again
    // with features alone whose angles are next to nothing.
    let together = Tokens { position_ids: vec![0; whole.tokens.position_ids.len()], ..whole.tokens.clone() };
    let unrotated = View { piece: Piece::Unrotated, ..view };
    let asked =
        [differs(lab, view, &together, candidate)?, differs(lab, unrotated, &whole.tokens, candidate)?];
    let kind = words::of_scores(asked, scales_rotation(&lab.plain()));
    // Without rotation, the bias of the keys adds the same to the scores of every key, which a softmax does not show.
    if kind == words::ROTATION && has_key_bias(&lab.plain()) {
        let unbiased = View { piece: Piece::NoKeyBias, ..view };
        if differs(lab, unbiased, &whole.tokens, candidate)? == Some(false) {
            return Ok(words::KEY_BIAS);
        }
    }
    Ok(kind)
}

fn unpadded(tokens: &Tokens) -> Tokens {
    Tokens {
        attention_mask: vec![1; tokens.seq],
        position_ids: (0..tokens.seq as i64).collect(),
        ..tokens.clone()
    }
}

/// Whether the sides differ in a view by more than rounding; `None` if one gives no logits.
fn differs(
    lab: &mut Lab,
    view: View,
    tokens: &Tokens,
    candidate: &Candidate,
) -> Result<Option<bool>, DiagnoseError> {
    let Ok(stage) = lab.stage(tokens, view.surgery())? else { return Ok(None) };
    let apart = lab.apart(&candidate.draft, &stage)?;
    Ok(apart.relative_l2.is_finite().then_some(!apart.is_rounding))
}

#[cfg(test)]
mod tests {
    use super::super::parts::Block;
    use super::*;

    #[test]
    fn a_block_keeps_its_end_alone() {
        for (name, expected) in [
            ("model.layers.1.self_attn.o_proj.weight", Some((1, Block::Attention))),
            ("transformer.h.0.attn.c_proj.bias", Some((0, Block::Attention))),
            ("transformer.h.0.mlp.c_proj.weight", Some((0, Block::Mlp))),
            ("bert.encoder.layer.2.attention.output.dense.weight", Some((2, Block::Attention))),
            ("bert.encoder.layer.2.output.dense.weight", Some((2, Block::Mlp))),
            ("bert.encoder.layer.2.intermediate.dense.weight", None),
            ("model.layers.0.block_sparse_moe.experts.1.w2.weight", Some((0, Block::Mlp))),
            ("model.layers.0.self_attn.q_proj.weight", None),
            ("model.norm.weight", None),
        ] {
            assert_eq!(end_of(name), expected, "{name}");
        }
    }
}
