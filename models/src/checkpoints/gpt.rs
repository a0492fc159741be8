//! gpt2, gpt_neox and falcon: fused qkv projections, learned positions, parallel residuals, alibi.

use super::{Checkpoints, Variant};

pub(crate) const GPT2: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": 288, "n_positions": 128, "n_ctx": 128, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_inner": 144,
        "activation_function": "gelu_new", "layer_norm_epsilon": 0.003,
        "scale_attn_weights": true, "scale_attn_by_inverse_layer_idx": false, "reorder_and_upcast_attn": false,
        "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
        "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2
    }"#,
    tensors: &["
        transformer.wte.weight                     | vocab_size, n_embd  | normal 0 0.3
        transformer.wpe.weight                     | n_positions, n_embd | normal 0 0.2
        transformer.h.{n_layer}.ln_1.weight        | n_embd              | normal 1 0.2
        transformer.h.{n_layer}.ln_1.bias          | n_embd              | normal 0 0.2
        transformer.h.{n_layer}.attn.c_attn.weight | n_embd, 3*n_embd    | conv1d 1.5
        transformer.h.{n_layer}.attn.c_attn.bias   | 3*n_embd            | normal 0 0.4
        transformer.h.{n_layer}.attn.c_proj.weight | n_embd, n_embd      | conv1d 1
        transformer.h.{n_layer}.attn.c_proj.bias   | n_embd              | normal 0 0.3
        transformer.h.{n_layer}.ln_2.weight        | n_embd              | normal 1 0.2
        transformer.h.{n_layer}.ln_2.bias          | n_embd              | normal 0 0.2
        transformer.h.{n_layer}.mlp.c_fc.weight    | n_embd, n_inner     | conv1d 1.5
        transformer.h.{n_layer}.mlp.c_fc.bias      | n_inner             | normal 0 0.3
        transformer.h.{n_layer}.mlp.c_proj.weight  | n_inner, n_embd     | conv1d 1.2
        transformer.h.{n_layer}.mlp.c_proj.bias    | n_embd              | normal 0 0.3
        transformer.ln_f.weight                    | n_embd              | normal 1 0.2
        transformer.ln_f.bias                      | n_embd              | normal 0 0.2
        lm_head.weight                             | vocab_size, n_embd  | linear 2     | !tie_word_embeddings
    "],
    variants: &[
        Variant::small("", "learned positions, transposed weights, gelu_new, tied head, n_inner given", "{}"),
        Variant::small("layer-scale", "scores divided by the layer's number, exact GELU, untied head", r#"{
            "scale_attn_by_inverse_layer_idx": true, "activation_function": "gelu", "tie_word_embeddings": false
        }"#),
        Variant::small("unscaled", "scale_attn_weights off: scores not divided by sqrt(head_dim)", r#"{
            "scale_attn_weights": false
        }"#),
    ],
};

pub(crate) const GPT_NEOX: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["GPTNeoXForCausalLM"],
        "vocab_size": 288, "hidden_size": 64, "intermediate_size": 144, "num_hidden_layers": 3,
        "num_attention_heads": 4, "rotary_pct": 0.25, "rotary_emb_base": 50, "rope_scaling": null,
        "hidden_act": "gelu", "layer_norm_eps": 0.003, "max_position_embeddings": 128,
        "use_parallel_residual": true, "attention_bias": true, "attention_dropout": 0.0, "hidden_dropout": 0.0,
        "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2
    }"#,
    tensors: &["
        gpt_neox.embed_in.weight                                                | vocab_size, hidden_size        | normal 0 0.3
        gpt_neox.layers.{num_hidden_layers}.input_layernorm.weight              | hidden_size                    | normal 1 0.2
        gpt_neox.layers.{num_hidden_layers}.input_layernorm.bias                | hidden_size                    | normal 0 0.2
        gpt_neox.layers.{num_hidden_layers}.attention.query_key_value.weight    | 3*hidden_size, hidden_size     | linear 1.5
        gpt_neox.layers.{num_hidden_layers}.attention.query_key_value.bias      | 3*hidden_size                  | normal 0 0.4 | attention_bias
        gpt_neox.layers.{num_hidden_layers}.attention.dense.weight              | hidden_size, hidden_size       | linear 1
        gpt_neox.layers.{num_hidden_layers}.attention.dense.bias                | hidden_size                    | normal 0 0.3 | attention_bias
        gpt_neox.layers.{num_hidden_layers}.post_attention_layernorm.weight     | hidden_size                    | normal 1 0.2
        gpt_neox.layers.{num_hidden_layers}.post_attention_layernorm.bias       | hidden_size                    | normal 0 0.2
        gpt_neox.layers.{num_hidden_layers}.mlp.dense_h_to_4h.weight            | intermediate_size, hidden_size | linear 1.5
        gpt_neox.layers.{num_hidden_layers}.mlp.dense_h_to_4h.bias              | intermediate_size              | normal 0 0.3
        gpt_neox.layers.{num_hidden_layers}.mlp.dense_4h_to_h.weight            | hidden_size, intermediate_size | linear 1.2
        gpt_neox.layers.{num_hidden_layers}.mlp.dense_4h_to_h.bias              | hidden_size                    | normal 0 0.3
        gpt_neox.final_layer_norm.weight                                        | hidden_size                    | normal 1 0.2
        gpt_neox.final_layer_norm.bias                                          | hidden_size                    | normal 0 0.2
        embed_out.weight                                                        | vocab_size, hidden_size        | linear 2
    "],
    variants: &[
        Variant::small("", "rope over a quarter of a head, attention and MLP side by side, qkv fused per head", "{}"),
        Variant::small("sequential", "use_parallel_residual off, rope over a whole head", r#"{
            "use_parallel_residual": false, "rotary_pct": 1.0, "rotary_emb_base": 5000
        }"#),
        Variant::small("no-bias", "attention_bias off, rope scaling `linear`, factor 4", r#"{
            "attention_bias": false, "rope_scaling": { "type": "linear", "factor": 4.0 }
        }"#),
    ],
};

