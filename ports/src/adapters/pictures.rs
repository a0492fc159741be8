//! Loaders of the ports of pictures and texts.

use std::collections::HashMap;

use candle_core::{DType, Module, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{
    blip, chinese_clip, clip, colpali, llama, llava, paddleocr_vl, paligemma, pixtral, qwen3_vl, siglip,
};
use protocol::{ATTENTION_MASK, Failed, INPUT_IDS, Positions};
use tfcheck_port::Port;
use tfcheck_port::worker::{failure, unsupported};

use super::super::checkpoint::Checkpoint;
use super::super::renamed::Name;
use super::{PIXELS, no_head, tensors};

const GRID: &str = "image_grid_thw";

/// The port's config has no `Deserialize`.
pub(crate) fn load_clip(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    #[derive(serde::Deserialize)]
    struct Parts {
        text_config: Text,
        vision_config: Vision,
        projection_dim: usize,
        logit_scale_init_value: f32,
    }
    #[derive(serde::Deserialize)]
    struct Text {
        vocab_size: usize,
        hidden_size: usize,
        hidden_act: String,
        intermediate_size: usize,
        max_position_embeddings: usize,
        num_hidden_layers: usize,
        num_attention_heads: usize,
    }
    #[derive(serde::Deserialize)]
    struct Vision {
        hidden_size: usize,
        hidden_act: String,
        intermediate_size: usize,
        num_hidden_layers: usize,
        num_attention_heads: usize,
        num_channels: usize,
        image_size: usize,
        patch_size: usize,
    }
    if checkpoint.architecture() != "CLIPModel" {
        return Err(no_head(checkpoint.architecture()));
    }
    let Parts { text_config: text, vision_config: vision, projection_dim, logit_scale_init_value } =
        checkpoint.config()?;
    if let Some(other) = [&text.hidden_act, &vision.hidden_act].into_iter().find(|act| *act != "quick_gelu") {
        return Err(unsupported(format!(
            "the port's only activation is quick_gelu, and the config has {other}"
        )));
    }
    let activation = clip::text_model::Activation::QuickGelu;
    let image_size = vision.image_size;
    let config = clip::ClipConfig {
        text_config: clip::text_model::ClipTextConfig {
            vocab_size: text.vocab_size,
            embed_dim: text.hidden_size,
            activation,
            intermediate_size: text.intermediate_size,
            max_position_embeddings: text.max_position_embeddings,
            pad_with: None,
            num_hidden_layers: text.num_hidden_layers,
            num_attention_heads: text.num_attention_heads,
            projection_dim,
        },
        vision_config: clip::vision_model::ClipVisionConfig {
            embed_dim: vision.hidden_size,
            activation,
            intermediate_size: vision.intermediate_size,
            num_hidden_layers: vision.num_hidden_layers,
            num_attention_heads: vision.num_attention_heads,
            projection_dim,
            num_channels: vision.num_channels,
            image_size,
            patch_size: vision.patch_size,
        },
        logit_scale_init_value,
        image_size,
    };
    let model = clip::ClipModel::new(checkpoint.weights(), &config).map_err(failure)?;
    tensors(&[INPUT_IDS, PIXELS], move |inputs| {
        Ok(model.forward(inputs.get(PIXELS)?, inputs.get(INPUT_IDS)?)?.1)
    })
}

/// The port's config has no `Deserialize`.
pub(crate) fn load_chinese_clip(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    use chinese_clip::text_model::{ChineseClipTextConfig, PositionEmbeddingType};
    use chinese_clip::vision_model::ChineseClipVisionConfig;
    #[derive(serde::Deserialize)]
    struct Parts {
        text_config: Text,
        vision_config: Vision,
        projection_dim: usize,
        logit_scale_init_value: f32,
    }
    #[derive(serde::Deserialize)]
    struct Text {
        vocab_size: usize,
        hidden_size: usize,
        hidden_act: String,
        intermediate_size: usize,
        max_position_embeddings: usize,
        num_hidden_layers: usize,
        num_attention_heads: usize,
        type_vocab_size: usize,
        layer_norm_eps: f64,
    }
    #[derive(serde::Deserialize)]
    struct Vision {
        hidden_size: usize,
        hidden_act: String,
        intermediate_size: usize,
        num_hidden_layers: usize,
        num_attention_heads: usize,
        num_channels: usize,
        image_size: usize,
        patch_size: usize,
        layer_norm_eps: f64,
    }
    let Parts { text_config: text, vision_config: vision, projection_dim, logit_scale_init_value } =
        checkpoint.config()?;
    let image_size = vision.image_size;
    let config = chinese_clip::ChineseClipConfig {
        text_config: ChineseClipTextConfig {
            vocab_size: text.vocab_size,
            hidden_size: text.hidden_size,
            num_hidden_layers: text.num_hidden_layers,
            num_attention_heads: text.num_attention_heads,
            intermediate_size: text.intermediate_size,
            hidden_act: text.hidden_act.into(),
            max_position_embeddings: text.max_position_embeddings,
            type_vocab_size: text.type_vocab_size,
            layer_norm_eps: text.layer_norm_eps,
            position_embedding_type: PositionEmbeddingType::Absolute,
            ..ChineseClipTextConfig::default()
        },
        vision_config: ChineseClipVisionConfig {
            hidden_size: vision.hidden_size,
            intermediate_size: vision.intermediate_size,
            projection_dim,
            num_hidden_layers: vision.num_hidden_layers,
            num_attention_heads: vision.num_attention_heads,
            num_channels: vision.num_channels,
            image_size,
            patch_size: vision.patch_size,
            hidden_act: vision.hidden_act.into(),
            layer_norm_eps: vision.layer_norm_eps,
            ..ChineseClipVisionConfig::default()
        },
        projection_dim,
        logit_scale_init_value,
        image_size,
    };
    let model = chinese_clip::ChineseClipModel::new(checkpoint.weights(), &config).map_err(failure)?;
    tensors(&[INPUT_IDS, ATTENTION_MASK, PIXELS], move |inputs| {
        let (pixels, ids) = (inputs.get(PIXELS)?, inputs.get(INPUT_IDS)?);
        Ok(model.forward(pixels, ids, None, inputs.find(ATTENTION_MASK))?.1)
    })
}

pub(crate) fn load_siglip(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    let config: siglip::Config = checkpoint.config()?;
    let model = siglip::Model::new(&config, checkpoint.weights()).map_err(failure)?;
    tensors(&[INPUT_IDS, PIXELS], move |inputs| {
        Ok(model.forward(inputs.get(PIXELS)?, inputs.get(INPUT_IDS)?)?.1)
    })
}

/// The port reads a tied head from the file; published checkpoints have it, and transformers does not save it.
pub(crate) const TIED_BLIP: &[Name] =
    &[("text_decoder.cls.predictions.decoder.weight", "text_decoder.bert.embeddings.word_embeddings.weight")];

/// The weights with the tied head.
pub(crate) fn blip_weights(checkpoint: &Checkpoint) -> VarBuilder<'static> {
    let is_saved = checkpoint.weights().contains_tensor(TIED_BLIP[0].0);
    checkpoint.renamed("", if is_saved { &[] } else { &[TIED_BLIP] })
}

