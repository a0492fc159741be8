//! Qwen2-VL's vision transformer (transformers 5.24.0, `models/qwen2_vl/modeling_qwen2_vl.py`,
//! `Qwen2VisionTransformerPretrainedModel`).

use bounds::config::Refused;
use candle_core::Tensor;
use serde_json::json;

use crate::config::ConfigReader;
use crate::error::{Error, Result};
use crate::inputs::PassInputs;
use crate::layers::{
    Activation, Attention, FlatPatches, Grid, LayerNorm, Linear, Rope, RopeParameters, RopeScaling,
    RotaryEmbedding, Rotation, add, merge_neighbours, patch_positions, split,
};
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::Xs;

/// torch's epsilon of the vision transformer's norms.
const LAYER_NORM_EPS: f64 = 1e-6;

pub(super) struct VisionConfig {
    depth: usize,
    embed_dim: usize,
    /// Features of a merged patch: those of a token.
    pub(super) hidden_size: usize,
    hidden_act: Activation,
    mlp_ratio: usize,
    num_heads: usize,
    in_channels: usize,
    patch_size: usize,
    spatial_merge_size: usize,
    temporal_patch_size: usize,
    rope_theta: f64,
}

impl VisionConfig {
    pub(super) fn read(config: &ConfigReader) -> Result<Self> {
        // transformers reads neither of these keys of the published checkpoints.
        config.value("in_chans");
        config.value("spatial_patch_size");
        let embed_dim = config.usize_or("embed_dim", 1280)?;
        let num_heads = config.usize_or("num_heads", 16)?;
        if num_heads == 0 || embed_dim % num_heads != 0 || embed_dim / num_heads % 4 != 0 {
            let needed =
                format!("a divisor of embed_dim ({embed_dim}) that leaves heads of a multiple of 4 features");
            return Err(Refused::new("vision_config.num_heads", &num_heads.into(), needed).into());
        }
        let spatial_merge_size = config.usize_or("spatial_merge_size", 2)?;
        if !(1..=64).contains(&spatial_merge_size) {
            let value = spatial_merge_size.into();
            return Err(
                Refused::new("vision_config.spatial_merge_size", &value, "a number from 1 to 64").into()
            );
        }
        let rope = config.optional_object("rope_parameters")?;
        if let Some(rope) = &rope {
            rope.refuse_unless("rope_type", &json!("axial"))?;
        }
        Ok(Self {
            depth: config.usize_or("depth", 32)?,
            embed_dim,
            hidden_size: config.usize_or("hidden_size", 3584)?,
            hidden_act: Activation::read(config, "hidden_act", "quick_gelu")?,
            mlp_ratio: config.usize_or("mlp_ratio", 4)?,
            num_heads,
            in_channels: config.usize_or("in_channels", 3)?,
            patch_size: config.usize_or("patch_size", 14)?,
            spatial_merge_size,
            temporal_patch_size: config.usize_or("temporal_patch_size", 2)?,
            rope_theta: rope.map_or(Ok(10_000.0), |rope| rope.f64_or("rope_theta", 10_000.0))?,
        })
    }

    fn head_dim(&self) -> usize {
        self.embed_dim / self.num_heads
    }

    /// Patches that become one token.
    fn merged(&self) -> usize {
        self.spatial_merge_size * self.spatial_merge_size
    }

    fn norm(&self, weights: &Weights) -> Result<LayerNorm> {
        LayerNorm::load(weights, self.embed_dim, LAYER_NORM_EPS, true)
    }
}

struct VisionAttention {
    path: String,
    dim: usize,
    qkv: Linear,
    attention: Attention,
    proj: Linear,
}

impl VisionAttention {
    fn load(config: &VisionConfig, weights: &Weights, layer: usize) -> Result<Self> {
        let (dim, head_dim) = (config.embed_dim, config.head_dim());
        Ok(Self {
            path: weights.path().to_owned(),
            dim,
            qkv: Linear::load(&weights.pp("qkv"), dim, dim.saturating_mul(3), true)?,
            attention: Attention {
                layer,
                num_heads: config.num_heads,
                num_kv_heads: config.num_heads,
                head_dim,
                scale: (head_dim as f64).powf(-0.5),
                soft_cap: None,
            },
            proj: Linear::load(&weights.pp("proj"), dim, dim, true)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs, images: &Images) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let qkv = split(&self.qkv.forward(pass, &xs)?, [self.dim; 3])?;
            let mixed = self.attention.forward_segments(pass, qkv, &images.rope, &images.lengths)?;
            self.proj.forward(pass, &mixed)
        })
    }
}

struct VisionMlp {
    path: String,
    fc1: Linear,
    act_path: String,
    act: Activation,
    fc2: Linear,
}

impl VisionMlp {
    fn load(config: &VisionConfig, weights: &Weights) -> Result<Self> {
        let (size, inner) = (config.embed_dim, config.embed_dim.saturating_mul(config.mlp_ratio));
        Ok(Self {
            path: weights.path().to_owned(),
            fc1: Linear::load(&weights.pp("fc1"), size, inner, true)?,
            act_path: weights.pp("act").path().to_owned(),
            act: config.hidden_act,
            fc2: Linear::load(&weights.pp("fc2"), inner, size, true)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let h = self.fc1.forward(pass, &xs)?;
            let h = self.act.forward(pass, &self.act_path, &h)?;
            self.fc2.forward(pass, &h)
        })
    }
}

