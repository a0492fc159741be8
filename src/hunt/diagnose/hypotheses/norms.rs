//! Mistakes in norms.

use serde_json::json;

use super::super::draft::Draft;
use super::super::parts::{is_bias, is_qk_norm, norms_add_one};
use super::{Hypothesis, row};

pub(super) const ROWS: &[Hypothesis] = &[
    row("norm-eps-1e-5", "a norm epsilon of 1e-5", |draft| eps(draft, 1e-5)),
    row("norm-eps-1e-6", "a norm epsilon of 1e-6", |draft| eps(draft, 1e-6)),
    row("norm-eps-1e-12", "a norm epsilon of 1e-12", |draft| eps(draft, 1e-12)),
    row("norm-eps-1e-8", "a norm epsilon of 1e-8", |draft| eps(draft, 1e-8)),
    row("norm-weight-plus-one", "norms of 1 + weight", |draft| {
        if !norms_add_one(draft) {
            shift(draft, 1.0);
        }
    }),
    row("norm-weight-not-plus-one", "norms of weight, not of 1 + weight", |draft| {
        if norms_add_one(draft) {
            shift(draft, -1.0);
        }
    }),
    row("norm-weight-ignored", "norms without weight", |draft| {
        let one = if norms_add_one(draft) { 0.0 } else { 1.0 };
        draft.edit_all(|name| is_norm(name) && name.ends_with(".weight"), |values| values.fill(one));
    }),
    row("norm-bias-absent", "norms without bias", |draft| {
        draft.edit_all(|name| is_norm(name) && is_bias(name), |values| values.fill(0.0));
    }),
    row("norms-swapped", "the norms before attention and before the MLP swapped", |draft| {
        for_pairs(draft, PAIRS, Draft::swap);
    }),
    row("norms-after-swapped", "the norms after attention and after the MLP swapped", |draft| {
        for_pairs(draft, PAIRS_AFTER, Draft::swap);
    }),
    row("norm-first-twice", "the norm before attention also before the MLP", |draft| {
        for_pairs(draft, PAIRS, copy);
    }),
    row("norm-second-twice", "the norm before the MLP also before attention", |draft| {
        for_pairs(draft, PAIRS, |draft, first, second| copy(draft, second, first));
    }),
    row("qk-norm-swapped", "the norms of queries and keys swapped", |draft| {
        for_pairs(draft, &[("q_norm", "k_norm"), ("q_layernorm", "k_layernorm")], Draft::swap);
    }),
    row("qk-norm-weight-ignored", "norms of queries and keys without weight", |draft| {
        let one = if norms_add_one(draft) { 0.0 } else { 1.0 };
        draft.edit_all(|name| is_qk_norm(name) && name.ends_with("weight"), |values| values.fill(one));
    }),
    row("qk-norm-absent", "no norms of queries and keys", |draft| {
        for key in ["qk_layernorm", "use_qk_norm"] {
            if draft.config.get(key) == Some(&json!(true)) {
                draft.set(key, false);
            }
        }
    }),
];

const EPS: [&str; 5] = ["rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"];
/// Norms of one block that a port may mistake for each other.
const PAIRS: &[(&str, &str)] = &[
    ("input_layernorm", "post_attention_layernorm"),
    ("input_layernorm", "pre_feedforward_layernorm"),
    ("ln_1", "ln_2"),
    ("attn_norm", "mlp_norm"),
    ("ln_attn", "ln_mlp"),
    ("attention.output.LayerNorm", "output.LayerNorm"),
    ("sa_layer_norm", "output_layer_norm"),
];
const PAIRS_AFTER: &[(&str, &str)] = &[("post_attention_layernorm", "post_feedforward_layernorm")];

fn eps(draft: &mut Draft, eps: f64) {
    for key in EPS {
        draft.replace(key, eps);
    }
}

fn is_norm(name: &str) -> bool {
    let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
    let last = module.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    last.contains("norm") || last.starts_with("ln_") || module.contains("layernorm.norms.")
}

fn shift(draft: &mut Draft, by: f64) {
    draft.edit_all(
        |name| is_norm(name) && name.ends_with(".weight"),
        |values| {
            // In the weights' own dtype the sum would be rounded.
            values.scale(1.0);
            values.data.iter_mut().for_each(|value| *value += by);
        },
    );
}

fn for_pairs(draft: &mut Draft, pairs: &[(&str, &str)], edit: impl Fn(&mut Draft, &str, &str)) {
    // A block with four norms has a norm of its own before the MLP.
    let has_four = draft.names().iter().any(|name| name.contains("pre_feedforward_layernorm"));
    for (first, second) in pairs {
        if has_four && (*first, *second) == ("input_layernorm", "post_attention_layernorm") {
            continue;
        }
        for name in draft.names() {
            let at = format!(".{first}.");
            if let Some((before, after)) = name.split_once(&at) {
                let other = format!("{before}.{second}.{after}");
                if draft.has(&other) {
                    edit(draft, &name, &other);
                }
            }
        }
    }
}

fn copy(draft: &mut Draft, from: &str, to: &str) {
    if let Some(values) = draft.tensor(from).cloned()
        && draft.tensor(to).is_some_and(|known| known.shape == values.shape)
    {
        draft.put(to, values);
    }
}
