//! Mistakes in MLPs, biases and multipliers.

use serde_json::Value;

use super::super::draft::Draft;
use super::super::parts::{Block, Part, end_of, is_bias, slices};
use super::{Hypothesis, row};

pub(super) const ROWS: &[Hypothesis] = &[
    row("activation-gelu-tanh", "the activation `gelu_pytorch_tanh`", |draft| {
        activation(draft, "gelu_pytorch_tanh");
    }),
    row("activation-gelu", "the activation `gelu`", |draft| activation(draft, "gelu")),
    row("activation-silu", "the activation `silu`", |draft| activation(draft, "silu")),
    row("activation-relu", "the activation `relu`", |draft| activation(draft, "relu")),
    row("activation-quick-gelu", "the activation `quick_gelu`", |draft| activation(draft, "quick_gelu")),
    row("activation-tanh", "the activation `tanh`", |draft| activation(draft, "tanh")),
    row("gate-and-up-swapped", "gate and up projection swapped", |draft| {
        for name in draft.names() {
            for (gate, up) in [("gate_proj", "up_proj"), ("w1", "w3")] {
                if let Some((before, after)) = name.split_once(&format!(".{gate}.")) {
                    draft.swap(&name, &format!("{before}.{up}.{after}"));
                }
            }
            if name.contains(".gate_up_proj.") || name.contains(".Wi.") {
                draft.edit(&name, |values| {
                    let rows = values.shape[0];
                    values.rows_reordered((0..rows).map(|row| (row + rows / 2) % rows));
                });
            }
        }
    }),
    row("shared-expert-gate-absent", "no gate of the shared expert", |draft| {
        if !draft.names().iter().any(|name| name.ends_with(".shared_expert_gate.weight")) {
            return;
        }
        // A gate of 0 halves the expert, so twice the expert is one without a gate.
        draft.edit_all(|name| name.ends_with(".shared_expert_gate.weight"), |values| values.fill(0.0));
        let is_last = |name: &str| name.ends_with(".shared_expert.down_proj.weight");
        draft.edit_all(is_last, |values| values.data.iter_mut().for_each(|value| *value *= 2.0));
    }),
    row("shared-expert-absent", "no shared expert", |draft| {
        let is_last = |name: &str| {
            name.ends_with("down_proj.weight")
                && (name.contains(".shared_expert.") || name.contains(".shared_experts."))
        };
        draft.edit_all(is_last, |values| values.fill(0.0));
    }),
    row("bias-query-absent", "no bias of queries", |draft| no_bias_of(draft, &[Part::Query])),
    row("bias-key-absent", "no bias of keys", |draft| no_bias_of(draft, &[Part::Key])),
    row("bias-value-absent", "no bias of values", |draft| no_bias_of(draft, &[Part::Value])),
    row("bias-qkv-absent", "no biases of queries, keys and values", |draft| {
        no_bias_of(draft, &[Part::Query, Part::Key, Part::Value]);
    }),
    row("bias-attention-output-absent", "no bias after attention", |draft| {
        no_bias_after(draft, Block::Attention);
    }),
    row("bias-attention-absent", "no biases of attention", |draft| {
        no_bias_of(draft, &[Part::Query, Part::Key, Part::Value]);
        no_bias_after(draft, Block::Attention);
    }),
    row("bias-mlp-input-absent", "no bias at the MLP's input", no_bias_before_mlp),
    row("bias-gate-absent", "no bias of the gate projection", |draft| {
        draft.edit_all(|name| name.ends_with(".gate_proj.bias"), |values| values.fill(0.0));
    }),
    row("bias-up-absent", "no bias of the up projection", |draft| {
        draft.edit_all(|name| name.ends_with(".up_proj.bias"), |values| values.fill(0.0));
    }),
    row("bias-mlp-output-absent", "no bias after the MLP", |draft| no_bias_after(draft, Block::Mlp)),
    row("bias-mlp-absent", "no biases of the MLP", |draft| {
        no_bias_before_mlp(draft);
        no_bias_after(draft, Block::Mlp);
    }),
    row("bias-linear-absent", "no biases of attention and MLP", |draft| {
        no_bias_of(draft, &[Part::Query, Part::Key, Part::Value]);
        no_bias_before_mlp(draft);
        no_bias_after(draft, Block::Attention);
        no_bias_after(draft, Block::Mlp);
    }),
    row("bias-mixer-absent", "no biases of the mixer's projections", |draft| {
        let ends = ["mixer.in_proj.bias", "mixer.out_proj.bias"];
        draft.edit_all(|name| ends.iter().any(|end| name.ends_with(end)), |values| values.fill(0.0));
    }),
    row("bias-convolution-absent", "no biases of convolutions", |draft| {
        draft.edit_all(|name| is_bias(name) && name.contains(".conv."), |values| values.fill(0.0));
    }),
    row("embedding-multiplier-1", "`embedding_multiplier` 1", |draft| {
        draft.replace("embedding_multiplier", 1.0);
    }),
    row("residual-multiplier-1", "`residual_multiplier` 1", |draft| {
        draft.replace("residual_multiplier", 1.0);
    }),
    row("attention-multiplier-1", "`attention_multiplier` 1", |draft| {
        draft.replace("attention_multiplier", 1.0);
    }),
    row("layer-scalar-1", "`layer_scalar` 1", |draft| {
        draft.edit_all(|name| name.ends_with(".layer_scalar"), |values| values.fill(1.0));
    }),
    row("logits-scaling-1", "{=logits_scaling|logit_scale}", |draft| {
        draft.replace("logits_scaling", 1.0);
        draft.replace("logit_scale", 1.0);
    }),
    row("logit-cap-absent", "no soft cap of logits", |draft| {
        draft.replace("final_logit_softcapping", Value::Null);
    }),
    row("logit-cap-30", "`final_logit_softcapping` 30", |draft| {
        if draft.number("final_logit_softcapping").is_some() {
            draft.set("final_logit_softcapping", 30.0);
        }
    }),
    row("probabilities", "probabilities in place of logits", |draft| {
        draft.change_outputs(|row| {
            let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            for value in &mut *row {
                *value = (*value - largest).exp();
            }
            let sum: f64 = row.iter().sum();
            for value in row {
                *value /= sum;
            }
        });
    }),
    row("log-probabilities", "logarithms of probabilities in place of logits", |draft| {
        draft.change_outputs(|row| {
            let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = row.iter().map(|value| (value - largest).exp()).sum();
            for value in row {
                *value -= largest + sum.ln();
            }
        });
    }),
];

