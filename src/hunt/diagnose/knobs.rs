//! Quantities of the network that a factor may scale: scores, the embedding, the logits, the outputs of blocks. A factor is
//! compared with simple expressions of the config's numbers.

use super::draft::{Draft, Values};
use super::hypotheses::{scale_embedding, scale_scores};
use super::parts::{Block, end_of, norms_add_one};

/// A quantity of the network that a factor scales.
pub(super) struct Knob {
    pub(super) name: &'static str,
    pub(super) words: &'static str,
    pub(super) turn: fn(&mut Draft, f64),
}

/// Every knob.
pub(super) const KNOBS: &[Knob] = &[
    Knob { name: "fitted-scores", words: "scores", turn: scale_scores },
    Knob { name: "fitted-logits", words: "logits", turn: scale_logits },
    Knob { name: "fitted-embedding", words: "the embedding", turn: scale_embedding },
    Knob {
        name: "fitted-attention-output",
        words: "the output of attention",
        turn: |draft, factor| scale_block(draft, Block::Attention, factor),
    },
    Knob {
        name: "fitted-mlp-output",
        words: "the output of MLPs",
        turn: |draft, factor| scale_block(draft, Block::Mlp, factor),
    },
];

/// Largest relative difference between a fitted factor and the value of an expression that is reported as the same. A fit in
/// f32 is exact to about 1e-6.
const SAME_FACTOR: f64 = 2e-5;

/// The factor as a simple expression of the config's numbers: `sqrt(query_pre_attn_scalar / head_dim)`.
pub(super) fn expression(factor: f64, plain: &Draft) -> Option<String> {
    let mut numbers: Vec<(String, f64)> = (plain.config.iter())
        .filter_map(|(key, value)| Some((key.clone(), value.as_f64().filter(|value| *value > 0.0)?)))
        .filter(|(key, _)| !key.ends_with("token_id") && !key.contains("dropout") && key != "vocab_size")
        .collect();
    numbers.push(("2".to_owned(), 2.0));
    let is_it = |value: f64| (value / factor - 1.0).abs() < SAME_FACTOR;
    let single = |(name, value): &(String, f64)| {
        [
            (name.clone(), *value),
            (format!("1 / {name}"), 1.0 / value),
            (format!("sqrt({name})"), value.sqrt()),
            (format!("1 / sqrt({name})"), 1.0 / value.sqrt()),
        ]
    };
    let pairs = numbers.iter().flat_map(|(a, x)| {
        numbers.iter().filter(move |(b, _)| a != b).flat_map(move |(b, y)| {
            [(format!("sqrt({a} / {b})"), (x / y).sqrt()), (format!("{a} / {b}"), x / y)]
        })
    });
    let found: Vec<String> = numbers
        .iter()
        .flat_map(single)
        .chain(pairs)
        .filter(|(_, value)| is_it(*value))
        .map(|(words, _)| words)
        .collect();
    // Several expressions of one value prove none of them.
    match found.as_slice() {
        [one] => Some(one.clone()),
        [one, other] => Some(format!("{one} or {other}")),
        _ => None,
    }
}

/// Multiplies the logits by a factor, at the final norm if nothing else reads it, else at the head.
fn scale_logits(draft: &mut Draft, factor: f64) {
    let heads = ["lm_head.weight", "embed_out.weight", "lm_head.bias", "embed_out.bias"];
    if heads.iter().any(|head| draft.has(head)) {
        draft.edit_all(|name| heads.contains(&name), |values| values.scale(factor));
        return;
    }
    let norms = ["model.norm.weight", "transformer.ln_f.weight", "transformer.ln_f.bias", "model.norm.bias"];
    let offset = f64::from(u8::from(norms_add_one(draft)));
    let turn = |values: &mut Values| {
        values.scale(1.0);
        values.data.iter_mut().for_each(|value| *value = (*value + offset) * factor - offset);
    };
    draft.edit_all(|name| norms.contains(&name), turn);
}

fn scale_block(draft: &mut Draft, block: Block, factor: f64) {
    draft.edit_all(
        |name| end_of(name).is_some_and(|(_, known)| known == block),
        |values| values.scale(factor),
    );
}
