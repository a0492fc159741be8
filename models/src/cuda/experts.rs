//! A mixture of experts on a GPU. Routing runs on the device; no router score is downloaded.

use std::sync::Arc;

use candle_core::Tensor;

use super::gpu::Region;
use super::kernels::{Activation, ExpertRows, Gate, GroupedMatMul, MixExperts, Route, RouterScores};
use super::rows::DeviceRows;
use super::space::Space;
use super::weights::upload_under;
use crate::error::Result;

/// Sizes of a layer's experts, and how they are chosen and weighted.
#[derive(Clone, Copy)]
pub(crate) struct ExpertsShape {
    pub(crate) num_experts: usize,
    pub(crate) num_experts_per_tok: usize,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) activation: Activation,
    pub(crate) scores: RouterScores,
}

/// The experts of one layer.
pub(crate) struct DeviceExperts {
    space: Arc<Space>,
    /// `[num_experts, 2 * intermediate_size, hidden_size]`, the gate's rows first.
    gate_up: Region,
    /// `[num_experts, hidden_size, intermediate_size]`.
    down: Region,
    shape: ExpertsShape,
}

/// The experts and scores of each token, and the token assignments sorted by expert.
pub(crate) struct Routing {
    experts: Arc<Region>,
    scores: Arc<Region>,
    offsets: Arc<Region>,
    sources: Arc<Region>,
    slots: Arc<Region>,
}

impl DeviceExperts {
    /// For each expert, `gate_up` yields gate and up, `[intermediate_size, hidden_size]` each, and `down` yields
    /// `[hidden_size, intermediate_size]`.
    pub(crate) fn load(
        space: &Arc<Space>,
        shape: ExpertsShape,
        gate_up: impl Iterator<Item = Result<Tensor>>,
        down: impl Iterator<Item = Result<Tensor>>,
    ) -> Result<Self> {
        let ExpertsShape { num_experts, hidden_size, intermediate_size, .. } = shape;
        let len = num_experts * hidden_size * intermediate_size;
        let (both, last) = (space.room(2 * len)?, space.room(len)?);
        upload_under(space, gate_up, &both)?;
        upload_under(space, down, &last)?;
        Ok(Self { space: Arc::clone(space), gate_up: both, down: last, shape })
    }

    /// The checkpoint's device memory.
    pub(crate) fn space(&self) -> &Arc<Space> {
        &self.space
    }

    /// Chooses the experts of each token from `logits: [tokens, num_experts]`.
    pub(crate) fn route(&self, logits: &DeviceRows) -> Result<Routing> {
        let logits = logits.whole()?;
        let ExpertsShape { num_experts, num_experts_per_tok: per_token, scores, .. } = self.shape;
        let (tokens, assignments) = (logits.rows(), logits.rows() * per_token);
        let acquire = |len: usize| self.space.acquire(len * size_of::<i32>());
        let routing = Routing {
            experts: acquire(assignments)?,
            scores: acquire(assignments)?,
            offsets: acquire(num_experts + 1)?,
            sources: acquire(assignments)?,
            slots: acquire(assignments)?,
        };
        Route {
            dtype: self.space.dtype,
            tokens,
            num_experts,
            per_token,
            mode: scores,
            logits: &*logits.region()?,
            experts: &routing.experts,
            scores: &routing.scores,
        }
        .launch()?;
        ExpertRows {
            assignments,
            num_experts,
            experts: &routing.experts,
            offsets: &routing.offsets,
            sources: &routing.sources,
            slots: &routing.slots,
        }
        .launch()?;
        Ok(routing)
    }

    /// `tokens: [tokens, hidden_size]`; returns the same shape.
    pub(crate) fn forward(&self, tokens: &DeviceRows, routing: &Routing) -> Result<DeviceRows> {
        let xs = tokens.whole()?;
        let (dtype, count) = (self.space.dtype, xs.rows());
        let ExpertsShape {
            num_experts,
            num_experts_per_tok: per_token,
            hidden_size: hidden,
            intermediate_size: inner,
            activation,
            ..
        } = self.shape;
        let rows = count * per_token;
        let both = self.space.acquire_elements(rows * 2 * inner)?;
        GroupedMatMul {
            dtype,
            rows,
            most_rows: count,
            num_experts,
            n: 2 * inner,
            k: hidden,
            xs: &*xs.region()?,
            sources: Some((&routing.sources, per_token)),
            weight: &self.gate_up,
            offsets: &routing.offsets,
            out: &both,
        }
        .launch()?;
        let gated = self.space.acquire_elements(rows * inner)?;
        Gate {
            dtype,
            activation,
            rows,
            n: inner,
            xs: &both,
            xs_row: 2 * inner,
            up_first: inner,
            out: &gated,
            out_row: inner,
        }
        .launch()?;
        let ys = self.space.acquire_elements(rows * hidden)?;
        GroupedMatMul {
            dtype,
            rows,
            most_rows: count,
            num_experts,
            n: hidden,
            k: inner,
            xs: &gated,
            sources: None,
            weight: &self.down,
            offsets: &routing.offsets,
            out: &ys,
        }
        .launch()?;
        let out = xs.beside(hidden)?;
        MixExperts {
            dtype,
            tokens: count,
            per_token,
            hidden,
            ys: &ys,
            slots: &routing.slots,
            experts: &routing.experts,
            scores: &routing.scores,
            out: &*out.region()?,
        }
        .launch()?;
        Ok(out)
    }
}
