//! phi, phi3 and stablelm: rope over part of a head, fused projections, long rope.

use super::{Checkpoints, Variant};
use super::decoder::{ATTENTION, ENDS, GATED_MLP, NORMS};

pub(crate) const PHI: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["PhiForCausalLM"],
        "vocab_size": 288, "hidden_size": 64, "intermediate_size": 144, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "partial_rotary_factor": 0.5,
        "hidden_act": "gelu_new", "layer_norm_eps": 0.003, "max_position_embeddings": 128,
        "rope_theta": 5000.0, "rope_scaling": null, "qk_layernorm": false,
        "attention_dropout": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
        "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": null
    }"#,
    tensors: &["
        model.embed_tokens.weight                                    | vocab_size, hidden_size                   | normal 0 0.3
        model.layers.{num_hidden_layers}.input_layernorm.weight      | hidden_size                               | normal 1 0.2
        model.layers.{num_hidden_layers}.input_layernorm.bias        | hidden_size                               | normal 0 0.2
        model.layers.{num_hidden_layers}.self_attn.q_proj.weight     | num_attention_heads*head_dim, hidden_size | linear 1.5
        model.layers.{num_hidden_layers}.self_attn.k_proj.weight     | num_key_value_heads*head_dim, hidden_size | linear 1.5
        model.layers.{num_hidden_layers}.self_attn.v_proj.weight     | num_key_value_heads*head_dim, hidden_size | linear 1
        model.layers.{num_hidden_layers}.self_attn.dense.weight      | hidden_size, num_attention_heads*head_dim | linear 1
        model.layers.{num_hidden_layers}.self_attn.q_proj.bias       | num_attention_heads*head_dim              | normal 0 0.5
        model.layers.{num_hidden_layers}.self_attn.k_proj.bias       | num_key_value_heads*head_dim              | normal 0 0.5
        model.layers.{num_hidden_layers}.self_attn.v_proj.bias       | num_key_value_heads*head_dim              | normal 0 0.3
        model.layers.{num_hidden_layers}.self_attn.dense.bias        | hidden_size                               | normal 0 0.3
        model.layers.{num_hidden_layers}.self_attn.q_layernorm.weight | head_dim                                 | normal 1.5 0.3 | qk_layernorm
        model.layers.{num_hidden_layers}.self_attn.q_layernorm.bias  | head_dim                                  | normal 0 0.2   | qk_layernorm
        model.layers.{num_hidden_layers}.self_attn.k_layernorm.weight | head_dim                                 | normal 1.5 0.3 | qk_layernorm
        model.layers.{num_hidden_layers}.self_attn.k_layernorm.bias  | head_dim                                  | normal 0 0.2   | qk_layernorm
        model.layers.{num_hidden_layers}.mlp.fc1.weight              | intermediate_size, hidden_size            | linear 1.5
        model.layers.{num_hidden_layers}.mlp.fc1.bias                | intermediate_size                         | normal 0 0.3
        model.layers.{num_hidden_layers}.mlp.fc2.weight              | hidden_size, intermediate_size            | linear 1.2
        model.layers.{num_hidden_layers}.mlp.fc2.bias                | hidden_size                               | normal 0 0.3
        model.final_layernorm.weight                                 | hidden_size                               | normal 1 0.2
        model.final_layernorm.bias                                   | hidden_size                               | normal 0 0.2
        lm_head.weight                                               | vocab_size, hidden_size                   | linear 2
        lm_head.bias                                                 | vocab_size                                | normal 0 0.5
    "],
    variants: &[
        Variant::small("", "rope over half a head, attention and MLP side by side, biases to the head, gelu_new", "{}"),
        Variant::small("qk-norm", "qk_layernorm, rope scaling `linear`, factor 4, multi-query", r#"{
            "qk_layernorm": true, "num_key_value_heads": 1, "rope_scaling": { "type": "linear", "factor": 4.0 }
        }"#),
    ],
};