pub(crate) fn load_blip(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    let config: blip::Config = checkpoint.config()?;
    let weights = blip_weights(checkpoint);
    match checkpoint.head() {
        "ForConditionalGeneration" => {
            let mut model = blip::BlipForConditionalGeneration::new(&config, weights).map_err(failure)?;
            tensors(&[INPUT_IDS, PIXELS], move |inputs| {
                model.reset_kv_cache();
                let seen = model.vision_model().forward(inputs.get(PIXELS)?)?;
                model.text_decoder().forward(inputs.get(INPUT_IDS)?, &seen)
            })
        }
        other => Err(no_head(other)),
    }
}

/// LLaVA's own vision tower, or Pixtral's with a Mistral.
pub(crate) fn load_llava(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    match checkpoint.text_at("/vision_config/model_type") {
        "pixtral" => load_pixtral(checkpoint),
        _ => load_llava_next(checkpoint),
    }
}

/// The port is of LLaVA-NeXT, whose weights have a newline of pictures. It takes one row at a time, in which one token stands for
/// a picture.
pub(crate) fn load_llava_next(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    use llava::config::{HFGenerationConfig, HFLLaVAConfig, HFPreProcessorConfig};
    let read: HFLLaVAConfig = checkpoint.config()?;
    let generation =
        HFGenerationConfig { bos_token_id: 1, eos_token_id: 2, max_length: 4096, pad_token_id: 0 };
    // Of the processor, the port's config takes this key alone.
    let processor = HFPreProcessorConfig {
        aspect_ratio_setting: "anyres".to_owned(),
        crop_size: HashMap::new(),
        do_center_crop: true,
        do_convert_rgb: true,
        do_normalize: true,
        do_rescale: true,
        do_resize: true,
        image_mean: Vec::new(),
        image_std: Vec::new(),
        resample: 3,
        rescale_factor: 1.0,
        size: HashMap::new(),
    };
    let vision = read.to_clip_vision_config();
    let config = read.to_llava_config(&generation, &processor);
    let weights = checkpoint.weights();
    let (dtype, device) = (weights.dtype(), weights.device().clone());
    let model = llava::LLaVA::load(weights, &config, Some(vision)).map_err(failure)?;
    let image = checkpoint.number("image_token_index")?;
    let port = tensors(&[INPUT_IDS, PIXELS, "image_sizes"], move |inputs| {
        let (ids, pixels) = (inputs.get(INPUT_IDS)?, inputs.get(PIXELS)?);
        let sizes = inputs.get("image_sizes")?.to_vec2::<u32>()?;
        let mut rows = Vec::new();
        for (row, [start, end]) in runs(ids, image)?.into_iter().enumerate() {
            let own = ids.narrow(0, row, 1)?.to_dtype(DType::I64)?;
            let own =
                Tensor::cat(&[own.narrow(1, 0, start + 1)?, own.narrow(1, end, own.dim(1)? - end)?], 1)?;
            let size = [(sizes[row][1], sizes[row][0])];
            let embedded = model.prepare_inputs_labels_for_multimodal(&own, &[pixels.get(row)?], &size)?;
            let mut cache = llama::Cache::new(true, dtype, &config.to_llama_config(), &device)?;
            rows.push(model.forward(&embedded, 0, &mut cache)?);
        }
        Tensor::cat(&rows, 0)
    })?;
    Ok(port.giving(Positions::Last))
}

