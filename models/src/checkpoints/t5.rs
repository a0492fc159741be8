//! T5: relative biases, tied and scaled (1.0) or untied and gated (1.1); and its encoder by itself.

use super::{Checkpoints, Variant};

/// The shared embedding and the encoder.
const ENCODER: &str = "
    shared.weight                                                        | vocab_size, d_model                       | normal 0 1
    encoder.final_layer_norm.weight                                      | d_model                                   | normal 1 0.2
    encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight | relative_attention_num_buckets, num_heads | normal 0 2
    encoder.block.{num_layers}.layer.0.layer_norm.weight                 | d_model                                   | normal 1 0.2
    encoder.block.{num_layers}.layer.0.SelfAttention.q.weight            | num_heads*d_kv, d_model                   | linear 0.8
    encoder.block.{num_layers}.layer.0.SelfAttention.k.weight            | num_heads*d_kv, d_model                   | linear 0.8
    encoder.block.{num_layers}.layer.0.SelfAttention.v.weight            | num_heads*d_kv, d_model                   | linear 1
    encoder.block.{num_layers}.layer.0.SelfAttention.o.weight            | d_model, num_heads*d_kv                   | linear 1
    encoder.block.{num_layers}.layer.1.layer_norm.weight                 | d_model                                   | normal 1 0.2
    encoder.block.{num_layers}.layer.1.DenseReluDense.wi.weight          | d_ff, d_model                             | linear 1.5   | !is_gated_act
    encoder.block.{num_layers}.layer.1.DenseReluDense.wi_0.weight        | d_ff, d_model                             | linear 1     | is_gated_act
    encoder.block.{num_layers}.layer.1.DenseReluDense.wi_1.weight        | d_ff, d_model                             | linear 1     | is_gated_act
    encoder.block.{num_layers}.layer.1.DenseReluDense.wo.weight          | d_model, d_ff                             | linear 1.2
";

/// The decoder and the head.
const DECODER: &str = "
    decoder.final_layer_norm.weight                                       | d_model                                   | normal 1 0.2
    decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight  | relative_attention_num_buckets, num_heads | normal 0 2
    decoder.block.{num_decoder_layers}.layer.0.layer_norm.weight          | d_model                                   | normal 1 0.2
    decoder.block.{num_decoder_layers}.layer.0.SelfAttention.q.weight     | num_heads*d_kv, d_model                   | linear 0.8
    decoder.block.{num_decoder_layers}.layer.0.SelfAttention.k.weight     | num_heads*d_kv, d_model                   | linear 0.8
    decoder.block.{num_decoder_layers}.layer.0.SelfAttention.v.weight     | num_heads*d_kv, d_model                   | linear 1
    decoder.block.{num_decoder_layers}.layer.0.SelfAttention.o.weight     | d_model, num_heads*d_kv                   | linear 1
    decoder.block.{num_decoder_layers}.layer.1.layer_norm.weight          | d_model                                   | normal 1 0.2
    decoder.block.{num_decoder_layers}.layer.1.EncDecAttention.q.weight   | num_heads*d_kv, d_model                   | linear 0.8
    decoder.block.{num_decoder_layers}.layer.1.EncDecAttention.k.weight   | num_heads*d_kv, d_model                   | linear 0.8
    decoder.block.{num_decoder_layers}.layer.1.EncDecAttention.v.weight   | num_heads*d_kv, d_model                   | linear 1
    decoder.block.{num_decoder_layers}.layer.1.EncDecAttention.o.weight   | d_model, num_heads*d_kv                   | linear 1
    decoder.block.{num_decoder_layers}.layer.2.layer_norm.weight          | d_model                                   | normal 1 0.2
    decoder.block.{num_decoder_layers}.layer.2.DenseReluDense.wi.weight   | d_ff, d_model                             | linear 1.5   | !is_gated_act
    decoder.block.{num_decoder_layers}.layer.2.DenseReluDense.wi_0.weight | d_ff, d_model                             | linear 1     | is_gated_act
    decoder.block.{num_decoder_layers}.layer.2.DenseReluDense.wi_1.weight | d_ff, d_model                             | linear 1     | is_gated_act
    decoder.block.{num_decoder_layers}.layer.2.DenseReluDense.wo.weight   | d_model, d_ff                             | linear 1.2
    lm_head.weight                                                        | vocab_size, d_model                       | linear 2     | !tie_word_embeddings
";

/// Scores are not scaled by the size of a head, so that the gains of q and k are smaller than in other families: scores
/// and biases both have a standard deviation of about 2.
pub(crate) const T5: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["T5ForConditionalGeneration"],
        "vocab_size": 288, "d_model": 64, "d_kv": 12, "d_ff": 144, "num_layers": 3, "num_decoder_layers": 4, "num_heads": 6,
        "relative_attention_num_buckets": 12, "relative_attention_max_distance": 20, "layer_norm_epsilon": 0.003,
        "feed_forward_proj": "relu", "dense_act_fn": "relu", "is_gated_act": false, "is_encoder_decoder": true,
        "tie_word_embeddings": true, "dropout_rate": 0.0, "classifier_dropout": 0.0, "initializer_factor": 1.0,
        "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "use_cache": true
    }"#,
    tensors: &[ENCODER, DECODER],
    variants: &[
        Variant::small("", "relative biases in 12 buckets up to distance 20, 4 decoder layers on 3 of the encoder, relu, tied and scaled head", "{}"),
        Variant::small("gated-untied", "T5 1.1: gated tanh GELU, head of its own without a factor", r#"{
            "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new", "is_gated_act": true,
            "tie_word_embeddings": false
        }"#),
    ],
};

/// The encoder by itself.
pub(crate) const T5_ENCODER: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["T5EncoderModel"],
        "vocab_size": 288, "d_model": 64, "d_kv": 12, "d_ff": 144, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 6,
        "relative_attention_num_buckets": 12, "relative_attention_max_distance": 20, "layer_norm_epsilon": 0.003,
        "feed_forward_proj": "relu", "dense_act_fn": "relu", "is_gated_act": false, "is_encoder_decoder": true,
        "tie_word_embeddings": true, "dropout_rate": 0.0, "classifier_dropout": 0.0, "initializer_factor": 1.0,
        "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "use_cache": true
    }"#,
    tensors: &[ENCODER],
    variants: &[
        Variant::small("encoder-alone", "hidden states of the encoder by itself, relative biases, relu", "{}"),
        Variant::small("encoder-alone-gated", "the same of T5 1.1, gated tanh GELU", r#"{
            "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new", "is_gated_act": true,
            "tie_word_embeddings": false
        }"#),
    ],
};