pub(crate) const FALCON: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["FalconForCausalLM"],
        "vocab_size": 288, "hidden_size": 64, "ffn_hidden_size": 144, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_kv_heads": 1, "num_ln_in_parallel_attn": null,
        "new_decoder_architecture": false, "multi_query": true, "parallel_attn": true, "alibi": false, "bias": false,
        "activation": "gelu", "layer_norm_epsilon": 0.003, "max_position_embeddings": 128,
        "rope_theta": 5000.0, "rope_scaling": null, "attention_dropout": 0.0, "hidden_dropout": 0.0,
        "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2
    }"#,
    tensors: &["
        transformer.word_embeddings.weight                                   | vocab_size, hidden_size         | normal 0 0.3
        transformer.h.{num_hidden_layers}.input_layernorm.weight             | hidden_size                     | normal 1 0.2 | num_ln_in_parallel_attn not 2
        transformer.h.{num_hidden_layers}.input_layernorm.bias               | hidden_size                     | normal 0 0.2 | num_ln_in_parallel_attn not 2
        transformer.h.{num_hidden_layers}.ln_attn.weight                     | hidden_size                     | normal 1 0.2 | num_ln_in_parallel_attn is 2
        transformer.h.{num_hidden_layers}.ln_attn.bias                       | hidden_size                     | normal 0 0.2 | num_ln_in_parallel_attn is 2
        transformer.h.{num_hidden_layers}.ln_mlp.weight                      | hidden_size                     | normal 1 0.2 | num_ln_in_parallel_attn is 2
        transformer.h.{num_hidden_layers}.ln_mlp.bias                        | hidden_size                     | normal 0 0.2 | num_ln_in_parallel_attn is 2
        transformer.h.{num_hidden_layers}.post_attention_layernorm.weight    | hidden_size                     | normal 1 0.2 | !parallel_attn
        transformer.h.{num_hidden_layers}.post_attention_layernorm.bias      | hidden_size                     | normal 0 0.2 | !parallel_attn
        transformer.h.{num_hidden_layers}.self_attention.query_key_value.weight | hidden_size+2*num_kv_heads*hidden_size/num_attention_heads, hidden_size | linear 1.5
        transformer.h.{num_hidden_layers}.self_attention.query_key_value.bias | hidden_size+2*num_kv_heads*hidden_size/num_attention_heads | normal 0 0.4 | bias
        transformer.h.{num_hidden_layers}.self_attention.dense.weight        | hidden_size, hidden_size        | linear 1
        transformer.h.{num_hidden_layers}.self_attention.dense.bias          | hidden_size                     | normal 0 0.3 | bias
        transformer.h.{num_hidden_layers}.mlp.dense_h_to_4h.weight           | ffn_hidden_size, hidden_size    | linear 1.5
        transformer.h.{num_hidden_layers}.mlp.dense_h_to_4h.bias             | ffn_hidden_size                 | normal 0 0.3 | bias
        transformer.h.{num_hidden_layers}.mlp.dense_4h_to_h.weight           | hidden_size, ffn_hidden_size    | linear 1.2
        transformer.h.{num_hidden_layers}.mlp.dense_4h_to_h.bias             | hidden_size                     | normal 0 0.3 | bias
        transformer.ln_f.weight                                              | hidden_size                     | normal 1 0.2
        transformer.ln_f.bias                                                | hidden_size                     | normal 0 0.2
    "],
    variants: &[
        Variant::small("", "7B's form: multi-query, attention and MLP side by side under one norm, rope", "{}"),
        Variant::small("new-decoder", "40B's form: grouped heads, a norm each for attention and MLP", r#"{
            "new_decoder_architecture": true, "num_kv_heads": 2, "num_ln_in_parallel_attn": 2
        }"#),
        Variant::small("one-norm", "11B's form: grouped heads, one norm for attention and MLP", r#"{
            "new_decoder_architecture": true, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1
        }"#),
        Variant::small("alibi", "rw's form: alibi, one head each, sequential, biases", r#"{
            "alibi": true, "multi_query": false, "num_kv_heads": 4, "parallel_attn": false, "bias": true
        }"#),
    ],
};
