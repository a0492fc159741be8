//! Bugs in models of more than one sequence, T5, Whisper, CLIP and Qwen2-VL, and in their encoders by themselves.

use candle_core::{D, Device, Tensor};
use serde_json::{Value, json};

use super::{Between, Edit, Plant};
use crate::setting::Tensors;

/// The tensor `module.tensor` is read wrongly; the module is the first to diverge.
fn tensor(checkpoint: &'static str, module: &str, tensor: &str, edit: fn(&Tensor) -> Tensor) -> Plant {
    Plant::new(checkpoint, Edit::Tensor(format!("{module}.{tensor}"), edit), module)
}

fn config(checkpoint: &'static str, edit: fn(&mut Value), module: &str, between: Between) -> Plant {
    Plant { between, ..Plant::new(checkpoint, Edit::Config(edit), module) }
}

/// The values along `axis` moved by one; the last comes first.
fn rolled(tensor: &Tensor, axis: usize) -> Tensor {
    let last = tensor.dim(axis).unwrap() - 1;
    Tensor::cat(&[tensor.narrow(axis, last, 1).unwrap(), tensor.narrow(axis, 0, last).unwrap()], axis)
        .unwrap()
}

fn rolled_rows(tensor: &Tensor) -> Tensor {
    rolled(tensor, 0)
}

fn zeros(tensor: &Tensor) -> Tensor {
    tensor.zeros_like().unwrap()
}

fn transposed(weight: &Tensor) -> Tensor {
    weight.transpose(D::Minus1, D::Minus2).unwrap()
}

/// Distances that T5 sorts into other buckets.
pub(crate) fn buckets() -> Vec<Plant> {
    let attention = "encoder.block.0.layer.0.SelfAttention";
    let table = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias";
    let other = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias";
    vec![
        config(
            "t5",
            |config| config["relative_attention_max_distance"] = json!(13),
            attention,
            Some([None, Some(table)]),
        ),
        tensor("t5", table, "weight", rolled_rows),
        tensor("t5", other, "weight", rolled_rows),
    ]
}

/// Norms whose weight is not read.
pub(crate) fn norms() -> Vec<Plant> {
    [
        ("t5", "encoder.final_layer_norm"),
        ("t5", "decoder.final_layer_norm"),
        ("t5", "decoder.block.1.layer.1.layer_norm"),
        ("whisper", "model.encoder.layer_norm"),
        ("whisper", "model.decoder.layer_norm"),
        ("clip", "vision_model.pre_layrnorm"),
        ("clip", "vision_model.post_layernorm"),
        ("clip", "text_model.final_layer_norm"),
        ("clip_text_model", "final_layer_norm"),
        ("clip_text_model:projection", "text_model.final_layer_norm"),
        ("clip_vision_model", "pre_layrnorm"),
        ("clip_vision_model:projection", "vision_model.post_layernorm"),
        ("t5:encoder-alone", "encoder.final_layer_norm"),
        ("qwen2_vl", "model.visual.merger.ln_q"),
        ("qwen2_vl", "model.visual.blocks.1.norm2"),
        ("qwen2_vl", "model.language_model.norm"),
    ]
    .map(|(checkpoint, module)| tensor(checkpoint, module, "weight", |weight| weight.ones_like().unwrap()))
    .into()
}

/// Weights of cross attention.
pub(crate) fn cross_attention() -> Vec<Plant> {
    let of_t5 = ["q", "k", "v", "o"].map(|name| {
        tensor("t5", &format!("decoder.block.2.layer.1.EncDecAttention.{name}"), "weight", rolled_rows)
    });
    let of_whisper = ["q_proj", "v_proj"]
        .map(|name| tensor("whisper", &format!("model.decoder.layers.2.encoder_attn.{name}"), "bias", zeros));
    of_t5.into_iter().chain(of_whisper).collect()
}

/// Frames of a sound that are shifted.
pub(crate) fn frames() -> Vec<Plant> {
    let shifted = |tensors: &mut Tensors| {
        let shifted = rolled(&tensors["input_features"], 2);
        tensors.insert("input_features".to_owned(), shifted);
    };
    let mut plants =
        vec![Plant::new("whisper", Edit::Inputs(shifted), "model").between(None, Some("model.encoder"))];
    for convolution in ["model.encoder.conv1", "model.encoder.conv2"] {
        plants.push(tensor("whisper", convolution, "weight", |weight| rolled(weight, 2)));
    }
    for stack in ["encoder", "decoder"] {
        plants.push(tensor("whisper", &format!("model.{stack}.embed_positions"), "weight", rolled_rows));
    }
    plants
}

/// Patches of CLIP in another order.
pub(crate) fn patches() -> Vec<Plant> {
    // The position of the class token and, column by column, those of 3 × 3 patches.
    let by_columns = |table: &Tensor| {
        let columns = Tensor::new(&[0_u32, 1, 4, 7, 2, 5, 8, 3, 6, 9], &Device::Cpu).unwrap();
        table.index_select(&columns, 0).unwrap()
    };
    vec![
        tensor("clip", "vision_model.embeddings.patch_embedding", "weight", transposed),
        tensor("clip", "vision_model.embeddings.position_embedding", "weight", by_columns),
    ]
}

