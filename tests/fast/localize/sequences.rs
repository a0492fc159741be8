//! Plants bugs in models of more than one sequence, T5, Whisper, CLIP and Qwen2-VL, and in their encoders by themselves, on the
//! inputs that a run makes, and localises them.

use candle_core::{D, Device, Tensor};
use reference::protocol::{Dtype, Load, Mode};
use serde_json::{Value, json};
use tfcheck::execute::runner::Runner;
use tfcheck::hunt::localize::{Finding, Options};

use super::native::{assert_bug, assert_found, divergence};
use crate::engine::InProcess;
use crate::setting::{Setting, Tensors};

type Between<'a> = Option<[Option<&'a str>; 2]>;

/// Asserts that the bug that these edits plant is localised to `path`.
fn fault(
    checkpoint: &str,
    config: impl FnOnce(&mut Value),
    weights: impl FnOnce(&mut Tensors),
    path: &str,
    between: Between,
) {
    let setting = Setting::with_made_inputs(checkpoint);
    let right = setting.load(Mode::Eager, Dtype::F32);
    let wrong = Load { checkpoint: setting.changed(config, weights), ..right.clone() };
    assert_bug(&format!("{checkpoint} {path}"), &setting, (right, wrong), path, between);
}

/// As [`fault`], for an edit of the tensor `module.tensor`; the module is the first to diverge.
fn weight_fault(checkpoint: &str, module: &str, tensor: &str, edit: impl Fn(&Tensor) -> Tensor) {
    // Qwen2-VL's files have the names of its first releases, and those of CLIP's towers those of the whole model.
    let saved = module.replace("model.visual", "visual").replace("model.language_model", "model");
    let weights = |tensors: &mut Tensors| {
        let names = ["", "text_model.", "vision_model."].map(|part| format!("{part}{saved}.{tensor}"));
        let name = names.into_iter().find(|name| tensors.contains_key(name)).unwrap();
        let edited = edit(&tensors[&name]).contiguous().unwrap();
        tensors.insert(name, edited);
    };
    fault(checkpoint, |_| (), weights, module, None);
}

/// The values along `axis` moved by one; the last comes first.
fn rolled(tensor: &Tensor, axis: usize) -> Tensor {
    let last = tensor.dim(axis).unwrap() - 1;
    Tensor::cat(&[tensor.narrow(axis, last, 1).unwrap(), tensor.narrow(axis, 0, last).unwrap()], axis)
        .unwrap()
}

#[test]
fn a_wrong_distance_of_t5s_buckets_is_localised_to_the_code_that_sorts_them() {
    let attention = "encoder.block.0.layer.0.SelfAttention";
    let table = &*format!("{attention}.relative_attention_bias");
    let config = |config: &mut Value| config["relative_attention_max_distance"] = json!(13);
    fault("t5", config, |_| (), attention, Some([None, Some(table)]));
    for table in [table, "decoder.block.0.layer.0.SelfAttention.relative_attention_bias"] {
        weight_fault("t5", table, "weight", |table| rolled(table, 0));
    }
}

#[test]
fn a_missing_norm_is_localised_in_either_stack() {
    for (checkpoint, module) in [
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
    ] {
        weight_fault(checkpoint, module, "weight", |weight| weight.ones_like().unwrap());
    }
}

#[test]
fn wrong_weights_of_cross_attention_are_localised_by_the_positions_that_they_run_over() {
    let layer = "decoder.block.2.layer.1.EncDecAttention";
    for name in ["q", "k", "v", "o"] {
        weight_fault("t5", &format!("{layer}.{name}"), "weight", |weight| rolled(weight, 0));
    }
    for name in ["q_proj", "v_proj"] {
        weight_fault("whisper", &format!("model.decoder.layers.2.encoder_attn.{name}"), "bias", |bias| {
            bias.zeros_like().unwrap()
        });
    }
}

