//! Localisation by surgery: which part of a network differs, found on edited checkpoints in which the rest is switched off.
//!
//! A recording holds the edits as data and the trusted side's logits on each edited checkpoint ([`Surgery`]). A failing test applies the
//! edits to its own checkpoint, runs the port on it and names the part. `tfcheck diagnose` uses the same edits and the same
//! words on two live variants.

mod edit;
mod search;
mod stage;
pub mod words;
mod written;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use edit::{Axis, Edit, Fill, Kept, Rows};
pub use search::{Localised, Part};
pub use stage::{Given, Piece, Stage};

/// A block of a layer, between its norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Block {
    /// Attention.
    Attention,
    /// MLP, or router and experts.
    Mlp,
}

/// The tensors that give a block's output; with all of them zero, the block is switched off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// The layer.
    pub layer: usize,
    /// The block.
    pub block: Block,
    /// Names of the block's last matrix and of its bias; of experts those of each.
    pub tensors: Vec<String>,
}

/// Edits of a checkpoint, and the logits that were recorded on each edited checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Surgery {
    /// Number of layers.
    pub layers: usize,
    /// Layers whose MLP is a router with experts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expert_layers: Vec<usize>,
    /// Whether cosines and sines of the rotation have a factor.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub scales_rotation: bool,
    /// Sequence index and position of each recorded vector of logits.
    pub places: Vec<[usize; 2]>,
    /// Tokens whose logits are recorded, ascending.
    pub tokens: Vec<usize>,
    /// The last tensors of every block.
    pub ends: Vec<End>,
    /// Edits inside a block that is kept, by the piece of it that they leave.
    pub edits: BTreeMap<Piece, Edit>,
    /// The edited checkpoints and inputs whose logits are recorded, in the order of the tensors.
    pub stages: Vec<Stage>,
}

impl Surgery {
    /// Places of the logits of a stage.
    pub fn places(&self, stage: &Stage) -> &[[usize; 2]] {
        if stage.inputs == Given::One { &[[0, 0]] } else { &self.places }
    }

    /// What is changed in the checkpoint for a stage: every block's output is zero except that of the kept ones, which are edited.
    pub fn edit(&self, stage: &Stage) -> Edit {
        let kept = stage.piece.block();
        let is_kept =
            |end: &&End| kept == Some(end.block) && stage.layer.is_none_or(|layer| layer == end.layer);
        let off = self.ends.iter().filter(|end| !is_kept(end)).flat_map(|end| &end.tensors);
        let off = off.map(|tensor| Fill { tensor: tensor.clone(), value: 0.0, rows: None });
        let own = self.edits.get(&stage.piece).cloned().unwrap_or_default();
        Edit { fills: off.chain(own.fills).collect(), config: own.config }
    }

    /// Checks what a damaged recording may have wrong, without a checkpoint.
    pub(crate) fn check(&self, [batch, seq, vocab_size]: [usize; 3]) -> Result<(), String> {
        let is_outside = |&[row, position]: &[usize; 2]| row >= batch || position >= seq;
        if self.places.is_empty() || self.places.iter().any(is_outside) {
            return Err("has logits of edited checkpoints at places outside its inputs, or at none".into());
        }
        if self.tokens.is_empty()
            || !self.tokens.is_sorted_by(|a, b| a < b)
            || self.tokens.iter().any(|token| *token >= vocab_size)
        {
            return Err(format!(
                "has logits of edited checkpoints for tokens that are not ascending or not below {vocab_size}"
            ));
        }
        if let Some(end) = self.ends.iter().find(|end| end.layer >= self.layers) {
            return Err(format!("edits layer {} of {}", end.layer, self.layers));
        }
        for (at, stage) in self.stages.iter().enumerate() {
            if stage.layer.is_some_and(|layer| layer >= self.layers) {
                return Err(format!("edits the checkpoint for {stage}, of {} layers", self.layers));
            }
            if self.stages[..at].contains(stage) {
                return Err(format!("has the logits of {stage} twice"));
            }
            if stage.piece.is_edited() && !self.edits.contains_key(&stage.piece) {
                return Err(format!("has logits of {stage}, and no edit for it"));
            }
        }
        self.edits.values().flat_map(|edit| &edit.fills).try_for_each(Fill::check)
    }
}