/// Positions of a picture in the text of Qwen2-VL.
pub(crate) fn positions_of_images() -> Vec<Plant> {
    let rotation = "model.language_model.layers.0.self_attn.rope_q";
    // The tokens of images are counted as words.
    let words = |tensors: &mut Tensors| {
        let types = tensors["mm_token_type_ids"].zeros_like().unwrap();
        tensors.insert("mm_token_type_ids".to_owned(), types);
    };
    vec![
        // Sections in another order.
        config(
            "qwen2_vl",
            |config| config["rope_scaling"]["mrope_section"] = json!([5, 1, 2]),
            rotation,
            None,
        ),
        Plant::new("qwen2_vl", Edit::Inputs(words), rotation),
    ]
}

/// Pictures whose sides are exchanged.
pub(crate) fn sides_of_images() -> Vec<Plant> {
    let exchanged = |tensors: &mut Tensors| {
        let sides = Tensor::new(&[0_u32, 2, 1], &Device::Cpu).unwrap();
        let grid = tensors["image_grid_thw"].index_select(&sides, 1).unwrap();
        tensors.insert("image_grid_thw".to_owned(), grid);
    };
    vec![Plant::new("qwen2_vl", Edit::Inputs(exchanged), "model.visual.blocks.0.attn.rope_q")]
}

/// Patches of Qwen2-VL in another order.
pub(crate) fn patches_of_images() -> Vec<Plant> {
    let moved = |tensors: &mut Tensors| {
        let pixels = rolled(&tensors["pixel_values"], 0);
        tensors.insert("pixel_values".to_owned(), pixels);
    };
    // The patches that make a token, column by column.
    let columns = |weight: &Tensor| {
        let size = weight.dim(1).unwrap() / 4;
        let parts = [0, 2, 1, 3].map(|part| weight.narrow(1, part * size, size).unwrap());
        Tensor::cat(&parts, 1).unwrap()
    };
    vec![
        Plant::new("qwen2_vl", Edit::Inputs(moved), "model").between(None, Some("model.visual")),
        tensor("qwen2_vl", "model.visual.patch_embed.proj", "weight", transposed),
        // The two frames of a picture are the same, its channels are not.
        tensor("qwen2_vl", "model.visual.patch_embed.proj", "weight", |weight| rolled(weight, 1)),
        tensor("qwen2_vl", "model.visual.merger.mlp.0", "weight", columns),
    ]
}

/// Biases of either half of Qwen2-VL that are not read.
pub(crate) fn biases_of_qwen2_vl() -> Vec<Plant> {
    let texts =
        ["q_proj", "k_proj", "v_proj"].map(|name| format!("model.language_model.layers.2.self_attn.{name}"));
    let pictures =
        ["blocks.1.attn.qkv", "blocks.2.mlp.fc2", "merger.mlp.2"].map(|name| format!("model.visual.{name}"));
    texts.iter().chain(&pictures).map(|module| tensor("qwen2_vl", module, "bias", zeros)).collect()
}

/// A text that is pooled at another token.
pub(crate) fn pooling() -> Vec<Plant> {
    let between = Some([Some("text_model"), Some("text_projection")]);
    let whole = |config: &mut Value| config["text_config"]["eos_token_id"] = json!(7);
    let tower = |config: &mut Value| config["eos_token_id"] = json!(7);
    vec![
        config("clip", whole, "(root)", between),
        config("clip_text_model:projection", tower, "(root)", between),
    ]
}

/// Bugs inside of a tower or an encoder that is loaded by itself.
pub(crate) fn towers() -> Vec<Plant> {
    vec![
        tensor("clip_vision_model", "embeddings.patch_embedding", "weight", transposed),
        tensor(
            "t5:encoder-alone-gated",
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
            "weight",
            rolled_rows,
        ),
        tensor("clip_text_model", "encoder.layers.1.self_attn.k_proj", "weight", rolled_rows),
        tensor(
            "clip_vision_model:projection",
            "vision_model.encoder.layers.2.mlp.fc1",
            "weight",
            rolled_rows,
        ),
    ]
}

/// Bugs that also show through a cache.
pub(crate) fn cached() -> Vec<Plant> {
    [
        ("t5", "encoder.block.1.layer.1.DenseReluDense.wi"),
        ("t5", "decoder.block.1.layer.1.EncDecAttention.k"),
        ("t5", "decoder.block.2.layer.2.DenseReluDense.wo"),
        ("whisper", "model.encoder.layers.1.fc1"),
        ("whisper", "model.decoder.layers.2.encoder_attn.q_proj"),
    ]
    .map(|(checkpoint, module)| tensor(checkpoint, module, "weight", rolled_rows))
    .into()
}

/// Every bug.
pub(crate) fn localised() -> Vec<Plant> {
    [
        buckets(),
        norms(),
        cross_attention(),
        frames(),
        patches(),
        positions_of_images(),
        sides_of_images(),
        patches_of_images(),
        biases_of_qwen2_vl(),
        pooling(),
        towers(),
        cached(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