/// Lets the decoder attend to the encoder's padding.
fn unmasked(tensors: &mut Tensors) {
    let ones = tensors["attention_mask"].ones_like().unwrap();
    tensors.insert("attention_mask".to_owned(), ones);
}

#[test]
fn attended_padding_of_the_encoder_is_localised_to_the_mask() {
    // An encoder without blocks attends to nothing, so that only the decoder can attend to the padding.
    for (num_layers, path) in [
        (3, "encoder.block.0.layer.0.SelfAttention.mask"),
        (0, "decoder.block.0.layer.1.EncDecAttention.mask"),
    ] {
        let setting = Setting::with_made_inputs("t5");
        let checkpoint = setting.changed(|config| config["num_layers"] = json!(num_layers), |_| ());
        let right = Load { checkpoint, ..setting.load(Mode::Eager, Dtype::F32) };
        let wrong = Load { inputs: setting.changed_inputs(unmasked), ..right.clone() };
        assert_bug(path, &setting, (right, wrong), path, None);
    }
}

#[test]
fn a_shifted_frame_is_localised_to_where_it_is_shifted() {
    let setting = Setting::with_made_inputs("whisper");
    let inputs = setting.changed_inputs(|tensors| {
        let shifted = rolled(&tensors["input_features"], 2);
        tensors.insert("input_features".to_owned(), shifted);
    });
    let right = setting.load(Mode::Eager, Dtype::F32);
    let wrong = Load { inputs, ..right.clone() };
    let before = Some([None, Some("model.encoder")]);
    assert_bug("shifted features", &setting, (right, wrong), "model", before);
    for convolution in ["model.encoder.conv1", "model.encoder.conv2"] {
        weight_fault("whisper", convolution, "weight", |weight| rolled(weight, 2));
    }
    for stack in ["encoder", "decoder"] {
        let positions = format!("model.{stack}.embed_positions");
        weight_fault("whisper", &positions, "weight", |weight| rolled(weight, 0));
    }
}

#[test]
fn patches_in_another_order_are_localised_to_the_embedding() {
    let transposed = |weight: &Tensor| weight.transpose(D::Minus1, D::Minus2).unwrap();
    weight_fault("clip", "vision_model.embeddings.patch_embedding", "weight", transposed);
    // The position of the class token and, column by column, those of 3 × 3 patches.
    let columns = Tensor::new(&[0_u32, 1, 4, 7, 2, 5, 8, 3, 6, 9], &Device::Cpu).unwrap();
    let by_columns = |table: &Tensor| table.index_select(&columns, 0).unwrap();
    weight_fault("clip", "vision_model.embeddings.position_embedding", "weight", by_columns);
}

/// The bug that these edits of Qwen2-VL's config and inputs plant is localised to `path`.
fn image_fault(
    config: impl FnOnce(&mut Value),
    inputs: impl FnOnce(&mut Tensors),
    path: &str,
    between: Between,
) {
    let setting = Setting::with_made_inputs("qwen2_vl");
    let right = setting.load(Mode::Eager, Dtype::F32);
    let wrong = Load {
        checkpoint: setting.changed(config, |_| ()),
        inputs: setting.changed_inputs(inputs),
        ..right.clone()
    };
    assert_bug(&format!("qwen2_vl {path}"), &setting, (right, wrong), path, between);
}

#[test]
fn wrong_positions_of_an_image_are_localised_to_the_rotation_of_the_text() {
    let rotation = "model.language_model.layers.0.self_attn.rope_q";
    // Sections in another order.
    image_fault(|config| config["rope_scaling"]["mrope_section"] = json!([5, 1, 2]), |_| (), rotation, None);
    // The tokens of images are counted as words.
    let words = |tensors: &mut Tensors| {
        let types = tensors["mm_token_type_ids"].zeros_like().unwrap();
        tensors.insert("mm_token_type_ids".to_owned(), types);
    };
    image_fault(|_| (), words, rotation, None);
}

