//! The smallest case that still shows the difference: one sequence, few tokens, few layers.

use std::sync::Arc;

use serde_json::Value;

use super::DiagnoseError;
use super::draft::Draft;
use super::lab::{Lab, Proof, Surgery, whole};
use super::parts::{layer, layers};
use super::side::Apart;
use super::tokens::Tokens;
use crate::spec::variant::measured_dtype;

/// Smallest ratio of a difference to its rounding limit at which a case is shrunk: closer to the limit, an edit may lower the
/// difference below it by chance.
const CLEAR: f64 = 20.0;
/// Tokens, and bytes of weights, above which a search begins with the smallest case.
const LARGE: (usize, u64) = (256, 16 << 20);

/// A case that was shrunk.
pub(super) struct Shrunk {
    pub(super) proof: Proof,
    /// `1 × 9 tokens, 2 of 30 layers`.
    pub(super) words: String,
    /// Whether searching in it is worth more than in the whole case.
    pub(super) is_much_smaller: bool,
}

/// The smallest case; `None` if nothing smaller than the whole one shows the difference clearly.
pub(super) fn shrunk(lab: &mut Lab, first: &Proof) -> Result<Option<Shrunk>, DiagnoseError> {
    let mut tokens = first.stage.tokens.clone();
    for row in 0..tokens.batch.min(4) {
        if tokens.batch > 1 && shows(lab, &tokens.part(row, tokens.seq), &whole())?.is_some() {
            tokens = tokens.part(row, tokens.seq);
            break;
        }
    }
    if tokens.batch == 1 && !tokens.is_padded() {
        tokens = fewest_tokens(lab, &tokens)?;
    }
    let all = layers(&lab.plain());
    let mut count = 1;
    let mut surgery = whole();
    while count < all {
        let fewer: Surgery = Arc::new(move |draft| keep_layers(draft, count));
        if shows(lab, &tokens, &fewer)?.is_some() {
            surgery = fewer;
            break;
        }
        count *= 2;
    }
    let kept = count.min(all);
    if tokens == first.stage.tokens && kept == all {
        return Ok(None);
    }
    let Some((stage, base)) = shows(lab, &tokens, &surgery)? else { return Ok(None) };
    let of_layers = if kept < all { format!(", {kept} of {all} layers") } else { String::new() };
    let whole_tokens = first.stage.tokens.input_ids.len();
    Ok(Some(Shrunk {
        words: format!("{}{of_layers}", tokens.words()),
        is_much_smaller: whole_tokens > LARGE.0 || lab.plain().bytes() > LARGE.1,
        proof: Proof { stage, base, trial: first.trial },
    }))
}

/// The shortest beginning of a sequence that shows the difference, within a factor of 2 by doubling and then by halves.
fn fewest_tokens(lab: &mut Lab, tokens: &Tokens) -> Result<Tokens, DiagnoseError> {
    let mut enough = 1;
    while enough < tokens.seq && shows(lab, &tokens.part(0, enough), &whole())?.is_none() {
        enough = (2 * enough).min(tokens.seq);
    }
    let mut too_few = enough / 2;
    while enough - too_few > 1 {
        let middle = usize::midpoint(enough, too_few);
        if shows(lab, &tokens.part(0, middle), &whole())?.is_some() {
            enough = middle;
        } else {
            too_few = middle;
        }
    }
    Ok(tokens.part(0, enough))
}

fn shows(
    lab: &mut Lab,
    tokens: &Tokens,
    surgery: &Surgery,
) -> Result<Option<(super::lab::Stage, Apart)>, DiagnoseError> {
    let Ok(stage) = lab.stage(tokens, Arc::clone(surgery))? else { return Ok(None) };
    let apart = lab.apart(&lab.plain(), &stage)?;
    let limit = lab.request.tolerances.relative_l2.of(measured_dtype(lab.dtype));
    let is_clear = apart.relative_l2.is_finite() && apart.relative_l2 > CLEAR * limit;
    Ok(is_clear.then_some((stage, apart)))
}

/// Leaves the first `count` layers.
fn keep_layers(draft: &mut Draft, count: usize) {
    for key in ["num_hidden_layers", "n_layer", "n_layers"] {
        draft.replace(key, count);
    }
    for key in ["layer_types", "no_rope_layers"] {
        if let Some(Value::Array(list)) = draft.config.get_mut(key) {
            list.truncate(count);
        }
    }
    if let Some(Value::Array(list)) = draft.config.get_mut("mlp_only_layers") {
        list.retain(|layer| layer.as_u64().is_some_and(|layer| (layer as usize) < count));
    }
    draft.remove(|name| layer(name).is_some_and(|layer| layer >= count));
}
