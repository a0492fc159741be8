//! mistral, mixtral and starcoder2: sliding windows in every layer.

use super::{Checkpoints, Variant};
use super::decoder::{ATTENTION, ENDS, GATED_MLP, NORM_BIASES, NORMS};

pub(crate) const MISTRAL: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["MistralForCausalLM"],
        "vocab_size": 288, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "hidden_act": "silu", "rms_norm_eps": 0.003, "max_position_embeddings": 128,
        "rope_theta": 5000.0, "sliding_window": 8, "attention_dropout": 0.0,
        "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2
    }"#,
    tensors: &[ENDS, NORMS, ATTENTION, GATED_MLP],
    variants: &[
        Variant::small("", "window of 8 in every layer", "{}"),
        Variant::small("full", "no window", r#"{ "sliding_window": null }"#),
        Variant::small("head-dim", "window of 8, head_dim wider than hidden_size / num_attention_heads", r#"{
            "head_dim": 24
        }"#),
    ],
};

pub(crate) const MIXTRAL: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["MixtralForCausalLM"],
        "vocab_size": 288, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "num_local_experts": 4, "num_experts_per_tok": 2,
        "hidden_act": "silu", "rms_norm_eps": 0.003, "max_position_embeddings": 128,
        "rope_theta": 5000.0, "sliding_window": null, "attention_dropout": 0.0,
        "router_jitter_noise": 0.0, "output_router_logits": false,
        "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2
    }"#,
    tensors: &[ENDS, NORMS, ATTENTION, "
        model.layers.{num_hidden_layers}.block_sparse_moe.gate.weight                           | num_local_experts, hidden_size | linear 2
        model.layers.{num_hidden_layers}.block_sparse_moe.experts.{num_local_experts}.w1.weight | intermediate_size, hidden_size | linear 1
        model.layers.{num_hidden_layers}.block_sparse_moe.experts.{num_local_experts}.w3.weight | intermediate_size, hidden_size | linear 1
        model.layers.{num_hidden_layers}.block_sparse_moe.experts.{num_local_experts}.w2.weight | hidden_size, intermediate_size | linear 1.5
    "],
    variants: &[
        Variant::small("", "two of four experts", "{}"),
        Variant::small("window", "two of four experts, window of 8", r#"{ "sliding_window": 8 }"#),
    ],
};

pub(crate) const STARCODER2: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["Starcoder2ForCausalLM"],
        "vocab_size": 288, "hidden_size": 64, "intermediate_size": 144, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 0.003, "norm_type": "layer_norm",
        "max_position_embeddings": 128, "rope_theta": 5000.0, "sliding_window": 8, "use_bias": true,
        "attention_dropout": 0.0, "residual_dropout": 0.0, "embedding_dropout": 0.0,
        "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2
    }"#,
    tensors: &[ENDS, NORMS, NORM_BIASES, ATTENTION, "
        model.layers.{num_hidden_layers}.self_attn.q_proj.bias  | num_attention_heads*head_dim   | normal 0 0.5 | use_bias
        model.layers.{num_hidden_layers}.self_attn.k_proj.bias  | num_key_value_heads*head_dim   | normal 0 0.5 | use_bias
        model.layers.{num_hidden_layers}.self_attn.v_proj.bias  | num_key_value_heads*head_dim   | normal 0 0.3 | use_bias
        model.layers.{num_hidden_layers}.self_attn.o_proj.bias  | hidden_size                    | normal 0 0.3 | use_bias
        model.layers.{num_hidden_layers}.mlp.c_fc.weight        | intermediate_size, hidden_size | linear 1.5
        model.layers.{num_hidden_layers}.mlp.c_proj.weight      | hidden_size, intermediate_size | linear 1.2
        model.layers.{num_hidden_layers}.mlp.c_fc.bias          | intermediate_size              | normal 0 0.3 | use_bias
        model.layers.{num_hidden_layers}.mlp.c_proj.bias        | hidden_size                    | normal 0 0.3 | use_bias
    "],
    variants: &[
        Variant::small("", "layer norms, biases everywhere, tanh GELU, window of 8, tied head", "{}"),
        Variant::small("untied", "no window, no linear biases, untied head", r#"{
            "sliding_window": null, "use_bias": false, "tie_word_embeddings": false
        }"#),
    ],
};
