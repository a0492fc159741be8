//! The gated feed-forward layer of llama and similar decoders.

use super::packed;
use super::{Activation, Joined, Linear, multiply};
use crate::error::Result;
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::Xs;

/// `down_proj(act_fn(gate_proj(x)) * up_proj(x))`.
///
/// The fused backend computes `act_fn(gate) * up` in registers; only for a probe it computes gate and up separately.
pub struct GatedMlp {
    path: String,
    gate_up: GateUp,
    down_proj: Linear,
}

enum GateUp {
    Eager { gate_up: Joined<2>, act_path: String, act_fn: Activation },
    Fused { packed: packed::GateUp, paths: [String; 3], act_fn: Activation },
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
        let (input, output) = (hidden_size, intermediate_size);
        let gate_up = match weights.workspace() {
            None => GateUp::Eager {
                gate_up: Joined::load(weights, input, [("gate_proj", output), ("up_proj", output)], bias)?,
                act_path: weights.pp("act_fn").path().to_owned(),
                act_fn,
            },
            Some(workspace) => GateUp::Fused {
                packed: packed::GateUp::load(
                    workspace,
                    ["gate_proj", "up_proj"].map(|name| weights.pp(name)),
                    (output, input),
                    act_fn.kernel(),
                    bias,
                )?,
                paths: ["gate_proj", "up_proj", "act_fn"].map(|name| weights.pp(name).path().to_owned()),
                act_fn,
            },
        };
        Ok(Self {
            path: weights.path().to_owned(),
            gate_up,
            down_proj: Linear::load(&weights.pp("down_proj"), output, input, bias)?,
        })
    }

    /// `xs: [batch, seq, hidden_size]`, same shape out.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let product = match &self.gate_up {
                GateUp::Eager { gate_up, act_path, act_fn } => {
                    let [gate, up] = gate_up.forward(pass, &xs)?;
                    multiply(act_fn.forward(pass, act_path, &gate)?, up)?
                }
                GateUp::Fused { packed, paths, act_fn } => {
                    let shown = show(pass, &xs, packed, paths, *act_fn)?;
                    shown.map_or_else(|| packed.forward(&xs), Ok)?
                }
            };
            self.down_proj.forward(pass, &product)
        })
    }
}

/// Computes gate, up and the activation separately for a probe, if there is one; returns their product if the probe
/// replaced an input.
fn show(
    pass: &mut Pass,
    xs: &Xs,
    packed: &packed::GateUp,
    [gate_path, up_path, act_path]: &[String; 3],
    act_fn: Activation,
) -> Result<Option<Xs>> {
    if !pass.is_observed() {
        return Ok(None);
    }
    let before = pass.replaced();
    let [gate, up] = packed.parts(xs)?;
    let gate = pass.shared(gate_path, xs, gate, |xs| packed.parts(xs).map(|[gate, _]| gate))?;
    let gate = act_fn.forward(pass, act_path, &gate)?;
    let up = pass.shared(up_path, xs, up, |xs| packed.parts(xs).map(|[_, up]| up))?;
    if pass.replaced() == before { Ok(None) } else { multiply(gate, up).map(Some) }
}
