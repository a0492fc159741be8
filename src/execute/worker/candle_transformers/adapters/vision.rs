//! Loaders of the ports of pictures.

use std::sync::Arc;

use candle_core::Module;
use candle_transformers::models::{beit, convnext, depth_anything_v2, dinov2, resnet, segformer, vit};
use reference::protocol::Failed;
use tfcheck_port::Port;
use tfcheck_port::worker::{failure, unsupported};

use super::super::checkpoint::Checkpoint;
use super::super::renamed::Name;
use super::{no_head, tensors};

const PIXELS: &str = "pixel_values";

/// A port that is a module of pixels.
fn of_pixels(model: impl Module + 'static) -> Result<Port, Failed> {
    tensors(&[PIXELS], move |inputs| model.forward(inputs.get(PIXELS)?))
}

fn classifier(checkpoint: &Checkpoint) -> Result<(), Failed> {
    match checkpoint.head() {
        "ForImageClassification" => Ok(()),
        other => Err(no_head(other)),
    }
}

/// The sizes of a vision transformer that a port with a config of its own takes.
#[derive(serde::Deserialize)]
struct Sizes {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
}

pub(super) fn load_vit(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    classifier(checkpoint)?;
    let config: vit::Config = checkpoint.config()?;
    let model = vit::Model::new(&config, checkpoint.labels(), checkpoint.weights()).map_err(failure)?;
    tensors(&[PIXELS], move |inputs| model.forward(inputs.get(PIXELS)?))
}

pub(super) fn load_segformer(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    let config: segformer::Config = checkpoint.config()?;
    let (labels, weights) = (checkpoint.labels(), checkpoint.weights());
    match checkpoint.head() {
        "ForImageClassification" => {
            of_pixels(segformer::ImageClassificationModel::new(&config, labels, weights).map_err(failure)?)
        }
        "ForSemanticSegmentation" => {
            of_pixels(segformer::SemanticSegmentationModel::new(&config, labels, weights).map_err(failure)?)
        }
        other => Err(no_head(other)),
    }
}

const DINOV2: &[Name] = &[
    ("cls_token", "dinov2.embeddings.cls_token"),
    ("pos_embed", "dinov2.embeddings.position_embeddings"),
    ("patch_embed.proj.{}", "dinov2.embeddings.patch_embeddings.projection.{}"),
    ("blocks.{}.norm1.{}", "dinov2.encoder.layer.{}.norm1.{}"),
    ("blocks.{}.norm2.{}", "dinov2.encoder.layer.{}.norm2.{}"),
    (
        "blocks.{}.attn.qkv.{}",
        "dinov2.encoder.layer.{}.attention.attention.query.{} + dinov2.encoder.layer.{}.attention.attention.key.{} + \
         dinov2.encoder.layer.{}.attention.attention.value.{}",
    ),
    ("blocks.{}.attn.proj.{}", "dinov2.encoder.layer.{}.attention.output.dense.{}"),
    ("blocks.{}.ls1.gamma", "dinov2.encoder.layer.{}.layer_scale1.lambda1"),
    ("blocks.{}.ls2.gamma", "dinov2.encoder.layer.{}.layer_scale2.lambda1"),
    ("blocks.{}.mlp.fc1.{}", "dinov2.encoder.layer.{}.mlp.fc1.{}"),
    ("blocks.{}.mlp.fc2.{}", "dinov2.encoder.layer.{}.mlp.fc2.{}"),
    ("norm.{}", "dinov2.layernorm.{}"),
    ("head.{}", "classifier.{}"),
];

pub(super) fn load_dinov2(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    classifier(checkpoint)?;
    let Sizes { hidden_size, num_hidden_layers, num_attention_heads } = checkpoint.config()?;
    let weights = checkpoint.renamed(DINOV2);
    let model =
        dinov2::DinoVisionTransformer::new(weights, num_hidden_layers, hidden_size, num_attention_heads);
    of_pixels(model.map_err(failure)?)
}

