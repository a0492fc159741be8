//! A mixture of experts on a GPU, routed there: no number of a router comes back to the host.

use std::sync::Arc;

use super::kernels::{Activation, ExpertRows, Gate, GroupedMatMul, MixExperts, Route, RouterScores};
use super::rows::DeviceRows;
use super::weights::load_under;
use super::{Region, Space};
use crate::error::Result;
use crate::layers;
use crate::pass::Xs;
use crate::weights::Weights;

/// The experts of one layer.
pub(crate) struct DeviceExperts {
    space: Arc<Space>,
    /// `[num_experts, 2 * intermediate_size, hidden_size]`, gate over up.
    gate_up: Region,
    /// `[num_experts, hidden_size, intermediate_size]`.
    down: Region,
    activation: Activation,
    config: layers::ExpertsConfig,
}

/// Which experts each token goes through, and the tokens of each expert.
pub(crate) struct Routing {
    experts: Arc<Region>,
    scores: Arc<Region>,
    offsets: Arc<Region>,
    sources: Arc<Region>,
    slots: Arc<Region>,
}

impl DeviceExperts {
    /// Loads the projections of `experts.<n>` under `weights`.
    pub(crate) fn load(
        space: &Arc<Space>,
        weights: &Weights,
        config: &layers::ExpertsConfig,
    ) -> Result<Self> {
        let (hidden, inner, count) = (config.hidden_size, config.intermediate_size, config.num_experts);
        let [gate, up, down] = config.names;
        let parts = |names: &[&str], n: usize| -> Vec<(Weights, usize)> {
            let expert =
                |expert| names.iter().map(move |name| (weights.pp("experts").pp(expert).pp(name), n));
            (0..count).flat_map(expert).collect()
        };
        let region = |parts: &[(Weights, usize)], n: usize, k: usize| {
            let region = space.room(count * n * k)?;
            load_under(space, parts, k, &region)?;
            Ok::<_, crate::error::Error>(region)
        };
        Ok(Self {
            gate_up: region(&parts(&[gate, up], inner), 2 * inner, hidden)?,
            down: region(&parts(&[down], hidden), hidden, inner)?,
            space: Arc::clone(space),
            activation: config.act_fn.kernel().into(),
            config: *config,
        })
    }

    /// `logits: [tokens, num_experts]`.
    pub(crate) fn route(&self, logits: &Xs) -> Result<Routing> {
        let logits = self.rows(logits)?.whole()?;
        let layers::ExpertsConfig { num_experts, num_experts_per_tok: per_token, .. } = self.config;
        let (tokens, assignments) = (logits.rows(), logits.rows() * per_token);
        let lend = |len: usize| self.space.lend(len * size_of::<i32>());
        let routing = Routing {
            experts: lend(assignments)?,
            scores: lend(assignments)?,
            offsets: lend(num_experts + 1)?,
            sources: lend(assignments)?,
            slots: lend(assignments)?,
        };
        Route {
            dtype: self.space.dtype,
            tokens,
            num_experts,
            per_token,
            mode: match self.config.scores {
                layers::RouterScores::NormalisedWide => RouterScores::NormalisedWide,
                layers::RouterScores::Normalised => RouterScores::Normalised,
                layers::RouterScores::Raw => RouterScores::Raw,
            },
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

    /// A value of this layer where it lies.
    pub(crate) fn rows(&self, xs: &Xs) -> Result<DeviceRows> {
        DeviceRows::of(&self.space, xs)
    }

    /// `tokens: [tokens, hidden_size]`, same shape out.
    pub(crate) fn forward(&self, tokens: &Xs, routing: &Routing) -> Result<DeviceRows> {
        let xs = self.rows(tokens)?.whole()?;
        let (dtype, count) = (self.space.dtype, xs.rows());
        let layers::ExpertsConfig {
            num_experts,
            num_experts_per_tok: per_token,
            hidden_size: hidden,
            intermediate_size: inner,
            ..
        } = self.config;
        let rows = count * per_token;
        let both = self.space.lend_elements(rows * 2 * inner)?;
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
        let gated = self.space.lend_elements(rows * inner)?;
        Gate {
            dtype,
            activation: self.activation,
            rows,
            n: inner,
            xs: &both,
            xs_row: 2 * inner,
            up_first: inner,
            out: &gated,
            out_row: inner,
        }
        .launch()?;
        let ys = self.space.lend_elements(rows * hidden)?;
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
