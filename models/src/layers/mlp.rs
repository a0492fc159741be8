//! The gated feed-forward layer of llama and its kin.

use super::{Activation, Joined, Linear, multiply};
use crate::error::Result;
use crate::pass::{Pass, Xs};
use crate::weights::Weights;

/// `down_proj(act_fn(gate_proj(x)) * up_proj(x))`.
#[derive(Clone, Debug)]
pub struct GatedMlp {
    path: String,
    act_path: String,
    gate_up: Joined<2>,
    act_fn: Activation,
    down_proj: Linear,
}

impl GatedMlp {
    /// Loads `gate_proj` and `up_proj`, `[intermediate_size, hidden_size]`, and `down_proj`,
    /// `[hidden_size, intermediate_size]`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(
        weights: &Weights,
        hidden_size: usize,
        intermediate_size: usize,
        act_fn: Activation,
        bias: bool,
    ) -> Result<Self> {
        let parts = [("gate_proj", intermediate_size), ("up_proj", intermediate_size)];
        Ok(Self {
            path: weights.path().to_owned(),
            act_path: weights.pp("act_fn").path().to_owned(),
            gate_up: Joined::load(weights, hidden_size, parts, bias)?,
            act_fn,
            down_proj: Linear::load(&weights.pp("down_proj"), intermediate_size, hidden_size, bias)?,
        })
    }

    /// `xs: [batch, seq, hidden_size]`, same shape out.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let [gate, up] = self.gate_up.forward(pass, &xs)?;
            let gate = self.act_fn.forward(pass, &self.act_path, &gate)?;
            self.down_proj.forward(pass, &multiply(gate, up)?)
        })
    }
}
