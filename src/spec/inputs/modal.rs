//! Inputs of models of images, sound and of encoder-decoders, where no processor makes them: a test picture for each image, a
//! chirp for each sound, and decoder tokens, in the shapes that the config states.

mod made;

use models::Task;
use reference::protocol::{DECODER_INPUT_IDS, LABELS};
use serde_json::Value;

use self::made::{Config, chirp};
use super::tensors::Tensor;
use super::{Error, Inputs, batch};

/// What the architectures of one kind get.
struct Kind {
    /// `model_type`s.
    model_types: &'static [&'static str],
    sees: Sees,
}

/// What a model sees or hears, and how it stands in the tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sees {
    /// One picture for each row, `pixel_values [rows, channels, size, size]`, and no tokens.
    Pictures,
    /// Pictures beside texts that do not mention them.
    PicturesBesideTexts,
    /// Pictures whose places in the text are image tokens: one for each patch.
    PicturesInTexts,
    /// Patches of pictures of several sizes, with a grid, whose places in the text are image tokens.
    Patches,
    /// The same with patches as small pictures, row by row.
    Crops,
    /// Each picture as several tiles, `pixel_values [rows, tiles, channels, size, size]`.
    Tiles,
    /// Each picture as a small one and the four quarters of a large one, with its size, whose places in the text are image tokens:
    /// one for each patch, and for each row of the large one's patches.
    Quarters,
    /// A spectrum, `input_features [rows, bins, frames]`.
    Spectrum,
    /// A spectrum whose places in the text are audio tokens: one for each group of positions that the model joins.
    SpectrumInTexts,
    /// Samples, `input_values [rows, samples]`, and no tokens.
    Samples,
    /// Samples of one channel, `input_values [rows, 1, samples]`, and no tokens.
    Channels,
}

/// All kinds; a model_type that no row has gets tokens alone.
const KINDS: &[Kind] = &[
    Kind {
        model_types: &[
            "vit",
            "deit",
            "beit",
            "dinov2",
            "dinov2_with_registers",
            "dinov3_vit",
            "segformer",
            "swin",
            "swinv2",
            "convnext",
            "convnextv2",
            "resnet",
            "hiera",
            "mobilevit",
            "depth_anything",
            "yolos",
            "vit_mae",
            "siglip_vision_model",
            "clip_vision_model",
            "vision-encoder-decoder",
            "poolformer",
            "efficientnet",
        ],
        sees: Sees::Pictures,
    },
    Kind {
        model_types: &["clip", "siglip", "siglip2", "blip", "chinese_clip", "altclip", "git", "metaclip_2"],
        sees: Sees::PicturesBesideTexts,
    },
    Kind {
        model_types: &[
            "llava",
            "paligemma",
            "colpali",
            "gemma3",
            "vipllava",
            "got_ocr2",
            "internvl",
            "aya_vision",
            "mistral3",
        ],
        sees: Sees::PicturesInTexts,
    },
    Kind {
        model_types: &["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v"],
        sees: Sees::Patches,
    },
    Kind { model_types: &["paddleocr_vl"], sees: Sees::Crops },
    Kind { model_types: &["llava_next"], sees: Sees::Quarters },
    Kind { model_types: &["idefics2", "idefics3", "smolvlm"], sees: Sees::Tiles },
    Kind { model_types: &["whisper", "moonshine_streaming"], sees: Sees::Spectrum },
    Kind {
        model_types: &["wav2vec2", "hubert", "wavlm", "data2vec-audio", "unispeech", "unispeech-sat", "sew"],
        sees: Sees::Samples,
    },
    Kind { model_types: &["voxtral"], sees: Sees::SpectrumInTexts },
    Kind { model_types: &["encodec", "mimi"], sees: Sees::Channels },
];

/// Model types whose processors put pictures before the text, and not after its first token.
const PICTURES_FIRST: &[&str] = &["paligemma", "colpali"];

/// By the beginning of the model_type, the argument that tells what a token stands for, and its value at the tokens of a
/// picture; it is 0 at those of a prompt. Gemma 3 attends to a picture in both directions, PaliGemma to the whole prompt, and
/// Qwen counts the positions of a picture apart.
const TOKEN_TYPES: &[(&str, &str, i64)] = &[
    ("qwen", "mm_token_type_ids", 1),
    ("glm4v", "mm_token_type_ids", 1),
    ("paddleocr", "mm_token_type_ids", 1),
    ("gemma", "token_type_ids", 1),
    ("paligemma", "token_type_ids", 0),
];

