//! llama and similar architectures: granite, smollm3, olmo2, cohere.

use super::{Checkpoints, Variant};
use super::decoder::{ATTENTION, ATTENTION_BIASES, ENDS, GATED_MLP, GATED_MLP_BIASES, NORMS};

pub(crate) const LLAMA: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 288, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "hidden_act": "silu", "rms_norm_eps": 0.003, "max_position_embeddings": 128,
        "rope_theta": 5000.0, "rope_scaling": null,
        "attention_bias": false, "mlp_bias": false, "attention_dropout": 0.0,
        "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2
    }"#,
    tensors: &[ENDS, NORMS, ATTENTION, ATTENTION_BIASES, GATED_MLP, GATED_MLP_BIASES],
    variants: &[
        Variant::small("", "10 M parameters for a quick run: grouped-query attention, rms_norm_eps 1e-3", r#"{
            "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32,
            "max_position_embeddings": 2048, "rms_norm_eps": 0.001, "rope_theta": 10000.0
        }"#),
        Variant::small("tiny", "grouped-query attention, rope_theta 5000, rms_norm_eps 3e-3", "{}"),
        Variant::small("linear", "rope scaling `linear`, factor 4", r#"{
            "rope_scaling": { "type": "linear", "factor": 4.0 }
        }"#),
        Variant::small("dynamic", "rope scaling `dynamic`: rescaled past max_position_embeddings 32", r#"{
            "max_position_embeddings": 32, "rope_scaling": { "type": "dynamic", "factor": 2.0 }
        }"#),
        Variant::small("yarn", "rope scaling `yarn`, factor 4 from 32 positions", r#"{
            "rope_scaling": { "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32 }
        }"#),
        Variant::small("llama3", "rope scaling `llama3`, factor 8 from 16 positions", r#"{
            "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16
            }
        }"#),
        Variant::small("bias", "attention_bias, multi-query attention", r#"{
            "attention_bias": true, "num_key_value_heads": 1
        }"#),
        Variant::small("mlp-bias", "mlp_bias", r#"{ "mlp_bias": true }"#),
        Variant::small("tied", "tied head", r#"{ "tie_word_embeddings": true }"#),
        Variant::small("head-dim", "head_dim wider than hidden_size / num_attention_heads", r#"{ "head_dim": 24 }"#),
        Variant::bench("smollm2-135m", "the shape of SmolLM2-135M", r#"{
            "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100000.0,
            "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2
        }"#),
        Variant::bench("1b", "the shape of Llama-3.2-1B", r#"{
            "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
            "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192
            },
            "tie_word_embeddings": true, "bos_token_id": 128000, "eos_token_id": 128001
        }"#),
        Variant::bench("3b", "the shape of Llama-3.2-3B", r#"{
            "vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
            "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128,
            "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192
            },
            "tie_word_embeddings": true, "bos_token_id": 128000, "eos_token_id": 128001
        }"#),
    ],
};

pub(crate) const GRANITE: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["GraniteForCausalLM"],
        "vocab_size": 288, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "hidden_act": "silu", "rms_norm_eps": 0.003, "max_position_embeddings": 128,
        "rope_theta": 5000.0, "rope_scaling": null,
        "embedding_multiplier": 3.0, "attention_multiplier": 0.4, "residual_multiplier": 0.5, "logits_scaling": 2.5,
        "attention_bias": false, "mlp_bias": false, "attention_dropout": 0.0,
        "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2
    }"#,
    tensors: &[ENDS, NORMS, ATTENTION, ATTENTION_BIASES, GATED_MLP, GATED_MLP_BIASES],
    variants: &[
        Variant::small("", "four multipliers (embedding, attention, residual, logits), tied head", "{}"),
        Variant::small("bias", "attention_bias, mlp_bias, untied head", r#"{
            "attention_bias": true, "mlp_bias": true, "tie_word_embeddings": false
        }"#),
    ],
};

pub(crate) const SMOLLM3: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["SmolLM3ForCausalLM"],
        "vocab_size": 288, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "hidden_act": "silu", "rms_norm_eps": 0.003, "max_position_embeddings": 128,
        "rope_theta": 5000.0, "rope_scaling": null,
        "no_rope_layers": [1, 0, 1, 0], "no_rope_layer_interval": 2,
        "use_sliding_window": false, "sliding_window": null,
        "attention_bias": false, "mlp_bias": false, "attention_dropout": 0.0,
        "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0
    }"#,
    tensors: &[ENDS, NORMS, ATTENTION, ATTENTION_BIASES, GATED_MLP, GATED_MLP_BIASES],
    variants: &[
        Variant::small("", "every other layer without rope, tied head", "{}"),
        Variant::small("window", "window of 8 in the layers without rope, attention_bias, mlp_bias", r#"{
            "use_sliding_window": true, "sliding_window": 8, "attention_bias": true, "mlp_bias": true,
            "layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
        }"#),
        Variant::small("yarn", "rope scaling `yarn`, factor 4 from 32 positions, untied head", r#"{
            "rope_scaling": { "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32 },
            "tie_word_embeddings": false
        }"#),
    ],
};

pub(crate) const OLMO2: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["Olmo2ForCausalLM"],
        "vocab_size": 288, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "hidden_act": "silu", "rms_norm_eps": 0.003, "max_position_embeddings": 128,
        "rope_theta": 5000.0, "rope_scaling": null,
        "attention_bias": false, "attention_dropout": 0.0,
        "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0
    }"#,
    tensors: &[ENDS, ATTENTION, ATTENTION_BIASES, GATED_MLP, "
        model.layers.{num_hidden_layers}.self_attn.q_norm.weight            | num_attention_heads*head_dim | normal 1.5 0.3
        model.layers.{num_hidden_layers}.self_attn.k_norm.weight            | num_key_value_heads*head_dim | normal 1.5 0.3
        model.layers.{num_hidden_layers}.post_attention_layernorm.weight    | hidden_size                  | normal 0.8 0.2
        model.layers.{num_hidden_layers}.post_feedforward_layernorm.weight  | hidden_size                  | normal 0.8 0.2
    "],
    variants: &[
        Variant::small("", "norms after attention and MLP, norms over all heads of queries and keys", "{}"),
        Variant::small("bias", "attention_bias, tied head", r#"{
            "attention_bias": true, "tie_word_embeddings": true
        }"#),
    ],
};

pub(crate) const COHERE: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["CohereForCausalLM"],
        "vocab_size": 288, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "hidden_act": "silu", "layer_norm_eps": 0.003, "max_position_embeddings": 128,
        "rope_theta": 5000.0, "rope_scaling": null, "logit_scale": 0.4, "use_qk_norm": false,
        "attention_bias": false, "attention_dropout": 0.0,
        "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0
    }"#,
    tensors: &["
        model.layers.{num_hidden_layers}.input_layernorm.weight   | hidden_size                   | normal 1 0.2
        model.layers.{num_hidden_layers}.self_attn.q_norm.weight  | num_attention_heads, head_dim | normal 1.5 0.3 | use_qk_norm
        model.layers.{num_hidden_layers}.self_attn.k_norm.weight  | num_key_value_heads, head_dim | normal 1.5 0.3 | use_qk_norm
    ", ENDS, ATTENTION, ATTENTION_BIASES, GATED_MLP],
    variants: &[
        Variant::small("", "interleaved rope, attention and MLP side by side, logit_scale, layer norm without bias", "{}"),
        Variant::small("qk-norm", "use_qk_norm (a norm per head), attention_bias", r#"{
            "use_qk_norm": true, "attention_bias": true
        }"#),
    ],
};