/// The backbone's classifier, which is not run, has no counterpart.
const DEPTH: &[Name] = &[
    ("cls_token", "backbone.embeddings.cls_token"),
    ("pos_embed", "backbone.embeddings.position_embeddings"),
    ("patch_embed.proj.{}", "backbone.embeddings.patch_embeddings.projection.{}"),
    ("blocks.{}.norm1.{}", "backbone.encoder.layer.{}.norm1.{}"),
    ("blocks.{}.norm2.{}", "backbone.encoder.layer.{}.norm2.{}"),
    (
        "blocks.{}.attn.qkv.{}",
        "backbone.encoder.layer.{}.attention.attention.query.{} + backbone.encoder.layer.{}.attention.attention.key.{} + \
         backbone.encoder.layer.{}.attention.attention.value.{}",
    ),
    ("blocks.{}.attn.proj.{}", "backbone.encoder.layer.{}.attention.output.dense.{}"),
    ("blocks.{}.ls1.gamma", "backbone.encoder.layer.{}.layer_scale1.lambda1"),
    ("blocks.{}.ls2.gamma", "backbone.encoder.layer.{}.layer_scale2.lambda1"),
    ("blocks.{}.mlp.fc1.{}", "backbone.encoder.layer.{}.mlp.fc1.{}"),
    ("blocks.{}.mlp.fc2.{}", "backbone.encoder.layer.{}.mlp.fc2.{}"),
    ("norm.{}", "backbone.layernorm.{}"),
    ("head.weight", "0"),
    ("head.bias", "0"),
    ("depth_head.projects.{}.{}", "neck.reassemble_stage.layers.{}.projection.{}"),
    ("depth_head.resize_layers.{}.{}", "neck.reassemble_stage.layers.{}.resize.{}"),
    ("depth_head.scratch.layer{}_rn.weight", "neck.convs.{-1}.weight"),
    ("depth_head.scratch.refinenet4.out_conv.{}", "neck.fusion_stage.layers.0.projection.{}"),
    ("depth_head.scratch.refinenet3.out_conv.{}", "neck.fusion_stage.layers.1.projection.{}"),
    ("depth_head.scratch.refinenet2.out_conv.{}", "neck.fusion_stage.layers.2.projection.{}"),
    ("depth_head.scratch.refinenet1.out_conv.{}", "neck.fusion_stage.layers.3.projection.{}"),
    (
        "depth_head.scratch.refinenet4.resConfUnit{}.conv{}.{}",
        "neck.fusion_stage.layers.0.residual_layer{}.convolution{}.{}",
    ),
    (
        "depth_head.scratch.refinenet3.resConfUnit{}.conv{}.{}",
        "neck.fusion_stage.layers.1.residual_layer{}.convolution{}.{}",
    ),
    (
        "depth_head.scratch.refinenet2.resConfUnit{}.conv{}.{}",
        "neck.fusion_stage.layers.2.residual_layer{}.convolution{}.{}",
    ),
    (
        "depth_head.scratch.refinenet1.resConfUnit{}.conv{}.{}",
        "neck.fusion_stage.layers.3.residual_layer{}.convolution{}.{}",
    ),
    ("depth_head.scratch.output_conv1.{}", "head.conv1.{}"),
    ("depth_head.scratch.output_conv2.0.{}", "head.conv2.{}"),
    ("depth_head.scratch.output_conv2.2.{}", "head.conv3.{}"),
];

pub(super) fn load_depth_anything(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    #[derive(serde::Deserialize)]
    struct Parts {
        backbone_config: Backbone,
        neck_hidden_sizes: [usize; 4],
        fusion_hidden_size: usize,
        patch_size: usize,
    }
    #[derive(serde::Deserialize)]
    struct Backbone {
        hidden_size: usize,
        num_hidden_layers: usize,
        num_attention_heads: usize,
        image_size: usize,
        out_indices: Vec<usize>,
    }
    let config: Parts = checkpoint.config()?;
    let Backbone { hidden_size, num_hidden_layers, num_attention_heads, image_size, out_indices } =
        config.backbone_config;
    let weights = checkpoint.renamed(DEPTH);
    let backbone = dinov2::DinoVisionTransformer::new(
        weights.clone(),
        num_hidden_layers,
        hidden_size,
        num_attention_heads,
    );
    // transformers counts the embeddings as the first of the outputs.
    let layers = out_indices.iter().map(|index| index.saturating_sub(1)).collect();
    let config = depth_anything_v2::DepthAnythingV2Config::new(
        config.neck_hidden_sizes,
        hidden_size,
        config.fusion_hidden_size,
        false,
        false,
        layers,
        image_size,
        image_size / config.patch_size.max(1),
    );
    let backbone = Arc::new(backbone.map_err(failure)?);
    let model = depth_anything_v2::DepthAnythingV2::new(backbone, config, weights).map_err(failure)?;
    tensors(&[PIXELS], move |inputs| model.forward(inputs.get(PIXELS)?)?.squeeze(1))
}

