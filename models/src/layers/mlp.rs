//! The gated feed-forward layer of llama and similar decoders, and its first half.

use super::packed;
use super::{Activation, Joined, Linear, multiply};
use crate::error::Result;
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::Xs;

/// `down_proj(act_fn(gate_proj(x)) * up_proj(x))`.
pub struct GatedMlp {
    path: String,
    gate_up: GateUp,
    down_proj: Linear,
}

/// `act_fn(gate(x)) * up(x)`.
///
/// The fused backend computes it in registers; only for a probe it computes gate and up separately.
pub struct GateUp(GateUpBackend);

enum GateUpBackend {
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
        let names = ["gate_proj", "up_proj", "act_fn"];
        Ok(Self {
            path: weights.path().to_owned(),
            gate_up: GateUp::load(weights, names, (hidden_size, intermediate_size), act_fn, bias)?,
            down_proj: Linear::load(&weights.pp("down_proj"), intermediate_size, hidden_size, bias)?,
        })
    }

    /// `xs: [batch, seq, hidden_size]`, same shape out.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let product = self.gate_up.forward(pass, &xs)?;
            self.down_proj.forward(pass, &product)
        })
    }
}

impl GateUp {
    /// Loads gate and up, `[output, input]` each; `names` are those of gate, up and the activation's module.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(
        weights: &Weights,
        names: [&str; 3],
        (input, output): (usize, usize),
        act_fn: Activation,
        bias: bool,
    ) -> Result<Self> {
        let [gate, up, act] = names;
        Ok(Self(match weights.workspace() {
            None => GateUpBackend::Eager {
                gate_up: Joined::load(weights, input, [(gate, output), (up, output)], bias)?,
                act_path: weights.pp(act).path().to_owned(),
                act_fn,
            },
            Some(workspace) => GateUpBackend::Fused {
                packed: packed::GateUp::load(
                    workspace,
                    [gate, up].map(|name| weights.pp(name)),
                    (output, input),
                    act_fn.kernel(),
                    bias,
                )?,
                paths: names.map(|name| weights.pp(name).path().to_owned()),
                act_fn,
            },
        }))
    }

    /// `xs: [batch, seq, input]` to `[batch, seq, output]`.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        match &self.0 {
            GateUpBackend::Eager { gate_up, act_path, act_fn } => {
                let [gate, up] = gate_up.forward(pass, xs)?;
                multiply(act_fn.forward(pass, act_path, &gate)?, up)
            }
            GateUpBackend::Fused { packed, paths, act_fn } => {
                let shown = show(pass, xs, packed, paths, *act_fn)?;
                shown.map_or_else(|| packed.forward(xs), Ok)
            }
        }
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
