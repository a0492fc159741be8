//! CLIP: an encoder of texts and one of images, together and each by itself.

use super::{Checkpoints, Variant};

/// The two encoders differ in every size. Images have 9 patches of 4 × 4 pixels.
pub(crate) const CLIP: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["CLIPModel"], "projection_dim": 40, "logit_scale_init_value": 2.6592, "initializer_factor": 1.0,
        "text_config": {
            "model_type": "clip_text_model", "vocab_size": 288, "hidden_size": 48, "intermediate_size": 112,
            "num_hidden_layers": 3, "num_attention_heads": 6, "max_position_embeddings": 128, "hidden_act": "quick_gelu",
            "layer_norm_eps": 0.003, "attention_dropout": 0.0, "projection_dim": 40,
            "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 285
        },
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": 64, "intermediate_size": 144, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_channels": 3, "image_size": 12, "patch_size": 4, "hidden_act": "quick_gelu",
            "layer_norm_eps": 0.01, "attention_dropout": 0.0, "projection_dim": 40
        }
    }"#,
    tensors: &["
        text_model.embeddings.token_embedding.weight                                            | text_config.vocab_size, text_config.hidden_size                                                                                  | normal 0 0.5
        text_model.embeddings.position_embedding.weight                                         | text_config.max_position_embeddings, text_config.hidden_size                                                                     | normal 0 0.4
        text_model.encoder.layers.{text_config.num_hidden_layers}.layer_norm1.weight            | text_config.hidden_size                                                                                                          | normal 1 0.2
        text_model.encoder.layers.{text_config.num_hidden_layers}.layer_norm1.bias              | text_config.hidden_size                                                                                                          | normal 0 0.2
        text_model.encoder.layers.{text_config.num_hidden_layers}.self_attn.q_proj.weight       | text_config.hidden_size, text_config.hidden_size                                                                                 | linear 1.5
        text_model.encoder.layers.{text_config.num_hidden_layers}.self_attn.q_proj.bias         | text_config.hidden_size                                                                                                          | normal 0 0.5
        text_model.encoder.layers.{text_config.num_hidden_layers}.self_attn.k_proj.weight       | text_config.hidden_size, text_config.hidden_size                                                                                 | linear 1.5
        text_model.encoder.layers.{text_config.num_hidden_layers}.self_attn.k_proj.bias         | text_config.hidden_size                                                                                                          | normal 0 0.5
        text_model.encoder.layers.{text_config.num_hidden_layers}.self_attn.v_proj.weight       | text_config.hidden_size, text_config.hidden_size                                                                                 | linear 1
        text_model.encoder.layers.{text_config.num_hidden_layers}.self_attn.v_proj.bias         | text_config.hidden_size                                                                                                          | normal 0 0.3
        text_model.encoder.layers.{text_config.num_hidden_layers}.self_attn.out_proj.weight     | text_config.hidden_size, text_config.hidden_size                                                                                 | linear 1
        text_model.encoder.layers.{text_config.num_hidden_layers}.self_attn.out_proj.bias       | text_config.hidden_size                                                                                                          | normal 0 0.3
        text_model.encoder.layers.{text_config.num_hidden_layers}.layer_norm2.weight            | text_config.hidden_size                                                                                                          | normal 1 0.2
        text_model.encoder.layers.{text_config.num_hidden_layers}.layer_norm2.bias              | text_config.hidden_size                                                                                                          | normal 0 0.2
        text_model.encoder.layers.{text_config.num_hidden_layers}.mlp.fc1.weight                | text_config.intermediate_size, text_config.hidden_size                                                                           | linear 1.5
        text_model.encoder.layers.{text_config.num_hidden_layers}.mlp.fc1.bias                  | text_config.intermediate_size                                                                                                    | normal 0 0.3
        text_model.encoder.layers.{text_config.num_hidden_layers}.mlp.fc2.weight                | text_config.hidden_size, text_config.intermediate_size                                                                           | linear 1.2
        text_model.encoder.layers.{text_config.num_hidden_layers}.mlp.fc2.bias                  | text_config.hidden_size                                                                                                          | normal 0 0.3
        text_model.final_layer_norm.weight                                                      | text_config.hidden_size                                                                                                          | normal 1 0.2
        text_model.final_layer_norm.bias                                                        | text_config.hidden_size                                                                                                          | normal 0 0.2
        text_projection.weight                                                                  | projection_dim, text_config.hidden_size                                                                                          | linear 1
        vision_model.embeddings.class_embedding                                                 | vision_config.hidden_size                                                                                                        | normal 0 0.5
        vision_model.embeddings.patch_embedding.weight                                          | vision_config.hidden_size, vision_config.num_channels, vision_config.patch_size, vision_config.patch_size                        | normal 0 0.1
        vision_model.embeddings.position_embedding.weight                                       | 1+vision_config.image_size/vision_config.patch_size*vision_config.image_size/vision_config.patch_size, vision_config.hidden_size | normal 0 0.4
        vision_model.pre_layrnorm.weight                                                        | vision_config.hidden_size                                                                                                        | normal 1 0.2
        vision_model.pre_layrnorm.bias                                                          | vision_config.hidden_size                                                                                                        | normal 0 0.2
        vision_model.encoder.layers.{vision_config.num_hidden_layers}.layer_norm1.weight        | vision_config.hidden_size                                                                                                        | normal 1 0.2
        vision_model.encoder.layers.{vision_config.num_hidden_layers}.layer_norm1.bias          | vision_config.hidden_size                                                                                                        | normal 0 0.2
        vision_model.encoder.layers.{vision_config.num_hidden_layers}.self_attn.q_proj.weight   | vision_config.hidden_size, vision_config.hidden_size                                                                             | linear 1.5
        vision_model.encoder.layers.{vision_config.num_hidden_layers}.self_attn.q_proj.bias     | vision_config.hidden_size                                                                                                        | normal 0 0.5
        vision_model.encoder.layers.{vision_config.num_hidden_layers}.self_attn.k_proj.weight   | vision_config.hidden_size, vision_config.hidden_size                                                                             | linear 1.5
        vision_model.encoder.layers.{vision_config.num_hidden_layers}.self_attn.k_proj.bias     | vision_config.hidden_size                                                                                                        | normal 0 0.5
        vision_model.encoder.layers.{vision_config.num_hidden_layers}.self_attn.v_proj.weight   | vision_config.hidden_size, vision_config.hidden_size                                                                             | linear 1
        vision_model.encoder.layers.{vision_config.num_hidden_layers}.self_attn.v_proj.bias     | vision_config.hidden_size                                                                                                        | normal 0 0.3
        vision_model.encoder.layers.{vision_config.num_hidden_layers}.self_attn.out_proj.weight | vision_config.hidden_size, vision_config.hidden_size                                                                             | linear 1
        vision_model.encoder.layers.{vision_config.num_hidden_layers}.self_attn.out_proj.bias   | vision_config.hidden_size                                                                                                        | normal 0 0.3
        vision_model.encoder.layers.{vision_config.num_hidden_layers}.layer_norm2.weight        | vision_config.hidden_size                                                                                                        | normal 1 0.2
        vision_model.encoder.layers.{vision_config.num_hidden_layers}.layer_norm2.bias          | vision_config.hidden_size                                                                                                        | normal 0 0.2
        vision_model.encoder.layers.{vision_config.num_hidden_layers}.mlp.fc1.weight            | vision_config.intermediate_size, vision_config.hidden_size                                                                       | linear 1.5
        vision_model.encoder.layers.{vision_config.num_hidden_layers}.mlp.fc1.bias              | vision_config.intermediate_size                                                                                                  | normal 0 0.3
        vision_model.encoder.layers.{vision_config.num_hidden_layers}.mlp.fc2.weight            | vision_config.hidden_size, vision_config.intermediate_size                                                                       | linear 1.2
        vision_model.encoder.layers.{vision_config.num_hidden_layers}.mlp.fc2.bias              | vision_config.hidden_size                                                                                                        | normal 0 0.3
        vision_model.post_layernorm.weight                                                      | vision_config.hidden_size                                                                                                        | normal 1 0.2
        vision_model.post_layernorm.bias                                                        | vision_config.hidden_size                                                                                                        | normal 0 0.2
        visual_projection.weight                                                                | projection_dim, vision_config.hidden_size                                                                                        | linear 1
        logit_scale                                                                             | scalar                                                                                                                           | normal 2.3 0
    "],
    variants: &[
        Variant::small("", "quick GELU, pooled at the first eos_token_id, encoders of other widths and depths", "{}"),
        Variant::small("largest-id", "exact GELU; eos_token_id 2 of early checkpoints, where the largest id ends a text", r#"{
            "text_config": {
                "model_type": "clip_text_model", "vocab_size": 288, "hidden_size": 48, "intermediate_size": 112,
                "num_hidden_layers": 3, "num_attention_heads": 6, "max_position_embeddings": 128, "hidden_act": "gelu",
                "layer_norm_eps": 0.003, "attention_dropout": 0.0, "projection_dim": 40,
                "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2
            },
            "vision_config": {
                "model_type": "clip_vision_model", "hidden_size": 64, "intermediate_size": 144, "num_hidden_layers": 4,
                "num_attention_heads": 4, "num_channels": 3, "image_size": 12, "patch_size": 4, "hidden_act": "gelu",
                "layer_norm_eps": 0.01, "attention_dropout": 0.0, "projection_dim": 40
            }
        }"#),
    ],
};

