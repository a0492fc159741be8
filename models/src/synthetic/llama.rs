//! llama: grouped-query attention, every rope scaling, optional biases, tied or untied head.

use super::architecture::{Architecture, Variant};

pub(super) const LLAMA: Architecture = Architecture {
    model_type: "llama",
    config: r#"{
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 288, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "hidden_act": "silu", "rms_norm_eps": 0.003, "max_position_embeddings": 128,
        "rope_theta": 5000.0, "rope_scaling": null,
        "attention_bias": false, "mlp_bias": false, "attention_dropout": 0.0,
        "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2
    }"#,
    tensors: DECODER,
    variants: &[
        Variant::small(
            "",
            "10 M parameters for a quick run: grouped-query attention, rms_norm_eps 1e-3, untied head",
            r#"{
            "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32,
            "max_position_embeddings": 2048, "rms_norm_eps": 0.001, "rope_theta": 10000.0
        }"#,
        ),
        Variant::small(
            "tiny",
            "grouped-query attention, rope_theta 5000, rms_norm_eps 3e-3",
            "{}",
        ),
        Variant::small(
            "linear",
            "rope scaling `linear`, factor 4",
            r#"{
            "rope_scaling": { "type": "linear", "factor": 4.0 }
        }"#,
        ),
        Variant::small(
            "dynamic",
            "rope scaling `dynamic`: rescaled past max_position_embeddings 32",
            r#"{
            "max_position_embeddings": 32, "rope_scaling": { "type": "dynamic", "factor": 2.0 }
        }"#,
        ),
        Variant::small(
            "yarn",
            "rope scaling `yarn`, factor 4 from 32 positions",
            r#"{
            "rope_scaling": { "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32 }
        }"#,
        ),
        Variant::small(
            "llama3",
            "rope scaling `llama3`, factor 8 from 16 positions",
            r#"{
            "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16
            }
        }"#,
        ),
        Variant::small(
            "bias",
            "attention_bias, multi-query attention",
            r#"{
            "attention_bias": true, "num_key_value_heads": 1
        }"#,
        ),
        Variant::small("mlp-bias", "mlp_bias", r#"{ "mlp_bias": true }"#),
        Variant::small("tied", "tied head", r#"{ "tie_word_embeddings": true }"#),
        Variant::small(
            "head-dim",
            "head_dim wider than hidden_size / num_attention_heads",
            r#"{ "head_dim": 24 }"#,
        ),
        Variant::bench(
            "smollm2-135m",
            "the shape of SmolLM2-135M",
            r#"{
            "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100000.0,
            "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2
        }"#,
        ),
        Variant::bench(
            "1b",
            "the shape of Llama-3.2-1B",
            r#"{
            "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
            "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192
            },
            "tie_word_embeddings": true, "bos_token_id": 128000, "eos_token_id": 128001
        }"#,
        ),
        Variant::bench(
            "3b",
            "the shape of Llama-3.2-3B",
            r#"{
            "vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
            "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128,
            "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192
            },
            "tie_word_embeddings": true, "bos_token_id": 128000, "eos_token_id": 128001
        }"#,
        ),
    ],
};

/// The decoder that most architectures share: pre-norm, gated MLP, optional biases and per-head norms.
pub(super) const DECODER: &str = "
    model.embed_tokens.weight                                           | vocab_size, hidden_size                     | normal 0 0.3
    model.layers.{num_hidden_layers}.input_layernorm.weight             | hidden_size                                 | normal 1 0.2
    model.layers.{num_hidden_layers}.self_attn.q_proj.weight            | num_attention_heads*head_dim, hidden_size   | linear 1.5
    model.layers.{num_hidden_layers}.self_attn.k_proj.weight            | num_key_value_heads*head_dim, hidden_size   | linear 1.5
    model.layers.{num_hidden_layers}.self_attn.v_proj.weight            | num_key_value_heads*head_dim, hidden_size   | linear 1
    model.layers.{num_hidden_layers}.self_attn.o_proj.weight            | hidden_size, num_attention_heads*head_dim   | linear 1
    model.layers.{num_hidden_layers}.self_attn.q_proj.bias              | num_attention_heads*head_dim                | normal 0 0.5 | attention_bias
    model.layers.{num_hidden_layers}.self_attn.k_proj.bias              | num_key_value_heads*head_dim                | normal 0 0.5 | attention_bias
    model.layers.{num_hidden_layers}.self_attn.v_proj.bias              | num_key_value_heads*head_dim                | normal 0 0.3 | attention_bias
    model.layers.{num_hidden_layers}.self_attn.o_proj.bias              | hidden_size                                 | normal 0 0.3 | attention_bias
    model.layers.{num_hidden_layers}.post_attention_layernorm.weight    | hidden_size                                 | normal 1 0.2
    model.layers.{num_hidden_layers}.mlp.gate_proj.weight               | intermediate_size, hidden_size              | linear 1
    model.layers.{num_hidden_layers}.mlp.up_proj.weight                 | intermediate_size, hidden_size              | linear 1
    model.layers.{num_hidden_layers}.mlp.down_proj.weight               | hidden_size, intermediate_size              | linear 1.5
    model.layers.{num_hidden_layers}.mlp.gate_proj.bias                 | intermediate_size                           | normal 0 0.3 | mlp_bias
    model.layers.{num_hidden_layers}.mlp.up_proj.bias                   | intermediate_size                           | normal 0 0.3 | mlp_bias
    model.layers.{num_hidden_layers}.mlp.down_proj.bias                 | hidden_size                                 | normal 0 0.3 | mlp_bias
    model.norm.weight                                                   | hidden_size                                 | normal 1 0.2
    lm_head.weight                                                      | vocab_size, hidden_size                     | linear 2     | !tie_word_embeddings
";
