//! Weights of the fused backend in the layout that its kernels read: packed for the CPU, unchanged for a GPU.

use std::sync::Arc;

use candle_core::{DType, Device, Storage, Tensor};
use half::bf16;

use crate::cuda::{DeviceGateUp, DeviceLinear};
use crate::error::{Error, Result};
use crate::fused::{Deferred, Float, Host, Operation, Room, Slot, Workspace};
use crate::kernels::{self, Activation, Epilogue, PackedGateUp, PackedLinear, Packing};
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::Xs;

/// A weight `[n, k]`, with or without a bias.
#[derive(Clone)]
pub(crate) enum Packed {
    F32(Arc<Host>, Arc<PackedLinear<f32>>),
    Bf16(Arc<Host>, Arc<PackedLinear<bf16>>),
    Gpu(Arc<DeviceLinear>),
}

impl Packed {
    /// Packs `weight`, `[n_i, k]`, of each module, concatenated along n.
    pub(crate) fn load(
        workspace: &Workspace,
        parts: &[(Weights, usize)],
        k: usize,
        bias: Option<&[f32]>,
    ) -> Result<Self> {
        for (weights, n) in parts {
            weights.expect("weight", (*n, k))?;
        }
        Ok(match (workspace, parts[0].0.dtype()) {
            (Workspace::Gpu(space), _) => {
                let n = parts.iter().map(|(_, n)| n).sum();
                let tensors = parts.iter().map(|(weights, n)| weights.get("weight", (*n, k)));
                Self::Gpu(Arc::new(DeviceLinear::load(space, tensors, (n, k), bias)?))
            }
            (Workspace::Host(host), DType::BF16) => {
                Self::Bf16(Arc::clone(host), Arc::new(load(host, parts, k, bias)?))
            }
            (Workspace::Host(host), _) => Self::F32(Arc::clone(host), Arc::new(load(host, parts, k, bias)?)),
        })
    }

    /// Packs a tensor, `[n, k]`.
    pub(crate) fn of(workspace: &Workspace, weight: &Tensor, bias: Option<&[f32]>) -> Result<Self> {
        Ok(match (workspace, weight.dtype()) {
            (Workspace::Gpu(space), _) => Self::Gpu(Arc::new(DeviceLinear::of(space, weight, bias)?)),
            (Workspace::Host(host), DType::BF16) => {
                Self::Bf16(Arc::clone(host), Arc::new(of(host, weight, bias)?))
            }
            (Workspace::Host(host), _) => Self::F32(Arc::clone(host), Arc::new(of(host, weight, bias)?)),
        })
    }

    /// A layer that shares this weight without a copy and adds a bias.
    pub(crate) fn with_bias(&self, bias: &[f32]) -> Result<Self> {
        Ok(match self {
            Self::F32(host, weight) => Self::F32(Arc::clone(host), Arc::new(weight.with_bias(bias))),
            Self::Bf16(host, weight) => Self::Bf16(Arc::clone(host), Arc::new(weight.with_bias(bias))),
            Self::Gpu(weight) => Self::Gpu(Arc::new(weight.with_bias(bias)?)),
        })
    }

    /// `xs: [.., k]` to `[.., n]`, deferred.
    pub(crate) fn forward(&self, xs: &Xs, room: Room) -> Result<Xs> {
        match self {
            Self::F32(host, weight) => product(host, weight, xs, room),
            Self::Bf16(host, weight) => product(host, weight, xs, room),
            Self::Gpu(weight) => Ok(weight.forward(&xs.device_rows(weight.space())?)?.into()),
        }
    }

    /// Rows `ids`, `[batch, seq]`, of the weight, multiplied by `scale`: `[batch, seq, k]`.
    pub(crate) fn rows(&self, pass: &Pass, ids: &Tensor, scale: Option<f32>) -> Result<Xs> {
        match self {
            Self::F32(host, weight) => rows(host, weight, ids, scale),
            Self::Bf16(host, weight) => rows(host, weight, ids, scale),
            Self::Gpu(weight) => {
                let (batch, seq) = ids.dims2()?;
                let ids = pass.device_pass()?.ids(pass, ids, weight.n())?;
                Ok(weight.rows(&ids, [batch, seq], scale)?.into())
            }
        }
    }
}

/// Gate and up, each `[n, k]`, and the activation of the gate.
pub(crate) enum GateUp {
    F32(Arc<Host>, PackedGateUp<f32>, Activation),
    Bf16(Arc<Host>, PackedGateUp<bf16>, Activation),
    Gpu(DeviceGateUp),
}

impl GateUp {
    /// Packs `[gate, up]`, each with a `weight`, `[n, k]`, and if `bias` a `bias`, `[n]`.
    pub(crate) fn load(
        workspace: &Workspace,
        parts: [Weights; 2],
        (n, k): (usize, usize),
        activation: Activation,
        bias: bool,
    ) -> Result<Self> {
        for weights in &parts {
            weights.expect("weight", (n, k))?;
        }
        Ok(match (workspace, parts[0].dtype()) {
            (Workspace::Gpu(space), _) => {
                let mut biases = Vec::new();
                for weights in parts.iter().filter(|_| bias) {
                    biases.extend(weights.vector("bias", n)?);
                }
                let tensors = parts.iter().map(|weights| weights.get("weight", (n, k)));
                let both = DeviceLinear::load(space, tensors, (2 * n, k), bias.then_some(&biases[..]))?;
                Self::Gpu(DeviceGateUp::new(both, activation))
            }
            (Workspace::Host(host), DType::BF16) => {
                Self::Bf16(Arc::clone(host), gate_up(host, parts, (n, k), bias)?, activation)
            }
            (Workspace::Host(host), _) => {
                Self::F32(Arc::clone(host), gate_up(host, parts, (n, k), bias)?, activation)
            }
        })
    }

