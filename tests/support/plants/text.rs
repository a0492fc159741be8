//! Bugs in models of one text, of each class found in candle's ports and forks.

use candle_core::{DType, Tensor};
use serde_json::{Value, json};

use super::{Edit, Plant};
use crate::setting::Tensors;

/// A key of the config that is read as another value.
fn key(
    checkpoint: &'static str,
    key: &'static str,
    value: Value,
    module: &str,
    hypotheses: &'static [&'static str],
) -> Plant {
    Plant::new(checkpoint, Edit::Key(key, value), module).named(hypotheses)
}

/// A wrong epsilon of norms.
pub(crate) fn epsilons() -> Vec<Plant> {
    vec![
        key("llama:tiny", "rms_norm_eps", json!(1e-6), "model.layers.0.input_layernorm", &["norm-eps-1e-6"]),
        key("gpt2", "layer_norm_epsilon", json!(1e-5), "transformer.h.0.ln_1", &["norm-eps-1e-5"]),
        key("bert", "layer_norm_eps", json!(1e-12), "bert.embeddings.LayerNorm", &["norm-eps-1e-12"]),
        key("olmo2", "rms_norm_eps", json!(1e-6), "model.layers.0.self_attn.q_norm", &["norm-eps-1e-6"]),
    ]
}

/// Wrong rotations.
pub(crate) fn rotations() -> Vec<Plant> {
    let rope = "model.layers.0.self_attn.rope_q";
    let scaled = ["llama:linear", "llama:dynamic", "llama:yarn", "llama:llama3"];
    let mut plants: Vec<Plant> = scaled
        .into_iter()
        .map(|checkpoint| key(checkpoint, "rope_scaling", Value::Null, rope, &["rope-scaling-absent"]))
        .collect();
    plants.extend([
        key("llama:tiny", "rope_theta", json!(10_000.0), rope, &["rope-base-10000"]),
        key("phi", "partial_rotary_factor", json!(1.0), rope, &["rope-whole-head"]),
        // One rope base for all layers.
        key("gemma3_text", "rope_local_base_freq", json!(50_000.0), rope, &["rope-one-base-full"]),
        key(
            "gemma3_text",
            "rope_theta",
            json!(500.0),
            "model.layers.1.self_attn.rope_q",
            &["rope-one-base-sliding"],
        ),
        key("gpt_neox", "rotary_pct", json!(0.5), "gpt_neox.layers.0.attention.rope_q", &["rope-half-head"]),
    ]);
    plants
}

/// Wrong sliding windows.
pub(crate) fn windows() -> Vec<Plant> {
    let mask = "model.layers.0.self_attn.mask";
    vec![
        key("mistral", "sliding_window", json!(7), mask, &["window-one-less"]),
        key("mistral", "sliding_window", json!(9), mask, &["window-one-more"]),
        key("mistral", "sliding_window", Value::Null, mask, &["window-absent", "window-default"]),
        key("qwen2:window", "max_window_layers", json!(3), "model.layers.2.self_attn.mask", &[]),
        key(
            "qwen2:window-off",
            "use_sliding_window",
            json!(true),
            "model.layers.2.self_attn.mask",
            &["window-used-though-off"],
        ),
    ]
}

/// Wrong scales and soft caps of scores.
pub(crate) fn scores() -> Vec<Plant> {
    vec![
        key(
            "granite",
            "attention_multiplier",
            json!(0.25),
            "model.layers.0.self_attn.scores",
            &["fitted-scores", "scale-by-head-dim"],
        ),
        key(
            "gemma2",
            "attn_logit_softcapping",
            json!(50.0),
            "model.layers.0.self_attn.scores",
            &["score-cap-50"],
        ),
        key(
            "gemma2",
            "query_pre_attn_scalar",
            json!(24),
            "model.layers.0.self_attn.scores",
            &["scale-by-head-dim"],
        ),
        key(
            "gpt2",
            "scale_attn_weights",
            json!(false),
            "transformer.h.0.attn.scores",
            &["scale-toggled", "scale-absent"],
        ),
        key(
            "gpt2",
            "scale_attn_by_inverse_layer_idx",
            json!(true),
            "transformer.h.1.attn.scores",
            &["scale-by-layer-toggled"],
        ),
        // Layer 1 has no rotation on one side, so the scores are the first step that both sides have.
        key("smollm3", "no_rope_layers", json!([1, 1, 1, 0]), "model.layers.1.self_attn.scores", &[])
            .parts(&["rotation"]),
    ]
}

/// Wrong activations.
pub(crate) fn activations() -> Vec<Plant> {
    vec![
        key("llama:tiny", "hidden_act", json!("gelu"), "model.layers.0.mlp.act_fn", &["activation-gelu"]),
        key("starcoder2", "hidden_act", json!("gelu"), "model.layers.0.mlp.act", &["activation-gelu"]),
        key("gpt2", "activation_function", json!("gelu"), "transformer.h.0.mlp.act", &["activation-gelu"]),
    ]
}