#[test]
fn images_with_their_sides_exchanged_are_localised_to_the_rotation_of_their_patches() {
    let exchanged = |tensors: &mut Tensors| {
        let sides = Tensor::new(&[0_u32, 2, 1], &Device::Cpu).unwrap();
        let grid = tensors["image_grid_thw"].index_select(&sides, 1).unwrap();
        tensors.insert("image_grid_thw".to_owned(), grid);
    };
    image_fault(|_| (), exchanged, "model.visual.blocks.0.attn.rope_q", None);
}

#[test]
fn patches_of_an_image_in_another_order_are_localised_to_where_they_are_cut_or_read() {
    let moved = |tensors: &mut Tensors| {
        let pixels = rolled(&tensors["pixel_values"], 0);
        tensors.insert("pixel_values".to_owned(), pixels);
    };
    image_fault(|_| (), moved, "model", Some([None, Some("model.visual")]));
    let transposed = |weight: &Tensor| weight.transpose(D::Minus1, D::Minus2).unwrap();
    weight_fault("qwen2_vl", "model.visual.patch_embed.proj", "weight", transposed);
    // The two frames of a picture are the same, its channels are not.
    let channels = |weight: &Tensor| rolled(weight, 1);
    weight_fault("qwen2_vl", "model.visual.patch_embed.proj", "weight", channels);
    // The patches that make a token, column by column.
    let columns = |weight: &Tensor| {
        let size = weight.dim(1).unwrap() / 4;
        let parts = [0, 2, 1, 3].map(|part| weight.narrow(1, part * size, size).unwrap());
        Tensor::cat(&parts, 1).unwrap()
    };
    weight_fault("qwen2_vl", "model.visual.merger.mlp.0", "weight", columns);
}

#[test]
fn wrong_weights_of_either_half_of_qwen2_vl_are_localised() {
    for name in ["q_proj", "k_proj", "v_proj"] {
        weight_fault(
            "qwen2_vl",
            &format!("model.language_model.layers.2.self_attn.{name}"),
            "bias",
            |bias| bias.zeros_like().unwrap(),
        );
    }
    for module in ["blocks.1.attn.qkv", "blocks.2.mlp.fc2", "merger.mlp.2"] {
        weight_fault("qwen2_vl", &format!("model.visual.{module}"), "bias", |bias| {
            bias.zeros_like().unwrap()
        });
    }
}

#[test]
fn a_text_pooled_at_another_token_is_localised_to_the_code_behind_the_text_model() {
    let config = |config: &mut Value| config["text_config"]["eos_token_id"] = json!(7);
    fault("clip", config, |_| (), "(root)", Some([Some("text_model"), Some("text_projection")]));
}

#[test]
fn a_tower_pooled_at_another_token_is_localised_to_the_code_behind_it() {
    let config = |config: &mut Value| config["eos_token_id"] = json!(7);
    let between = Some([Some("text_model"), Some("text_projection")]);
    fault("clip_text_model:projection", config, |_| (), "(root)", between);
}

#[test]
fn a_transposed_projection_of_a_tower_is_localised_to_it() {
    for (checkpoint, tower, projection, size) in [
        ("clip_text_model:projection", "text_model", "text_projection", 48),
        ("clip_vision_model:projection", "vision_model", "visual_projection", 64),
    ] {
        let [setting, other] = [(); 2].map(|()| Setting::with_made_inputs(checkpoint));
        // A square one, which fits either way.
        let projected = |setting: &Setting, is_transposed: bool| {
            let weights = |tensors: &mut Tensors| {
                let square = tensors[&format!("{tower}.encoder.layers.0.self_attn.v_proj.weight")].clone();
                let square = if is_transposed { square.t().unwrap().contiguous().unwrap() } else { square };
                tensors.insert(format!("{projection}.weight"), square);
            };
            setting.changed(|config| config["projection_dim"] = json!(size), weights)
        };
        let right = Load { checkpoint: projected(&setting, false), ..setting.load(Mode::Eager, Dtype::F32) };
        let wrong = Load { checkpoint: projected(&other, true), ..right.clone() };
        assert_bug(&format!("{checkpoint} transposed"), &setting, (right, wrong), projection, None);
    }
}

