//! Mistakes in heads, head groups and routers.

use serde_json::Value;

use super::super::draft::Draft;
use super::super::parts::{Block, Part, end_of, heads, slices};
use super::{Hypothesis, row};

pub(super) const ROWS: &[Hypothesis] = &[
    row("kv-heads-tiled", "key heads tiled instead of repeated", |draft| {
        let Some(sizes) = heads(draft) else { return };
        let share = sizes.heads / sizes.kv_heads;
        // Query head h uses key head h % kv_heads: heads change places so that each meets that key head.
        let head = move |place: usize| place % share * sizes.kv_heads + place / share;
        let order = move |at: usize| head(at / sizes.head_dim) * sizes.head_dim + at % sizes.head_dim;
        for slice in slices(draft, &[Part::Query]) {
            slice.reorder(draft, order);
        }
        let columns: Vec<usize> = (0..sizes.heads * sizes.head_dim).map(order).collect();
        let is_out =
            |name: &str| matches!(end_of(name), Some((_, Block::Attention))) && name.ends_with(".weight");
        let is_transposed = draft.names().iter().any(|name| name.ends_with("c_attn.weight"));
        draft.edit_all(is_out, |values| {
            if is_transposed && values.shape.first() == Some(&columns.len()) {
                values.rows_reordered(columns.iter().copied());
            } else if !is_transposed && values.columns() == columns.len() {
                values.columns_reordered(&columns);
            }
        });
        // A norm of all query heads at once has a weight for each of them.
        draft.edit_all(
            |name| name.contains("q_norm."),
            |values| {
                if values.columns() == columns.len() && values.shape.len() == 1 {
                    values.rows_reordered(columns.iter().copied());
                }
            },
        );
    }),
    row("kv-heads-first", "the first key head for every query", |draft| {
        let Some(sizes) = heads(draft) else { return };
        if sizes.kv_heads > 1 {
            for slice in slices(draft, &[Part::Key, Part::Value]) {
                slice.reorder(draft, |at| at % sizes.head_dim);
            }
        }
    }),
    row("router-normalised-or-not", "`norm_topk_prob` {norm_topk_prob}", |draft| {
        if let Some(Value::Bool(known)) = draft.config.get("norm_topk_prob") {
            let other = !*known;
            draft.set("norm_topk_prob", other);
        }
    }),
    row("router-one-expert-more", "`num_experts_per_tok` {num_experts_per_tok}", |draft| experts(draft, 1)),
    row("router-one-expert-less", "`num_experts_per_tok` {num_experts_per_tok}", |draft| experts(draft, -1)),
    row("router-correction-ignored", "the router's correction bias ignored", |draft| {
        draft.edit_all(|name| name.ends_with("e_score_correction_bias"), |values| values.fill(0.0));
    }),
    row("router-factor-1", "`routed_scaling_factor` 1", |draft| draft.replace("routed_scaling_factor", 1.0)),
    row("residual-other-order", "{=use_parallel_residual|parallel_attn}", |draft| {
        for key in ["use_parallel_residual", "parallel_attn"] {
            if let Some(Value::Bool(known)) = draft.config.get(key) {
                let other = !*known;
                draft.set(key, other);
            }
        }
    }),
];

fn experts(draft: &mut Draft, by: i64) {
    if let Some(count) = draft.config.get("num_experts_per_tok").and_then(Value::as_i64)
        && count + by > 0
    {
        draft.set("num_experts_per_tok", count + by);
    }
}
