//! CLIP: an encoder of texts and one of images, both of the same pre-norm blocks, which are here; their pooled and projected
//! vectors are compared (transformers 5.23.0, `models/clip/modeling_clip.py` and `configuration_clip.py`).

pub(crate) mod text_model;
pub(crate) mod vision_model;

use serde_json::Map;

use crate::config::{ConfigReader, head_dim};
use crate::error::{Error, Result};
use crate::layers::{Activation, Attention, Joined, LayerNorm, Linear, Mask, Similarity, add, one_per_row};
use crate::model::{Model, Task, unknown_head};
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::Xs;
use text_model::TextModel;
use vision_model::VisionModel;

/// Of either encoder.
struct Config {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    hidden_act: Activation,
    layer_norm_eps: f64,
    /// Width of this encoder's own projection, which a model of both encoders does not have.
    projection_dim: usize,
}

impl Config {
    /// `hidden_size`, `intermediate_size` and `num_attention_heads` are the defaults of these keys.
    fn read(config: &ConfigReader, [size, inner, heads]: [usize; 3]) -> Result<Self> {
        let hidden_size = config.usize_or("hidden_size", size)?;
        let num_attention_heads = config.usize_or("num_attention_heads", heads)?;
        head_dim(("hidden_size", hidden_size), ("num_attention_heads", num_attention_heads))?;
        Ok(Self {
            hidden_size,
            intermediate_size: config.usize_or("intermediate_size", inner)?,
            num_hidden_layers: config.usize_or("num_hidden_layers", 12)?,
            num_attention_heads,
            hidden_act: Activation::read(config, "hidden_act", "quick_gelu")?,
            layer_norm_eps: config.f64_or("layer_norm_eps", 1e-5)?,
            projection_dim: config.usize_or("projection_dim", 512)?,
        })
    }

    fn norm(&self, weights: &Weights) -> Result<LayerNorm> {
        LayerNorm::load(weights, self.hidden_size, self.layer_norm_eps, true)
    }
}

/// The config of one encoder; old checkpoints repeat it, complete, under a second name, which then decides.
fn part(config: &ConfigReader, key: &str) -> Result<ConfigReader> {
    let second = config.optional_object(&format!("{key}_dict"))?;
    if second.is_some() {
        config.skip_object(key);
    }
    let part = second.map_or_else(|| config.optional_object(key), |second| Ok(Some(second)))?;
    Ok(part.unwrap_or_else(|| ConfigReader::new(Map::new())))
}

struct SelfAttention {
    path: String,
    qkv: Joined<3>,
    attention: Attention,
    out_proj: Linear,
}

impl SelfAttention {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        let size = config.hidden_size;
        let head_dim = size / config.num_attention_heads;
        Ok(Self {
            path: weights.path().to_owned(),
            qkv: Joined::load(weights, size, [("q_proj", size), ("k_proj", size), ("v_proj", size)], true)?,
            attention: Attention {
                layer,
                num_heads: config.num_attention_heads,
                num_kv_heads: config.num_attention_heads,
                head_dim,
                scale: (head_dim as f64).powf(-0.5),
                soft_cap: None,
            },
            out_proj: Linear::load(&weights.pp("out_proj"), size, size, true)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs, mask: &Mask) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let qkv = self.qkv.forward(pass, &xs)?;
            let mixed = self.attention.forward(pass, qkv, None, mask)?;
            self.out_proj.forward(pass, &mixed)
        })
    }
}

struct Mlp {
    path: String,
    fc1: Linear,
    act_path: String,
    activation_fn: Activation,
    fc2: Linear,
}

impl Mlp {
    fn load(config: &Config, weights: &Weights) -> Result<Self> {
        let (size, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            path: weights.path().to_owned(),
            fc1: Linear::load(&weights.pp("fc1"), size, inner, true)?,
            act_path: weights.pp("activation_fn").path().to_owned(),
            activation_fn: config.hidden_act,
            fc2: Linear::load(&weights.pp("fc2"), inner, size, true)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let h = self.fc1.forward(pass, &xs)?;
            let h = self.activation_fn.forward(pass, &self.act_path, &h)?;
            self.fc2.forward(pass, &h)
        })
    }
}

