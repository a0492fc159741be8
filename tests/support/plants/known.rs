//! One bug in models of one text of each class found in candle's ports, with the claim that a test makes of it.

use candle_core::Tensor;
use serde_json::{Value, json};

use super::text::{interleave, round_positions, swap_norms};
use super::{Edit, Plant};
use crate::setting::Tensors;

/// A bug, the claim that a test makes of it, and the lengths of the sequences on which it shows.
pub(crate) struct Known {
    pub(crate) claim: &'static str,
    pub(crate) lengths: &'static [usize],
    pub(crate) plant: Plant,
}

/// Sequence lengths of a batch padded on the left: unequal, and longer than every sliding window (8).
pub(crate) const LENGTHS: [usize; 3] = [40, 31, 17];
/// Sequence length with positions above 256, which bf16 (8 significand bits) cannot represent.
pub(crate) const LONG: [usize; 1] = [300];

/// Each class of bug found in candle's ports.
pub(crate) fn known_positives() -> Vec<Known> {
    let attention = "model.layers.0.self_attn";
    let config = |checkpoint, edit, module| Plant::new(checkpoint, Edit::Config(edit), module);
    let known = |claim, plant| Known { claim, lengths: &LENGTHS, plant };
    let one_base = |config: &mut Value| {
        config["rope_local_base_freq"] = config["rope_theta"].clone();
        config.as_object_mut().unwrap().remove("rope_parameters");
    };
    let no_scaling = |config: &mut Value| {
        config["rope_scaling"] = Value::Null;
        config.as_object_mut().unwrap().remove("rope_parameters");
    };
    let unmasked = |tensors: &mut Tensors| {
        let ones = tensors["attention_mask"].ones_like().unwrap();
        tensors.insert("attention_mask".to_owned(), ones);
    };
    let counting = |tensors: &mut Tensors| {
        let positions = &tensors["position_ids"];
        let (batch, seq) = positions.dims2().unwrap();
        let all = Tensor::arange(0, seq as i64, positions.device()).unwrap();
        let all = all.broadcast_as((batch, seq)).unwrap().contiguous().unwrap();
        tensors.insert("position_ids".to_owned(), all);
    };
    vec![
        known(
            "a_wrong_epsilon",
            config(
                "mistral",
                |config| config["rms_norm_eps"] = json!(1e-6),
                "model.layers.0.input_layernorm",
            )
            .named(&["norm-eps-1e-6"]),
        ),
        known(
            "an_interleaved_rope",
            Plant::new("mistral", Edit::Weights(interleave), "model.layers.0.self_attn.q_proj")
                .named(&["rope-other-pairing"])
                .parts(&["rotation"]),
        ),
        Known {
            lengths: &LONG,
            ..known(
                "a_rope_table_in_bf16",
                Plant::new("llama:tiny", Edit::Inputs(round_positions), attention)
                    .named(&["rope-positions-bf16"])
                    .parts(&["rotation"]),
            )
        },
        known(
            "a_window_of_one_key_more",
            config("mistral", |config| config["sliding_window"] = json!(9), attention)
                .named(&["window-one-more"]),
        ),
        known(
            "a_window_of_one_key_less",
            config("mistral", |config| config["sliding_window"] = json!(7), attention)
                .named(&["window-one-less"]),
        ),
        known(
            "a_missing_scale_of_the_scores",
            config(
                "gemma2",
                |config| config["query_pre_attn_scalar"] = config["head_dim"].clone(),
                attention,
            )
            .named(&["scale-by-head-dim"]),
        ),
        // The scale is applied after `lm_head`, in no module of its own.
        known(
            "a_missing_scale_of_the_logits",
            config("granite", |config| config["logits_scaling"] = json!(1.0), "")
                .named(&["logits-scaling-1"]),
        ),
        known(
            "a_tanh_gelu_for_the_exact_one",
            config(
                "gpt_neox",
                |config| config["hidden_act"] = json!("gelu_pytorch_tanh"),
                "gpt_neox.layers.0.mlp.act",
            )
            .named(&["activation-gelu-tanh"]),
        ),
        known(
            "swapped_norms",
            Plant::new("mistral", Edit::Weights(swap_norms), "model.layers.0.input_layernorm")
                .named(&["norms-swapped"]),
        ),
        known(
            "a_batch_without_its_mask",
            Plant::new("mistral:full", Edit::Inputs(unmasked), attention).named(&["padding-attended"]),
        ),
        // Rope depends on distances only, so this needs learned positions. `wpe` gets a different input, so its caller diverges.
        known(
            "positions_that_count_padding",
            Plant::new("gpt2", Edit::Inputs(counting), "transformer").named(&["positions-count-padding"]),
        ),
        known(
            "a_wrongly_tied_head",
            config("starcoder2:untied", |config| config["tie_word_embeddings"] = json!(true), "lm_head")
                .named(&["head-tied"]),
        ),
        known(
            "a_missing_rope_scaling",
            config("llama:llama3", no_scaling, attention).named(&["rope-scaling-absent"]),
        ),
        known(
            "one_rope_base_for_all_layers",
            config("gemma3_text", one_base, attention).named(&["rope-one-base-full"]),
        ),
        known(
            "unread_biases",
            config(
                "llama:bias",
                |config| config["attention_bias"] = json!(false),
                "model.layers.0.self_attn.q_proj",
            )
            .named(&["bias-attention-absent"]),
        ),
    ]
}