/// Multipliers that are missing, soft caps, and the order of the residual additions.
pub(crate) fn multipliers() -> Vec<Plant> {
    let first = "model.layers.0";
    let logits = |checkpoint, name, value, hypotheses| {
        key(checkpoint, name, json!(value), "(root)", hypotheses).between(Some("lm_head"), None)
    };
    vec![
        key("granite", "embedding_multiplier", json!(1.0), "model", &["embedding-multiplier-1"])
            .between(Some("model.embed_tokens"), Some(first)),
        key("granite", "residual_multiplier", json!(1.0), first, &["residual-multiplier-1"])
            .between(Some("model.layers.0.self_attn"), Some("model.layers.0.post_attention_layernorm")),
        logits("granite", "logits_scaling", 1.0, &["logits-scaling-1"]),
        logits("gemma2", "final_logit_softcapping", 30.0, &["logit-cap-30"]),
        logits("cohere", "logit_scale", 1.0, &["logits-scaling-1"]),
        key(
            "gpt_neox",
            "use_parallel_residual",
            json!(false),
            "gpt_neox.layers.0",
            &["residual-other-order"],
        )
        .between(Some("gpt_neox.layers.0.attention"), Some("gpt_neox.layers.0.post_attention_layernorm")),
    ]
}

/// Wrong choices of experts.
pub(crate) fn experts() -> Vec<Plant> {
    vec![
        key(
            "mixtral",
            "num_experts_per_tok",
            json!(1),
            "model.layers.0.mlp.experts",
            &["router-one-expert-less"],
        ),
        key(
            "qwen3_moe",
            "norm_topk_prob",
            json!(false),
            "model.layers.0.mlp.experts",
            &["router-normalised-or-not", "router-normalisation"],
        )
        .between(Some("model.layers.0.mlp.experts.5.down_proj"), None),
    ]
}

/// One tensor that is read wrongly: the module is the one that holds it.
fn tensor(checkpoint: &'static str, name: &str, edit: fn(&Tensor) -> Tensor) -> Plant {
    let (module, _) = name.rsplit_once('.').unwrap();
    Plant::new(checkpoint, Edit::Tensor(name.to_owned(), edit), module)
}

fn zeros(tensor: &Tensor) -> Tensor {
    tensor.zeros_like().unwrap()
}

fn swap(tensors: &mut Tensors, a: &str, b: &str) {
    if let (Some(one), Some(other)) = (tensors.get(a).cloned(), tensors.get(b).cloned()) {
        tensors.insert(a.to_owned(), other);
        tensors.insert(b.to_owned(), one);
    }
}

fn tie(tensors: &mut Tensors) {
    let embedding = tensors["model.embed_tokens.weight"].clone();
    tensors.insert("lm_head.weight".to_owned(), embedding);
}

/// Weights that are not read, or read as others.
pub(crate) fn weights() -> Vec<Plant> {
    let swapped = |tensors: &mut Tensors| {
        let [a, b] = ["input_layernorm", "post_attention_layernorm"]
            .map(|name| format!("model.layers.1.{name}.weight"));
        swap(tensors, &a, &b);
    };
    // Key heads in another order: each query attends to another key head.
    let reversed = |keys: &Tensor| {
        let heads = keys.chunk(2, 0).unwrap();
        Tensor::cat(&[&heads[1], &heads[0]], 0).unwrap()
    };
    let rounded = |norm: &Tensor| norm.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
    let mut plants: Vec<Plant> = ["q_proj", "k_proj", "v_proj", "o_proj"]
        .into_iter()
        .map(|module| tensor("llama:bias", &format!("model.layers.2.self_attn.{module}.bias"), zeros))
        .collect();
    plants.extend([
        Plant::new("llama:tiny", Edit::Weights(swapped), "model.layers.1.input_layernorm").parts(&[
            "MLP",
            "values or output projection",
            "scores",
        ]),
        tensor("llama:mlp-bias", "model.layers.1.mlp.up_proj.bias", zeros),
        tensor("qwen3", "model.layers.3.self_attn.k_norm.weight", zeros),
        Plant::new("llama:tiny", Edit::Weights(tie), "lm_head").named(&["head-tied"]),
        tensor("llama:tiny", "model.layers.0.self_attn.k_proj.weight", reversed),
        tensor("llama:tiny", "model.norm.weight", rounded),
    ]);
    plants
}

/// Reordering the rows of `q_proj` and `k_proj` makes the half-split rotation equal to an interleaved one.
pub(super) fn interleave(tensors: &mut Tensors) {
    for (name, tensor) in tensors.iter_mut() {
        if name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight") {
            let (rows, inner) = tensor.dims2().unwrap();
            let pairs = tensor.reshape((rows / 16, 8, 2, inner)).unwrap().transpose(1, 2).unwrap();
            *tensor = pairs.contiguous().unwrap().reshape((rows, inner)).unwrap();
        }
    }
}