/// Patches of a picture along its height and width, of the first row, the second, and so on in turn.
const GRIDS: [[usize; 2]; 2] = [[4, 6], [8, 4]];

/// Samples of a chirp: a second at 16 kHz.
const SAMPLES: usize = 16_000;
/// Samples that whole frames of a codec consist of: 8 of Mimi's 1,920, 48 of EnCodec's 320.
const FRAMED_SAMPLES: usize = 15_360;

/// Model types that pool a text at its first end token.
const POOLED_AT_END: [&str; 4] = ["clip", "clip_text_model", "metaclip_2", "metaclip_2_text_model"];

/// Ends random texts of a model that pools them at their end token: its last real token becomes that of the config, or the
/// largest id where the config has the 2 of early checkpoints, at whose largest id those pool. No other token is one, padding
/// included: what a model computes at padding is its own affair. A text stays as it is where the vocabulary lacks that token.
pub(super) fn end(inputs: &mut Inputs, config: &Value) {
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    if !POOLED_AT_END.contains(&model_type) {
        return;
    }
    let text = config.get("text_config").filter(|text| text.is_object()).unwrap_or(config);
    let number = |key: &str, default: i64| text.get(key).and_then(Value::as_i64).unwrap_or(default);
    // Where the config leaves a key out, CLIP's own default of transformers.
    let size = number("vocab_size", 49408);
    let end = match number("eos_token_id", 49407) {
        2 => size - 1,
        id => id,
    };
    if !(0..size).contains(&end) {
        return;
    }
    let other = i64::from(end == 0);
    let rows = inputs.input_ids.chunks_mut(inputs.seq.max(1));
    for (ids, mask) in rows.zip(inputs.attention_mask.chunks(inputs.seq.max(1))) {
        ids.iter_mut().filter(|id| **id == end).for_each(|id| *id = other);
        if let Some(last) = mask.iter().rposition(|real| *real != 0) {
            ids[last] = end;
        }
    }
    inputs.digest = batch::digest(inputs);
}

/// Adds what the model of this config gets beside tokens.
///
/// # Errors
/// When the config does not state the sizes.
pub(super) fn complete(inputs: &mut Inputs, config: &Value) -> Result<(), Error> {
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let config = Config { config, model_type };
    let kind = KINDS.iter().find(|kind| kind.model_types.contains(&model_type));
    match kind.map(|kind| kind.sees).and_then(|sees| config.narrowed(sees)) {
        None => {}
        Some(Sees::Pictures) if config.has_decoder() => {
            config.decoder_tokens(inputs);
            without_tokens(inputs);
            config.pictures(inputs, None)?;
        }
        Some(Sees::Pictures) => {
            inputs.notes.clear();
            without_tokens(inputs);
            config.pictures(inputs, None)?;
        }
        Some(Sees::PicturesBesideTexts) => config.pictures(inputs, None)?,
        Some(Sees::PicturesInTexts) => {
            let [size, _] = config.picture();
            let patch = config.number("patch_size").ok_or_else(|| config.lacks("patch_size"))?;
            let patches = (size / patch.max(1)).pow(2);
            let count = config.number("mm_tokens_per_image").unwrap_or(patches);
            config.place(inputs, &vec![count; inputs.batch])?;
            config.pictures(inputs, None)?;
        }
        Some(sees @ (Sees::Patches | Sees::Crops)) => config.patches(inputs, sees == Sees::Crops)?,
        Some(Sees::Tiles) => {
            let [size, _] = config.picture();
            let patch = config.number("patch_size").ok_or_else(|| config.lacks("patch_size"))?;
            let scale = config.number("scale_factor").unwrap_or(1).max(1);
            let count = (size / patch.max(1)).pow(2) / (scale * scale);
            config.place(inputs, &vec![count; inputs.batch])?;
            config.pictures(inputs, Some(1))?;
        }
        Some(Sees::Quarters) => {
            let [size, _] = config.picture();
            let patch = config.number("patch_size").ok_or_else(|| config.lacks("patch_size"))?;
            let side = size / patch.max(1);
            config.place(inputs, &vec![side * side + 2 * side * (2 * side + 1); inputs.batch])?;
            config.pictures(inputs, Some(5))?;
            let sizes = vec![2 * size as i64; 2 * inputs.batch];
            add(inputs, "image_sizes", Tensor::integers(vec![inputs.batch, 2], sizes));
        }
        Some(Sees::Spectrum) => {
            let bins = config.number("num_mel_bins").ok_or_else(|| config.lacks("num_mel_bins"))?;
            let positions =
                config.number("max_source_positions").ok_or_else(|| config.lacks("max_source_positions"))?;
            config.spectrum(inputs, bins, positions)?;
            config.decoder_tokens(inputs);
            without_tokens(inputs);
        }
        Some(Sees::SpectrumInTexts) => {
            let number = |key: &str| {
                let value = config.config.pointer(&format!("/audio_config/{key}")).and_then(Value::as_u64);
                let value =
                    value.and_then(|value| usize::try_from(value).ok()).filter(|value| *value < 1 << 20);
                value.ok_or_else(|| config.lacks(key))
            };
            let positions = number("max_source_positions")?;
            let joined = (number("intermediate_size")? / number("hidden_size")?.max(1)).max(1);
            config.place(inputs, &vec![positions / joined; inputs.batch])?;
            config.spectrum(inputs, number("num_mel_bins")?, positions)?;
        }
        Some(sees @ (Sees::Samples | Sees::Channels)) => {
            inputs.notes.clear();
            without_tokens(inputs);
            let rows = inputs.batch;
            let (channels, samples) =
                if sees == Sees::Channels { (vec![1], FRAMED_SAMPLES) } else { (Vec::new(), SAMPLES) };
            let values = (0..config.elements(&[rows, samples])?).map(|at| chirp(at / samples, at % samples));
            let shape = [vec![rows], channels, vec![samples]].concat();
            add(inputs, "input_values", Tensor::floats(shape, values));
        }
    }
    if config.has_decoder() && !inputs.tensors.contains_key(DECODER_INPUT_IDS) {
        config.decoder_tokens(inputs);
    }
    inputs.digest = batch::digest(inputs);
    Ok(())
}

