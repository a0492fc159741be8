//! Loaders of the ports of pictures.

use std::sync::Arc;

use candle_core::{Module, Tensor};
use candle_transformers::models::{beit, convnext, depth_anything_v2, dinov2, resnet, segformer, vit};
use protocol::Failed;
use tfcheck_port::Port;
use tfcheck_port::worker::{failure, unsupported};

use super::super::checkpoint::Checkpoint;
use super::super::renamed::Name;
use super::{PIXELS, no_head, tensors};

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

pub(crate) fn load_vit(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    classifier(checkpoint)?;
    let config: vit::Config = checkpoint.config()?;
    let model = vit::Model::new(&config, checkpoint.labels(), checkpoint.weights()).map_err(failure)?;
    of_pixels(move |pixels: &Tensor| model.forward(pixels))
}

pub(crate) fn load_segformer(checkpoint: &Checkpoint) -> Result<Port, Failed> {
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

/// The body of DINOv2, which Depth Anything has for a backbone.
const DINOV2: &[Name] = &[
    ("cls_token", "$.embeddings.cls_token"),
    ("pos_embed", "$.embeddings.position_embeddings"),
    ("patch_embed.proj.{}", "$.embeddings.patch_embeddings.projection.{}"),
    ("blocks.{}.norm1.{}", "$.encoder.layer.{}.norm1.{}"),
    ("blocks.{}.norm2.{}", "$.encoder.layer.{}.norm2.{}"),
    (
        "blocks.{}.attn.qkv.{}",
        "$.encoder.layer.{}.attention.attention.query.{} + $.encoder.layer.{}.attention.attention.key.{} + \
         $.encoder.layer.{}.attention.attention.value.{}",
    ),
    ("blocks.{}.attn.proj.{}", "$.encoder.layer.{}.attention.output.dense.{}"),
    ("blocks.{}.ls1.gamma", "$.encoder.layer.{}.layer_scale1.lambda1"),
    ("blocks.{}.ls2.gamma", "$.encoder.layer.{}.layer_scale2.lambda1"),
    ("blocks.{}.mlp.fc1.{}", "$.encoder.layer.{}.mlp.fc1.{}"),
    ("blocks.{}.mlp.fc2.{}", "$.encoder.layer.{}.mlp.fc2.{}"),
    ("norm.{}", "$.layernorm.{}"),
];

const CLASSIFIER: &[Name] = &[("head.{}", "classifier.{}")];

pub(crate) fn load_dinov2(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    classifier(checkpoint)?;
    let Sizes { hidden_size, num_hidden_layers, num_attention_heads } = checkpoint.config()?;
    let weights = checkpoint.renamed("dinov2", &[DINOV2, CLASSIFIER]);
    let model =
        dinov2::DinoVisionTransformer::new(weights, num_hidden_layers, hidden_size, num_attention_heads);
    of_pixels(model.map_err(failure)?)
}

/// The backbone's classifier, which is not run, has no counterpart.
const DEPTH: &[Name] = &[
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

pub(crate) fn load_depth_anything(checkpoint: &Checkpoint) -> Result<Port, Failed> {
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
    let weights = checkpoint.renamed("backbone", &[DINOV2, DEPTH]);
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
    ("cls_token", "$.embeddings.cls_token"),
    ("patch_embed.proj.{}", "$.embeddings.patch_embeddings.projection.{}"),
    ("blocks.{}.norm1.{}", "$.encoder.layer.{}.layernorm_before.{}"),
    ("blocks.{}.norm2.{}", "$.encoder.layer.{}.layernorm_after.{}"),
    (
        "blocks.{}.attn.qkv.weight",
        "$.encoder.layer.{}.attention.attention.query.weight + $.encoder.layer.{}.attention.attention.key.weight + \
         $.encoder.layer.{}.attention.attention.value.weight",
    ),
    (
        "blocks.{}.attn.qkv.bias",
        "$.encoder.layer.{}.attention.attention.query.bias + 0 + $.encoder.layer.{}.attention.attention.value.bias",
    ),
    (
        "blocks.{}.attn.relative_position_bias_table",
        "$.encoder.layer.{}.attention.attention.relative_position_bias.relative_position_bias_table",
    ),
    ("blocks.{}.attn.proj.{}", "$.encoder.layer.{}.attention.output.dense.{}"),
    ("blocks.{}.ls1.gamma", "$.encoder.layer.{}.lambda_1"),
    ("blocks.{}.ls2.gamma", "$.encoder.layer.{}.lambda_2"),
    ("blocks.{}.mlp.fc1.{}", "$.encoder.layer.{}.intermediate.dense.{}"),
    ("blocks.{}.mlp.fc2.{}", "$.encoder.layer.{}.output.dense.{}"),
    ("norm.{}", "$.pooler.layernorm.{}"),
];

pub(crate) fn load_beit(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    classifier(checkpoint)?;
    let Sizes { hidden_size, num_hidden_layers, num_attention_heads } = checkpoint.config()?;
    let weights = checkpoint.renamed("beit", &[BEIT, CLASSIFIER]);
    let model =
        beit::BeitVisionTransformer::new(weights, num_hidden_layers, hidden_size, num_attention_heads);
    of_pixels(model.map_err(failure)?)
}

/// Version 1 scales its layers, version 2 has a global response norm.
const CONVNEXT: &[Name] = &[
    ("stem.0.{}", "$.embeddings.patch_embeddings.{}"),
    ("stem.1.{}", "$.embeddings.layernorm.{}"),
    ("stages.{}.downsample.{}.{}", "$.encoder.stages.{}.downsampling_layer.{}.{}"),
    ("stages.{}.blocks.{}.conv_dw.{}", "$.encoder.stages.{}.layers.{}.dwconv.{}"),
    ("stages.{}.blocks.{}.norm.{}", "$.encoder.stages.{}.layers.{}.layernorm.{}"),
    ("stages.{}.blocks.{}.mlp.fc1.{}", "$.encoder.stages.{}.layers.{}.pwconv1.{}"),
    ("stages.{}.blocks.{}.mlp.fc2.{}", "$.encoder.stages.{}.layers.{}.pwconv2.{}"),
    ("stages.{}.blocks.{}.mlp.grn.{}", "$.encoder.stages.{}.layers.{}.grn.{}"),
    ("stages.{}.blocks.{}.gamma", "$.encoder.stages.{}.layers.{}.layer_scale_parameter"),
    ("head.norm.{}", "$.layernorm.{}"),
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

/// Versions 1 and 2.
pub(crate) fn load_convnext(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    #[derive(serde::Deserialize)]
    struct Config {
        hidden_sizes: Vec<usize>,
    }
    classifier(checkpoint)?;
    let config: Config = checkpoint.config()?;
    let config = published(CONVNEXTS, &config.hidden_sizes)?;
    let body = if checkpoint.model_type() == "convnext" { "convnext" } else { "convnextv2" };
    let weights = checkpoint.renamed(body, &[CONVNEXT]);
    let model = convnext::convnext(&config, checkpoint.labels(), weights);
    of_pixels(model.map_err(failure)?)
}

const RESNET: &[Name] = &[
    ("conv1.weight", "$.embedder.embedder.convolution.weight"),
    ("bn1.{}", "$.embedder.embedder.normalization.{}"),
    ("layer{}.{}.conv1.weight", "$.encoder.stages.{-1}.layers.{}.layer.0.convolution.weight"),
    ("layer{}.{}.conv2.weight", "$.encoder.stages.{-1}.layers.{}.layer.1.convolution.weight"),
    ("layer{}.{}.bn1.{}", "$.encoder.stages.{-1}.layers.{}.layer.0.normalization.{}"),
    ("layer{}.{}.bn2.{}", "$.encoder.stages.{-1}.layers.{}.layer.1.normalization.{}"),
    ("layer{}.{}.downsample.0.weight", "$.encoder.stages.{-1}.layers.{}.shortcut.convolution.weight"),
    ("layer{}.{}.downsample.1.{}", "$.encoder.stages.{-1}.layers.{}.shortcut.normalization.{}"),
    ("fc.{}", "classifier.1.{}"),
];

/// The port has two depths of basic blocks.
pub(crate) fn load_resnet(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    #[derive(serde::Deserialize)]
    struct Config {
        depths: Vec<usize>,
        layer_type: String,
    }
    classifier(checkpoint)?;
    let config: Config = checkpoint.config()?;
    let (labels, weights) = (checkpoint.labels(), checkpoint.renamed("resnet", &[RESNET]));
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