#[test]
fn bugs_inside_of_a_tower_are_localised() {
    let transposed = |weight: &Tensor| weight.transpose(D::Minus1, D::Minus2).unwrap();
    weight_fault("clip_vision_model", "embeddings.patch_embedding", "weight", transposed);
    let attention = "encoder.block.0.layer.0.SelfAttention";
    weight_fault(
        "t5:encoder-alone-gated",
        &format!("{attention}.relative_attention_bias"),
        "weight",
        |table| rolled(table, 0),
    );
    for (checkpoint, module) in [
        ("clip_text_model", "encoder.layers.1.self_attn.k_proj"),
        ("clip_vision_model:projection", "vision_model.encoder.layers.2.mlp.fc1"),
    ] {
        weight_fault(checkpoint, module, "weight", |weight| rolled(weight, 0));
    }
}

#[test]
fn a_cached_encoder_decoder_agrees_with_its_full_pass_and_its_bugs_are_localised() {
    for (checkpoint, module) in [
        ("t5", "encoder.block.1.layer.1.DenseReluDense.wi"),
        ("t5", "decoder.block.1.layer.1.EncDecAttention.k"),
        ("t5", "decoder.block.2.layer.2.DenseReluDense.wo"),
        ("whisper", "model.encoder.layers.1.fc1"),
        ("whisper", "model.decoder.layers.2.encoder_attn.q_proj"),
    ] {
        let setting = Setting::with_made_inputs(checkpoint);
        let right = setting.load(Mode::Eager, Dtype::F32);
        let changed = setting.changed(
            |_| (),
            |tensors| {
                let name = format!("{module}.weight");
                let edited = rolled(&tensors[&name], 0);
                tensors.insert(name, edited);
            },
        );
        let wrong = Load { checkpoint: changed, ..right.clone() };
        let localize = |b: &Load, prefills: [Option<usize>; 2]| {
            let sides = [(right.clone(), prefills[0]), (b.clone(), prefills[1])];
            let [a, b] = sides.map(|(load, prefill)| (&InProcess as &dyn Runner, load, prefill));
            setting.localize_through_caches(a, b, &Options::default()).unwrap()
        };
        // The decoder has 27 tokens.
        for prefill in [1, 20] {
            let found = localize(&right, [None, Some(prefill)]);
            assert_eq!(found.finding, Finding::Nothing, "{checkpoint}: {}", found.sentence);
        }
        for prefills in [[None, Some(20)], [Some(20), Some(20)]] {
            let found = localize(&wrong, prefills);
            assert_found(module, &found, module, None);
            assert_eq!(divergence(module, &found).path, module);
        }
    }
}

#[test]
fn padding_of_the_encoder_is_not_compared() {
    let setting = Setting::with_made_inputs("t5");
    let inputs = setting.changed_inputs(|tensors| {
        let mask = &tensors["attention_mask"];
        let padding = (mask.ones_like().unwrap() - mask).unwrap();
        assert!(padding.sum_all().unwrap().to_scalar::<i64>().unwrap() > 0);
        let other = (&tensors["input_ids"] + padding).unwrap();
        tensors.insert("input_ids".to_owned(), other);
    });
    let module = "decoder.block.2.layer.2.DenseReluDense.wo";
    let checkpoint = setting.changed(
        |_| (),
        |tensors| {
            let name = format!("{module}.weight");
            let edited = rolled(&tensors[&name], 0);
            tensors.insert(name, edited);
        },
    );
    let right = setting.load(Mode::Eager, Dtype::F32);
    let wrong = Load { checkpoint, inputs, ..right.clone() };
    assert_bug("other padding", &setting, (right, wrong), module, None);
}
