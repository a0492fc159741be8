//! The states of the network in which two sides are compared.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Block;

/// A part of the network that an edited checkpoint leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Piece {
    /// Embedding, norms and head.
    Ends,
    /// An MLP.
    Mlp,
    /// An attention whose queries and keys are zero: the mean over the keys that the mask admits.
    Uniform,
    /// An attention whose queries and keys have the last rotated pair of features alone, with a large rotary base.
    Unrotated,
    /// The whole of an attention.
    Attention,
    /// An attention whose keys have no bias.
    NoKeyBias,
}

impl Piece {
    /// The block whose output is kept.
    pub fn block(self) -> Option<Block> {
        match self {
            Self::Ends => None,
            Self::Mlp => Some(Block::Mlp),
            Self::Uniform | Self::Unrotated | Self::Attention | Self::NoKeyBias => Some(Block::Attention),
        }
    }

    /// Whether the kept block is edited too.
    pub fn is_edited(self) -> bool {
        matches!(self, Self::Uniform | Self::Unrotated | Self::NoKeyBias)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ends => "ends",
            Self::Mlp => "mlp",
            Self::Uniform => "uniform",
            Self::Unrotated => "unrotated",
            Self::Attention => "attention",
            Self::NoKeyBias => "no_key_bias",
        }
    }
}

/// The inputs of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Given {
    /// Those of the recording.
    Whole,
    /// Those of the recording with every token at position 0.
    Together,
    /// The first token of the first sequence.
    One,
}

/// An edited checkpoint and its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// What is left of the network.
    pub piece: Piece,
    /// The layer; `None` for every layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<usize>,
    /// The inputs.
    pub inputs: Given,
}

impl Stage {
    /// The stage of a piece with the recording's inputs.
    pub fn of(piece: Piece, layer: Option<usize>) -> Self {
        Self { piece, layer, inputs: Given::Whole }
    }
}

impl fmt::Display for Stage {
    /// `attention of layer 0, together`: also the name of the tensor with its logits.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.piece.name())?;
        match self.layer {
            Some(layer) => write!(out, " of layer {layer}")?,
            None if self.piece == Piece::Ends => {}
            None => out.write_str(" of every layer")?,
        }
        match self.inputs {
            Given::Whole => Ok(()),
            Given::Together => out.write_str(", every token at position 0"),
            Given::One => out.write_str(", one token"),
        }
    }
}
