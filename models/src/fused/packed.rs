//! Weights of either element type, packed as they are read.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use half::bf16;

use super::{Float, Job, Room, Slot, Work, Workspace};
use crate::error::{Error, Result};
use crate::kernels::{self, Epilogue, PackedGateUp, PackedLinear, Packing};
use crate::pass::Xs;
use crate::weights::Weights;

/// A packed weight `[n, k]`, with or without a bias.
#[derive(Clone)]
pub(crate) enum Packed {
    F32(Arc<PackedLinear<f32>>),
    Bf16(Arc<PackedLinear<bf16>>),
}

impl Packed {
    /// Packs `weight`, `[n_i, k]`, of each module, one under the other.
    pub(crate) fn load(
        workspace: &Workspace,
        parts: &[(Weights, usize)],
        k: usize,
        bias: Option<&[f32]>,
    ) -> Result<Self> {
        Ok(match parts[0].0.dtype() {
            DType::BF16 => Self::Bf16(Arc::new(load(workspace, parts, k, bias)?)),
            _ => Self::F32(Arc::new(load(workspace, parts, k, bias)?)),
        })
    }

    /// Packs a tensor, `[n, k]`.
    pub(crate) fn of(workspace: &Workspace, weight: &Tensor, bias: Option<&[f32]>) -> Result<Self> {
        Ok(match weight.dtype() {
            DType::BF16 => Self::Bf16(Arc::new(of(workspace, weight, bias)?)),
            _ => Self::F32(Arc::new(of(workspace, weight, bias)?)),
        })
    }

    pub(crate) fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::Bf16(_) => DType::BF16,
        }
    }

    /// The same weight, not copied, with a bias.
    pub(crate) fn with_bias(&self, bias: &[f32]) -> Self {
        match self {
            Self::F32(weight) => Self::F32(Arc::new(weight.with_bias(bias))),
            Self::Bf16(weight) => Self::Bf16(Arc::new(weight.with_bias(bias))),
        }
    }

    /// `xs: [.., k]` to `[.., n]`, owed.
    pub(crate) fn forward(&self, workspace: &Arc<Workspace>, xs: &Xs, room: Room) -> Result<Xs> {
        match self {
            Self::F32(weight) => product(workspace, weight, xs, room),
            Self::Bf16(weight) => product(workspace, weight, xs, room),
        }
    }

    /// Rows `ids` of the weight times `scale`, `[batch, seq, k]`.
    pub(crate) fn rows(
        &self,
        workspace: &Arc<Workspace>,
        ids: &[u32],
        (batch, seq): (usize, usize),
        scale: Option<f32>,
    ) -> Result<Xs> {
        match self {
            Self::F32(weight) => rows(workspace, weight, ids, (batch, seq), scale),
            Self::Bf16(weight) => rows(workspace, weight, ids, (batch, seq), scale),
        }
    }
}

fn load<T: Float>(
    workspace: &Workspace,
    parts: &[(Weights, usize)],
    k: usize,
    bias: Option<&[f32]>,
) -> Result<PackedLinear<T>> {
    let mut packing = Packing::linear(parts.iter().map(|(_, n)| n).sum(), k);
    let mut start = 0;
    for (weights, n) in parts {
        weights.each_block("weight", (*n, k), |first, rows: &[T]| {
            packing.fill(&workspace.pool, start + first, rows);
        })?;
        start += n;
    }
    let packed = packing.into_linear(bias);
    workspace.count_packed(packed.bytes());
    Ok(packed)
}

fn of<T: Float>(workspace: &Workspace, weight: &Tensor, bias: Option<&[f32]>) -> Result<PackedLinear<T>> {
    let values = weight.flatten_all()?.to_vec1::<T>()?;
    let packed = PackedLinear::new(&workspace.pool, &[&values], weight.dim(1)?, bias);
    workspace.count_packed(packed.bytes());
    Ok(packed)
}

/// Packs `[gate, up]`, each `weight`, `[n, k]`, and where `bias` says so `bias`, `[n]`.
pub(crate) fn gate_up<T: Float>(
    workspace: &Workspace,
    [gate, up]: [Weights; 2],
    (n, k): (usize, usize),
    bias: bool,
) -> Result<PackedGateUp<T>> {
    let mut packing = Packing::gate_up(n, k);
    for (start, weights) in [(0, &gate), (n, &up)] {
        weights.each_block("weight", (n, k), |first, rows: &[T]| {
            packing.fill(&workspace.pool, start + first, rows);
        })?;
    }
    let biases =
        bias.then(|| Ok::<_, Error>((gate.vector("bias", n)?, up.vector("bias", n)?))).transpose()?;
    let packed = packing.into_gate_up(biases.as_ref().map(|(gate, up)| (gate.as_slice(), up.as_slice())));
    workspace.count_packed(packed.bytes());
    Ok(packed)
}

fn product<T: Float>(
    workspace: &Arc<Workspace>,
    weight: &Arc<PackedLinear<T>>,
    xs: &Xs,
    room: Room,
) -> Result<Xs> {
    let xs = Slot::of(workspace, xs)?.whole();
    // What the input was itself computed from is free to change from here on.
    xs.settle();
    if xs.width != weight.k() {
        return Err(Error::Inputs(format!("{} features where {} are needed", xs.width, weight.k())));
    }
    let job = Job { work: Work::Product(Arc::clone(weight), Epilogue::Store), xs };
    Ok(Slot::owed(workspace, job, room).into_xs())
}

fn rows<T: Float>(
    workspace: &Arc<Workspace>,
    weight: &PackedLinear<T>,
    ids: &[u32],
    (batch, seq): (usize, usize),
    scale: Option<f32>,
) -> Result<Xs> {
    let out = Slot::<T>::take(workspace, batch, seq, weight.k());
    kernels::embed(&workspace.pool, kernels::Embedding::Tied(weight), ids, scale, &mut out.write())
        .map_err(|error| Error::Inputs(error.to_string()))?;
    Ok(out.into_xs())
}