    /// `activation(gate) * up`.
    pub(crate) fn forward(&self, xs: &Xs) -> Result<Xs> {
        match self {
            Self::F32(host, weight, activation) => gated(host, weight, *activation, xs),
            Self::Bf16(host, weight, activation) => gated(host, weight, *activation, xs),
            Self::Gpu(weight) => Ok(weight.forward(&xs.device_rows(weight.space())?)?.into()),
        }
    }

    /// Gate and up separately, without activation and product.
    pub(crate) fn parts(&self, xs: &Xs) -> Result<[Xs; 2]> {
        match self {
            Self::F32(host, weight, _) => apart(host, weight, xs),
            Self::Bf16(host, weight, _) => apart(host, weight, xs),
            Self::Gpu(weight) => Ok(weight.parts(&xs.device_rows(weight.space())?)?.map(Xs::from)),
        }
    }
}

fn gated<T: Float>(
    host: &Arc<Host>,
    weight: &PackedGateUp<T>,
    activation: Activation,
    xs: &Xs,
) -> Result<Xs> {
    let xs = xs.slot::<T>(host)?.whole();
    let out = Slot::<T>::take(host, xs.batch, xs.seq, weight.n());
    weight.forward(&host.pool, &xs.read(), xs.rows(), &mut out.write(), activation);
    Ok(out.into())
}

fn apart<T: Float>(host: &Arc<Host>, weight: &PackedGateUp<T>, xs: &Xs) -> Result<[Xs; 2]> {
    let xs = xs.slot::<T>(host)?.whole();
    let (rows, n) = (xs.rows(), weight.n());
    let [mut gate, mut up] = [(); 2].map(|()| vec![T::default(); rows * n]);
    weight.parts(&host.pool, &xs.read(), rows, &mut gate, &mut up);
    let tensor = |part| Tensor::from_vec(part, (xs.batch, xs.seq, n), &Device::Cpu);
    Ok([tensor(gate)?.into(), tensor(up)?.into()])
}

fn load<T: Float>(
    host: &Host,
    parts: &[(Weights, usize)],
    k: usize,
    bias: Option<&[f32]>,
) -> Result<PackedLinear<T>> {
    let mut packing = Packing::linear(parts.iter().map(|(_, n)| n).sum(), k);
    let mut start = 0;
    for (weights, n) in parts {
        weights.each_block("weight", (*n, k), |first, rows: &[T]| {
            packing.fill(&host.pool, start + first, rows);
        })?;
        start += n;
    }
    let packed = packing.into_linear(bias);
    host.count_packed(packed.bytes());
    Ok(packed)
}

fn of<T: Float>(host: &Host, weight: &Tensor, bias: Option<&[f32]>) -> Result<PackedLinear<T>> {
    let values = weight.flatten_all()?.to_vec1::<T>()?;
    let packed = PackedLinear::new(&host.pool, &[&values], weight.dim(1)?, bias);
    host.count_packed(packed.bytes());
    Ok(packed)
}

fn gate_up<T: Float>(
    host: &Host,
    [gate, up]: [Weights; 2],
    (n, k): (usize, usize),
    bias: bool,
) -> Result<PackedGateUp<T>> {
    let mut packing = Packing::gate_up(n, k);
    for (start, weights) in [(0, &gate), (n, &up)] {
        weights.each_block("weight", (n, k), |first, rows: &[T]| {
            packing.fill(&host.pool, start + first, rows);
        })?;
    }
    let biases =
        bias.then(|| Ok::<_, Error>((gate.vector("bias", n)?, up.vector("bias", n)?))).transpose()?;
    let packed = packing.into_gate_up(biases.as_ref().map(|(gate, up)| (gate.as_slice(), up.as_slice())));
    host.count_packed(packed.bytes());
    Ok(packed)
}

fn product<T: Float>(host: &Arc<Host>, weight: &Arc<PackedLinear<T>>, xs: &Xs, room: Room) -> Result<Xs> {
    let xs = xs.slot::<T>(host)?.whole();
    // What the input was itself computed from is free to change from here on.
    xs.settle();
    if xs.width != weight.k() {
        return Err(Error::Inputs(format!("{} features where {} are needed", xs.width, weight.k())));
    }
    let deferred = Deferred { operation: Operation::Product(Arc::clone(weight), Epilogue::Store), xs };
    Ok(Slot::deferred(host, deferred, room).into())
}

fn rows<T: Float>(
    host: &Arc<Host>,
    weight: &PackedLinear<T>,
    ids: &Tensor,
    scale: Option<f32>,
) -> Result<Xs> {
    let (batch, seq) = ids.dims2()?;
    let ids = ids.to_dtype(DType::U32)?.contiguous()?;
    // The ids are read without a copy.
    let (storage, layout) = ids.storage_and_layout();
    let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        return Err(Error::Unsupported("ids that lie off the CPU".to_owned()));
    };
    let ids = &storage.as_slice::<u32>()?[start..end];
    let out = Slot::<T>::take(host, batch, seq, weight.k());
    kernels::embed(&host.pool, kernels::Embedding::Tied(weight), ids, scale, &mut out.write())
        .map_err(|error| Error::Inputs(error.to_string()))?;
    Ok(out.into())
}
