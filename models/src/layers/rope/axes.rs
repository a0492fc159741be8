//! Rotary embeddings of tokens that have a position on each of several axes.

use std::sync::Arc;

use super::{Arithmetic, Rope, RopeTables, RotaryEmbedding, len_of, singles};
use crate::error::{Error, Result};
use crate::fused::Workspace;
use crate::kernels::RopeTable;
use crate::pass::Pass;

/// What turns a pair of features: a position on this axis, times this frequency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    axis: usize,
    frequency: usize,
}

impl RotaryEmbedding {
    /// Rotates by the positions of [`RotaryEmbedding::forward_axes`], of which there are three: the first `sections[0]`
    /// pairs of a head by those on axis 0, the next `sections[1]` by those on axis 1, and so on, in turn (M-RoPE, Wang et al.
    /// 2024; transformers 5.24.0, `Qwen2VLRotaryEmbedding`).
    #[must_use]
    pub fn in_sections(mut self, sections: &[usize]) -> Self {
        let axes = sections.iter().zip((0..3).cycle()).flat_map(|(count, axis)| vec![axis; *count]);
        self.axes = Some(axes.enumerate().map(|(frequency, axis)| Turn { axis, frequency }).collect());
        self
    }

    /// Rotates by the positions of [`RotaryEmbedding::forward_axes`], of which there are two: half of the pairs of a head by
    /// those on axis 0, the other half by those on axis 1, both with the frequencies of half a head, which is the `head_dim`
    /// of [`RotaryEmbedding::new`] (transformers 5.24.0, `Qwen2VLVisionRotaryEmbedding`).
    #[must_use]
    pub fn on_two_axes(mut self) -> Self {
        let frequencies = self.rotary_dim.div_ceil(2);
        let turns = |axis| (0..frequencies).map(move |frequency| Turn { axis, frequency });
        self.axes = Some((0..2).flat_map(turns).collect());
        self
    }

    /// The tables for tokens that have a position on each of several axes: `positions[axis]` is `[batch, seq]`. Each forward
    /// pass computes its own.
    ///
    /// # Errors
    /// If the tensors cannot be made, or on a GPU.
    ///
    /// # Panics
    /// If there are fewer axes than the embedding has.
    pub fn forward_axes(&self, pass: &Pass, positions: &[Vec<i64>]) -> Result<Rope> {
        let tokens = pass.batch() * pass.seq();
        match pass.workspace() {
            None => {
                let arithmetic = Arithmetic::of(pass.dtype());
                self.eager(pass, arithmetic, self.axis_tables(arithmetic, positions, tokens))
            }
            Some(Workspace::Host(_)) => {
                let (cos, sin) = singles(self.axis_tables(Arithmetic::Single, positions, tokens));
                let table = RopeTable::new(cos, sin, self.pairs(), self.pairing());
                Ok(Rope(RopeTables::Host(Arc::new(table), Some((0..tokens as u32).collect()))))
            }
            Some(Workspace::Gpu(_)) => {
                Err(Error::Unsupported("positions on several axes in the fused backend on a GPU".to_owned()))
            }
        }
    }

    /// As [`RotaryEmbedding::tables`], of `tokens` tokens with a position on each axis.
    fn axis_tables(
        &self,
        arithmetic: Arithmetic,
        positions: &[Vec<i64>],
        tokens: usize,
    ) -> (Vec<f64>, Vec<f64>) {
        let axes = self.axes.as_deref().expect("only an embedding on several axes gets such positions");
        let len = positions.iter().map(|axis| len_of(axis)).max().unwrap_or(0);
        let turns = (0..tokens)
            .flat_map(|token| axes.iter().map(move |turn| (positions[turn.axis][token], turn.frequency)));
        self.turned(arithmetic, len, turns)
    }
}
