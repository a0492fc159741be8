//! Qwen2-VL: a vision transformer with a two-dimensional rope, whose merged patches stand in the places of tokens, and
//! qwen2 with a rope over time, height and width (transformers 5.24.0, `models/qwen2_vl/modeling_qwen2_vl.py` and
//! `configuration_qwen2_vl.py`; 4.57.6 computes the same).

mod vision;

use bounds::config::Refused;
use serde_json::{Map, Value};

use crate::config::{ConfigReader, head_dim};
use crate::error::{Error, Result};
use crate::layers::{
    Activation, Embedding, Grid, LayerType, Linear, PerLayerType, RmsNorm, RopeParameters, RopeScaling,
    RotaryEmbedding, Stands, TokenPositions, described, put_at,
};
use crate::model::{Model, Task, unknown_head};
use crate::pass::Pass;
use crate::qwen2;
use crate::weights::Weights;
use crate::xs::Xs;
use vision::{VisionConfig, VisionTransformer};

/// The config of the texts, and how many pairs of a head are rotated by time, height and width.
fn read_text(config: &ConfigReader, tie_word_embeddings: bool) -> Result<(qwen2::Config, Vec<usize>)> {
    let hidden_size = config.usize_or("hidden_size", 8192)?;
    let num_attention_heads = config.usize_or("num_attention_heads", 64)?;
    let head_dim = head_dim(("hidden_size", hidden_size), ("num_attention_heads", num_attention_heads))?;
    let num_key_value_heads = config.nullable_usize("num_key_value_heads", 8)?.unwrap_or(num_attention_heads);
    if num_key_value_heads == 0 || num_attention_heads % num_key_value_heads != 0 {
        let needed = format!("a divisor of num_attention_heads ({num_attention_heads})");
        return Err(Refused::new("num_key_value_heads", &num_key_value_heads.into(), needed).into());
    }
    config.refuse_unless("head_dim", &head_dim.into())?;
    let num_hidden_layers = config.usize_or("num_hidden_layers", 80)?;
    let (sliding_window, layer_types) = LayerType::read_last_layers(config, num_hidden_layers, 80)?;
    let (rope, sections) = read_rope(config, head_dim)?;
    let text = qwen2::Config {
        vocab_size: config.usize_or("vocab_size", 152_064)?,
        hidden_size,
        intermediate_size: config.usize_or("intermediate_size", 29568)?,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        hidden_act: Activation::read(config, "hidden_act", "silu")?,
        rms_norm_eps: config.f64_or("rms_norm_eps", 1e-5)?,
        rope,
        sliding_window,
        layer_types,
        tie_word_embeddings,
    };
    Ok((text, sections))
}

/// The rope of the texts and its `mrope_section`.
fn read_rope(config: &ConfigReader, head_dim: usize) -> Result<(RopeParameters, Vec<usize>)> {
    let theta = config.f64_or("rope_theta", 1_000_000.0)?;
    let max_position_embeddings = config.usize_or("max_position_embeddings", 32768)?;
    let rope = described(config)?.unwrap_or_else(|| ConfigReader::new(Map::new()));
    let sections = rope.optional_usizes("mrope_section")?.unwrap_or_else(|| vec![16, 24, 24]);
    let (new, old) = (rope.optional_str("rope_type")?, rope.optional_str("type")?);
    let parameters = if new.or(old) == Some("mrope") {
        RopeParameters {
            theta: rope.f64_or("rope_theta", theta)?,
            scaling: RopeScaling::Default,
            partial_rotary_factor: 1.0,
            max_position_embeddings,
        }
    } else {
        RopeParameters::read_object(config, Some(&rope), theta, max_position_embeddings)?
    };
    let pairs = sections.iter().try_fold(0_usize, |sum, section| sum.checked_add(*section));
    if pairs.is_none_or(|pairs| 2 * pairs.min(head_dim) != head_dim) {
        let found = Value::from(sections);
        let needed = format!("numbers that add up to half of a head's features ({head_dim})");
        return Err(Refused::new("mrope_section", &found, needed).into());
    }
    Ok((parameters, sections))
}

/// Qwen2 whose embeddings and positions are given.
struct LanguageModel {
    path: String,
    embed_tokens: Embedding,
    layers: Vec<qwen2::Block>,
    norm: RmsNorm,
    rotary_emb: RotaryEmbedding,
    sliding_window: Option<usize>,
}

