//! Mistakes in rotary embeddings. A config may have both spellings, transformers 4's and 5's, and both are edited.

use serde_json::{Map, Value, json};

use super::super::draft::Draft;
use super::super::parts::{Part, heads, is_qk_norm, layers, slices};
use super::{Hypothesis, row};

pub(super) const ROWS: &[Hypothesis] = &[
    row("rope-base-10000", "a rotary base of 10000", |draft| set_base(draft, 10_000.0)),
    row("rope-base-10000-sliding", "a rotary base of 10000 in sliding layers", |draft| {
        set_sliding_base(draft, 10_000.0);
    }),
    row("rope-base-1000000", "a rotary base of 1000000", |draft| set_base(draft, 1_000_000.0)),
    row("rope-base-500000", "a rotary base of 500000", |draft| set_base(draft, 500_000.0)),
    row("rope-scaling-absent", "no rotary scaling", |draft| {
        let has_scaling = draft.config.get("rope_scaling").is_some_and(Value::is_object);
        if has_scaling {
            draft.set("rope_scaling", Value::Null);
        }
        each(draft, |rope| {
            if rope_type(rope) != "default" {
                let kept = ["rope_theta", "partial_rotary_factor"];
                rope.retain(|key, _| kept.contains(&key.as_str()));
                rope.insert("rope_type".into(), json!("default"));
            }
        });
    }),
    row("rope-factor-inverted", "the rotary scaling factor inverted", |draft| {
        each(draft, |rope| {
            invert(rope.get_mut("factor"));
            for key in ["short_factor", "long_factor"] {
                let Some(Value::Array(factors)) = rope.get_mut(key) else { continue };
                for factor in factors {
                    invert(Some(factor));
                }
            }
        });
    }),
    row("rope-attention-factor-1", "a rotary `attention_factor` of 1", |draft| {
        each(draft, |rope| {
            if ["yarn", "longrope", "su"].contains(&rope_type(rope)) {
                rope.insert("attention_factor".into(), json!(1.0));
            }
        });
    }),
    row("rope-factors-short", "the short factors at every length", |draft| {
        same_factors(draft, "short_factor");
    }),
    row("rope-factors-long", "the long factors at every length", |draft| same_factors(draft, "long_factor")),
    row("rope-yarn-not-truncated", "yarn bounds that are not rounded", |draft| {
        each(draft, |rope| {
            if rope_type(rope) == "yarn" {
                rope.insert("truncate".into(), json!(false));
            }
        });
    }),
    row("rope-treated-as-linear", "the rotary scaling treated as `linear`", |draft| {
        each(draft, |rope| {
            if let ("dynamic" | "yarn" | "llama3", Some(factor)) =
                (rope_type(rope), rope.get("factor").cloned())
            {
                let kept = ["rope_theta", "partial_rotary_factor"];
                rope.retain(|key, _| kept.contains(&key.as_str()));
                rope.insert("factor".into(), factor);
                rope.insert("rope_type".into(), json!("linear"));
            }
        });
    }),
    row("rope-one-base-full", "the rotary base of full layers in every layer", |draft| one_base(draft, true)),
    row("rope-one-base-sliding", "the rotary base of sliding layers in every layer", |draft| {
        one_base(draft, false);
    }),
    row("rope-whole-head", "the whole head rotated", |draft| partial(draft, Some(1.0))),
    row("rope-partial-default", "the architecture's default share of a head rotated", |draft| {
        partial(draft, None);
    }),
    row("rope-half-head", "half of the head rotated", |draft| partial(draft, Some(0.5))),
    row("rope-quarter-head", "a quarter of the head rotated", |draft| partial(draft, Some(0.25))),
    row("rope-in-every-layer", "rotation in every layer", |draft| {
        if draft.config.contains_key("no_rope_layers") {
            draft.set("no_rope_layers", vec![1; layers(draft)]);
        }
    }),
    row("rope-used-though-off", "`position_embedding_type` rope", |draft| {
        if draft.text("position_embedding_type") == Some("nope") {
            draft.set("position_embedding_type", "rope");
        }
    }),
    row("rope-in-the-other-layers", "rotation in the other layers", |draft| {
        if let Some(Value::Array(layers)) = draft.config.get_mut("no_rope_layers") {
            for rotates in layers {
                *rotates = json!(1 - rotates.as_i64().unwrap_or(0));
            }
        }
    }),
    row("rope-other-pairing", "the other pairing of rotated features (interleaved or halves)", |draft| {
        let is_interleaved = is_interleaved(draft);
        reorder(draft, |feature, half| {
            if is_interleaved {
                feature / 2 + half * (feature % 2)
            } else {
                2 * (feature % half) + feature / half
            }
        });
    }),
    row("rope-reversed", "rotation in the opposite direction", |draft| {
        // To exchange the two features of each pair is to turn the other way.
        let is_interleaved = is_interleaved(draft);
        reorder(
            draft,
            |feature, half| if is_interleaved { feature ^ 1 } else { (feature + half) % (2 * half) },
        );
    }),
    row("rope-last-features", "the last features of a head rotated, not the first", |draft| {
        let Some(sizes) = heads(draft) else { return };
        let kept = sizes.head_dim.saturating_sub(rotated(draft, sizes.head_dim));
        // The features that come first are rotated: those that should not be change places with those that should.
        reorder_heads(draft, |feature| (feature + kept) % sizes.head_dim);
    }),
    row("rope-frequencies-of-the-whole-head", "rotary frequencies of the whole head", |draft| {
        let Some(sizes) = heads(draft) else { return };
        let rotated = rotated(draft, sizes.head_dim);
        let theta = BASES.iter().find_map(|key| draft.number(key));
        if let Some(theta) = theta.filter(|_| rotated > 0 && rotated < sizes.head_dim) {
            set_base(draft, theta.powf(rotated as f64 / sizes.head_dim as f64));
        }
    }),
];