/// The other pairing of rotated features.
pub(crate) fn pairings() -> Vec<Plant> {
    let module = "model.layers.0.self_attn.q_proj";
    vec![
        Plant::new("mistral", Edit::Weights(interleave), module)
            .named(&["rope-other-pairing"])
            .parts(&["rotation"]),
    ]
}

/// Padding that is attended to.
pub(crate) fn padding() -> Vec<Plant> {
    let unmasked = |tensors: &mut Tensors| {
        let ones = tensors["attention_mask"].ones_like().unwrap();
        tensors.insert("attention_mask".to_owned(), ones);
    };
    vec![
        Plant::new("llama:tiny", Edit::Inputs(unmasked), "model.layers.0.self_attn.mask")
            .named(&["padding-attended"]),
    ]
}

pub(super) fn swap_norms(tensors: &mut Tensors) {
    let norms: Vec<String> =
        tensors.keys().filter(|name| name.contains("input_layernorm")).cloned().collect();
    for first in norms {
        swap(tensors, &first, &first.replace("input_layernorm", "post_attention_layernorm"));
    }
}

/// Positions rounded to bf16, as a rope table built in bf16 does: its 8 significand bits represent integers exactly up to 256.
pub(super) fn round_positions(tensors: &mut Tensors) {
    let rounded = tensors["position_ids"].to_dtype(DType::F64).unwrap().to_dtype(DType::BF16).unwrap();
    let rounded = rounded.to_dtype(DType::F64).unwrap().to_dtype(DType::I64).unwrap();
    tensors.insert("position_ids".to_owned(), rounded);
}

/// Multiplies a tensor by a factor, in float64.
fn times(tensor: &Tensor, factor: f64) -> Tensor {
    (tensor.to_dtype(DType::F64).unwrap() * factor).unwrap()
}

/// Multiplies the tensors whose names end in `end` by a factor, in float64.
fn times_each(tensors: &mut Tensors, end: &str, factor: f64) {
    for (_, tensor) in tensors.iter_mut().filter(|(name, _)| name.ends_with(end)) {
        *tensor = times(tensor, factor);
    }
}

/// Mistakes that no row of the diagnosis's table makes.
pub(crate) fn outside_the_table() -> Vec<Plant> {
    let more = |weight: &Tensor| times(weight, 1.3);
    let reversed = |weight: &Tensor| {
        let reversed: Vec<u32> = (0..weight.dim(0).unwrap() as u32).rev().collect();
        weight.index_select(&Tensor::new(reversed, weight.device()).unwrap(), 0).unwrap()
    };
    vec![
        tensor("llama:tiny", "model.layers.1.mlp.up_proj.weight", more).parts(&["MLP"]),
        tensor("llama:tiny", "model.layers.2.self_attn.v_proj.weight", more)
            .parts(&["values or output projection"]),
        tensor("llama:tiny", "model.layers.0.self_attn.k_proj.weight", more).parts(&["scores"]),
        tensor("gemma3_text", "model.norm.weight", reversed).parts(&["embedding, norms and head"]),
        tensor("mistral", "lm_head.weight", |head| head.abs().unwrap()).parts(&["embedding, norms and head"]),
    ]
}

/// Factors that no row of the table has, and the factor in the words of the diagnosis.
pub(crate) fn factors() -> Vec<(Plant, &'static str)> {
    let scaled = |checkpoint, edit, module: &str, knob| {
        Plant::new(checkpoint, Edit::Weights(edit), module).named(knob)
    };
    let attention = "model.layers.0.self_attn";
    vec![
        // 1.37 is no simple expression of the config's numbers.
        (
            scaled(
                "mistral",
                |tensors| times_each(tensors, "o_proj.weight", 1.37),
                &format!("{attention}.o_proj"),
                &["fitted-attention-output"],
            ),
            "1.370000",
        ),
        (
            scaled(
                "mistral",
                |tensors| times_each(tensors, "lm_head.weight", 0.81),
                "lm_head",
                &["fitted-logits"],
            ),
            "0.810000",
        ),
        (
            scaled(
                "llama:tiny",
                |tensors| times_each(tensors, "q_proj.weight", 0.6),
                &format!("{attention}.q_proj"),
                &["fitted-scores"],
            ),
            "0.600000",
        ),
    ]
}

/// Several rows of the table at once, by checkpoint.
pub(crate) const SEVERAL: &[(&str, &[&str])] = &[
    ("gemma2", &["window-one-more", "window-in-every-layer"]),
    ("mistral", &["window-one-more", "rope-base-10000"]),
    ("granite:bias", &["bias-linear-absent", "embedding-multiplier-1", "logits-scaling-1"]),
    ("llama:bias", &["bias-attention-absent", "norm-eps-1e-6"]),
    ("gpt2", &["activation-gelu", "scale-toggled"]),
];

/// Every bug whose first diverging module is known, except those of [`known_positives`](super::known::known_positives).
pub(crate) fn localised() -> Vec<Plant> {
    [
        epsilons(),
        rotations(),
        windows(),
        padding(),
        scores(),
        activations(),
        multipliers(),
        experts(),
        weights(),
        pairings(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
