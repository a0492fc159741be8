//! Mistakes in embeddings, heads and classifiers.

use models::{Deviation, Task};
use reference::protocol::Dtype;
use serde_json::{Value, json};

use super::super::draft::{Draft, Values};
use super::super::parts::is_bias;
use super::{Hypothesis, row};

pub(super) const ROWS: &[Hypothesis] = &[
    row("head-tied", "the head tied to the embedding", |draft| {
        let embedding = token_embedding(draft).and_then(|name| draft.tensor(&name).cloned());
        for head in HEADS {
            if let Some(values) = embedding
                .clone()
                .filter(|values| draft.tensor(head).is_some_and(|known| known.shape == values.shape))
            {
                draft.put(head, values);
            }
        }
    }),
    row("head-untied", "the stored `lm_head` in place of the tied one", |draft| {
        if draft.has("lm_head.weight") {
            draft.replace("tie_word_embeddings", false);
        }
    }),
    row("head-bias-absent", "no bias of the head", |draft| {
        draft.edit_all(|name| HEAD_BIASES.contains(&name), |values| values.fill(0.0));
    }),
    row("head-transform-bias-absent", "no bias of the head's transform", |draft| {
        let names = [
            "cls.predictions.transform.dense.bias",
            "lm_head.dense.bias",
            "vocab_transform.bias",
            "head.dense.bias",
        ];
        draft.edit_all(|name| names.contains(&name), |values| values.fill(0.0));
    }),
    row("classifier-bias-absent", "no bias of the classifier", |draft| {
        draft.edit_all(
            |name| is_bias(name) && (name.starts_with("classifier") || name.starts_with("score")),
            |values| values.fill(0.0),
        );
    }),
    row("classifier-pools-the-last", "a classifier that pools the last position", |draft| {
        if is_classifier(draft) {
            draft.deviate(Deviation::PooledLast);
        }
    }),
    row("classifier-pools-the-mean", "a classifier that pools the mean over tokens", |draft| {
        if is_classifier(draft) {
            draft.deviate(Deviation::PooledMean);
        }
    }),
    row("classifier-pools-differently", "`classifier_pooling` {classifier_pooling}", |draft| {
        let other = match draft.text("classifier_pooling") {
            Some("mean") => "cls",
            Some("cls") => "mean",
            _ => return,
        };
        draft.set("classifier_pooling", other);
    }),
    row("embedding-not-scaled", "an embedding that is not multiplied by sqrt(hidden_size)", |draft| {
        if draft.text("model_type").is_some_and(|model_type| model_type.contains("gemma")) {
            scale_by_size(draft, -0.5);
        }
    }),
    row("embedding-scaled", "an embedding multiplied by sqrt(hidden_size)", |draft| {
        if draft.text("model_type").is_some_and(|model_type| !model_type.contains("gemma")) {
            scale_by_size(draft, 0.5);
        }
    }),
    row("token-types-absent", "no token types", |draft| {
        draft.edit_all(|name| name.contains("token_type_embeddings"), |values| values.fill(0.0));
    }),
    row("token-type-1", "token type 1 in place of 0", |draft| {
        draft.edit_all(
            |name| name.contains("token_type_embeddings"),
            |values| {
                if values.shape[0] > 1 {
                    let rows = values.shape[0];
                    values.rows_reordered((0..rows).map(|row| match row {
                        0 => 1,
                        1 => 0,
                        row => row,
                    }));
                }
            },
        );
    }),
    row("learned-positions-absent", "no learned positions", |draft| {
        draft.edit_all(is_positions, |values| values.fill(0.0));
    }),
    row("learned-positions-one-late", "learned positions from 1 in place of 0", |draft| {
        shift_positions(draft, 1);
    }),
    row("learned-positions-one-early", "learned positions from -1 in place of 0", |draft| {
        shift_positions(draft, -1);
    }),
    row("learned-positions-without-offset", "learned positions without the offset of padding", |draft| {
        let offset = match (draft.text("model_type"), draft.count(&["pad_token_id"])) {
            (Some("roberta" | "xlm-roberta" | "camembert"), Some(pad)) => pad as i64 + 1,
            (Some("opt"), _) => 2,
            _ => return,
        };
        shift_positions(draft, -offset);
    }),
];

