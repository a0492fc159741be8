//! A mixture of experts: a router picks a few gated feed-forward layers a token.

use std::sync::Arc;

use candle_core::{D, DType, Tensor};

use super::attention::softmax;
use super::{Activation, Joined, Linear, accumulation, multiply};
use crate::cuda::{self, DeviceExperts, DeviceRows, ExpertsShape, Space};
use crate::error::Result;
use crate::fused::{Rows, Workspace};
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::{Value, Xs};

/// What a router's probabilities become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouterScores {
    /// Divided by their sum and left in F32, so that an expert's product is rounded from F32
    /// (transformers 5.23.0, `MixtralTopKRouter`).
    NormalisedWide,
    /// Divided by their sum and rounded to the model's dtype (`Qwen3MoeTopKRouter`, `norm_topk_prob`).
    Normalised,
    /// As they are, rounded to the model's dtype (`Qwen3MoeTopKRouter` without it).
    Raw,
}

/// How the experts of a checkpoint are named and shaped.
#[derive(Clone, Copy, Debug)]
pub struct ExpertsConfig {
    /// How many there are.
    pub num_experts: usize,
    /// How many a token goes through.
    pub num_experts_per_tok: usize,
    /// Features of a token.
    pub hidden_size: usize,
    /// Features inside an expert.
    pub intermediate_size: usize,
    /// The names of the gate, up and down projections.
    pub names: [&'static str; 3],
    /// Between gate and product.
    pub act_fn: Activation,
    /// How the router weighs the experts.
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
    /// One after the other, chosen on the host.
    Each(Vec<Expert>),
    /// All at once, routed on the GPU.
    Gpu(DeviceExperts),
}

struct Expert {
    gate_up: Joined<2>,
    act_fn: Activation,
    down: Linear,
}

impl SparseMoe {
    /// Loads `gate`, `[num_experts, hidden_size]`, and `experts.<n>`, each a gated layer without biases.
    /// The module goes by `path`, whatever the checkpoint calls it; the experts' projections, which are no modules
    /// of their own since transformers 5, go by the checkpoint's names.
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

    /// `xs: [batch, seq, hidden_size]`, same shape out. The router's softmax is in F32 (F64 in F64), its choice is
    /// made on the host, except on a GPU, which sums in F32; each expert's share is rounded to the model's dtype, and so
    /// is each sum, in the experts' order (transformers 5.23.0, the loop of `MixtralExperts` and `Qwen3MoeExperts`).
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
            // A tensor that a probe has put in.
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
        // The fused backend keeps a dimension between tokens and features.
        let chosen = self.choose(&logits.tensor()?.reshape(((), experts.len()))?, experts.len())?;
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

    /// `logits: [tokens, num_experts]` to the tokens that each expert gets, ties going to the earlier expert.
    fn choose(&self, logits: &Tensor, num_experts: usize) -> Result<Vec<Chosen>> {
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
        if self.scores != RouterScores::Raw {
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

/// The projections of `experts.<n>` under `weights`.
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

/// The tokens that chose one expert, and how much each weighs it.
#[derive(Clone, Debug, Default)]
struct Chosen {
    rows: Vec<u32>,
    scores: Vec<f64>,
}

impl Expert {
    /// Adds this expert's share to the rows of `sum` that chose it; both `[tokens, hidden_size]`.
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
