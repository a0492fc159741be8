//! Mistakes in sliding windows and in masks of padding.

use serde_json::{Value, json};

use super::super::draft::Draft;
use super::super::parts::layers;
use super::{Hypothesis, row};

pub(super) const ROWS: &[Hypothesis] = &[
    row("window-one-more", "{=sliding_window|attention_window_size|local_attention}", |draft| {
        widen(draft, 1);
    }),
    row("window-one-less", "{=sliding_window|attention_window_size|local_attention}", |draft| {
        widen(draft, -1);
    }),
    row("window-absent", "no window", |draft| {
        // A window beyond all positions, because `layer_types` may select a rotary embedding as well.
        let beyond = draft.count(&["max_position_embeddings"]).unwrap_or(0).max(4096) * 2;
        for key in KEYS {
            if draft.number(key).is_some() {
                draft.set(key, beyond);
            }
        }
    }),
    row("window-default", "`sliding_window` 4096", |draft| {
        if draft.config.contains_key("sliding_window") {
            draft.set("sliding_window", 4096);
        }
    }),
    row("window-in-every-layer", "the window in every layer", |draft| {
        in_layers(draft, |_| true);
        // Of qwen2_moe, `max_window_layers` selects every other layer (`Qwen2MoeConfig` of transformers 5.23.0).
        if draft.text("model_type") == Some("qwen2_moe") && draft.config.contains_key("use_sliding_window") {
            draft.set("layer_types", vec!["sliding_attention"; layers(draft)]);
        }
        for (key, value) in [("use_sliding_window", json!(true)), ("max_window_layers", json!(0))] {
            draft.replace(key, value);
        }
        for key in ["sliding_window_pattern", "_sliding_window_pattern"] {
            draft.config.shift_remove(key);
        }
    }),
    row("window-in-the-other-layers", "the window in the other layers", |draft| {
        let slides = sliding(draft);
        if slides.contains(&true) && slides.contains(&false) {
            in_layers(draft, |layer| !slides[layer]);
            draft.config.shift_remove("sliding_window_pattern");
        }
    }),
    row("window-used-though-off", "`use_sliding_window` true", |draft| {
        draft.replace("use_sliding_window", true);
    }),
    row("window-off", "`use_sliding_window` false", |draft| draft.replace("use_sliding_window", false)),
    row("window-given-as-zero", "`sliding_window` 0", |draft| {
        if draft.number("sliding_window").is_some() {
            draft.set("sliding_window", 0);
        }
    }),
    row("decoder-not-causal", "`is_decoder` false", |draft| {
        if draft.config.get("is_decoder") == Some(&json!(true)) {
            draft.set("is_decoder", false);
        }
    }),
    row("padding-attended", "padding attended to", |draft| {
        draft.change_inputs(|tokens| tokens.attention_mask.fill(1));
    }),
    row("padding-mask-inverted", "the padding mask inverted", |draft| {
        draft.change_inputs(|tokens| {
            if tokens.is_padded() {
                tokens.attention_mask.iter_mut().for_each(|real| *real = 1 - *real);
            }
        });
    }),
    row("padding-mask-of-the-first-row", "the padding mask of the first sequence for all", |draft| {
        draft.change_inputs(|tokens| {
            tokens.attention_mask = tokens.attention_mask[..tokens.seq].repeat(tokens.batch);
        });
    }),
    row("positions-count-padding", "positions that count padding", |draft| {
        draft.change_inputs(|tokens| {
            tokens.position_ids = (0..tokens.batch).flat_map(|_| 0..tokens.seq as i64).collect();
        });
    }),
    row("positions-from-1", "positions from 1", |draft| {
        draft.change_inputs(|tokens| tokens.position_ids.iter_mut().for_each(|position| *position += 1));
    }),
    row("rope-positions-bf16", "positions in bf16", |draft| {
        draft.change_inputs(|tokens| {
            let rounded = |position: i64| half::bf16::from_f64(position as f64).to_f64() as i64;
            tokens.position_ids.iter_mut().for_each(|position| *position = rounded(*position));
        });
    }),
    row("positions-absent", "no positions", |draft| {
        draft.change_inputs(|tokens| tokens.position_ids.fill(0));
    }),
];

const KEYS: [&str; 3] = ["sliding_window", "attention_window_size", "local_attention"];

/// modernbert's `local_attention` counts the keys on both sides.
fn widen(draft: &mut Draft, by: i64) {
    for (key, step) in KEYS.into_iter().zip([1, 1, 2]) {
        let Some(window) = draft.config.get(key).and_then(Value::as_i64) else { continue };
        if window + by * step > 0 {
            draft.set(key, window + by * step);
        }
    }
}

/// Which layers have a window; every other one from the first on where the config leaves it to the architecture.
fn sliding(draft: &Draft) -> Vec<bool> {
    match draft.config.get("layer_types").and_then(Value::as_array) {
        Some(types) => types.iter().map(|kind| kind == "sliding_attention").collect(),
        None if draft.text("model_type") == Some("gemma2") => {
            (0..layers(draft)).map(|layer| layer % 2 == 0).collect()
        }
        None => Vec::new(),
    }
}

fn in_layers(draft: &mut Draft, slides: impl Fn(usize) -> bool) {
    if sliding(draft).is_empty() {
        return;
    }
    let name = |layer| if slides(layer) { "sliding_attention" } else { "full_attention" };
    let types: Vec<&str> = (0..layers(draft)).map(name).collect();
    draft.set("layer_types", types);
}