/// Whether the architecture rotates neighbours; most rotate feature `i` with feature `i + half`.
fn is_interleaved(draft: &Draft) -> bool {
    let model_types = ["cohere", "cohere2", "glm", "glm4", "helium", "gptj"];
    draft.text("model_type").is_some_and(|model_type| model_types.contains(&model_type))
}

/// Reorders the rotated features of every head of queries and keys; `from` gives the place of a feature's values before,
/// from its own and half the number of rotated features.
fn reorder(draft: &mut Draft, from: impl Fn(usize, usize) -> usize) {
    let Some(sizes) = heads(draft) else { return };
    let half = rotated(draft, sizes.head_dim) / 2;
    reorder_heads(draft, |feature| if feature < 2 * half { from(feature, half) } else { feature });
}

/// As [`reorder`], of all features.
fn reorder_heads(draft: &mut Draft, from: impl Fn(usize) -> usize) {
    let Some(sizes) = heads(draft) else { return };
    if BASES.iter().all(|key| draft.number(key).is_none()) && !draft.config.contains_key("rope_parameters") {
        return;
    }
    let order = |at: usize| at / sizes.head_dim * sizes.head_dim + from(at % sizes.head_dim);
    for slice in slices(draft, &[Part::Query, Part::Key]) {
        slice.reorder(draft, order);
    }
    // Norms of queries and keys lie between projection and rotation.
    draft.edit_all(is_qk_norm, |values| {
        let length = values.data.len();
        if length.is_multiple_of(sizes.head_dim) {
            values.data = (0..length).map(|at| values.data[order(at)]).collect();
        }
    });
}

const BASES: [&str; 3] = ["rope_theta", "rotary_emb_base", "global_rope_theta"];
const LOCAL_BASES: [&str; 2] = ["rope_local_base_freq", "local_rope_theta"];

fn rope_type(rope: &Map<String, Value>) -> &str {
    ["rope_type", "type"].iter().find_map(|key| rope.get(*key)?.as_str()).unwrap_or("default")
}

