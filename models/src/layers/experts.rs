//! A mixture of experts: a router selects a few gated feed-forward layers for each token.

use std::sync::Arc;

use candle_core::{D, DType, Tensor};

use super::attention::softmax;
use super::{Activation, Joined, Linear, accumulation, multiply};
use crate::cuda::{self, DeviceExperts, DeviceRows, ExpertsShape, Space};
use crate::deviations::Deviation;
use crate::error::Result;
use crate::fused::{Rows, Workspace};
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::{Value, Xs};

/// How a router's probabilities become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouterScores {
    /// Divided by their sum and kept in F32, so that the product of score and expert output is rounded from F32
    /// (transformers 5.23.0, `MixtralTopKRouter`).
    NormalisedWide,
    /// Divided by their sum and rounded to the model's dtype (`Qwen3MoeTopKRouter`, `norm_topk_prob`).
    Normalised,
    /// Unchanged and rounded to the model's dtype (`Qwen3MoeTopKRouter` without `norm_topk_prob`).
    Raw,
}

/// The names and shapes of a checkpoint's experts.
#[derive(Clone, Copy, Debug)]
pub struct ExpertsConfig {
    /// Number of experts.
    pub num_experts: usize,
    /// Number of experts per token.
    pub num_experts_per_tok: usize,
    /// Number of features of a token.
    pub hidden_size: usize,
    /// Number of features inside an expert.
    pub intermediate_size: usize,
    /// The names of the gate, up and down projections.
    pub names: [&'static str; 3],
    /// The activation of the gate.
    pub act_fn: Activation,
    /// How the router's probabilities become scores.
    pub scores: RouterScores,
}

/// `sum over the chosen experts of score * down(act(gate(x)) * up(x))`.
pub struct SparseMoe {
    path: String,
    gate: Linear,
    experts_path: String,
    experts: Experts,
    num_experts_per_tok: usize,
    scores: RouterScores,
}

enum Experts {
    /// The experts run one after the other; the host chooses the tokens of each.
    Each(Vec<Expert>),
    /// All experts run together; the GPU routes the tokens.
    Gpu(DeviceExperts),
}

struct Expert {
    gate_up: Joined<2>,
    act_fn: Activation,
    down: Linear,
}

impl SparseMoe {
    /// Loads `gate`, `[num_experts, hidden_size]`, and `experts.<n>`, each a gated layer without biases. The module
    /// path is `path`, whatever the checkpoint calls the module. Since transformers 5 the experts' projections are
    /// not modules of their own; their paths use the checkpoint's names.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(weights: &Weights, path: &str, config: &ExpertsConfig) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let [gate, up, down] = config.names;
        let expert = |expert| {
            let weights = weights.pp("experts").pp(expert);
            Ok(Expert {
                gate_up: Joined::load(&weights, hidden, [(gate, inner), (up, inner)], false)?,
                act_fn: config.act_fn,
                down: Linear::load(&weights.pp(down), inner, hidden, false)?,
            })
        };
        let experts = match weights.workspace() {
            Some(Workspace::Gpu(space)) => Experts::Gpu(load_on_gpu(space, weights, config)?),
            _ => Experts::Each((0..config.num_experts).map(expert).collect::<Result<_>>()?),
        };
        Ok(Self {
            path: path.to_owned(),
            gate: Linear::load(&weights.pp("gate"), hidden, config.num_experts, false)?
                .named(&format!("{path}.gate")),
            experts_path: format!("{path}.experts"),
            experts,
            num_experts_per_tok: config.num_experts_per_tok,
            scores: config.scores,
        })
    }

