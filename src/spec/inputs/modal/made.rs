//! The sizes that a config states, and the tensors that are made by them.

use bounds::limits::MADE_BYTES;
use bounds::shown;
use reference::protocol::DECODER_INPUT_IDS;
use serde_json::Value;

use super::{GRIDS, PICTURES_FIRST, SAMPLES, Sees, TOKEN_TYPES, add};
use crate::spec::inputs::tensors::Tensor;
use crate::spec::inputs::{Error, Inputs, Padding, batch, pad_token_id};

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
pub(super) struct Config<'a> {
    pub(super) config: &'a Value,
    pub(super) model_type: &'a str,
}

impl Config<'_> {
    /// A number of the config, or of the first of its parts that has it.
    pub(super) fn number(&self, key: &str) -> Option<usize> {
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
    pub(super) fn elements(&self, shape: &[usize]) -> Result<usize, Error> {
        let count = shape.iter().try_fold(1_u64, |all, axis| all.checked_mul(*axis as u64));
        let refused = |reason: String| Error::Modal { model_type: self.model_type.to_owned(), reason };
        let count = count.and_then(|count| count.checked_mul(4));
        let bytes = count.ok_or_else(|| refused(format!("a tensor of {shape:?} is beyond all memory")))?;
        MADE_BYTES
            .check(bytes)
            .map_err(|exceeded| refused(format!("a tensor of {shape:?} has {exceeded}")))?;
        Ok((bytes / 4) as usize)
    }

    pub(super) fn lacks(&self, key: &str) -> Error {
        let of = |config: &Value| config.get(key).cloned();
        let value =
            of(self.config).or_else(|| PARTS.iter().find_map(|part| of(self.config.pointer(part)?)));
        let reason = match value {
            Some(value) => format!(
                "`{key}` of config.json is {}, from which no inputs are made",
                shown(&value.to_string(), 100)
            ),
            None => format!("config.json has no `{key}`"),
        };
        Error::Modal { model_type: self.model_type.to_owned(), reason }
    }

    /// What a part of the model sees: the towers of CLIP exist as models of their own.
    pub(super) fn narrowed(&self, sees: Sees) -> Option<Sees> {
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

    /// Whether the model has a decoder beside its encoder; the encoder's class by itself (`T5EncoderModel`) has none,
    /// whatever its config states.
    pub(super) fn has_decoder(&self) -> bool {
        let architecture =
            self.config.pointer("/architectures/0").and_then(Value::as_str).unwrap_or_default();
        !architecture.ends_with("EncoderModel")
            && self.config.get("is_encoder_decoder") == Some(&Value::Bool(true))
    }

    /// Height and width, which are equal, and channels of a picture.
    pub(super) fn picture(&self) -> [usize; 2] {
        let size = self.number("image_size").or(self.number("img_size")).or(self.number("input_size"));
        [size.unwrap_or(64), self.number("num_channels").or(self.number("in_channels")).unwrap_or(3)]
    }

    /// Adds a picture for each row, as so many tiles where the model takes tiles.
    pub(super) fn pictures(&self, inputs: &mut Inputs, tiles: Option<usize>) -> Result<(), Error> {
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
    pub(super) fn patches(&self, inputs: &mut Inputs, are_crops: bool) -> Result<(), Error> {
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
    pub(super) fn spectrum(&self, inputs: &mut Inputs, bins: usize, positions: usize) -> Result<(), Error> {
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
    pub(super) fn place(&self, inputs: &mut Inputs, counts: &[usize]) -> Result<(), Error> {
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
        let pad = pad_token_id(self.config);
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
    pub(super) fn decoder_tokens(&self, inputs: &mut Inputs) {
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

/// A pixel of the test picture of a row, about -1 to 1: waves of different lengths, with a disc that no symmetry of the square
/// keeps in place.
fn picture(row: usize, channel: usize, y: f32, x: f32) -> f32 {
    let (phase, colour) = (row as f32 * 0.7, channel as f32 + 1.0);
    let waves = (5.3 * colour * x + phase).sin() * (3.1 * y + colour).cos();
    let is_in_disc = (x - 0.3).powi(2) + (y - 0.6).powi(2) < 0.04;
    if is_in_disc { 0.9 - 0.4 * colour / 3.0 } else { waves }
}

/// A sample of a chirp, which rises from 200 Hz to 3 kHz in a second.
pub(super) fn chirp(row: usize, at: usize) -> f32 {
    let time = at as f32 / SAMPLES as f32;
    (std::f32::consts::TAU * (200.0 + 40.0 * row as f32 + 1400.0 * time) * time).sin()
}
