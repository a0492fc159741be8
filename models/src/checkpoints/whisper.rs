//! Whisper: speech to text.

use super::{Checkpoints, Variant};

/// The encoder and the decoder differ in depth, heads and inner width. 60 frames of features become 30 positions.
pub(crate) const WHISPER: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["WhisperForConditionalGeneration"],
        "vocab_size": 288, "num_mel_bins": 20, "d_model": 64, "encoder_layers": 3, "encoder_attention_heads": 4,
        "encoder_ffn_dim": 144, "decoder_layers": 4, "decoder_attention_heads": 8, "decoder_ffn_dim": 112,
        "max_source_positions": 30, "max_target_positions": 64, "activation_function": "gelu", "is_encoder_decoder": true,
        "scale_embedding": false, "tie_word_embeddings": true, "use_cache": true, "apply_spec_augment": false,
        "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0,
        "pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 2, "begin_suppress_tokens": null
    }"#,
    tensors: &["
        model.encoder.conv1.weight                                           | d_model, num_mel_bins, 3      | normal 0 0.15
        model.encoder.conv1.bias                                             | d_model                       | normal 0 0.3
        model.encoder.conv2.weight                                           | d_model, d_model, 3           | normal 0 0.15
        model.encoder.conv2.bias                                             | d_model                       | normal 0 0.3
        model.encoder.embed_positions.weight                                 | max_source_positions, d_model | normal 0 0.5
        model.encoder.layers.{encoder_layers}.self_attn.q_proj.weight        | d_model, d_model              | linear 1.5
        model.encoder.layers.{encoder_layers}.self_attn.q_proj.bias          | d_model                       | normal 0 0.5
        model.encoder.layers.{encoder_layers}.self_attn.k_proj.weight        | d_model, d_model              | linear 1.5
        model.encoder.layers.{encoder_layers}.self_attn.v_proj.weight        | d_model, d_model              | linear 1
        model.encoder.layers.{encoder_layers}.self_attn.v_proj.bias          | d_model                       | normal 0 0.3
        model.encoder.layers.{encoder_layers}.self_attn.out_proj.weight      | d_model, d_model              | linear 1
        model.encoder.layers.{encoder_layers}.self_attn.out_proj.bias        | d_model                       | normal 0 0.3
        model.encoder.layers.{encoder_layers}.self_attn_layer_norm.weight    | d_model                       | normal 1 0.2
        model.encoder.layers.{encoder_layers}.self_attn_layer_norm.bias      | d_model                       | normal 0 0.2
        model.encoder.layers.{encoder_layers}.fc1.weight                     | encoder_ffn_dim, d_model      | linear 1.5
        model.encoder.layers.{encoder_layers}.fc1.bias                       | encoder_ffn_dim               | normal 0 0.3
        model.encoder.layers.{encoder_layers}.fc2.weight                     | d_model, encoder_ffn_dim      | linear 1.2
        model.encoder.layers.{encoder_layers}.fc2.bias                       | d_model                       | normal 0 0.3
        model.encoder.layers.{encoder_layers}.final_layer_norm.weight        | d_model                       | normal 1 0.2
        model.encoder.layers.{encoder_layers}.final_layer_norm.bias          | d_model                       | normal 0 0.2
        model.encoder.layer_norm.weight                                      | d_model                       | normal 1 0.2
        model.encoder.layer_norm.bias                                        | d_model                       | normal 0 0.2
        model.decoder.embed_tokens.weight                                    | vocab_size, d_model           | normal 0 0.5
        model.decoder.embed_positions.weight                                 | max_target_positions, d_model | normal 0 0.4
        model.decoder.layers.{decoder_layers}.self_attn.q_proj.weight        | d_model, d_model              | linear 1.5
        model.decoder.layers.{decoder_layers}.self_attn.q_proj.bias          | d_model                       | normal 0 0.5
        model.decoder.layers.{decoder_layers}.self_attn.k_proj.weight        | d_model, d_model              | linear 1.5
        model.decoder.layers.{decoder_layers}.self_attn.v_proj.weight        | d_model, d_model              | linear 1
        model.decoder.layers.{decoder_layers}.self_attn.v_proj.bias          | d_model                       | normal 0 0.3
        model.decoder.layers.{decoder_layers}.self_attn.out_proj.weight      | d_model, d_model              | linear 1
        model.decoder.layers.{decoder_layers}.self_attn.out_proj.bias        | d_model                       | normal 0 0.3
        model.decoder.layers.{decoder_layers}.self_attn_layer_norm.weight    | d_model                       | normal 1 0.2
        model.decoder.layers.{decoder_layers}.self_attn_layer_norm.bias      | d_model                       | normal 0 0.2
        model.decoder.layers.{decoder_layers}.encoder_attn.q_proj.weight     | d_model, d_model              | linear 1.5
        model.decoder.layers.{decoder_layers}.encoder_attn.q_proj.bias       | d_model                       | normal 0 0.5
        model.decoder.layers.{decoder_layers}.encoder_attn.k_proj.weight     | d_model, d_model              | linear 1.5
        model.decoder.layers.{decoder_layers}.encoder_attn.v_proj.weight     | d_model, d_model              | linear 1
        model.decoder.layers.{decoder_layers}.encoder_attn.v_proj.bias       | d_model                       | normal 0 0.3
        model.decoder.layers.{decoder_layers}.encoder_attn.out_proj.weight   | d_model, d_model              | linear 1
        model.decoder.layers.{decoder_layers}.encoder_attn.out_proj.bias     | d_model                       | normal 0 0.3
        model.decoder.layers.{decoder_layers}.encoder_attn_layer_norm.weight | d_model                       | normal 1 0.2
        model.decoder.layers.{decoder_layers}.encoder_attn_layer_norm.bias   | d_model                       | normal 0 0.2
        model.decoder.layers.{decoder_layers}.fc1.weight                     | decoder_ffn_dim, d_model      | linear 1.5
        model.decoder.layers.{decoder_layers}.fc1.bias                       | decoder_ffn_dim               | normal 0 0.3
        model.decoder.layers.{decoder_layers}.fc2.weight                     | d_model, decoder_ffn_dim      | linear 1.2
        model.decoder.layers.{decoder_layers}.fc2.bias                       | d_model                       | normal 0 0.3
        model.decoder.layers.{decoder_layers}.final_layer_norm.weight        | d_model                       | normal 1 0.2
        model.decoder.layers.{decoder_layers}.final_layer_norm.bias          | d_model                       | normal 0 0.2
        model.decoder.layer_norm.weight                                      | d_model                       | normal 1 0.2
        model.decoder.layer_norm.bias                                        | d_model                       | normal 0 0.2
    "],
    variants: &[
        Variant::small("", "two convolutions, cross-attention, keys without biases, encoder and decoder of other depths and heads, tied head", "{}"),
    ],
};