pub(crate) const PHI3: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["Phi3ForCausalLM"],
        "vocab_size": 288, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "hidden_act": "silu", "rms_norm_eps": 0.003,
        "max_position_embeddings": 128, "original_max_position_embeddings": 128,
        "rope_theta": 5000.0, "rope_scaling": null, "sliding_window": null,
        "attention_bias": false, "attention_dropout": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
        "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0
    }"#,
    tensors: &[ENDS, NORMS, "
        model.layers.{num_hidden_layers}.self_attn.qkv_proj.weight  | num_attention_heads*head_dim+2*num_key_value_heads*head_dim, hidden_size | linear 1.5
        model.layers.{num_hidden_layers}.self_attn.o_proj.weight    | hidden_size, num_attention_heads*head_dim                                | linear 1
        model.layers.{num_hidden_layers}.mlp.gate_up_proj.weight    | 2*intermediate_size, hidden_size                                         | linear 1
        model.layers.{num_hidden_layers}.mlp.down_proj.weight       | hidden_size, intermediate_size                                           | linear 1.5
    "],
    variants: &[
        Variant::small("", "fused qkv and gate-up projections, window of 8", r#"{ "sliding_window": 8 }"#),
        Variant::small("longrope", "rope scaling `longrope`: the long factors past 32 positions", r#"{
            "original_max_position_embeddings": 32,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0],
                "long_factor": [1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]
            }
        }"#),
        Variant::small("longrope-short", "rope scaling `longrope`: the short factors up to 96 positions", r#"{
            "max_position_embeddings": 384, "original_max_position_embeddings": 96,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0],
                "long_factor": [1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]
            }
        }"#),
        Variant::small("su", "rope scaling under its older name `su`, which 5.0 and later refuse", r#"{
            "original_max_position_embeddings": 32,
            "rope_scaling": {
                "type": "su",
                "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0],
                "long_factor": [1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]
            }
        }"#),
        Variant::small("partial", "rope over three quarters of a head, tied head", r#"{
            "partial_rotary_factor": 0.75, "tie_word_embeddings": true
        }"#),
    ],
};

pub(crate) const STABLELM: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["StableLmForCausalLM"],
        "vocab_size": 288, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "partial_rotary_factor": 0.25,
        "hidden_act": "silu", "layer_norm_eps": 0.003, "max_position_embeddings": 128,
        "rope_theta": 50.0, "rope_scaling": null,
        "use_qkv_bias": true, "qk_layernorm": false, "use_parallel_residual": false,
        "attention_dropout": 0.0, "hidden_dropout": 0.0,
        "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": null
    }"#,
    tensors: &[ENDS, ATTENTION, GATED_MLP, "
        model.norm.bias                                                                            | hidden_size                  | normal 0 0.2
        model.layers.{num_hidden_layers}.input_layernorm.weight                                    | hidden_size                  | normal 1 0.2
        model.layers.{num_hidden_layers}.input_layernorm.bias                                      | hidden_size                  | normal 0 0.2
        model.layers.{num_hidden_layers}.post_attention_layernorm.weight                           | hidden_size                  | normal 1 0.2   | !use_parallel_residual
        model.layers.{num_hidden_layers}.post_attention_layernorm.bias                             | hidden_size                  | normal 0 0.2   | !use_parallel_residual
        model.layers.{num_hidden_layers}.self_attn.q_proj.bias                                     | num_attention_heads*head_dim | normal 0 0.5   | use_qkv_bias
        model.layers.{num_hidden_layers}.self_attn.k_proj.bias                                     | num_key_value_heads*head_dim | normal 0 0.5   | use_qkv_bias
        model.layers.{num_hidden_layers}.self_attn.v_proj.bias                                     | num_key_value_heads*head_dim | normal 0 0.3   | use_qkv_bias
        model.layers.{num_hidden_layers}.self_attn.q_layernorm.norms.{num_attention_heads}.weight  | head_dim                     | normal 1.5 0.3 | qk_layernorm
        model.layers.{num_hidden_layers}.self_attn.k_layernorm.norms.{num_key_value_heads}.weight  | head_dim                     | normal 1.5 0.3 | qk_layernorm
    "],
    variants: &[
        Variant::small("", "rope over a quarter of a head, layer norms, biased queries, keys and values", "{}"),
        Variant::small("parallel", "attention and MLP side by side under one norm, no biases", r#"{
            "use_parallel_residual": true, "use_qkv_bias": false
        }"#),
        Variant::small("qk-norm", "qk_layernorm: a norm of its own for each head", r#"{ "qk_layernorm": true }"#),
    ],
};
