//! qwen2, qwen3 and qwen3_moe: windows in the layers from some index on, queries and keys with biases or norms,
//! experts.

use super::{Checkpoints, Variant};
use super::decoder::{ATTENTION, ATTENTION_BIASES, ENDS, GATED_MLP, HEAD_NORMS, NORMS};

pub(crate) const QWEN2: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": 288, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "hidden_act": "silu", "rms_norm_eps": 0.003, "max_position_embeddings": 128,
        "rope_theta": 5000.0, "rope_scaling": null,
        "use_sliding_window": false, "sliding_window": 128, "max_window_layers": 2, "attention_dropout": 0.0,
        "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2
    }"#,
    tensors: &[ENDS, NORMS, ATTENTION, GATED_MLP, "
        model.layers.{num_hidden_layers}.self_attn.q_proj.bias  | num_attention_heads*head_dim | normal 0 0.5
        model.layers.{num_hidden_layers}.self_attn.k_proj.bias  | num_key_value_heads*head_dim | normal 0 0.5
        model.layers.{num_hidden_layers}.self_attn.v_proj.bias  | num_key_value_heads*head_dim | normal 0 0.3
    "],
    variants: &[
        Variant::small("", "biased queries, keys and values", "{}"),
        Variant::small("window", "window of 8 from layer max_window_layers on", r#"{
            "use_sliding_window": true, "sliding_window": 8
        }"#),
        Variant::small("window-off", "a window of 8 that use_sliding_window switches off", r#"{ "sliding_window": 8 }"#),
        Variant::small("tied", "tied head, rope scaling `yarn`, factor 4 from 32 positions", r#"{
            "tie_word_embeddings": true,
            "rope_scaling": { "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32 }
        }"#),
    ],
};

pub(crate) const QWEN3: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 288, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24,
        "hidden_act": "silu", "rms_norm_eps": 0.003, "max_position_embeddings": 128,
        "rope_theta": 5000.0, "rope_scaling": null,
        "use_sliding_window": false, "sliding_window": 128, "max_window_layers": 2,
        "attention_bias": false, "attention_dropout": 0.0,
        "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2
    }"#,
    tensors: &[ENDS, NORMS, ATTENTION, ATTENTION_BIASES, HEAD_NORMS, GATED_MLP],
    variants: &[
        Variant::small("", "per-head norms of queries and keys, wide head_dim, tied head", "{}"),
        Variant::small("window", "window of 8 from layer max_window_layers on, untied head", r#"{
            "use_sliding_window": true, "sliding_window": 8, "tie_word_embeddings": false
        }"#),
        Variant::small("bias", "attention_bias, rope scaling `yarn`, factor 4 from 32 positions", r#"{
            "attention_bias": true,
            "rope_scaling": { "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32 }
        }"#),
    ],
};

pub(crate) const QWEN3_MOE: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["Qwen3MoeForCausalLM"],
        "vocab_size": 288, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24,
        "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": true,
        "decoder_sparse_step": 1, "mlp_only_layers": [1],
        "hidden_act": "silu", "rms_norm_eps": 0.003, "max_position_embeddings": 128,
        "rope_theta": 5000.0, "rope_scaling": null,
        "use_sliding_window": false, "sliding_window": null, "max_window_layers": 4,
        "attention_bias": false, "attention_dropout": 0.0, "output_router_logits": false,
        "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2
    }"#,
    tensors: &[ENDS, NORMS, ATTENTION, ATTENTION_BIASES, HEAD_NORMS, "
        model.layers.{num_hidden_layers}.mlp.gate_proj.weight                        | intermediate_size, hidden_size     | linear 1   | layer in mlp_only_layers
        model.layers.{num_hidden_layers}.mlp.up_proj.weight                          | intermediate_size, hidden_size     | linear 1   | layer in mlp_only_layers
        model.layers.{num_hidden_layers}.mlp.down_proj.weight                        | hidden_size, intermediate_size     | linear 1.5 | layer in mlp_only_layers
        model.layers.{num_hidden_layers}.mlp.gate.weight                             | num_experts, hidden_size           | linear 2   | layer not in mlp_only_layers
        model.layers.{num_hidden_layers}.mlp.experts.{num_experts}.gate_proj.weight  | moe_intermediate_size, hidden_size | linear 1   | layer not in mlp_only_layers
        model.layers.{num_hidden_layers}.mlp.experts.{num_experts}.up_proj.weight    | moe_intermediate_size, hidden_size | linear 1   | layer not in mlp_only_layers
        model.layers.{num_hidden_layers}.mlp.experts.{num_experts}.down_proj.weight  | hidden_size, moe_intermediate_size | linear 1.5 | layer not in mlp_only_layers
    "],
    variants: &[
        Variant::small("", "two of six experts, normalised, a dense layer between", "{}"),
        Variant::small("raw-topk", "norm_topk_prob off, every layer sparse, attention_bias", r#"{
            "norm_topk_prob": false, "mlp_only_layers": [], "attention_bias": true
        }"#),
    ],
};
