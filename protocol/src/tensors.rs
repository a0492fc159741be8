//! Named tensors: what a tensor of the inputs is to a model, and the outputs that a forward pass returns.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a tensor of an inputs file is to a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Token ids, i64 `[batch, seq]`; the outputs of most models follow their positions.
    Tokens,
    /// 1 for what is real and 0 for padding.
    Mask,
    /// Positions of tokens, which a model that counts them itself is not given.
    Positions,
    /// Token ids of an encoder-decoder's decoder, whose positions its outputs follow.
    DecoderTokens,
    /// [`Role::Mask`] of the decoder's tokens.
    DecoderMask,
    /// Images or their patches, floating point.
    Pixels,
    /// [`Role::Mask`] of pixels.
    PixelMask,
    /// How patches form images: rows and columns of each image.
    Grid,
    /// Sound as samples or spectra, floating point.
    Features,
    /// What each token stands for, text or image; only some releases of a model take it.
    TokenTypes,
    /// The expected tokens, which make the model compute a loss.
    Labels,
    /// Any other argument of the model.
    Other,
}

/// The names of transformers' arguments and what they are.
const ROLES: &[(&str, Role)] = &[
    (super::INPUT_IDS, Role::Tokens),
    (super::ATTENTION_MASK, Role::Mask),
    (super::POSITION_IDS, Role::Positions),
    (super::DECODER_INPUT_IDS, Role::DecoderTokens),
    (super::DECODER_ATTENTION_MASK, Role::DecoderMask),
    ("pixel_values", Role::Pixels),
    ("pixel_values_videos", Role::Pixels),
    ("pixel_attention_mask", Role::PixelMask),
    ("image_grid_thw", Role::Grid),
    ("video_grid_thw", Role::Grid),
    ("image_sizes", Role::Grid),
    ("input_features", Role::Features),
    ("input_values", Role::Features),
    ("token_type_ids", Role::TokenTypes),
    ("mm_token_type_ids", Role::TokenTypes),
    (super::LABELS, Role::Labels),
];

/// What the tensor `name` of an inputs file is to a model.
pub fn role(name: &str) -> Role {
    ROLES.iter().find(|(known, _)| *known == name).map_or(Role::Other, |(_, role)| *role)
}

/// A tensor that a forward pass returned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// As the model calls it: `logits`, `last_hidden_state`, `image_embeds`, `loss`.
    pub name: String,
    /// Its shape as the model returned it.
    pub shape: Vec<usize>,
    /// The tensor of the inputs whose positions its second axis follows; `None` for an output of whole sequences, images or
    /// frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follows: Option<String>,
}

/// Requests the tensors that the checkpoint's own processor makes of texts, pictures and sounds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Prepare {
    /// Folder of the checkpoint, with its processor's files.
    pub checkpoint: PathBuf,
    /// A text for each row.
    pub texts: Vec<String>,
    /// Picture files, or `built-in`.
    pub images: Vec<String>,
    /// Sound files, or `built-in`.
    pub audio: Vec<String>,
    /// Whether each text is rendered by the processor's chat template, with its share of the pictures and sounds.
    pub chat: bool,
    /// Where the tensors are written, as a safetensors file.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// Tensors made before, with which these are compared instead of being written.
    #[serde(default)]
    pub frozen: Option<PathBuf>,
}

/// What a processor made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Prepared {
    /// The processor's class.
    pub class: String,
    /// The texts as they were tokenised.
    pub texts: Vec<String>,
    /// The comparison with [`Prepare::frozen`], a tensor each.
    #[serde(default)]
    pub compared: Vec<MadeTensor>,
}

/// A tensor of a processor beside the one that the run was fed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MadeTensor {
    /// Its name.
    pub name: String,
    /// Its difference, relative to the run's; `None` where the two cannot be compared.
    pub relative_l2: Option<f64>,
    /// Why they cannot be compared.
    pub problem: Option<String>,
    /// Index of the first element that differs.
    pub first: Option<Vec<usize>>,
}
