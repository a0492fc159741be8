//! Qwen2-VL: images in texts.

use super::{Checkpoints, Variant};

/// The config has the keys of the texts at the top, as the published ones do. Images are patches of 4 × 4 pixels.
pub(crate) const QWEN2_VL: Checkpoints = Checkpoints {
    config: r#"{
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "vocab_size": 288, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu", "rms_norm_eps": 0.003,
        "max_position_embeddings": 256, "rope_theta": 5000.0, "rope_scaling": { "type": "mrope", "mrope_section": [2, 1, 5] },
        "use_sliding_window": false, "sliding_window": 128, "max_window_layers": 1, "attention_dropout": 0.0,
        "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2,
        "image_token_id": 280, "video_token_id": 281, "vision_start_token_id": 282, "vision_end_token_id": 283,
        "vision_config": {
            "model_type": "qwen2_vl", "depth": 3, "embed_dim": 48, "hidden_size": 64, "hidden_act": "quick_gelu",
            "mlp_ratio": 3, "num_heads": 3, "in_channels": 3, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2
        }
    }"#,
    tensors: &["
        visual.patch_embed.proj.weight                                      | vision_config.embed_dim, vision_config.in_channels, vision_config.temporal_patch_size, vision_config.patch_size, vision_config.patch_size | normal 0 0.15
        visual.blocks.{vision_config.depth}.norm1.weight                    | vision_config.embed_dim | normal 1 0.2
        visual.blocks.{vision_config.depth}.norm1.bias                      | vision_config.embed_dim | normal 0 0.2
        visual.blocks.{vision_config.depth}.norm2.weight                    | vision_config.embed_dim | normal 1 0.2
        visual.blocks.{vision_config.depth}.norm2.bias                      | vision_config.embed_dim | normal 0 0.2
        visual.blocks.{vision_config.depth}.attn.qkv.weight                 | 3*vision_config.embed_dim, vision_config.embed_dim | linear 1.5
        visual.blocks.{vision_config.depth}.attn.qkv.bias                   | 3*vision_config.embed_dim | normal 0 0.4
        visual.blocks.{vision_config.depth}.attn.proj.weight                | vision_config.embed_dim, vision_config.embed_dim | linear 1
        visual.blocks.{vision_config.depth}.attn.proj.bias                  | vision_config.embed_dim | normal 0 0.3
        visual.blocks.{vision_config.depth}.mlp.fc1.weight                  | vision_config.mlp_ratio*vision_config.embed_dim, vision_config.embed_dim | linear 1.5
        visual.blocks.{vision_config.depth}.mlp.fc1.bias                    | vision_config.mlp_ratio*vision_config.embed_dim | normal 0 0.3
        visual.blocks.{vision_config.depth}.mlp.fc2.weight                  | vision_config.embed_dim, vision_config.mlp_ratio*vision_config.embed_dim | linear 1.2
        visual.blocks.{vision_config.depth}.mlp.fc2.bias                    | vision_config.embed_dim | normal 0 0.3
        visual.merger.ln_q.weight                                           | vision_config.embed_dim | normal 1 0.2
        visual.merger.ln_q.bias                                             | vision_config.embed_dim | normal 0 0.2
        visual.merger.mlp.0.weight                                          | vision_config.spatial_merge_size*vision_config.spatial_merge_size*vision_config.embed_dim, vision_config.spatial_merge_size*vision_config.spatial_merge_size*vision_config.embed_dim | linear 1.5
        visual.merger.mlp.0.bias                                            | vision_config.spatial_merge_size*vision_config.spatial_merge_size*vision_config.embed_dim | normal 0 0.3
        visual.merger.mlp.2.weight                                          | hidden_size, vision_config.spatial_merge_size*vision_config.spatial_merge_size*vision_config.embed_dim | linear 0.6
        visual.merger.mlp.2.bias                                            | hidden_size             | normal 0 0.1
        model.embed_tokens.weight                                           | vocab_size, hidden_size | normal 0 0.3
        model.norm.weight                                                   | hidden_size             | normal 1 0.2
        lm_head.weight                                                      | vocab_size, hidden_size | linear 2 | !tie_word_embeddings
        model.layers.{num_hidden_layers}.input_layernorm.weight             | hidden_size             | normal 1 0.2
        model.layers.{num_hidden_layers}.post_attention_layernorm.weight    | hidden_size             | normal 1 0.2
        model.layers.{num_hidden_layers}.self_attn.q_proj.weight            | hidden_size, hidden_size | linear 1.5
        model.layers.{num_hidden_layers}.self_attn.q_proj.bias              | hidden_size             | normal 0 0.5
        model.layers.{num_hidden_layers}.self_attn.k_proj.weight            | num_key_value_heads*hidden_size/num_attention_heads, hidden_size | linear 1.5
        model.layers.{num_hidden_layers}.self_attn.k_proj.bias              | num_key_value_heads*hidden_size/num_attention_heads | normal 0 0.5
        model.layers.{num_hidden_layers}.self_attn.v_proj.weight            | num_key_value_heads*hidden_size/num_attention_heads, hidden_size | linear 1
        model.layers.{num_hidden_layers}.self_attn.v_proj.bias              | num_key_value_heads*hidden_size/num_attention_heads | normal 0 0.3
        model.layers.{num_hidden_layers}.self_attn.o_proj.weight            | hidden_size, hidden_size | linear 1
        model.layers.{num_hidden_layers}.mlp.gate_proj.weight               | intermediate_size, hidden_size | linear 1
        model.layers.{num_hidden_layers}.mlp.up_proj.weight                 | intermediate_size, hidden_size | linear 1
        model.layers.{num_hidden_layers}.mlp.down_proj.weight               | hidden_size, intermediate_size | linear 1.5
    "],
    variants: &[
        Variant::small("", "three-part rotation (2, 1, 5), patches merged by 2, quick GELU, tied head", "{}"),
        Variant::small("window", "patches not merged, GELU, three-part rotation (4, 3, 1), window of 8 from layer 1 on, untied head", r#"{
            "rope_scaling": { "type": "mrope", "mrope_section": [4, 3, 1] }, "tie_word_embeddings": false,
            "use_sliding_window": true, "sliding_window": 8,
            "vision_config": {
                "model_type": "qwen2_vl", "depth": 2, "embed_dim": 32, "hidden_size": 64, "hidden_act": "gelu",
                "mlp_ratio": 4, "num_heads": 4, "in_channels": 3, "patch_size": 4, "spatial_merge_size": 1, "temporal_patch_size": 1
            }
        }"#),
    ],
};
