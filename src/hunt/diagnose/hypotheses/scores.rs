//! Mistakes in the scores of attention: scale and soft cap.

use serde_json::Value;

use super::super::draft::Draft;
use super::super::parts::{Part, heads, slices};
use super::{Hypothesis, row};

pub(super) const ROWS: &[Hypothesis] = &[
    row("scale-by-head-dim", "scores scaled by 1 / sqrt(head_dim)", |draft| {
        let Some(sizes) = heads(draft) else { return };
        let dim = sizes.head_dim as f64;
        if draft.number("query_pre_attn_scalar").is_some() {
            draft.set("query_pre_attn_scalar", sizes.head_dim);
        }
        if draft.number("attention_multiplier").is_some() {
            draft.set("attention_multiplier", dim.powf(-0.5));
        }
        if is_unscaled(draft) {
            // Layers may have heads of different sizes, which their norms of queries have.
            scale_queries(draft, |size| size.map_or(dim, |size| size as f64).powf(-0.5));
        }
    }),
    row("scale-absent", "scores divided by their scale", |draft| {
        if let Some(scale) = scale(draft) {
            scale_scores(draft, 1.0 / scale);
        }
        if let Some(Value::Bool(true)) = draft.config.get("scale_attn_weights") {
            draft.set("scale_attn_weights", false);
        }
    }),
    row("scale-twice", "scores multiplied by their scale once more", |draft| {
        if let Some(scale) = scale(draft) {
            scale_scores(draft, scale);
        }
    }),
    row(
        "scale-by-hidden-size-per-head",
        "scores scaled by sqrt(num_attention_heads / hidden_size)",
        |draft| {
            let (Some(scale), Some(sizes)) = (scale(draft), heads(draft)) else { return };
            if let Some(hidden) = draft.count(&["hidden_size", "n_embd", "dim"]) {
                let wanted = (sizes.heads as f64 / hidden as f64).sqrt();
                if (wanted / scale - 1.0).abs() > 1e-9 {
                    scale_scores(draft, wanted / scale);
                }
            }
        },
    ),
    row("scale-one-over-head-dim", "scores scaled by 1 / head_dim", |draft| {
        let (Some(scale), Some(sizes)) = (scale(draft), heads(draft)) else { return };
        scale_scores(draft, 1.0 / (scale * sizes.head_dim as f64));
    }),
    row("scale-toggled", "`scale_attn_weights` {scale_attn_weights}", |draft| {
        toggle(draft, "scale_attn_weights");
    }),
    row(
        "scale-by-layer-toggled",
        "`scale_attn_by_inverse_layer_idx` {scale_attn_by_inverse_layer_idx}",
        |draft| {
            toggle(draft, "scale_attn_by_inverse_layer_idx");
        },
    ),
    row("score-cap-absent", "no soft cap of scores", |draft| {
        draft.replace("attn_logit_softcapping", Value::Null);
    }),
    row("score-cap-50", "`attn_logit_softcapping` 50", |draft| {
        if draft.number("attn_logit_softcapping").is_some() {
            draft.set("attn_logit_softcapping", 50.0);
        }
    }),
    row("scores-uniform", "scores of zero", |draft| {
        for slice in slices(draft, &[Part::Query]) {
            slice.clear(draft);
        }
    }),
];

fn toggle(draft: &mut Draft, key: &str) {
    if let Some(Value::Bool(known)) = draft.config.get(key) {
        let other = !*known;
        draft.set(key, other);
    }
}

/// Whether the architecture has scores without a scale.
fn is_unscaled(draft: &Draft) -> bool {
    draft
        .text("model_type")
        .is_some_and(|model_type| ["gpt_neo", "gemma4", "gemma4_text"].contains(&model_type))
}

/// The factor of the scores.
fn scale(draft: &Draft) -> Option<f64> {
    if is_unscaled(draft) {
        return Some(1.0);
    }
    if let Some(scalar) = draft.number("query_pre_attn_scalar") {
        return Some(scalar.powf(-0.5));
    }
    let of_heads = || heads(draft).map(|sizes| (sizes.head_dim as f64).powf(-0.5));
    draft.number("attention_multiplier").or_else(of_heads)
}

/// Multiplies the scores of every layer by `factor`: by a config key that does it, else by the last thing that scales the
/// queries.
pub(in super::super) fn scale_scores(draft: &mut Draft, factor: f64) {
    if let Some(scalar) = draft.number("query_pre_attn_scalar") {
        draft.set("query_pre_attn_scalar", scalar / (factor * factor));
    } else if let Some(multiplier) = draft.number("attention_multiplier") {
        draft.set("attention_multiplier", multiplier * factor);
    } else {
        scale_queries(draft, |_| factor);
    }
}

/// Multiplies the queries of every layer by the factor for the size of their norm, or that for none where they have no norm.
fn scale_queries(draft: &mut Draft, factor: impl Fn(Option<usize>) -> f64) {
    let is_norm = |name: &str| name.contains(".q_norm.") || name.contains(".q_layernorm.");
    if draft.names().iter().any(|name| is_norm(name)) {
        draft.edit_all(is_norm, |values| values.scale(factor(Some(values.data.len()))));
    } else {
        for slice in slices(draft, &[Part::Query]) {
            slice.scale(draft, factor(None));
        }
    }
}