/// As in the port's example, the picture's features stand for the image tokens between the texts' embeddings.
fn load_pixtral(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    let config: pixtral::Config = checkpoint.config()?;
    let image = config.image_token_index as u32;
    let mut model = pixtral::Model::new(&config, checkpoint.weights()).map_err(failure)?;
    let port = tensors(&[INPUT_IDS, PIXELS, "image_sizes"], move |inputs| {
        model.clear_kv_cache();
        let (ids, pixels) = (inputs.get(INPUT_IDS)?, inputs.get(PIXELS)?);
        let embedded = model.language_model.embed_tokens().forward(ids)?;
        let mut rows = Vec::new();
        for (row, [start, end]) in runs(ids, image)?.into_iter().enumerate() {
            let (seq, own) = (ids.dim(1)?, embedded.narrow(0, row, 1)?);
            let seen = model.encode_image(&pixels.narrow(0, row, 1)?)?.to_dtype(embedded.dtype())?;
            rows.push(Tensor::cat(&[own.narrow(1, 0, start)?, seen, own.narrow(1, end, seq - end)?], 1)?);
        }
        model.lm_forward_embeds(&Tensor::cat(&rows, 0)?)
    })?;
    Ok(port.giving(Positions::Last))
}

/// Where the tokens `image` of each row begin and end.
fn runs(ids: &Tensor, image: u32) -> candle_core::Result<Vec<[usize; 2]>> {
    let rows = ids.to_dtype(DType::U32)?.to_vec2::<u32>()?;
    let run = |row: &Vec<u32>| {
        let start = row.iter().position(|id| *id == image).unwrap_or_default();
        [start, start + row.iter().filter(|id| **id == image).count()]
    };
    Ok(rows.iter().map(run).collect())
}