const BEIT: &[Name] = &[
    ("cls_token", "beit.embeddings.cls_token"),
    ("patch_embed.proj.{}", "beit.embeddings.patch_embeddings.projection.{}"),
    ("blocks.{}.norm1.{}", "beit.encoder.layer.{}.layernorm_before.{}"),
    ("blocks.{}.norm2.{}", "beit.encoder.layer.{}.layernorm_after.{}"),
    (
        "blocks.{}.attn.qkv.weight",
        "beit.encoder.layer.{}.attention.attention.query.weight + beit.encoder.layer.{}.attention.attention.key.weight + \
         beit.encoder.layer.{}.attention.attention.value.weight",
    ),
    (
        "blocks.{}.attn.qkv.bias",
        "beit.encoder.layer.{}.attention.attention.query.bias + 0 + beit.encoder.layer.{}.attention.attention.value.bias",
    ),
    (
        "blocks.{}.attn.relative_position_bias_table",
        "beit.encoder.layer.{}.attention.attention.relative_position_bias.relative_position_bias_table",
    ),
    ("blocks.{}.attn.proj.{}", "beit.encoder.layer.{}.attention.output.dense.{}"),
    ("blocks.{}.ls1.gamma", "beit.encoder.layer.{}.lambda_1"),
    ("blocks.{}.ls2.gamma", "beit.encoder.layer.{}.lambda_2"),
    ("blocks.{}.mlp.fc1.{}", "beit.encoder.layer.{}.intermediate.dense.{}"),
    ("blocks.{}.mlp.fc2.{}", "beit.encoder.layer.{}.output.dense.{}"),
    ("norm.{}", "beit.pooler.layernorm.{}"),
    ("head.{}", "classifier.{}"),
];

pub(super) fn load_beit(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    classifier(checkpoint)?;
    let Sizes { hidden_size, num_hidden_layers, num_attention_heads } = checkpoint.config()?;
    let weights = checkpoint.renamed(BEIT);
    let model =
        beit::BeitVisionTransformer::new(weights, num_hidden_layers, hidden_size, num_attention_heads);
    of_pixels(model.map_err(failure)?)
}

const CONVNEXT: &[Name] = &[
    ("stem.0.{}", "convnext.embeddings.patch_embeddings.{}"),
    ("stem.1.{}", "convnext.embeddings.layernorm.{}"),
    ("stages.{}.downsample.{}.{}", "convnext.encoder.stages.{}.downsampling_layer.{}.{}"),
    ("stages.{}.blocks.{}.conv_dw.{}", "convnext.encoder.stages.{}.layers.{}.dwconv.{}"),
    ("stages.{}.blocks.{}.norm.{}", "convnext.encoder.stages.{}.layers.{}.layernorm.{}"),
    ("stages.{}.blocks.{}.mlp.fc1.{}", "convnext.encoder.stages.{}.layers.{}.pwconv1.{}"),
    ("stages.{}.blocks.{}.mlp.fc2.{}", "convnext.encoder.stages.{}.layers.{}.pwconv2.{}"),
    ("stages.{}.blocks.{}.gamma", "convnext.encoder.stages.{}.layers.{}.layer_scale_parameter"),
    ("head.norm.{}", "convnext.layernorm.{}"),
    ("head.fc.{}", "classifier.{}"),
];

