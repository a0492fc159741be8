//! CLIP's encoder of images: a class token and patches with learned positions, in blocks that attend to all positions, pooled
//! at the class token. By itself it has its own projection or none (transformers 5.23.0, `CLIPVisionModel` and
//! `CLIPVisionModelWithProjection` of `models/clip/modeling_clip.py`).

use bounds::config::Refused;
use candle_core::Tensor;

use super::{Config, Encoder};
use crate::config::ConfigReader;
use crate::error::{Error, Result};
use crate::inputs::PassInputs;
use crate::layers::{
    Embedding, LayerNorm, Linear, Mask, PatchEmbedding, add, after_token, first_position, one_per_row,
    position_ids,
};
use crate::model::{Model, Task, unknown_head};
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::Xs;

/// The encoder of images.
pub(super) struct VisionModel {
    pub(super) config: Config,
    path: String,
    embeddings_path: String,
    /// `[hidden_size]`.
    class_embedding: Tensor,
    patch_embedding: PatchEmbedding,
    position_embedding: Embedding,
    pre_layrnorm: LayerNorm,
    encoder: Encoder,
    post_layernorm: LayerNorm,
}

impl VisionModel {
    pub(super) fn load(reader: &ConfigReader, weights: &Weights) -> Result<Self> {
        let config = Config::read(reader, [768, 3072, 12])?;
        let embeddings = weights.pp("embeddings");
        let size = config.hidden_size;
        let (image_size, patch_size) =
            (reader.usize_or("image_size", 224)?, reader.usize_or("patch_size", 32)?);
        if patch_size == 0 || patch_size > image_size {
            let needed = format!("a number from 1 to image_size ({image_size})");
            return Err(Refused::new("vision_config.patch_size", &patch_size.into(), needed).into());
        }
        let shape = (reader.usize_or("num_channels", 3)?, image_size, patch_size);
        let patch_embedding = PatchEmbedding::load(&embeddings.pp("patch_embedding"), shape, size)?;
        let positions = patch_embedding.patches().saturating_add(1);
        Ok(Self {
            path: weights.path().to_owned(),
            embeddings_path: embeddings.path().to_owned(),
            class_embedding: embeddings.get("class_embedding", size)?,
            patch_embedding,
            position_embedding: Embedding::load(&embeddings.pp("position_embedding"), positions, size)?,
            // The checkpoints' spelling.
            pre_layrnorm: config.norm(&weights.pp("pre_layrnorm"))?,
            encoder: Encoder::load(&config, &weights.pp("encoder"))?,
            post_layernorm: config.norm(&weights.pp("post_layernorm"))?,
            config,
        })
    }

    /// The positions of all images: the class token and the patches of each.
    pub(super) fn positions(&self, pass: &Pass, pixels: &Tensor) -> Result<PassInputs> {
        let images = pixels.dims().first().copied().filter(|images| *images > 0);
        let images = images.ok_or_else(|| Error::Inputs("pixel_values is empty".to_owned()))?;
        let positions = 1 + self.patch_embedding.patches();
        Ok(PassInputs::without_tokens(images, positions, pass.dtype(), pass.device()))
    }

    /// `pixels: [images, channels, image_size, image_size]` to what `give` makes of the states of all positions,
    /// `[images, 1 + patches, hidden_size]`, as a step of this module.
    pub(super) fn forward(
        &self,
        pass: &mut Pass,
        pixels: &Tensor,
        give: impl FnOnce(&Self, &mut Pass, &Xs) -> Result<Xs>,
    ) -> Result<Xs> {
        let pixels = pixels.to_dtype(pass.dtype())?;
        pass.module(&self.path, pixels.into(), |pass, pixels| {
            let xs = pass.module(&self.embeddings_path, pixels, |pass, pixels| {
                let patches = self.patch_embedding.forward(pass, &pixels)?;
                let xs = after_token(pass, &self.class_embedding, &patches)?;
                let positions = position_ids(pass)?;
                add(xs, self.position_embedding.forward(pass, &positions)?)
            })?;
            let xs = self.pre_layrnorm.forward(pass, &xs)?;
            let mask = Mask::bidirectional(pass, None)?;
            let xs = self.encoder.forward(pass, xs, &mask)?;
            give(self, pass, &xs)
        })
    }

    /// `xs: [images, 1 + patches, hidden_size]` to the normalised state of each image's class token,
    /// `[images, hidden_size]`.
    pub(super) fn pooled(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        let pooled = self.post_layernorm.forward(pass, &first_position(pass, xs)?)?;
        one_per_row(pass, &pooled)
    }
}

/// The encoder by itself.
struct ClipVision {
    vision_model: VisionModel,
    /// Absent if the output is hidden states.
    visual_projection: Option<Linear>,
}

pub(crate) fn build(config: &ConfigReader, weights: &Weights, task: Option<Task>) -> Result<Box<dyn Model>> {
    let has_projection = match task.unwrap_or(Task::HiddenStates) {
        Task::HiddenStates => false,
        Task::Embeddings => true,
        task => return Err(unknown_head("clip_vision_model", task)),
    };
    let vision_model = VisionModel::load(config, &weights.body("vision_model", has_projection))?;
    let Config { hidden_size, projection_dim, .. } = vision_model.config;
    let project = || Linear::load(&weights.pp("visual_projection"), hidden_size, projection_dim, false);
    Ok(Box::new(ClipVision { visual_projection: has_projection.then(project).transpose()?, vision_model }))
}

impl Model for ClipVision {
    fn inputs(&self) -> &'static [&'static str] {
        &["pixel_values"]
    }

    fn output(&self) -> &'static str {
        if self.visual_projection.is_some() { "image_embeds" } else { "last_hidden_state" }
    }

    /// `image_embeds`, `[images, projection_dim]`, and beside it `last_hidden_state`; without a projection
    /// `last_hidden_state`, `[images, 1 + patches, hidden_size]`, and beside it `pooler_output`.
    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        if pass.has_cache() {
            return Err(Error::Unsupported("clip_vision_model with a KV cache".to_owned()));
        }
        let pixels = pass.named("pixel_values")?;
        let (output, _) = pass.over(self.vision_model.positions(pass, &pixels)?, |pass| {
            let Some(visual_projection) = &self.visual_projection else {
                return self.vision_model.forward(pass, &pixels, |model, pass, xs| {
                    let pooled = model.pooled(pass, xs)?;
                    pass.output("pooler_output", &pooled)?;
                    Ok(xs.clone())
                });
            };
            let pooled = self.vision_model.forward(pass, &pixels, |model, pass, xs| {
                pass.output("last_hidden_state", xs)?;
                model.pooled(pass, xs)
            })?;
            let embeds = visual_projection.forward(pass, &pooled)?;
            one_per_row(pass, &embeds)
        })?;
        Ok(output)
    }
}