fn is_classifier(draft: &Draft) -> bool {
    let class = draft.config.get("architectures").and_then(|classes| classes[0].as_str());
    class.and_then(Task::of_class) == Some(Task::SequenceClassification)
}

const HEADS: [&str; 3] = ["lm_head.weight", "embed_out.weight", "cls.predictions.decoder.weight"];
const HEAD_BIASES: [&str; 5] =
    ["lm_head.bias", "cls.predictions.bias", "vocab_projector.bias", "decoder.bias", "embed_out.bias"];
const EMBEDDINGS: [&str; 7] = [
    "embeddings",
    "embed_tokens",
    "wte",
    "word_embeddings",
    "embed_in",
    "tok_embeddings",
    "embeddings.word_embeddings",
];

fn token_embedding(draft: &Draft) -> Option<String> {
    draft.names().into_iter().find(|name| {
        let module = name.strip_suffix(".weight").and_then(|module| module.rsplit('.').next());
        module.is_some_and(|module| EMBEDDINGS.contains(&module))
    })
}

/// Multiplies the embedding by a power of `hidden_size`.
fn scale_by_size(draft: &mut Draft, power: f64) {
    if let Some(hidden) = draft.count(&["hidden_size", "n_embd"]) {
        scale_embedding(draft, (hidden as f64).powf(power));
    }
}

/// Multiplies the embedding; a head tied to it keeps the stored values.
pub(in super::super) fn scale_embedding(draft: &mut Draft, factor: f64) {
    let Some(name) = token_embedding(draft) else { return };
    let Some(values) = draft.tensor(&name).cloned() else { return };
    let is_tied = draft.config.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(true);
    if is_tied && !draft.has("lm_head.weight") {
        // Only decoders keep their head under this name.
        if !name.starts_with("model.") && !name.starts_with("transformer.") {
            return;
        }
        draft.put("lm_head.weight", Values { ..values.clone() });
        draft.set("tie_word_embeddings", json!(false));
    }
    draft.edit(&name, |values| values.scale(factor));
}

/// How often a variant is repeated with another embedding, to see what rounding does to it.
pub(in super::super) const REPETITIONS: u64 = 4;

/// Copies of a draft, each with another embedding whose values are moved by one unit in the last place of `dtype`.
pub(in super::super) fn with_nudged_embeddings(plain: &Draft, dtype: Dtype) -> impl Iterator<Item = Draft> {
    (1..=REPETITIONS).map(move |seed| {
        let mut moved = plain.clone();
        nudge_embedding(&mut moved, dtype, seed);
        moved
    })
}

/// Moves each value of the embedding by one unit in the last place of `dtype`, up or down as `seed` has it.
fn nudge_embedding(draft: &mut Draft, dtype: Dtype, seed: u64) {
    let Some(name) = token_embedding(draft) else { return };
    let mut state = seed;
    draft.edit(&name, |values| {
        for value in &mut values.data {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let is_up = state >> 63 == 0;
            *value = match dtype {
                Dtype::F16 => moved16(half::f16::from_f64(*value).to_bits(), is_up, |bits| {
                    half::f16::from_bits(bits).to_f64()
                }),
                _ => moved16(half::bf16::from_f64(*value).to_bits(), is_up, |bits| {
                    half::bf16::from_bits(bits).to_f64()
                }),
            };
        }
    });
}

/// The number next to one of 16 bits; its neighbour on the other side where there is none.
fn moved16(bits: u16, is_up: bool, number: impl Fn(u16) -> f64) -> f64 {
    let next = number(if is_up { bits.wrapping_add(1) } else { bits.wrapping_sub(1) });
    if next.is_finite() { next } else { number(bits) }
}

fn is_positions(name: &str) -> bool {
    name.ends_with("position_embeddings.weight")
        || name.ends_with("wpe.weight")
        || name.ends_with("embed_positions.weight")
}

/// Position p gets the row that position p + `by` had; rows that do not exist are those at the ends.
fn shift_positions(draft: &mut Draft, by: i64) {
    draft.edit_all(is_positions, |values| {
        let rows = values.shape[0] as i64;
        values.rows_reordered((0..rows).map(|row| (row + by).clamp(0, rows - 1) as usize));
    });
}
