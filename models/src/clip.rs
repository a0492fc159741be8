//! CLIP: an encoder of texts with a causal mask and one of images, both of pre-norm blocks with learned positions; their
//! pooled and projected vectors are compared (transformers 5.23.0, `models/clip/modeling_clip.py` and
//! `configuration_clip.py`).

use bounds::config::Refused;
use candle_core::Tensor;
use serde_json::Map;

use crate::config::ConfigReader;
use crate::error::{Error, Result};
use crate::inputs::PassInputs;
use crate::layers::{
    Activation, Attention, Embedding, Joined, LayerNorm, Linear, Mask, PatchEmbedding, Similarity, add,
    after_token, first_position, one_per_row, position_ids, position_of_each,
};
use crate::model::{Model, Task, unknown_head};
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::Xs;

/// Of either encoder.
struct Config {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    hidden_act: Activation,
    layer_norm_eps: f64,
}

impl Config {
    /// `hidden_size`, `intermediate_size` and `num_attention_heads` are the defaults of these keys.
    fn read(config: &ConfigReader, [size, inner, heads]: [usize; 3]) -> Result<Self> {
        let hidden_size = config.usize_or("hidden_size", size)?;
        let num_attention_heads = config.usize_or("num_attention_heads", heads)?;
        if num_attention_heads == 0 || hidden_size % num_attention_heads != 0 {
            let needed = format!("a divisor of hidden_size ({hidden_size})");
            return Err(Refused::new("num_attention_heads", &num_attention_heads.into(), needed).into());
        }
        // The width of this encoder's own projection, which a model of both encoders does not have.
        config.value("projection_dim");
        Ok(Self {
            hidden_size,
            intermediate_size: config.usize_or("intermediate_size", inner)?,
            num_hidden_layers: config.usize_or("num_hidden_layers", 12)?,
            num_attention_heads,
            hidden_act: Activation::read(config, "hidden_act", "quick_gelu")?,
            layer_norm_eps: config.f64_or("layer_norm_eps", 1e-5)?,
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

/// The encoder of texts.
struct TextModel {
    path: String,
    embeddings_path: String,
    token_embedding: Embedding,
    position_embedding: Embedding,
    encoder: Encoder,
    final_layer_norm: LayerNorm,
    eos_token_id: usize,
}

impl TextModel {
    fn load(reader: &ConfigReader, weights: &Weights) -> Result<(Self, usize)> {
        let config = Config::read(reader, [512, 2048, 8])?;
        let embeddings = weights.pp("embeddings");
        let size = config.hidden_size;
        let table = |name: &str, rows: usize| Embedding::load(&embeddings.pp(name), rows, size);
        let model = Self {
            path: weights.path().to_owned(),
            embeddings_path: embeddings.path().to_owned(),
            token_embedding: table("token_embedding", reader.usize_or("vocab_size", 49408)?)?,
            position_embedding: table("position_embedding", reader.usize_or("max_position_embeddings", 77)?)?,
            encoder: Encoder::load(&config, &weights.pp("encoder"))?,
            final_layer_norm: config.norm(&weights.pp("final_layer_norm"))?,
            eos_token_id: reader.usize_or("eos_token_id", 49407)?,
        };
        Ok((model, size))
    }

    /// The state of each text's end token, `[texts, hidden_size]`.
    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        let ids = Xs::from(pass.input_ids().clone());
        let xs = pass.module(&self.path, ids, |pass, ids| {
            let xs = pass.module(&self.embeddings_path, ids, |pass, ids| {
                let words = self.token_embedding.forward(pass, &ids)?;
                let positions = position_ids(pass)?;
                add(words, self.position_embedding.forward(pass, &positions)?)
            })?;
            let mask = Mask::causal(pass, None)?;
            let xs = self.encoder.forward(pass, xs, &mask)?;
            self.final_layer_norm.forward(pass, &xs)
        })?;
        position_of_each(&xs, &end_tokens(pass, self.eos_token_id)?)
    }
}

/// The position of each text's first `eos_token_id`, or 0 if it has none. Where the config has the id 2, which early
/// checkpoints say wrongly, it is that of the largest id instead.
fn end_tokens(pass: &Pass, eos_token_id: usize) -> Result<Vec<u32>> {
    let ids: Vec<Vec<u32>> = pass.input_ids().to_vec2()?;
    let first = |row: Vec<u32>| {
        let wanted = match eos_token_id {
            2 => row.iter().copied().max(),
            id => u32::try_from(id).ok(),
        };
        row.iter().position(|id| Some(*id) == wanted).unwrap_or(0) as u32
    };
    Ok(ids.into_iter().map(first).collect())
}

/// The encoder of images.
struct VisionModel {
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
    fn load(reader: &ConfigReader, weights: &Weights) -> Result<(Self, usize)> {
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
        let model = Self {
            path: weights.path().to_owned(),
            embeddings_path: embeddings.path().to_owned(),
            class_embedding: embeddings.get("class_embedding", size)?,
            patch_embedding,
            position_embedding: Embedding::load(&embeddings.pp("position_embedding"), positions, size)?,
            // The checkpoints' spelling.
            pre_layrnorm: config.norm(&weights.pp("pre_layrnorm"))?,
            encoder: Encoder::load(&config, &weights.pp("encoder"))?,
            post_layernorm: config.norm(&weights.pp("post_layernorm"))?,
        };
        Ok((model, size))
    }

    /// `pixels: [images, channels, image_size, image_size]` to the normalised state of each image's class token,
    /// `[images, hidden_size]`.
    fn forward(&self, pass: &mut Pass, pixels: &Tensor) -> Result<Xs> {
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
            let pooled = self.post_layernorm.forward(pass, &first_position(&xs)?)?;
            one_per_row(pass, &pooled)
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
    let (text_model, text_size) = TextModel::load(&part(config, "text_config")?, &weights.pp("text_model"))?;
    let (vision_model, vision_size) =
        VisionModel::load(&part(config, "vision_config")?, &weights.pp("vision_model"))?;
    let project = |name: &str, size: usize| Linear::load(&weights.pp(name), size, projection_dim, false);
    Ok(Box::new(Clip {
        text_model,
        vision_model,
        visual_projection: project("visual_projection", vision_size)?,
        text_projection: project("text_projection", text_size)?,
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
        let positions = 1 + self.vision_model.patch_embedding.patches();
        let images = pixels.dims().first().copied().filter(|images| *images > 0);
        let images = images.ok_or_else(|| Error::Inputs("pixel_values is empty".to_owned()))?;
        let sequences = PassInputs::without_tokens(images, positions, pass.dtype(), pass.device());
        let (images, _) = pass.over(sequences, |pass| {
            let images = self.vision_model.forward(pass, &pixels)?;
            let images = self.visual_projection.forward(pass, &images)?;
            one_per_row(pass, &images)
        })?;
        let texts = self.text_model.forward(pass)?;
        let texts = self.text_projection.forward(pass, &texts)?;
        let texts = one_per_row(pass, &texts)?;
        self.similarity.forward(&images, &texts)
    }
}
