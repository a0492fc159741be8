//! gemma, gemma2 and gemma3_text: norms of `1 + weight`, a scaled embedding, soft caps, windows in some layers.

use super::{Checkpoints, Variant};
use super::decoder::{ATTENTION, ATTENTION_BIASES, GATED_MLP};

/// The embedding, which the model multiplies by `sqrt(hidden_size)`, and the final norm, whose weight enlarges the
/// logits of the tied head.
const ENDS: &str = "
    model.embed_tokens.weight                                           | vocab_size, hidden_size | normal 0 0.1
    model.norm.weight                                                   | hidden_size             | normal 1.5 0.3
";

const NORMS: &str = "
    model.layers.{num_hidden_layers}.input_layernorm.weight             | hidden_size             | normal 0 0.2
    model.layers.{num_hidden_layers}.post_attention_layernorm.weight    | hidden_size             | normal 0 0.2
";

const FEEDFORWARD_NORMS: &str = "
    model.layers.{num_hidden_layers}.pre_feedforward_layernorm.weight   | hidden_size             | normal 0 0.2
    model.layers.{num_hidden_layers}.post_feedforward_layernorm.weight  | hidden_size             | normal 0 0.2
";

pub(crate) const GEMMA: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["GemmaForCausalLM"],
        "vocab_size": 288, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 24,
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 0.003, "max_position_embeddings": 128, "rope_theta": 5000.0,
        "attention_bias": false, "attention_dropout": 0.0,
        "tie_word_embeddings": true, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1
    }"#,
    tensors: &[ENDS, NORMS, ATTENTION, ATTENTION_BIASES, GATED_MLP],
    variants: &[
        Variant::small("", "norms of 1 + weight, embedding scaled by sqrt(hidden_size), tanh GELU, multi-query", "{}"),
        Variant::small("bias", "attention_bias, grouped-query attention", r#"{
            "attention_bias": true, "num_key_value_heads": 2
        }"#),
    ],
};

pub(crate) const GEMMA2: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["Gemma2ForCausalLM"],
        "vocab_size": 288, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "query_pre_attn_scalar": 16,
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 0.003, "max_position_embeddings": 128, "rope_theta": 5000.0,
        "sliding_window": 8, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 2.5,
        "attention_bias": false, "attention_dropout": 0.0, "cache_implementation": "hybrid",
        "tie_word_embeddings": true, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1
    }"#,
    tensors: &[ENDS, NORMS, FEEDFORWARD_NORMS, ATTENTION, ATTENTION_BIASES, GATED_MLP],
    variants: &[
        Variant::small("", "soft caps of scores and logits, window of 8 in every other layer, four norms a block", "{}"),
        Variant::small("uncapped", "no soft caps, attention_bias, query_pre_attn_scalar 40", r#"{
            "attn_logit_softcapping": null, "final_logit_softcapping": null, "attention_bias": true,
            "query_pre_attn_scalar": 40
        }"#),
    ],
};

pub(crate) const GEMMA3_TEXT: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["Gemma3ForCausalLM"],
        "vocab_size": 288, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "query_pre_attn_scalar": 16,
        "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 0.003, "max_position_embeddings": 128,
        "rope_theta": 50000.0, "rope_local_base_freq": 500.0, "rope_scaling": null,
        "sliding_window": 8, "sliding_window_pattern": 2,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "attn_logit_softcapping": null, "final_logit_softcapping": null,
        "attention_bias": false, "attention_dropout": 0.0, "cache_implementation": "hybrid",
        "tie_word_embeddings": true, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1
    }"#,
    tensors: &[ENDS, NORMS, FEEDFORWARD_NORMS, ATTENTION, ATTENTION_BIASES, GATED_MLP, "
        model.layers.{num_hidden_layers}.self_attn.q_norm.weight  | head_dim  | normal 0.4 0.3
        model.layers.{num_hidden_layers}.self_attn.k_norm.weight  | head_dim  | normal 0.4 0.3
    "],
    variants: &[
        Variant::small("", "two rope bases, window of 8 in every other layer, per-head norms of 1 + weight", "{}"),
        Variant::small("linear", "rope scaling `linear`, factor 4, in the full layers only", r#"{
            "rope_scaling": { "rope_type": "linear", "factor": 4.0 }
        }"#),
        Variant::small("softcap", "soft cap of logits, attention_bias, multi-query", r#"{
            "final_logit_softcapping": 2.5, "attention_bias": true,
            "num_key_value_heads": 1
        }"#),
    ],
};