/// Every object that describes a rotary embedding.
fn each(draft: &mut Draft, edit: impl Fn(&mut Map<String, Value>)) {
    each_of(draft, |_| true, edit);
}

/// Those of the types of layers that are meant; the type is `None` where one object describes all layers.
fn each_of(
    draft: &mut Draft,
    is_meant: impl Fn(Option<&str>) -> bool,
    edit: impl Fn(&mut Map<String, Value>),
) {
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(Value::Object(rope)) = draft.config.get_mut(key) else { continue };
        if rope.values().any(Value::is_object) {
            let meant = rope.iter_mut().filter(|(kind, _)| is_meant(Some(kind)));
            meant.filter_map(|(_, rope)| rope.as_object_mut()).for_each(&edit);
        } else if is_meant(None) {
            edit(rope);
        }
    }
}

/// Sets the base of all layers, or of those without a window.
pub(in super::super) fn set_base(draft: &mut Draft, theta: f64) {
    for key in BASES {
        draft.replace(key, theta);
    }
    let is_full = |kind: Option<&str>| kind.is_none_or(|kind| kind == "full_attention");
    each_of(draft, is_full, |rope| replace(rope, theta));
}

fn set_sliding_base(draft: &mut Draft, theta: f64) {
    for key in LOCAL_BASES {
        draft.replace(key, theta);
    }
    each_of(draft, |kind| kind == Some("sliding_attention"), |rope| replace(rope, theta));
}

fn replace(rope: &mut Map<String, Value>, theta: f64) {
    if let Some(known) = rope.get_mut("rope_theta") {
        *known = json!(theta);
    }
}

/// Gives all layers the base of one of the two layer types.
fn one_base(draft: &mut Draft, is_full: bool) {
    let of = |keys: &[&str]| keys.iter().find_map(|key| draft.number(key));
    let (Some(full), Some(local)) = (of(&BASES), of(&LOCAL_BASES)) else { return };
    let theta = if is_full { full } else { local };
    for key in BASES.iter().chain(&LOCAL_BASES) {
        draft.replace(key, theta);
    }
    each(draft, |rope| replace(rope, theta));
}

fn invert(factor: Option<&mut Value>) {
    if let Some(factor) = factor
        && let Some(value) = factor.as_f64().filter(|value| value.abs() > 0.0)
    {
        *factor = json!(1.0 / value);
    }
}

fn same_factors(draft: &mut Draft, key: &str) {
    each(draft, |rope| {
        if let Some(factors) = rope.get(key).cloned() {
            for key in ["short_factor", "long_factor"] {
                rope.insert(key.into(), factors.clone());
            }
        }
    });
}

const SHARES: [&str; 2] = ["partial_rotary_factor", "rotary_pct"];

/// The number of rotated features of a head.
fn rotated(draft: &Draft, head_dim: usize) -> usize {
    (head_dim as f64 * share(draft).unwrap_or(1.0)) as usize
}

/// The share of a head that is rotated, as transformers 4 or 5 saves it.
fn share(draft: &Draft) -> Option<f64> {
    let nested = || {
        let mut keys =
            SHARES.iter().flat_map(|key| ["rope_parameters", "rope_scaling"].map(|rope| (rope, *key)));
        keys.find_map(|(rope, key)| draft.config.get(rope)?.get(key)?.as_f64())
    };
    SHARES.iter().find_map(|key| draft.number(key)).or_else(nested)
}

/// Sets the share of a head that is rotated, or leaves it to the architecture.
fn partial(draft: &mut Draft, share: Option<f64>) {
    if self::share(draft).is_none() {
        return;
    }
    let edit = |map: &mut Map<String, Value>| {
        for key in SHARES {
            match (map.contains_key(key), share) {
                (true, Some(share)) => drop(map.insert(key.into(), json!(share))),
                (true, None) => drop(map.shift_remove(key)),
                (false, _) => {}
            }
        }
    };
    edit(&mut draft.config);
    each(draft, edit);
}