/// The tokens after the picture's, which stand first in each row.
fn text(ids: &Tensor, image: u32) -> candle_core::Result<Tensor> {
    let longest = runs(ids, image)?.iter().map(|[_, end]| *end).max().unwrap_or_default();
    ids.narrow(1, longest, ids.dim(1)? - longest)?.contiguous()
}

/// The port puts the picture before the tokens that it is given.
pub(crate) fn load_paligemma(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    let config: paligemma::Config = checkpoint.config()?;
    let image = checkpoint.number("image_token_index")?;
    let mut model = paligemma::Model::new(&config, checkpoint.weights()).map_err(failure)?;
    let port = tensors(&[INPUT_IDS, PIXELS], move |inputs| {
        model.setup(inputs.get(PIXELS)?, &text(inputs.get(INPUT_IDS)?, image)?)
    })?;
    Ok(port.giving(Positions::Last))
}

/// The port reads the names of the original repository.
pub(crate) fn load_colpali(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    #[derive(serde::Deserialize)]
    struct Parts {
        vlm_config: paligemma::Config,
    }
    let config: Parts = checkpoint.config()?;
    let image = checkpoint.number("image_token_index")?;
    let weights = checkpoint.weights().rename_f(|name| match name.strip_prefix("model.") {
        Some(rest) => format!("vlm.{rest}"),
        None => name.replace("custom_text_proj", "embedding_proj_layer"),
    });
    let mut model = colpali::Model::new(&config.vlm_config, weights).map_err(failure)?;
    tensors(&[INPUT_IDS, PIXELS], move |inputs| {
        model.forward_images(inputs.get(PIXELS)?, &text(inputs.get(INPUT_IDS)?, image)?)
    })
}

/// The port cannot clear its cache, so each forward pass loads a fresh model.
pub(crate) fn load_qwen3_vl(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    let config: qwen3_vl::Config = checkpoint.config()?;
    let weights = checkpoint.weights();
    qwen3_vl::Qwen3VLModel::new(&config, weights.clone()).map_err(failure)?;
    let port = tensors(&[INPUT_IDS, PIXELS, GRID], move |inputs| {
        let model = qwen3_vl::Qwen3VLModel::new(&config, weights.clone())?;
        let ids = inputs.get(INPUT_IDS)?;
        let (rows, seq) = ids.dims2()?;
        let pictures: Vec<Vec<(usize, usize)>> = runs(ids, config.image_token_id)?
            .into_iter()
            .map(|[start, end]| if start < end { vec![(start, end)] } else { Vec::new() })
            .collect();
        let (pixels, grid) = (inputs.find(PIXELS).cloned(), inputs.find(GRID).cloned());
        let none = vec![Vec::new(); rows];
        model.forward(ids, pixels, None, grid, None, vec![seq; rows], pictures, none, &vec![0; rows])
    })?;
    Ok(port.giving(Positions::Last))
}

/// Published checkpoints have it; the port requires it and does not use it.
const PADDLEOCR: &[Name] = &[("visual.vision_model.embeddings.packing_position_embedding.weight", "0")];

/// The port takes a whole picture instead of its patches.
pub(crate) fn load_paddleocr_vl(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    let config: paddleocr_vl::Config = checkpoint.config()?;
    let mut model = paddleocr_vl::PaddleOCRVLModel::new(&config, checkpoint.renamed("", &[PADDLEOCR]))
        .map_err(failure)?;
    let port = tensors(&[INPUT_IDS, PIXELS, GRID], move |inputs| {
        model.clear_kv_cache();
        let (pixels, grid) = (inputs.get(PIXELS)?, inputs.get(GRID)?);
        let (_, channels, height, width) = pixels.dims4()?;
        let [frames, rows, columns] = grid.flatten_all()?.to_vec1::<u32>()?[..] else {
            candle_core::bail!("tfcheck's adapter gives the port one picture, and the inputs have several");
        };
        let (rows, columns) = ((frames * rows) as usize, columns as usize);
        let whole =
            pixels.reshape(vec![rows, columns, channels, height, width])?.permute(vec![2, 0, 3, 1, 4])?;
        let whole = whole.reshape((1, channels, rows * height, columns * width))?;
        model.forward(inputs.get(INPUT_IDS)?, Some(&whole), Some(grid), 0)
    })?;
    Ok(port.giving(Positions::Last))
}