const CONVNEXTV2: &[Name] = &[
    ("stem.0.{}", "convnextv2.embeddings.patch_embeddings.{}"),
    ("stem.1.{}", "convnextv2.embeddings.layernorm.{}"),
    ("stages.{}.downsample.{}.{}", "convnextv2.encoder.stages.{}.downsampling_layer.{}.{}"),
    ("stages.{}.blocks.{}.conv_dw.{}", "convnextv2.encoder.stages.{}.layers.{}.dwconv.{}"),
    ("stages.{}.blocks.{}.norm.{}", "convnextv2.encoder.stages.{}.layers.{}.layernorm.{}"),
    ("stages.{}.blocks.{}.mlp.fc1.{}", "convnextv2.encoder.stages.{}.layers.{}.pwconv1.{}"),
    ("stages.{}.blocks.{}.mlp.fc2.{}", "convnextv2.encoder.stages.{}.layers.{}.pwconv2.{}"),
    ("stages.{}.blocks.{}.mlp.grn.{}", "convnextv2.encoder.stages.{}.layers.{}.grn.{}"),
    ("head.norm.{}", "convnextv2.layernorm.{}"),
    ("head.fc.{}", "classifier.{}"),
];

/// A published config of the port, by its sizes.
type Published<T> = (&'static [usize], fn() -> T);

/// By the channels of the stages.
const CONVNEXTS: &[Published<convnext::Config>] = &[
    (&[40, 80, 160, 320], convnext::Config::atto),
    (&[48, 96, 192, 384], convnext::Config::femto),
    (&[64, 128, 256, 512], convnext::Config::pico),
    (&[80, 160, 320, 640], convnext::Config::nano),
];

/// The port has the configs of published models only.
fn published<T>(configs: &[Published<T>], sizes: &[usize]) -> Result<T, Failed> {
    let found = configs.iter().find(|(known, _)| *known == sizes).map(|(_, config)| config());
    found.ok_or_else(|| unsupported(format!("the port has no config with the sizes {sizes:?}")))
}

/// Versions 1 and 2, which have other names.
pub(super) fn load_convnext(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    #[derive(serde::Deserialize)]
    struct Config {
        hidden_sizes: Vec<usize>,
    }
    classifier(checkpoint)?;
    let config: Config = checkpoint.config()?;
    let config = published(CONVNEXTS, &config.hidden_sizes)?;
    let names = if checkpoint.model_type == "convnext" { CONVNEXT } else { CONVNEXTV2 };
    let model = convnext::convnext(&config, checkpoint.labels(), checkpoint.renamed(names));
    of_pixels(model.map_err(failure)?)
}

const RESNET: &[Name] = &[
    ("conv1.weight", "resnet.embedder.embedder.convolution.weight"),
    ("bn1.{}", "resnet.embedder.embedder.normalization.{}"),
    ("layer{}.{}.conv1.weight", "resnet.encoder.stages.{-1}.layers.{}.layer.0.convolution.weight"),
    ("layer{}.{}.conv2.weight", "resnet.encoder.stages.{-1}.layers.{}.layer.1.convolution.weight"),
    ("layer{}.{}.bn1.{}", "resnet.encoder.stages.{-1}.layers.{}.layer.0.normalization.{}"),
    ("layer{}.{}.bn2.{}", "resnet.encoder.stages.{-1}.layers.{}.layer.1.normalization.{}"),
    ("layer{}.{}.downsample.0.weight", "resnet.encoder.stages.{-1}.layers.{}.shortcut.convolution.weight"),
    ("layer{}.{}.downsample.1.{}", "resnet.encoder.stages.{-1}.layers.{}.shortcut.normalization.{}"),
    ("fc.{}", "classifier.1.{}"),
];

/// The port has two depths of basic blocks.
pub(super) fn load_resnet(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    #[derive(serde::Deserialize)]
    struct Config {
        depths: Vec<usize>,
        layer_type: String,
    }
    classifier(checkpoint)?;
    let config: Config = checkpoint.config()?;
    let (labels, weights) = (checkpoint.labels(), checkpoint.renamed(RESNET));
    let model = match (config.layer_type.as_str(), &config.depths[..]) {
        ("basic", [2, 2, 2, 2]) => resnet::resnet18(labels, weights),
        ("basic", [3, 4, 6, 3]) => resnet::resnet34(labels, weights),
        (kind, depths) => {
            return Err(unsupported(format!(
                "tfcheck has no adapter for {kind} blocks of depths {depths:?}"
            )));
        }
    };
    of_pixels(model.map_err(failure)?)
}