struct VisionBlock {
    path: String,
    norm1: LayerNorm,
    attn: VisionAttention,
    norm2: LayerNorm,
    mlp: VisionMlp,
}

impl VisionBlock {
    fn load(config: &VisionConfig, weights: &Weights, layer: usize) -> Result<Self> {
        Ok(Self {
            path: weights.path().to_owned(),
            norm1: config.norm(&weights.pp("norm1"))?,
            attn: VisionAttention::load(config, &weights.pp("attn"), layer)?,
            norm2: config.norm(&weights.pp("norm2"))?,
            mlp: VisionMlp::load(config, &weights.pp("mlp"))?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: Xs, images: &Images) -> Result<Xs> {
        pass.module(&self.path, xs, |pass, xs| {
            let h = self.norm1.forward(pass, &xs)?;
            let xs = add(xs, self.attn.forward(pass, &h, images)?)?;
            let h = self.norm2.forward(pass, &xs)?;
            add(xs, self.mlp.forward(pass, &h)?)
        })
    }
}

/// Makes one token of each square of neighbouring patches.
struct PatchMerger {
    path: String,
    merged: usize,
    ln_q: LayerNorm,
    mlp_path: String,
    mlp_0: Linear,
    act_path: String,
    mlp_2: Linear,
}

impl PatchMerger {
    fn load(config: &VisionConfig, weights: &Weights) -> Result<Self> {
        let inner = config.embed_dim.saturating_mul(config.merged());
        let mlp = weights.pp("mlp");
        Ok(Self {
            path: weights.path().to_owned(),
            merged: config.merged(),
            ln_q: config.norm(&weights.pp("ln_q"))?,
            mlp_path: mlp.path().to_owned(),
            mlp_0: Linear::load(&mlp.pp(0), inner, inner, true)?,
            act_path: mlp.pp(1).path().to_owned(),
            mlp_2: Linear::load(&mlp.pp(2), inner, config.hidden_size, true)?,
        })
    }

    /// `xs: [1, patches, embed_dim]` to `[1, patches / merged, hidden_size]`.
    fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let squares = merge_neighbours(&self.ln_q.forward(pass, &xs)?, self.merged)?;
            pass.module(&self.mlp_path, squares, |pass, xs| {
                let h = self.mlp_0.forward(pass, &xs)?;
                let h = Activation::Gelu.forward(pass, &self.act_path, &h)?;
                self.mlp_2.forward(pass, &h)
            })
        })
    }
}

/// Where the patches of a forward pass lie.
struct Images {
    rope: Rope,
    /// Patches of each frame of each image, which attend to each other.
    lengths: Vec<usize>,
}

pub(super) struct VisionTransformer {
    path: String,
    pub(super) spatial_merge_size: usize,
    patch_embed: FlatPatches,
    rotary_pos_emb: RotaryEmbedding,
    blocks: Vec<VisionBlock>,
    merger: PatchMerger,
}

impl VisionTransformer {
    pub(super) fn load(config: &VisionConfig, weights: &Weights) -> Result<Self> {
        let blocks = weights.pp("blocks");
        let load = |layer| VisionBlock::load(config, &blocks.pp(layer), layer);
        let patch = (config.in_channels, config.temporal_patch_size, config.patch_size);
        let rope = RopeParameters {
            theta: config.rope_theta,
            scaling: RopeScaling::Default,
            partial_rotary_factor: 1.0,
            max_position_embeddings: 0,
        };
        Ok(Self {
            path: weights.path().to_owned(),
            spatial_merge_size: config.spatial_merge_size,
            patch_embed: FlatPatches::load(&weights.pp("patch_embed"), patch, config.embed_dim)?,
            rotary_pos_emb: RotaryEmbedding::new(rope, config.head_dim() / 2)
                .on_two_axes()
                .rotating(Rotation::Wide),
            blocks: (0..config.depth).map(load).collect::<Result<_>>()?,
            merger: PatchMerger::load(config, &weights.pp("merger"))?,
        })
    }

    /// `pixels: [patches, values]` of all images to their tokens, `[1, tokens, hidden_size]`.
    pub(super) fn forward(&self, pass: &mut Pass, pixels: &Tensor, grids: &[Grid]) -> Result<Xs> {
        let patches = grids.iter().fold(0_usize, |sum, grid| sum.saturating_add(grid.patches()));
        let values = self.patch_embed.values();
        if pixels.dims() != [patches, values] || patches == 0 {
            let found = pixels.dims();
            let needed = format!("[{patches}, {values}] is needed, by the grid");
            return Err(Error::Inputs(format!("the patches of images have shape {found:?} where {needed}")));
        }
        let pixels = pixels.to_dtype(pass.dtype())?.unsqueeze(0)?;
        let sequence = PassInputs::without_tokens(1, patches, pass.dtype(), pass.device());
        let (tokens, _) = pass.over(sequence, |pass| {
            pass.module(&self.path, pixels.into(), |pass, pixels| {
                let xs = self.patch_embed.forward(pass, pixels)?;
                let positions = patch_positions(grids, self.spatial_merge_size);
                let frames = grids.iter().flat_map(|grid| vec![grid.height * grid.width; grid.frames]);
                let images = Images {
                    rope: self.rotary_pos_emb.forward_axes(pass, &positions)?,
                    lengths: frames.collect(),
                };
                let xs = self.blocks.iter().try_fold(xs, |xs, block| block.forward(pass, xs, &images))?;
                self.merger.forward(pass, &xs)
            })
        })?;
        Ok(tokens)
    }
}