/// The encoder of texts by itself, as transformers saves it.
pub(crate) const CLIP_TEXT_MODEL: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["CLIPTextModel"], "vocab_size": 288, "hidden_size": 48, "intermediate_size": 112,
        "num_hidden_layers": 3, "num_attention_heads": 6, "max_position_embeddings": 128, "hidden_act": "quick_gelu",
        "layer_norm_eps": 0.003, "attention_dropout": 0.0, "projection_dim": 40, "initializer_factor": 1.0,
        "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 285
    }"#,
    tensors: &["
        text_model.embeddings.token_embedding.weight                            | vocab_size, hidden_size              | normal 0 0.5
        text_model.embeddings.position_embedding.weight                         | max_position_embeddings, hidden_size | normal 0 0.4
        text_model.encoder.layers.{num_hidden_layers}.layer_norm1.weight        | hidden_size                          | normal 1 0.2
        text_model.encoder.layers.{num_hidden_layers}.layer_norm1.bias          | hidden_size                          | normal 0 0.2
        text_model.encoder.layers.{num_hidden_layers}.self_attn.q_proj.weight   | hidden_size, hidden_size             | linear 1.5
        text_model.encoder.layers.{num_hidden_layers}.self_attn.q_proj.bias     | hidden_size                          | normal 0 0.5
        text_model.encoder.layers.{num_hidden_layers}.self_attn.k_proj.weight   | hidden_size, hidden_size             | linear 1.5
        text_model.encoder.layers.{num_hidden_layers}.self_attn.k_proj.bias     | hidden_size                          | normal 0 0.5
        text_model.encoder.layers.{num_hidden_layers}.self_attn.v_proj.weight   | hidden_size, hidden_size             | linear 1
        text_model.encoder.layers.{num_hidden_layers}.self_attn.v_proj.bias     | hidden_size                          | normal 0 0.3
        text_model.encoder.layers.{num_hidden_layers}.self_attn.out_proj.weight | hidden_size, hidden_size             | linear 1
        text_model.encoder.layers.{num_hidden_layers}.self_attn.out_proj.bias   | hidden_size                          | normal 0 0.3
        text_model.encoder.layers.{num_hidden_layers}.layer_norm2.weight        | hidden_size                          | normal 1 0.2
        text_model.encoder.layers.{num_hidden_layers}.layer_norm2.bias          | hidden_size                          | normal 0 0.2
        text_model.encoder.layers.{num_hidden_layers}.mlp.fc1.weight            | intermediate_size, hidden_size       | linear 1.5
        text_model.encoder.layers.{num_hidden_layers}.mlp.fc1.bias              | intermediate_size                    | normal 0 0.3
        text_model.encoder.layers.{num_hidden_layers}.mlp.fc2.weight            | hidden_size, intermediate_size       | linear 1.2
        text_model.encoder.layers.{num_hidden_layers}.mlp.fc2.bias              | hidden_size                          | normal 0 0.3
        text_model.final_layer_norm.weight                                      | hidden_size                          | normal 1 0.2
        text_model.final_layer_norm.bias                                        | hidden_size                          | normal 0 0.2
    ", r#"
        text_projection.weight | projection_dim, hidden_size | linear 1 | architectures is ["CLIPTextModelWithProjection"]
    "#],
    variants: &[
        Variant::small("", "hidden states, pooled at the first eos_token_id, quick GELU", "{}"),
        Variant::small("projection", "projected vectors; exact GELU; eos_token_id 2 of early checkpoints", r#"{
            "architectures": ["CLIPTextModelWithProjection"], "hidden_act": "gelu", "eos_token_id": 2
        }"#),
    ],
};

