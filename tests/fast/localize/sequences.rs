//! Plants bugs in models of more than one sequence, T5, Whisper, CLIP and Qwen2-VL, and in their encoders by themselves, on the
//! inputs that a run makes, and localises them.

use reference::protocol::{Dtype, Load, Mode};
use serde_json::json;
use tfcheck::execute::runner::Runner;
use tfcheck::hunt::localize::{Finding, Options};

use super::native::{assert_bug, assert_found, divergence};
use crate::engine::InProcess;
use crate::plants::{Plant, sequences};
use crate::setting::{Setting, Tensors};

/// Asserts that each bug is localised, on the inputs that a run makes.
fn are_localised(plants: Vec<Plant>) {
    super::native::are_localised(plants, Setting::with_made_inputs);
}

#[test]
fn a_wrong_distance_of_t5s_buckets_is_localised_to_the_code_that_sorts_them() {
    are_localised(sequences::buckets());
}

#[test]
fn a_missing_norm_is_localised_in_either_stack() {
    are_localised(sequences::norms());
}

#[test]
fn wrong_weights_of_cross_attention_are_localised_by_the_positions_that_they_run_over() {
    are_localised(sequences::cross_attention());
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
    are_localised(sequences::frames());
}

#[test]
fn patches_in_another_order_are_localised_to_the_embedding() {
    are_localised(sequences::patches());
}

#[test]
fn wrong_positions_of_an_image_are_localised_to_the_rotation_of_the_text() {
    are_localised(sequences::positions_of_images());
}

#[test]
fn images_with_their_sides_exchanged_are_localised_to_the_rotation_of_their_patches() {
    are_localised(sequences::sides_of_images());
}

#[test]
fn patches_of_an_image_in_another_order_are_localised_to_where_they_are_cut_or_read() {
    are_localised(sequences::patches_of_images());
}

#[test]
fn wrong_weights_of_either_half_of_qwen2_vl_are_localised() {
    are_localised(sequences::biases_of_qwen2_vl());
}

#[test]
fn a_text_or_a_tower_pooled_at_another_token_is_localised_to_the_code_behind_it() {
    are_localised(sequences::pooling());
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
    are_localised(sequences::towers());
}

#[test]
fn a_cached_encoder_decoder_agrees_with_its_full_pass_and_its_bugs_are_localised() {
    for plant in sequences::cached() {
        let (checkpoint, module) = (plant.checkpoint, plant.module.as_str());
        let setting = Setting::with_made_inputs(checkpoint);
        let right = setting.load(Mode::Eager, Dtype::F32);
        let wrong = plant.committed(&right, &setting.folder.path().join("changed"));
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
    let plant = sequences::cached().into_iter().find(|plant| plant.module == module).unwrap();
    let right = setting.load(Mode::Eager, Dtype::F32);
    let wrong = Load { inputs, ..plant.committed(&right, &setting.folder.path().join("changed")) };
    assert_bug("other padding", &setting, (right, wrong), module, None);
}
