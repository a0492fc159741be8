//! Norms of rows, whole or of heads that are a part of them.

use std::sync::Arc;

use super::{Deferred, Float, Operation, Room, Rows, Slot, Workspace};
use crate::cuda::DeviceNorm;
use crate::error::Result;
use crate::kernels;

/// The weights and biases of a norm.
pub(crate) struct NormWeights {
    /// One weight for each group of a row, or one for all.
    pub(crate) weights: Vec<Vec<f32>>,
    pub(crate) bias: Option<Vec<f32>>,
    pub(crate) eps: f32,
    /// Layer norm with a mean (true) or RMS norm.
    pub(crate) centred: bool,
}

/// A norm on its device.
#[derive(Clone, Debug)]
pub(crate) enum Norm {
    Host(Vec<Arc<kernels::Norm>>),
    Gpu(Arc<DeviceNorm>),
}

impl Norm {
    pub(crate) fn new(workspace: &Workspace, norm: NormWeights) -> Result<Self> {
        let NormWeights { weights, bias, eps, centred } = norm;
        match workspace {
            Workspace::Host(_) => {
                let norm = |weight| {
                    if centred {
                        kernels::Norm::layer(weight, bias.clone(), eps)
                    } else {
                        kernels::Norm::rms(weight, eps)
                    }
                };
                Ok(Self::Host(weights.into_iter().map(|weight| Arc::new(norm(weight))).collect()))
            }
            Workspace::Gpu(space) => {
                Ok(Self::Gpu(Arc::new(DeviceNorm::new(space, &weights, bias.as_deref(), eps, centred)?)))
            }
        }
    }

    /// The norm of whole rows is deferred, so that a sum can compute it; parts of rows are normalised in place.
    /// `None` if the rows are on another device.
    pub(crate) fn forward(&self, xs: &Rows) -> Option<Result<Rows>> {
        match (self, xs) {
            (Self::Host(norms), Rows::F32(xs)) => Some(Ok(Rows::F32(on_host(norms, xs)))),
            (Self::Host(norms), Rows::Bf16(xs)) => Some(Ok(Rows::Bf16(on_host(norms, xs)))),
            (Self::Gpu(norm), Rows::Gpu(xs)) => Some(xs.normed(norm).map(Rows::Gpu)),
            _ => None,
        }
    }
}

/// Heads that each have their own norm are normed in place, in a copy of the rows unless they are a part of some.
fn on_host<T: Float>(norms: &[Arc<kernels::Norm>], xs: &Slot<T>) -> Slot<T> {
    if let [norm] = norms {
        return one_on_host(norm, xs);
    }
    let out = if xs.is_whole() { xs.copied() } else { xs.clone().changed() };
    let size = out.columns / norms.len();
    let mut rows = out.write();
    for (head, norm) in norms.iter().enumerate() {
        norm.heads_in_place(out.pool(), &mut rows, out.width, out.first + head * size, 1);
    }
    drop(rows);
    out
}

fn one_on_host<T: Float>(norm: &Arc<kernels::Norm>, xs: &Slot<T>) -> Slot<T> {
    if xs.is_whole() && xs.width == norm.size() {
        xs.settle();
        let deferred = Deferred { operation: Operation::Norm(Arc::clone(norm)), xs: xs.clone() };
        return Slot::deferred(xs.host(), deferred, Room::Now);
    }
    if xs.is_whole() {
        let out = Slot::take(xs.host(), xs.batch, xs.seq, xs.width);
        norm.forward(xs.pool(), &xs.read(), &mut out.write());
        return out;
    }
    norm.heads_in_place(xs.pool(), &mut xs.write(), xs.width, xs.first, xs.columns / norm.size());
    xs.clone().changed()
}
