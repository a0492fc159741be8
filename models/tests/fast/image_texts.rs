//! Laws of decoders with images on every synthetic checkpoint: padding, the other rows of a batch, later tokens, a cache and
//! a probe do not change results; every patch does; all forms of the config and of the weights' names are read; inputs that
//! do not fit are refused.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use candle_core::{DType, Device, IndexOp, Tensor};
use models::synthetic::write;
use models::{Backend, Cache, Inputs, Kind, Loaded, Options, load};
use serde_json::{Value, json};

use super::laws::{EXACT, Trace, assert_row_same, each, norm, token};

/// Lengths of the texts with their images.
const LENGTHS: [usize; 3] = [30, 22, 13];
const SEQ: usize = 30;
/// Tokens of the images of each row, from top to bottom and from left to right.
const IMAGES: [&[[usize; 2]]; 3] = [&[[2, 3], [4, 2]], &[[1, 5]], &[]];
/// The tokens that mark an image, and those that stand for it.
const START: u32 = 282;
const IMAGE: u32 = 280;
const END: u32 = 283;

fn each_checkpoint(dtype: DType, backend: Backend, law: impl Fn(&str, Loaded)) {
    each(|kind| kind == Kind::ImageTextDecoder, dtype, backend, law);
}

/// Patches that are merged to a token along one side, and values of a patch.
fn sizes(name: &str) -> [usize; 2] {
    if name.contains("window") { [1, 48] } else { [2, 96] }
}

/// The tokens of a row: two words, each image between its marks, words.
fn text(row: usize) -> Vec<u32> {
    let images = IMAGES[row].iter().flat_map(|[height, width]| {
        [START].into_iter().chain(std::iter::repeat_n(IMAGE, height * width)).chain([END])
    });
    let words = |from: usize| (from..).map(move |column| token(row, column));
    words(0).take(2).chain(images).chain(words(2)).take(LENGTHS[row]).collect()
}

/// The grids of the images of these rows, and their patches.
fn images(name: &str, rows: Range<usize>) -> Option<[Tensor; 2]> {
    let [merge, values] = sizes(name);
    let grids: Vec<[usize; 3]> = rows
        .clone()
        .flat_map(|row| IMAGES[row].iter().map(|[height, width]| [1, height * merge, width * merge]))
        .collect();
    let patches = rows.flat_map(|row| {
        let count = IMAGES[row].iter().map(|[height, width]| height * width * merge * merge).sum::<usize>();
        (0..count * values).map(move |at| (f64::from(token(row + 7, at)) / 140.0 - 1.0) as f32)
    });
    let patches: Vec<f32> = patches.collect();
    let grid = grids.concat().into_iter().map(|side| side as i64).collect::<Vec<_>>();
    let count = patches.len() / values;
    (count > 0).then(|| {
        [
            Tensor::from_vec(grid, (grids.len(), 3), &Device::Cpu).unwrap(),
            Tensor::from_vec(patches, (count, values), &Device::Cpu).unwrap(),
        ]
    })
}

fn with_images(inputs: Inputs, images: Option<[Tensor; 2]>) -> Inputs {
    match images {
        Some([grid, pixels]) => inputs.with("image_grid_thw", grid).with("pixel_values", pixels),
        None => inputs,
    }
}

