//! The gated feed-forward layer of llama and its kin.

use std::sync::Arc;

use candle_core::DType;
use half::bf16;

use super::{Activation, Joined, Linear, multiply};
use crate::error::Result;
use crate::fused::{Float, Slot, Workspace};
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
            Some(_) if weights.dtype() == DType::BF16 => {
                GateUp::Fused(Box::new(PackedPair::<bf16>::load(weights, input, output, act_fn, bias)?))
            }
            Some(_) => {
                GateUp::Fused(Box::new(PackedPair::<f32>::load(weights, input, output, act_fn, bias)?))
            }
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
    fn load(weights: &Weights, input: usize, output: usize, act_fn: Activation, bias: bool) -> Result<Self> {
        let workspace = weights.workspace().cloned().unwrap_or_else(|| Arc::new(Workspace::new()));
        let weight = |name: &str| -> Result<Vec<T>> {
            Ok(weights.pp(name).get("weight", (output, input))?.flatten_all()?.to_vec1()?)
        };
        let bias_of = |name: &str| -> Result<Vec<f32>> {
            if bias {
                Ok(weights.pp(name).get("bias", output)?.to_dtype(DType::F32)?.to_vec1()?)
            } else {
                Ok(Vec::new())
            }
        };
        let (gate, up) = (weight("gate_proj")?, weight("up_proj")?);
        let (gate_bias, up_bias) = (bias_of("gate_proj")?, bias_of("up_proj")?);
        let biases = bias.then_some((gate_bias.as_slice(), up_bias.as_slice()));
        Ok(Self {
            weight: PackedGateUp::new(&workspace.pool, &gate, &up, input, biases),
            workspace,
            act_fn: act_fn.kernel(),
        })
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
