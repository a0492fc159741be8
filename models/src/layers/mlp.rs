//! The gated feed-forward layer of llama and its kin.

use std::sync::Arc;

use candle_core::DType;
use half::bf16;

use super::{Activation, Joined, Linear, multiply};
use crate::error::Result;
use crate::fused::{Float, Slot, Workspace, gate_up};
use crate::kernels::{self, PackedGateUp};
use crate::pass::{Pass, Xs};
use crate::weights::Weights;

/// `down_proj(act_fn(gate_proj(x)) * up_proj(x))`.
///
/// The fused form forms `act_fn(gate) * up` in registers and reports neither.
pub struct GatedMlp {
    path: String,
    gate_up: GateUp,
    down_proj: Linear,
}

enum GateUp {
    Eager { gate_up: Joined<2>, act_path: String, act_fn: Activation },
    Fused(Box<dyn Packed>),
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
            Some(workspace) => GateUp::Fused(match weights.dtype() {
                DType::BF16 => PackedPair::<bf16>::load(weights, workspace, input, output, act_fn, bias)?,
                _ => PackedPair::<f32>::load(weights, workspace, input, output, act_fn, bias)?,
            }),
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
                GateUp::Fused(packed) => packed.forward(&xs)?,
            };
            self.down_proj.forward(pass, &product)
        })
    }
}

/// Packed gate and up of either element type.
trait Packed: Send + Sync {
    fn forward(&self, xs: &Xs) -> Result<Xs>;
}

struct PackedPair<T: Float> {
    workspace: Arc<Workspace>,
    weight: PackedGateUp<T>,
    act_fn: kernels::Activation,
}

impl<T: Float> PackedPair<T> {
    fn load(
        weights: &Weights,
        workspace: &Arc<Workspace>,
        input: usize,
        output: usize,
        act_fn: Activation,
        bias: bool,
    ) -> Result<Box<dyn Packed>> {
        let parts = ["gate_proj", "up_proj"].map(|name| weights.pp(name));
        Ok(Box::new(Self {
            workspace: Arc::clone(workspace),
            weight: gate_up::<T>(workspace, parts, (output, input), bias)?,
            act_fn: act_fn.kernel(),
        }))
    }
}

impl<T: Float> Packed for PackedPair<T> {
    fn forward(&self, xs: &Xs) -> Result<Xs> {
        let xs = Slot::<T>::of(&self.workspace, xs)?.whole();
        let out = Slot::<T>::take(&self.workspace, xs.batch, xs.seq, self.weight.n());
        let pool = &self.workspace.pool;
        self.weight.forward(pool, &xs.read(), xs.rows(), &mut out.write(), self.act_fn);
        Ok(out.into_xs())
    }
}