/// The inputs of a row with padding before and after it.
fn padded(name: &str, row: usize, [before, after]: [usize; 2]) -> Inputs {
    let filler = |count: usize| (0..count).map(|column| token(row, 50 + column));
    let ids: Vec<u32> = filler(before).chain(text(row)).chain(filler(after)).collect();
    let real = 0..before + LENGTHS[row] + after;
    let mask: Vec<u32> =
        real.map(|column| u32::from((before..before + LENGTHS[row]).contains(&column))).collect();
    let tensor = |values: Vec<u32>| Tensor::new(values, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let inputs = Inputs { attention_mask: Some(tensor(mask)), ..Inputs::new(tensor(ids)) };
    with_images(inputs, images(name, row..row + 1))
}

/// The inputs of a row without a mask.
fn alone(name: &str, row: usize) -> Inputs {
    Inputs { attention_mask: None, ..padded(name, row, [0, 0]) }
}

/// All rows, padded on the left or on the right.
fn batch(name: &str, is_left: bool) -> Inputs {
    let rows: Vec<Inputs> = (0..LENGTHS.len())
        .map(|row| {
            let padding = SEQ - LENGTHS[row];
            padded(name, row, if is_left { [padding, 0] } else { [0, padding] })
        })
        .collect();
    let cat =
        |of: &dyn Fn(&Inputs) -> Tensor| Tensor::cat(&rows.iter().map(of).collect::<Vec<_>>(), 0).unwrap();
    let inputs = Inputs {
        attention_mask: Some(cat(&|row| row.attention_mask.clone().unwrap())),
        ..Inputs::new(cat(&|row| row.input_ids.clone()))
    };
    with_images(inputs, images(name, 0..LENGTHS.len()))
}

#[test]
fn a_row_gives_the_same_alone_and_in_a_batch_padded_on_either_side() {
    for (dtype, backend, bound) in EXACT {
        each_checkpoint(dtype, backend, |name, mut loaded| {
            let [left, right] = [true, false].map(|is_left| loaded.forward(&batch(name, is_left)).unwrap());
            for (row, length) in LENGTHS.into_iter().enumerate() {
                let expected = loaded.forward(&alone(name, row)).unwrap().i(0).unwrap();
                let found = [left.i((row, SEQ - length..)).unwrap(), right.i((row, ..length)).unwrap()];
                for found in found {
                    assert_row_same(&format!("{name} row {row}"), &found, &expected, bound);
                }
            }
        });
    }
}

#[test]
fn later_tokens_change_no_earlier_one_and_every_patch_changes_the_last() {
    for (dtype, backend, bound) in EXACT {
        each_checkpoint(dtype, backend, |name, mut loaded| {
            let whole = loaded.forward(&alone(name, 1)).unwrap();
            let part =
                Inputs { input_ids: alone(name, 1).input_ids.i((.., ..12)).unwrap(), ..alone(name, 1) };
            let part = loaded.forward(&part).unwrap();
            assert_row_same(name, &part.i(0).unwrap(), &whole.i((0, ..12)).unwrap(), bound);
            let last = whole.i((0, LENGTHS[1] - 1)).unwrap();
            let [_, pixels] = images(name, 1..2).unwrap();
            for patch in 0..pixels.dim(0).unwrap() {
                let mut changed: Vec<Vec<f32>> = pixels.to_vec2().unwrap();
                changed[patch].iter_mut().for_each(|value| *value = -*value);
                let changed = Tensor::new(changed, &Device::Cpu).unwrap();
                let result = loaded.forward(&alone(name, 1).with("pixel_values", changed)).unwrap();
                let result = result.i((0, LENGTHS[1] - 1)).unwrap();
                let difference = norm(&(result - &last).unwrap()) / norm(&last);
                assert!(difference > 1e-5, "{name}: patch {patch} has no effect ({difference:e})");
            }
        });
    }
}

/// The inputs of some columns; only the first have images.
fn step(inputs: &Inputs, columns: Range<usize>) -> Inputs {
    let cut = |tensor: &Tensor, from: usize| tensor.i((.., from..columns.end)).unwrap().contiguous().unwrap();
    Inputs {
        attention_mask: inputs.attention_mask.as_ref().map(|mask| cut(mask, 0)),
        tensors: if columns.start == 0 { inputs.tensors.clone() } else { BTreeMap::new() },
        ..Inputs::new(cut(&inputs.input_ids, columns.start))
    }
}

#[test]
fn tokens_behind_the_images_through_a_cache_equal_a_full_sequence_pass() {
    for (dtype, backend, bound) in EXACT {
        each_checkpoint(dtype, backend, |name, mut loaded| {
            for is_left in [true, false] {
                let inputs = batch(name, is_left);
                let whole = loaded.forward(&inputs).unwrap();
                let mut cache = Cache::new();
                let mut parts = Vec::new();
                for columns in [0..21, 21..22, 22..27, 27..28, 28..30] {
                    let part = loaded.forward_with(&step(&inputs, columns), Some(&mut cache), None).unwrap();
                    parts.push(part);
                }
                let parts = Tensor::cat(&parts, 1).unwrap();
                for (row, length) in LENGTHS.into_iter().enumerate() {
                    let real = if is_left { SEQ - length..SEQ } else { 0..length };
                    let real = |xs: &Tensor| xs.i((row, real.clone())).unwrap();
                    assert_row_same(&format!("{name} row {row}"), &real(&parts), &real(&whole), bound);
                }
            }
        });
    }
}

#[test]
fn given_positions_and_token_types_are_those_that_the_model_counts_itself() {
    each_checkpoint(DType::F64, Backend::Eager, |name, mut loaded| {
        let inputs = batch(name, true);
        let counted = loaded.forward(&inputs).unwrap();
        let types = inputs.input_ids.eq(f64::from(IMAGE)).unwrap().to_dtype(DType::I64).unwrap();
        let typed = loaded.forward(&inputs.clone().with("mm_token_type_ids", types.clone())).unwrap();
        assert_row_same(name, &typed, &counted, 0.0);
        // Without image tokens by type, all tokens count as words.
        let untyped = inputs.clone().with("mm_token_type_ids", types.zeros_like().unwrap());
        let words = loaded.forward(&untyped).unwrap();
        let difference = norm(&(&words - &counted).unwrap()) / norm(&counted);
        assert!(difference > 1e-2, "{name}: positions have no effect ({difference:e})");
        // Those of row 1, whose image of 1 × 5 tokens begins at position 3, are given.
        let mut axes = [(); 3].map(|()| (0..LENGTHS[1] as i64).collect::<Vec<_>>());
        for token in 0..5 {
            axes.iter_mut().zip([0, 0, token]).for_each(|(axis, place)| axis[3 + token as usize] = 3 + place);
        }
        let axes = Tensor::new(axes.to_vec(), &Device::Cpu).unwrap().unsqueeze(1).unwrap();
        let given = Inputs { position_ids: Some(axes), ..alone(name, 1) };
        let row = |result: Tensor| result.i(0).unwrap();
        let counted = row(loaded.forward(&alone(name, 1)).unwrap());
        assert_row_same(name, &row(loaded.forward(&given).unwrap()), &counted, 0.0);
        // A rotation depends on differences of positions only.
        let shifted =
            Inputs { position_ids: Some((given.position_ids.unwrap() + 9.0).unwrap()), ..alone(name, 1) };
        assert_row_same(name, &row(loaded.forward(&shifted).unwrap()), &counted, 1e-12);
    });
}

#[test]
fn a_probe_changes_nothing_and_sees_shapes_of_torch() {
    for (dtype, backend) in [
        (DType::F64, Backend::Eager),
        (DType::BF16, Backend::Eager),
        (DType::F32, Backend::Fused),
        (DType::BF16, Backend::Fused),
    ] {
        each_checkpoint(dtype, backend, |name, mut loaded| {
            let mut trace = Trace::default();
            let plain = loaded.forward(&batch(name, true)).unwrap();
            let probed = loaded.forward_with(&batch(name, true), None, Some(&mut trace)).unwrap();
            let values = |xs: &Tensor| xs.to_dtype(DType::F64).unwrap().to_vec3::<f64>().unwrap();
            assert_eq!(values(&plain), values(&probed), "{name} {dtype:?}");
            let [merge, _] = sizes(name);
            let (tokens, features) = (6 + 8 + 5, if merge == 1 { 32 } else { 48 });
            let patches = tokens * merge * merge;
            for (path, shape) in [
                ("model.visual.patch_embed.proj", vec![patches, features, 1, 1, 1]),
                ("model.visual.blocks.1.attn.proj", vec![1, patches, features]),
                ("model.visual.merger.mlp.0", vec![1, tokens, features * merge * merge]),
                ("model.visual", vec![1, tokens, 64]),
                ("model.language_model.layers.0", vec![3, SEQ, 64]),
                ("model", vec![3, SEQ, 64]),
            ] {
                assert!(trace.outputs.contains(&(path.to_owned(), shape)), "{name}: {path}");
            }
        });
    }
}

/// Moves keys of the texts to `text_config`, as later releases save them.
fn nested(config: &mut Value) {
    let keys = config.as_object_mut().unwrap();
    let stay = ["architectures", "model_type", "vision_config", "torch_dtype"];
    let moved: Vec<String> = (keys.keys())
        .filter(|key| !stay.contains(&key.as_str()) && !key.ends_with("_token_id"))
        .cloned()
        .collect();
    let text: serde_json::Map<String, Value> =
        moved.into_iter().map(|key| (key.clone(), keys.remove(&key).unwrap())).collect();
    keys.insert("text_config".to_owned(), Value::Object(text));
}

#[test]
fn every_form_of_the_config_and_of_the_names_computes_the_same() {
    type Edit = fn(&mut Value);
    let forms: [Edit; 4] = [
        |_| (),
        nested,
        // 4.57.6 writes both names of the type, and the model type of the parts.
        |config| {
            nested(config);
            let text = &mut config["text_config"];
            text["rope_scaling"]["rope_type"] = json!("default");
            text["rope_scaling"]["type"] = json!("default");
            text["model_type"] = json!("qwen2_vl_text");
            text["layer_types"] = json!(vec!["full_attention"; 4]);
            text["sliding_window"] = Value::Null;
        },
        // 5.x writes `rope_parameters` of both parts, and whether the head is tied at the top.
        |config| {
            nested(config);
            let tied = config["text_config"].as_object_mut().unwrap().remove("tie_word_embeddings");
            config["tie_word_embeddings"] = tied.unwrap();
            let text = config["text_config"].as_object_mut().unwrap();
            let scaling = text.remove("rope_scaling").unwrap();
            let theta = text.remove("rope_theta").unwrap();
            let parameters = json!({"mrope_section": scaling["mrope_section"], "rope_type": "default", "rope_theta": theta});
            text.insert("rope_parameters".to_owned(), parameters);
            config["vision_config"]["model_type"] = json!("qwen2_vl_vision");
            config["vision_config"]["rope_parameters"] = json!({"rope_theta": 10000.0, "rope_type": "axial"});
        },
    ];
    let names: [&[(&str, &str)]; 2] =
        [&[], &[("visual.", "model.visual."), ("model.", "model.language_model.")]];
    let folder = tempfile::tempdir().unwrap();
    write("qwen2_vl", "", 0, folder.path()).unwrap();
    let config: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("config.json")).unwrap()).unwrap();
    let file = folder.path().join("model.safetensors");
    let tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    let mut expected = None;
    for form in forms {
        for names in names {
            let mut config = config.clone();
            form(&mut config);
            std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
            let renamed: HashMap<String, Tensor> = (tensors.iter())
                .map(|(name, tensor)| {
                    let renamed =
                        names.iter().find_map(|(old, new)| Some(format!("{new}{}", name.strip_prefix(old)?)));
                    (renamed.unwrap_or_else(|| name.clone()), tensor.clone())
                })
                .collect();
            candle_core::safetensors::save(&renamed, &file).unwrap();
            let options = Options { dtype: DType::F64, device: Device::Cpu, backend: Backend::Eager };
            let mut loaded = load(folder.path(), &options).unwrap();
            assert_eq!((&loaded.unread_keys[..], &loaded.unread_tensors[..]), (&[][..], &[][..]), "{config}");
            let result = loaded.forward(&batch("", true)).unwrap();
            let expected = expected.get_or_insert_with(|| result.clone());
            assert_row_same(&config.to_string(), &result, expected, 0.0);
        }
    }
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    each_checkpoint(DType::F32, Backend::Eager, |name, mut loaded| {
        let row = || alone(name, 1);
        let [grid, pixels] = images(name, 1..2).unwrap();
        let [other, _] = images(name, 0..1).unwrap();
        let half = Inputs { input_ids: row().input_ids.i((.., ..6)).unwrap(), ..row() };
        for (inputs, expected) in [
            (row().with("image_grid_thw", grid.i(0).unwrap()), "where [images, 3] is needed"),
            (row().with("image_grid_thw", grid.zeros_like().unwrap()), "where frames and two multiples of"),
            (row().with("image_grid_thw", other), "image tokens of a grid of"),
            (row().with("pixel_values", pixels.narrow(0, 1, 2).unwrap()), "is needed, by the grid"),
            (half, "fewer than the 5 image tokens of a grid of"),
            (row().with("decoder_input_ids", pixels.clone()), "qwen2_vl takes no decoder_input_ids"),
            (row().with("mm_token_type_ids", grid.clone()), "mm_token_type_ids has shape"),
            (Inputs { position_ids: Some(grid.clone()), ..row() }, "position_ids has shape"),
        ] {
            let error = loaded.forward(&inputs).unwrap_err().to_string();
            assert!(error.contains(expected), "{name}: {error}");
        }
        let mut cache = Cache::new();
        loaded.forward_with(&row(), Some(&mut cache), None).unwrap();
        let error = loaded.forward_with(&row(), Some(&mut cache), None).unwrap_err().to_string();
        assert!(error.contains("images after the first forward pass"), "{name}: {error}");
    });
}