/// The size of the vocabulary that tokens are drawn from: that of the part of a model that reads tokens. Any will do for a
/// model that reads none.
pub(super) fn vocab_size(config: &Value) -> Option<u64> {
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let known = Config { config, model_type }.number("vocab_size");
    let sees = KINDS.iter().find(|kind| kind.model_types.contains(&model_type)).map(|kind| kind.sees);
    known
        .map(|size| size as u64)
        .or_else(|| matches!(sees, Some(Sees::Pictures | Sees::Samples | Sees::Channels)).then_some(1000))
}

/// Adds the tokens that each position should predict, so that the model computes its loss: the token itself, which causal
/// models shift by themselves, or the class of the row's number for a classifier of rows.
pub(super) fn label(inputs: &mut Inputs, config: &Value) {
    let architecture = config.pointer("/architectures/0").and_then(Value::as_str).unwrap_or_default();
    let labels = if Task::of_class(architecture) == Some(Task::SequenceClassification)
        || architecture.ends_with("ForImageClassification")
    {
        Tensor::integers(vec![inputs.batch], (0..inputs.batch as i64).map(|row| row % 2))
    } else if let Some(decoder) = inputs.tensors.get(DECODER_INPUT_IDS) {
        decoder.clone()
    } else {
        let real = inputs.input_ids.iter().zip(&inputs.attention_mask);
        let labels: Vec<i64> = real.map(|(id, real)| if *real == 0 { -100 } else { *id }).collect();
        Tensor::integers(vec![inputs.batch, inputs.seq], labels)
    };
    add(inputs, LABELS, labels);
    inputs.digest = batch::digest(inputs);
}

fn add(inputs: &mut Inputs, name: &str, tensor: Tensor) {
    inputs
        .notes
        .push(format!("{name} ({}) is made by tfcheck: the checkpoint has no processor", tensor.said()));
    inputs.tensors.insert(name.to_owned(), tensor);
}

