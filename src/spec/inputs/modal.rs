//! Inputs of models of images, sound and of encoder-decoders, where no processor makes them: a test picture for each image, a
//! chirp for each sound, and decoder tokens, in the shapes that the config states.

use serde_json::Value;

use bounds::limits::MADE_BYTES;
use reference::protocol::{DECODER_INPUT_IDS, LABELS};

use super::tensors::Tensor;
use super::{Error, Inputs, Padding, batch};

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
    let labels = if architecture.ends_with("ForSequenceClassification")
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

/// The parts of a config in which a number may stand.
const PARTS: [&str; 8] = [
    "/vision_config",
    "/backbone_config",
    "/vlm_config/vision_config",
    "/encoder",
    "/audio_config",
    "/text_config",
    "/vlm_config/text_config",
    "/decoder",
];

/// A checkpoint's config.
struct Config<'a> {
    config: &'a Value,
    model_type: &'a str,
}

impl Config<'_> {
    /// A number of the config, or of the first of its parts that has it.
    fn number(&self, key: &str) -> Option<usize> {
        let of = |config: &Value| {
            let value = config.get(key)?;
            // Some configs give height and width.
            value.as_u64().or_else(|| value.get(0)?.as_u64()).or_else(|| value.get("height")?.as_u64())
        };
        let found =
            of(self.config).or_else(|| PARTS.iter().find_map(|part| of(self.config.pointer(part)?)));
        found.and_then(|number| usize::try_from(number).ok()).filter(|number| *number < 1 << 20)
    }

    /// The number of elements of a tensor, if it is one that tfcheck would read again.
    fn elements(&self, shape: &[usize]) -> Result<usize, Error> {
        let count = shape.iter().try_fold(1_u64, |all, axis| all.checked_mul(*axis as u64));
        let refused = |reason: String| Error::Modal { model_type: self.model_type.to_owned(), reason };
        let count = count.and_then(|count| count.checked_mul(4));
        let bytes = count.ok_or_else(|| refused(format!("a tensor of {shape:?} is beyond all memory")))?;
        MADE_BYTES
            .check(bytes)
            .map_err(|exceeded| refused(format!("a tensor of {shape:?} has {exceeded}")))?;
        Ok((bytes / 4) as usize)
    }

    fn lacks(&self, key: &str) -> Error {
        Error::Modal { model_type: self.model_type.to_owned(), reason: format!("config.json has no `{key}`") }
    }

    /// What a part of the model sees: the towers of CLIP exist as models of their own.
    fn narrowed(&self, sees: Sees) -> Option<Sees> {
        let architecture =
            self.config.pointer("/architectures/0").and_then(Value::as_str).unwrap_or_default();
        match sees {
            Sees::PicturesBesideTexts
                if architecture.contains("Text") && !architecture.contains("ImageText") =>
            {
                None
            }
            Sees::PicturesBesideTexts
                if architecture.contains("Vision") || architecture.contains("ForImageClass") =>
            {
                Some(Sees::Pictures)
            }
            sees => Some(sees),
        }
    }

    fn has_decoder(&self) -> bool {
        self.config.get("is_encoder_decoder") == Some(&Value::Bool(true))
    }

    /// Height and width, which are equal, and channels of a picture.
    fn picture(&self) -> [usize; 2] {
        let size = self.number("image_size").or(self.number("img_size")).or(self.number("input_size"));
        [size.unwrap_or(64), self.number("num_channels").or(self.number("in_channels")).unwrap_or(3)]
    }

    /// Adds a picture for each row, as so many tiles where the model takes tiles.
    fn pictures(&self, inputs: &mut Inputs, tiles: Option<usize>) -> Result<(), Error> {
        let [size, channels] = self.picture();
        let rows = inputs.batch;
        let count = self.elements(&[rows, tiles.unwrap_or(1), channels, size, size])?;
        let each = channels * size * size;
        let values = (0..count).map(|at| {
            let (row, channel, y, x) =
                (at / each, at / (size * size) % channels, at / size % size, at % size);
            picture(row, channel, y as f32 / size as f32, x as f32 / size as f32)
        });
        let shape = [vec![rows], tiles.into_iter().collect(), vec![channels, size, size]].concat();
        add(inputs, "pixel_values", Tensor::floats(shape, values));
        Ok(())
    }

    /// Adds the patches of a picture for each row, of the sizes of [`GRIDS`] in turn: patches that are merged side by side, or small
    /// pictures row by row.
    fn patches(&self, inputs: &mut Inputs, are_crops: bool) -> Result<(), Error> {
        let patch = self.number("patch_size").ok_or_else(|| self.lacks("patch_size"))?;
        let merge = self.number("spatial_merge_size").unwrap_or(2).max(1);
        let frames = if are_crops { 1 } else { self.number("temporal_patch_size").unwrap_or(2) };
        if GRIDS.iter().flatten().any(|side| side % merge != 0) {
            let reason = format!("config.json has `spatial_merge_size` {merge}, and 1 and 2 are known");
            return Err(Error::Modal { model_type: self.model_type.to_owned(), reason });
        }
        let [_, channels] = self.picture();
        self.elements(&[inputs.batch, 32, channels, frames, patch, patch])?;
        let grids: Vec<[usize; 2]> = (0..inputs.batch).map(|row| GRIDS[row % GRIDS.len()]).collect();
        let counts: Vec<usize> = grids.iter().map(|[h, w]| h * w / (merge * merge)).collect();
        self.place(inputs, &counts)?;
        let mut values = Vec::new();
        for (row, [h, w]) in grids.iter().enumerate() {
            for index in 0..h * w {
                // Patches that are merged follow each other, if they are not crops.
                let side = if are_crops { 1 } else { merge };
                let (block, within) = (index / (side * side), index % (side * side));
                let (top, left) = (block / (w / side) * side, block % (w / side) * side);
                let (top, left) = (top + within / side, left + within % side);
                for at in 0..channels * frames * patch * patch {
                    let (channel, y, x) = (at / (frames * patch * patch), at / patch % patch, at % patch);
                    let y = (top * patch + y) as f32 / (h * patch) as f32;
                    let x = (left * patch + x) as f32 / (w * patch) as f32;
                    values.push(picture(row, channel, y, x));
                }
            }
        }
        let patches: usize = grids.iter().map(|[h, w]| h * w).sum();
        let shape = if are_crops {
            vec![patches, channels, patch, patch]
        } else {
            vec![patches, channels * frames * patch * patch]
        };
        add(inputs, "pixel_values", Tensor::floats(shape, values));
        let grid = grids.iter().flat_map(|[h, w]| [1, *h as i64, *w as i64]);
        add(inputs, "image_grid_thw", Tensor::integers(vec![grids.len(), 3], grid));
        Ok(())
    }

    /// Adds a spectrum for each row, of twice as many frames as the encoder has positions.
    fn spectrum(&self, inputs: &mut Inputs, bins: usize, positions: usize) -> Result<(), Error> {
        let (rows, frames) = (inputs.batch, 2 * positions);
        let values = (0..self.elements(&[rows, bins, frames])?).map(|at| {
            let (bin, frame) = (at / frames % bins, at % frames);
            // A chirp rises through the bins.
            let distance =
                bin as f32 - frame as f32 * bins as f32 / frames as f32 + (at / (bins * frames)) as f32;
            1.5 - (distance * 0.7).powi(2).min(2.5)
        });
        add(inputs, "input_features", Tensor::floats(vec![rows, bins, frames], values));
        Ok(())
    }

    /// Puts so many image or audio tokens after the first token of each row, or before it where the model expects them there.
    fn place(&self, inputs: &mut Inputs, counts: &[usize]) -> Result<(), Error> {
        let longest = counts.iter().copied().max().unwrap_or_default().saturating_add(inputs.seq);
        self.elements(&[inputs.batch, longest, 2])?;
        let id = |key: &str| self.config.get(key).and_then(Value::as_i64);
        let image = id("image_token_id").or(id("image_token_index")).or(id("audio_token_id"));
        let image = image.ok_or_else(|| self.lacks("image_token_id"))?;
        let (start, end) = (id("vision_start_token_id"), id("vision_end_token_id"));
        let special = [Some(image), start, end, id("video_token_id"), id("audio_token_id")];
        // A token of the text must not stand for an image.
        let plain = (1..10).find(|id| !special.contains(&Some(*id))).unwrap_or_default();
        let rows: Vec<Vec<i64>> = (0..inputs.batch)
            .map(|row| {
                let own = row * inputs.seq..(row + 1) * inputs.seq;
                let real = inputs.input_ids[own.clone()].iter().zip(&inputs.attention_mask[own]);
                let text = real.filter(|(_, real)| **real != 0).map(|(id, _)| *id);
                let text: Vec<i64> =
                    text.map(|id| if special.contains(&Some(id)) { plain } else { id }).collect();
                let before = usize::from(!PICTURES_FIRST.contains(&self.model_type));
                let (first, rest) = text.split_at(text.len().min(before));
                let picture = start.into_iter().chain(std::iter::repeat_n(image, counts[row])).chain(end);
                first.iter().copied().chain(picture).chain(rest.iter().copied()).collect()
            })
            .collect();
        let longest = rows.iter().map(Vec::len).max().unwrap_or_default();
        let padding = inputs.padding.unwrap_or(Padding::Right);
        let pad = super::pad_token_id(self.config);
        let placed = batch::lay_out(inputs.name.clone(), &rows, longest, padding, pad);
        inputs.input_ids = placed.input_ids;
        inputs.attention_mask = placed.attention_mask;
        inputs.position_ids = placed.position_ids;
        inputs.padding = placed.padding;
        inputs.seq = placed.seq;
        if let Some((_, name, value)) = TOKEN_TYPES.iter().find(|(of, ..)| self.model_type.starts_with(of)) {
            let types = inputs.input_ids.iter().map(|id| if *id == image { *value } else { 0 });
            let types = types.collect::<Vec<_>>();
            add(inputs, name, Tensor::integers(vec![inputs.batch, inputs.seq], types));
        }
        Ok(())
    }

    /// Adds decoder tokens: the start token, then the row's own tokens from their middle on, a quarter more than the encoder
    /// has, so that a confusion of the two lengths shows.
    fn decoder_tokens(&self, inputs: &mut Inputs) {
        let parts = [self.config.get("decoder"), self.config.get("text_config"), Some(self.config)];
        let id = |key: &str| parts.iter().flatten().find_map(|part| part.get(key)?.as_i64());
        let start = ["decoder_start_token_id", "bos_token_id", "pad_token_id"].iter().find_map(|key| id(key));
        let seq = inputs.seq;
        let length = seq + (seq / 4).max(1);
        let ids = (0..inputs.batch).flat_map(|row| {
            let own = &inputs.input_ids[row * seq..(row + 1) * seq];
            let rotated = own.iter().cycle().skip(seq / 2).take(length - 1).copied();
            std::iter::once(start.unwrap_or(0)).chain(rotated).collect::<Vec<_>>()
        });
        let decoder = Tensor::integers(vec![inputs.batch, length], ids.collect::<Vec<_>>());
        add(inputs, DECODER_INPUT_IDS, decoder);
    }
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