struct Block {
    path: String,
    layer_norm1: LayerNorm,
    self_attn: SelfAttention,
    layer_norm2: LayerNorm,
    mlp: Mlp,
}

impl Block {
    fn load(config: &Config, weights: &Weights, layer: usize) -> Result<Self> {
        Ok(Self {
            path: weights.path().to_owned(),
            layer_norm1: config.norm(&weights.pp("layer_norm1"))?,
            self_attn: SelfAttention::load(config, &weights.pp("self_attn"), layer)?,
            layer_norm2: config.norm(&weights.pp("layer_norm2"))?,
            mlp: Mlp::load(config, &weights.pp("mlp"))?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: Xs, mask: &Mask) -> Result<Xs> {
        pass.module(&self.path, xs, |pass, xs| {
            let h = self.layer_norm1.forward(pass, &xs)?;
            let xs = add(xs, self.self_attn.forward(pass, &h, mask)?)?;
            let h = self.layer_norm2.forward(pass, &xs)?;
            add(xs, self.mlp.forward(pass, &h)?)
        })
    }
}

/// The blocks of either encoder.
struct Encoder {
    path: String,
    layers: Vec<Block>,
}

impl Encoder {
    fn load(config: &Config, weights: &Weights) -> Result<Self> {
        let layers = weights.pp("layers");
        let load = |layer| Block::load(config, &layers.pp(layer), layer);
        Ok(Self {
            path: weights.path().to_owned(),
            layers: (0..config.num_hidden_layers).map(load).collect::<Result<_>>()?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: Xs, mask: &Mask) -> Result<Xs> {
        pass.module(&self.path, xs, |pass, xs| {
            self.layers.iter().try_fold(xs, |xs, layer| layer.forward(pass, xs, mask))
        })
    }
}

struct Clip {
    text_model: TextModel,
    vision_model: VisionModel,
    visual_projection: Linear,
    text_projection: Linear,
    similarity: Similarity,
}

pub(crate) fn build(config: &ConfigReader, weights: &Weights, task: Option<Task>) -> Result<Box<dyn Model>> {
    match task.unwrap_or(Task::Similarity) {
        Task::Similarity => {}
        task => return Err(unknown_head("clip", task)),
    }
    let projection_dim = config.usize_or("projection_dim", 512)?;
    let text_model = TextModel::load(&part(config, "text_config")?, &weights.pp("text_model"))?;
    let vision_model = VisionModel::load(&part(config, "vision_config")?, &weights.pp("vision_model"))?;
    let project = |name: &str, size: usize| Linear::load(&weights.pp(name), size, projection_dim, false);
    Ok(Box::new(Clip {
        visual_projection: project("visual_projection", vision_model.config.hidden_size)?,
        text_projection: project("text_projection", text_model.config.hidden_size)?,
        text_model,
        vision_model,
        similarity: Similarity::load(weights)?,
    }))
}

impl Model for Clip {
    fn inputs(&self) -> &'static [&'static str] {
        &["pixel_values"]
    }

    /// `logits_per_image`; `logits_per_text` is its transpose.
    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        if pass.has_cache() {
            return Err(Error::Unsupported("clip with a KV cache".to_owned()));
        }
        let pixels = pass.named("pixel_values")?;
        let (images, _) = pass.over(self.vision_model.positions(pass, &pixels)?, |pass| {
            let images = self.vision_model.forward(pass, &pixels, VisionModel::pooled)?;
            let images = self.visual_projection.forward(pass, &images)?;
            one_per_row(pass, &images)
        })?;
        let texts = self.text_model.forward(pass)?;
        let texts = self.text_model.pooled(pass, &texts)?;
        let texts = self.text_projection.forward(pass, &texts)?;
        let texts = one_per_row(pass, &texts)?;
        self.similarity.forward(&images, &texts)
    }
}