fn activation(draft: &mut Draft, name: &str) {
    let same = |known: &str| {
        let tanh = ["gelu_pytorch_tanh", "gelu_new", "gelu_python_tanh", "gelu_accurate"];
        known == name || tanh.contains(&known) && tanh.contains(&name)
    };
    for key in ["hidden_act", "hidden_activation", "activation_function", "activation"] {
        if draft.text(key).is_some_and(|known| !same(known)) {
            draft.set(key, name);
        }
    }
}

fn no_bias_of(draft: &mut Draft, parts: &[Part]) {
    for slice in slices(draft, parts).into_iter().filter(|slice| is_bias(&slice.name)) {
        slice.clear(draft);
    }
}

fn no_bias_after(draft: &mut Draft, block: Block) {
    let is_it = |name: &str| is_bias(name) && end_of(name).is_some_and(|(_, known)| known == block);
    draft.edit_all(is_it, |values| values.fill(0.0));
}

fn no_bias_before_mlp(draft: &mut Draft) {
    let modules = ["gate_proj", "up_proj", "gate_up_proj", "c_fc", "fc1", "Wi", "dense_h_to_4h", "lin1"];
    let is_it = |name: &str| {
        let Some(module) = name.strip_suffix(".bias") else { return false };
        modules.iter().any(|known| module.ends_with(&format!(".{known}")))
            || module.ends_with("intermediate.dense")
    };
    draft.edit_all(is_it, |values| values.fill(0.0));
}