/// The encoder of images by itself, as transformers saves it.
pub(crate) const CLIP_VISION_MODEL: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["CLIPVisionModel"], "hidden_size": 64, "intermediate_size": 144, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_channels": 3, "image_size": 12, "patch_size": 4, "hidden_act": "quick_gelu",
        "layer_norm_eps": 0.01, "attention_dropout": 0.0, "projection_dim": 40, "initializer_factor": 1.0
    }"#,
    tensors: &["
        vision_model.embeddings.class_embedding                                   | hidden_size                                                | normal 0 0.5
        vision_model.embeddings.patch_embedding.weight                            | hidden_size, num_channels, patch_size, patch_size          | normal 0 0.1
        vision_model.embeddings.position_embedding.weight                         | 1+image_size/patch_size*image_size/patch_size, hidden_size | normal 0 0.4
        vision_model.pre_layrnorm.weight                                          | hidden_size                                                | normal 1 0.2
        vision_model.pre_layrnorm.bias                                            | hidden_size                                                | normal 0 0.2
        vision_model.encoder.layers.{num_hidden_layers}.layer_norm1.weight        | hidden_size                                                | normal 1 0.2
        vision_model.encoder.layers.{num_hidden_layers}.layer_norm1.bias          | hidden_size                                                | normal 0 0.2
        vision_model.encoder.layers.{num_hidden_layers}.self_attn.q_proj.weight   | hidden_size, hidden_size                                   | linear 1.5
        vision_model.encoder.layers.{num_hidden_layers}.self_attn.q_proj.bias     | hidden_size                                                | normal 0 0.5
        vision_model.encoder.layers.{num_hidden_layers}.self_attn.k_proj.weight   | hidden_size, hidden_size                                   | linear 1.5
        vision_model.encoder.layers.{num_hidden_layers}.self_attn.k_proj.bias     | hidden_size                                                | normal 0 0.5
        vision_model.encoder.layers.{num_hidden_layers}.self_attn.v_proj.weight   | hidden_size, hidden_size                                   | linear 1
        vision_model.encoder.layers.{num_hidden_layers}.self_attn.v_proj.bias     | hidden_size                                                | normal 0 0.3
        vision_model.encoder.layers.{num_hidden_layers}.self_attn.out_proj.weight | hidden_size, hidden_size                                   | linear 1
        vision_model.encoder.layers.{num_hidden_layers}.self_attn.out_proj.bias   | hidden_size                                                | normal 0 0.3
        vision_model.encoder.layers.{num_hidden_layers}.layer_norm2.weight        | hidden_size                                                | normal 1 0.2
        vision_model.encoder.layers.{num_hidden_layers}.layer_norm2.bias          | hidden_size                                                | normal 0 0.2
        vision_model.encoder.layers.{num_hidden_layers}.mlp.fc1.weight            | intermediate_size, hidden_size                             | linear 1.5
        vision_model.encoder.layers.{num_hidden_layers}.mlp.fc1.bias              | intermediate_size                                          | normal 0 0.3
        vision_model.encoder.layers.{num_hidden_layers}.mlp.fc2.weight            | hidden_size, intermediate_size                             | linear 1.2
        vision_model.encoder.layers.{num_hidden_layers}.mlp.fc2.bias              | hidden_size                                                | normal 0 0.3
        vision_model.post_layernorm.weight                                        | hidden_size                                                | normal 1 0.2
        vision_model.post_layernorm.bias                                          | hidden_size                                                | normal 0 0.2
    ", r#"
        visual_projection.weight | projection_dim, hidden_size | linear 1 | architectures is ["CLIPVisionModelWithProjection"]
    "#],
    variants: &[
        Variant::small("", "hidden states, pooled at the class token, quick GELU", "{}"),
        Variant::small("projection", "projected vectors; exact GELU", r#"{
            "architectures": ["CLIPVisionModelWithProjection"], "hidden_act": "gelu"
        }"#),
    ],
};