    /// `xs: [batch, seq, hidden_size]`, same shape out. The router's softmax is in F32 (F64 in F64), and the host
    /// selects the experts. Each expert's weighted output is rounded to the model's dtype, and so is each partial
    /// sum, in the order of the experts (transformers 5.23.0, the loop of `MixtralExperts` and `Qwen3MoeExperts`). A
    /// GPU selects the experts itself and sums in F32.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| match (&self.experts, xs.value()) {
            (Experts::Each(experts), _) => self.by_each(pass, experts, &xs),
            (Experts::Gpu(experts), Value::Fused(Rows::Gpu(rows))) => {
                let tokens = Xs::from(rows.flat());
                let mixed = self.on_gpu(pass, experts, tokens)?;
                Ok(Xs::from(mixed.shaped_as(rows)))
            }
            // The input is a tensor if a probe replaced it.
            (Experts::Gpu(experts), _) => {
                let dims = xs.tensor()?.dims().to_vec();
                let tokens = xs.tensor()?.reshape(((), xs.tensor()?.dim(D::Minus1)?))?;
                let mixed = self.on_gpu(pass, experts, tokens.into())?;
                Ok(mixed.tensor()?.reshape(dims)?.into())
            }
        })
    }

    /// `tokens: [tokens, hidden_size]`, same shape out.
    fn on_gpu(&self, pass: &mut Pass, experts: &DeviceExperts, tokens: Xs) -> Result<DeviceRows> {
        let logits = self.gate.forward(pass, &tokens)?;
        let routing = experts.route(&logits.device_rows(experts.space())?)?;
        let mixed = pass.module(&self.experts_path, tokens, |_, tokens| {
            Ok(experts.forward(&tokens.device_rows(experts.space())?, &routing)?.into())
        })?;
        mixed.device_rows(experts.space())
    }

    fn by_each(&self, pass: &mut Pass, experts: &[Expert], xs: &Xs) -> Result<Xs> {
        let dims = xs.tensor()?.dims().to_vec();
        let hidden_size = xs.tensor()?.dim(D::Minus1)?;
        let tokens = Xs::from(xs.tensor()?.reshape(((), hidden_size))?);
        let logits = self.gate.forward(pass, &tokens)?;
        // The fused backend has a dimension between tokens and features.
        let normalises = (self.scores != RouterScores::Raw) != pass.deviates(Deviation::RouterNormalisation);
        let logits = logits.tensor()?.reshape(((), experts.len()))?;
        let chosen = self.choose(&logits, experts.len(), normalises)?;
        let mixed = pass.module(&self.experts_path, tokens, |pass, tokens| {
            let mut sum = tokens.tensor()?.zeros_like()?;
            for (expert, chosen) in experts.iter().zip(&chosen) {
                if !chosen.rows.is_empty() {
                    sum = expert.add_share(pass, &tokens, chosen, &sum)?;
                }
            }
            Ok(sum.into())
        })?;
        Ok(mixed.tensor()?.reshape(dims)?.into())
    }

    /// Computes the tokens of each expert from `logits: [tokens, num_experts]`; of equal scores the earlier expert
    /// wins.
    fn choose(&self, logits: &Tensor, num_experts: usize, normalises: bool) -> Result<Vec<Chosen>> {
        let dtype = logits.dtype();
        let wide = accumulation(dtype);
        let probabilities = softmax(&logits.to_dtype(wide)?)?;
        let mut indices = Vec::new();
        for row in probabilities.to_dtype(DType::F64)?.to_vec2::<f64>()? {
            let mut order: Vec<u32> = (0..row.len() as u32).collect();
            order.sort_by(|left, right| row[*right as usize].total_cmp(&row[*left as usize]));
            order.truncate(self.num_experts_per_tok);
            indices.push(order);
        }
        let mut scores = probabilities.gather(&Tensor::new(indices.clone(), logits.device())?, D::Minus1)?;
        if normalises {
            scores = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
        }
        let scores = match self.scores {
            RouterScores::NormalisedWide => scores,
            RouterScores::Normalised | RouterScores::Raw => scores.to_dtype(dtype)?,
        };
        let mut chosen = vec![Chosen::default(); num_experts];
        for (token, row) in scores.to_dtype(DType::F64)?.to_vec2::<f64>()?.into_iter().enumerate() {
            for (expert, score) in indices[token].iter().zip(row) {
                let chosen = &mut chosen[*expert as usize];
                chosen.rows.push(token as u32);
                chosen.scores.push(score);
            }
        }
        Ok(chosen)
    }
}

/// Loads the projections of `experts.<n>` under `weights`.
fn load_on_gpu(space: &Arc<Space>, weights: &Weights, config: &ExpertsConfig) -> Result<DeviceExperts> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let [gate, up, down] = config.names;
    let get = |expert: usize, name: &str, shape: (usize, usize)| {
        weights.pp("experts").pp(expert).pp(name).get("weight", shape)
    };
    let gate_up =
        (0..config.num_experts).flat_map(|expert| [gate, up].map(|name| get(expert, name, (inner, hidden))));
    let shape = ExpertsShape {
        num_experts: config.num_experts,
        num_experts_per_tok: config.num_experts_per_tok,
        hidden_size: hidden,
        intermediate_size: inner,
        activation: config.act_fn.kernel().into(),
        scores: match config.scores {
            RouterScores::NormalisedWide => cuda::kernels::RouterScores::NormalisedWide,
            RouterScores::Normalised => cuda::kernels::RouterScores::Normalised,
            RouterScores::Raw => cuda::kernels::RouterScores::Raw,
        },
    };
    let down = (0..config.num_experts).map(|expert| get(expert, down, (hidden, inner)));
    DeviceExperts::load(space, shape, gate_up, down)
}

/// The tokens routed to one expert, and the expert's score for each.
#[derive(Clone, Debug, Default)]
struct Chosen {
    rows: Vec<u32>,
    scores: Vec<f64>,
}

impl Expert {
    /// Adds this expert's weighted output to the rows of `sum` that are routed to it; `sum: [tokens, hidden_size]`.
    fn add_share(&self, pass: &mut Pass, tokens: &Xs, chosen: &Chosen, sum: &Tensor) -> Result<Tensor> {
        let tokens = tokens.tensor()?;
        let dtype = tokens.dtype();
        let wide = accumulation(dtype);
        let rows = Tensor::new(chosen.rows.as_slice(), tokens.device())?;
        let scores = Tensor::new(chosen.scores.as_slice(), tokens.device())?;
        let [gate, up] = self.gate_up.forward(pass, &tokens.index_select(&rows, 0)?.into())?;
        let gate = Xs::from(self.act_fn.apply(gate.tensor()?)?);
        let share = self.down.forward(pass, &multiply(gate, up)?)?;
        let share = share.tensor()?.reshape((chosen.rows.len(), ()))?.to_dtype(wide)?;
        let share = share.broadcast_mul(&scores.to_dtype(wide)?.unsqueeze(1)?)?;
        Ok(sum.index_add(&rows, &share.to_dtype(dtype)?, 0)?)
    }
}