impl LanguageModel {
    fn load(config: qwen2::Config, sections: &[usize], weights: &Weights) -> Result<Self> {
        let layers = weights.pp("layers");
        let load = |layer| qwen2::Block::load(&config, &layers.pp(layer), layer);
        Ok(Self {
            path: weights.path().to_owned(),
            embed_tokens: Embedding::load(
                &weights.pp("embed_tokens"),
                config.vocab_size,
                config.hidden_size,
            )?,
            layers: (0..config.num_hidden_layers).map(load).collect::<Result<_>>()?,
            norm: RmsNorm::load(&weights.pp("norm"), config.hidden_size, config.rms_norm_eps)?,
            rotary_emb: RotaryEmbedding::new(config.rope, config.head_dim).in_sections(sections),
            sliding_window: config.sliding_window,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: Xs, positions: &TokenPositions) -> Result<Xs> {
        pass.module(&self.path, xs, |pass, xs| {
            let rope = self.rotary_emb.forward_axes(pass, &positions.axes)?;
            let masks = PerLayerType::causal(pass, self.sliding_window)?;
            let xs = self.layers.iter().try_fold(xs, |xs, layer| layer.forward(pass, xs, &rope, &masks))?;
            self.norm.forward(pass, &xs)
        })
    }
}

/// The inputs of images or of videos.
struct Seen {
    stands: Stands,
    token_id: usize,
    pixels: &'static str,
    grid: &'static str,
}

struct Qwen2Vl {
    path: String,
    visual: VisionTransformer,
    language_model: LanguageModel,
    /// Absent if the output is hidden states.
    lm_head: Option<Linear>,
    /// Images, then videos.
    seen: [Seen; 2],
}

pub(crate) fn build(config: &ConfigReader, weights: &Weights, task: Option<Task>) -> Result<Box<dyn Model>> {
    let has_head = match task.unwrap_or(Task::CausalLm) {
        Task::CausalLm => true,
        Task::HiddenStates => false,
        task => return Err(unknown_head("qwen2_vl", task)),
    };
    let object = |key: &str| -> Result<ConfigReader> {
        Ok(config.optional_object(key)?.unwrap_or_else(|| ConfigReader::new(Map::new())))
    };
    let vision = VisionConfig::read(&object("vision_config")?)?;
    // Published configs have the keys of the texts at the top.
    let text = if config.has("text_config") { object("text_config")? } else { config.clone() };
    let is_tied =
        config.bool_or("tie_word_embeddings", false)? | text.bool_or("tie_word_embeddings", false)?;
    let (text, sections) = read_text(&text, is_tied)?;
    if vision.hidden_size != text.hidden_size {
        let needed = format!("the hidden_size of the texts ({})", text.hidden_size);
        return Err(Refused::new("vision_config.hidden_size", &vision.hidden_size.into(), needed).into());
    }
    for key in ["vision_start_token_id", "vision_end_token_id", "vision_token_id"] {
        // Positions follow from the images' own tokens.
        config.value(key);
    }
    let seen = [
        Seen {
            stands: Stands::Image,
            token_id: config.usize_or("image_token_id", 151_655)?,
            pixels: "pixel_values",
            grid: "image_grid_thw",
        },
        Seen {
            stands: Stands::Video,
            token_id: config.usize_or("video_token_id", 151_656)?,
            pixels: "pixel_values_videos",
            grid: "video_grid_thw",
        },
    ];
    let visual = VisionTransformer::load(&vision, &part(weights, has_head, "visual", "visual"))?;
    let body = part(weights, has_head, "language_model", "model");
    let language_model = LanguageModel::load(text, &sections, &body)?;
    let lm_head = has_head
        .then(|| Linear::lm_head(&weights.pp("lm_head"), &language_model.embed_tokens, is_tied, false));
    let path = if has_head { "model" } else { "" };
    Ok(Box::new(Qwen2Vl {
        path: path.to_owned(),
        visual,
        language_model,
        lm_head: lm_head.transpose()?,
        seen,
    }))
}

/// The weights of a part of the model, which checkpoints hold under three names: as the model has it, without the head, and
/// as the first releases saved it (transformers 5.24.0, `conversion_mapping.py`).
fn part(weights: &Weights, has_head: bool, name: &str, old: &str) -> Weights {
    let whole = format!("model.{name}");
    let saved =
        [whole.as_str(), name, old].into_iter().find(|saved| weights.has_module(saved)).unwrap_or(&whole);
    weights.pp_as(if has_head { &whole } else { name }, saved)
}

impl Qwen2Vl {
    /// The grids of images and of videos that the pass has, if it begins the sequences.
    fn grids(&self, pass: &Pass) -> Result<[Vec<Grid>; 2]> {
        let merge = self.visual.spatial_merge_size;
        let read = |seen: &Seen| match pass.optional(seen.grid)? {
            Some(_) if pass.past() > 0 => {
                Err(Error::Unsupported("images after the first forward pass of a cache".to_owned()))
            }
            Some(grids) => Grid::read(seen.grid, &grids, merge),
            None => Ok(Vec::new()),
        };
        Ok([read(&self.seen[0])?, read(&self.seen[1])?])
    }

    /// The text's embeddings with those of images and videos in their places, `[batch, seq, hidden_size]`.
    fn embed(&self, pass: &mut Pass, ids: &Xs, grids: &[Vec<Grid>; 2]) -> Result<Xs> {
        let mut xs = self.language_model.embed_tokens.forward(pass, ids)?;
        for (seen, grids) in self.seen.iter().zip(grids) {
            let Some(pixels) = pass.optional(seen.pixels)? else { continue };
            let tokens = self.visual.forward(pass, &pixels, grids)?;
            let ids: Vec<u32> = pass.input_ids().flatten_all()?.to_vec1()?;
            let at: Vec<bool> = ids.into_iter().map(|id| id as usize == seen.token_id).collect();
            xs = put_at(pass, &xs, &tokens, &at)?;
        }
        Ok(xs)
    }

    /// What each token stands for: by `mm_token_type_ids`, which transformers 5 counts positions by, or by its id. Without
    /// images all are words.
    fn stands(&self, pass: &Pass, grids: &[Vec<Grid>; 2]) -> Result<Vec<Stands>> {
        let tokens = pass.batch() * pass.seq();
        if grids.iter().all(Vec::is_empty) {
            return Ok(vec![Stands::Text; tokens]);
        }
        let Some(types) = pass.optional("mm_token_type_ids")? else {
            let ids: Vec<u32> = pass.input_ids().flatten_all()?.to_vec1()?;
            let of = |id: u32| self.seen.iter().find(|seen| seen.token_id == id as usize);
            return Ok(ids.into_iter().map(|id| of(id).map_or(Stands::Text, |seen| seen.stands)).collect());
        };
        if types.dims() != [pass.batch(), pass.seq()] {
            let (found, needed) = (types.dims(), [pass.batch(), pass.seq()]);
            return Err(Error::Inputs(format!(
                "mm_token_type_ids has shape {found:?} where {needed:?} is needed"
            )));
        }
        let types: Vec<i64> = types.to_dtype(candle_core::DType::I64)?.flatten_all()?.to_vec1()?;
        let stands = |kind| match kind {
            1 => Stands::Image,
            2 => Stands::Video,
            _ => Stands::Text,
        };
        Ok(types.into_iter().map(stands).collect())
    }

    fn positions(&self, pass: &mut Pass, grids: &[Vec<Grid>; 2]) -> Result<TokenPositions> {
        let past = pass.past();
        let kept = pass.cache().filter(|_| past > 0).map(|cache| cache.position_deltas()).transpose()?;
        let positions = match (pass.given_positions(), kept) {
            (Some(given), None) => TokenPositions::given(pass, given)?,
            (Some(given), Some(deltas)) => TokenPositions { deltas, ..TokenPositions::given(pass, given)? },
            (None, Some(deltas)) => TokenPositions::continued(pass, &deltas),
            (None, None) => {
                let (stands, [images, videos]) = (self.stands(pass, grids)?, grids);
                TokenPositions::new(pass, &stands, [images, videos], self.visual.spatial_merge_size)?
            }
        };
        if let Some(cache) = pass.cache() {
            cache.keep_position_deltas(positions.deltas.clone());
        }
        Ok(positions)
    }
}

impl Model for Qwen2Vl {
    fn inputs(&self) -> &'static [&'static str] {
        &["pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "mm_token_type_ids"]
    }

    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        let ids = Xs::from(pass.input_ids().clone());
        let xs = pass.module(&self.path, ids, |pass, ids| {
            let grids = self.grids(pass)?;
            let positions = self.positions(pass, &grids)?;
            let xs = self.embed(pass, &ids, &grids)?;
            self.language_model.forward(pass, xs, &positions)
        })?;
        match &self.lm_head {
            Some(lm_head) => lm_head.forward(pass, &xs),
            None => Ok(xs),
        }
    }
}