/// A pixel of the test picture of a row, about -1 to 1: waves of different lengths, with a disc that no symmetry of the square
/// keeps in place.
fn picture(row: usize, channel: usize, y: f32, x: f32) -> f32 {
    let (phase, colour) = (row as f32 * 0.7, channel as f32 + 1.0);
    let waves = (5.3 * colour * x + phase).sin() * (3.1 * y + colour).cos();
    let is_in_disc = (x - 0.3).powi(2) + (y - 0.6).powi(2) < 0.04;
    if is_in_disc { 0.9 - 0.4 * colour / 3.0 } else { waves }
}

/// A sample of a chirp, which rises from 200 Hz to 3 kHz in a second.
fn chirp(row: usize, at: usize) -> f32 {
    let time = at as f32 / SAMPLES as f32;
    (std::f32::consts::TAU * (200.0 + 40.0 * row as f32 + 1400.0 * time) * time).sin()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
    fn a_decoder_has_more_tokens_than_its_encoder_and_pictures_have_none() {
        let text = json!({"model_type": "t5", "is_encoder_decoder": true, "decoder_start_token_id": 3});
        let inputs = completed(&text).unwrap();
        let decoder = &inputs.tensors[DECODER_INPUT_IDS];
        assert_eq!((inputs.seq, &decoder.shape[..], decoder.bytes[0]), (3, &[2, 4][..], 3));
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