fn without_tokens(inputs: &mut Inputs) {
    inputs.seq = 0;
    inputs.padding = None;
    for values in [&mut inputs.input_ids, &mut inputs.attention_mask, &mut inputs.position_ids] {
        values.clear();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Padding;
    use super::*;

    fn completed(config: &Value) -> Result<Inputs, Error> {
        let rows = [vec![5, 6, 7], vec![8, 9]];
        let mut inputs = batch::lay_out("test".to_owned(), &rows, 3, Padding::Left, 0);
        complete(&mut inputs, config).map(|()| inputs)
    }

    #[test]
    fn a_picture_stands_after_the_first_token_and_its_patches_have_their_grid() {
        let config = json!({
            "model_type": "qwen2_vl", "image_token_id": 90, "vision_start_token_id": 91, "vision_end_token_id": 92,
            "vision_config": {"patch_size": 2, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3},
        });
        let inputs = completed(&config).unwrap();
        let grid = &inputs.tensors["image_grid_thw"];
        assert_eq!(grid.shape, [2, 3]);
        // 4 × 6 and 8 × 4 patches, of which four make a token.
        assert_eq!(inputs.tensors["pixel_values"].shape, [24 + 32, 3 * 2 * 2 * 2]);
        assert_eq!(inputs.input_ids.iter().filter(|id| **id == 90).count(), 6 + 8);
        // The second row is longer by a token, with its larger picture.
        assert_eq!(&inputs.input_ids[..4], [0, 5, 91, 90]);
        assert_eq!(&inputs.attention_mask[..2], [0, 1]);
        assert_eq!(inputs.padding, Some(Padding::Left));
        let types = &inputs.tensors["mm_token_type_ids"];
        assert_eq!(types.bytes.as_chunks::<8>().0.iter().filter(|bytes| bytes[0] == 1).count(), 14);
    }

    #[test]
    fn a_text_ends_with_the_token_at_which_clip_pools_it() {
        let ended = |config: &Value| {
            let mut inputs =
                batch::lay_out("test".to_owned(), &[vec![5, 6, 7], vec![8, 9]], 3, Padding::Right, 0);
            end(&mut inputs, config);
            inputs.input_ids
        };
        let config =
            |eos: i64| json!({"model_type": "clip_text_model", "eos_token_id": eos, "vocab_size": 90});
        assert_eq!(ended(&config(70)), [5, 6, 70, 8, 70, 0]);
        assert_eq!(ended(&config(2)), [5, 6, 89, 8, 89, 0]);
        assert_eq!(ended(&config(6)), [5, 0, 6, 8, 6, 0], "an end token before the end, where it would pool");
        assert_eq!(ended(&config(0)), [5, 6, 0, 8, 0, 1], "padding with the end token, where it would pool");
        let lacking = json!({"model_type": "clip_text_model", "vocab_size": 90});
        assert_eq!(ended(&lacking), [5, 6, 7, 8, 9, 0], "no id beyond the vocabulary");
        let both = json!({"model_type": "clip", "text_config": config(70)});
        assert_eq!(ended(&both), [5, 6, 70, 8, 70, 0]);
        assert_eq!(ended(&json!({"model_type": "llama", "eos_token_id": 70})), [5, 6, 7, 8, 9, 0]);
    }

    #[test]
    fn a_decoder_has_more_tokens_than_its_encoder_and_pictures_have_none() {
        let text = json!({"model_type": "t5", "is_encoder_decoder": true, "decoder_start_token_id": 3});
        let inputs = completed(&text).unwrap();
        let decoder = &inputs.tensors[DECODER_INPUT_IDS];
        assert_eq!((inputs.seq, &decoder.shape[..], decoder.bytes[0]), (3, &[2, 4][..], 3));
        let mut encoder = text.clone();
        encoder["architectures"] = json!(["T5EncoderModel"]);
        assert!(completed(&encoder).unwrap().tensors.is_empty());
        let picture = json!({"model_type": "vit", "image_size": 8, "num_channels": 1});
        let inputs = completed(&picture).unwrap();
        assert_eq!((inputs.seq, inputs.input_ids.len()), (0, 0));
        assert_eq!(inputs.tensors["pixel_values"].shape, [2, 1, 8, 8]);
        assert!(completed(&json!({"model_type": "llama"})).unwrap().tensors.is_empty());
    }

    #[test]
    fn sizes_beyond_memory_are_refused_before_anything_is_made() {
        for (model_type, key, value) in [
            ("vit", "image_size", 1_000_000_u64),
            ("vit", "num_channels", 1_000_000),
            ("whisper", "max_source_positions", 1_000_000),
            ("qwen2_vl", "patch_size", 1_000_000),
            ("qwen2_vl", "spatial_merge_size", 7),
            ("llava", "image_size", 1_000_000),
        ] {
            let mut config = json!({
                "model_type": model_type, "image_token_id": 9, "patch_size": 4, "num_mel_bins": 1_000, "image_size": 64,
            });
            config[key] = value.into();
            let refused = completed(&config).unwrap_err().to_string();
            assert!(refused.starts_with(&format!("inputs of {model_type}: ")), "{key}: {refused}");
        }
    }
}
