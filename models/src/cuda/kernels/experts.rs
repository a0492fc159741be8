//! A mixture of experts on the device alone: routing, sorting rows by expert, grouped products, and the weighted sum.

use super::launch::{Params, int, launch, optional, params};
use crate::cuda::dtype::Dtype;
use crate::cuda::gpu::Region;
use crate::cuda::kernel_id::{KernelId, Kernels, kernels, of};
use crate::error::{Error, Result};

const ROUTE: Kernels = kernels!(Experts, "route");
const MIX: Kernels = kernels!(Experts, "mix_experts");
/// Works only on integers; the three entries are the same kernel under three names.
const SORT: Kernels = kernels!(Experts, "expert_rows");
const GROUPED: Kernels = kernels!(Grouped, "grouped");
pub(super) const KERNELS: &[Kernels] = &[ROUTE, MIX, SORT, GROUPED];
pub(super) const LAYOUTS: &[fn() -> String] =
    &[RouteParams::layout, ExpertRowsParams::layout, MixParams::layout];
pub(super) const GROUPED_LAYOUTS: &[fn() -> String] = &[GroupedParams::layout];
const WARPS: usize = 4;
/// Most experts that a warp of `route` has registers for.
const MOST_EXPERTS: usize = 512;
/// Rows and columns per tile in `grouped.cu`.
const TILE: usize = 64;
const MIX_THREADS: usize = 128;

params! {
    struct RouteParams {
        logits: u64,
        experts: u64,
        scores: u64,
        tokens: i32,
        num_experts: i32,
        per_token: i32,
        mode: i32,
    }
}

params! {
    struct ExpertRowsParams {
        experts: u64,
        offsets: u64,
        sources: u64,
        slots: u64,
        assignments: i32,
        num_experts: i32,
    }
}

params! {
    struct GroupedParams {
        xs: u64,
        weight: u64,
        offsets: u64,
        sources: u64,
        out: u64,
        n: i32,
        k: i32,
        divisor: i32,
        vector: i32,
    }
}

params! {
    struct MixParams {
        ys: u64,
        slots: u64,
        experts: u64,
        scores: u64,
        out: u64,
        per_token: i32,
        hidden: i32,
    }
}

/// How a router's probabilities become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouterScores {
    /// Divided by their sum, left in F32.
    NormalisedWide = 0,
    /// Divided by their sum and rounded to the element type.
    Normalised = 1,
    /// Not normalised, rounded to the element type.
    Raw = 2,
}

/// Softmax of each token's logits (F32), and the `per_token` most probable experts; of equal ones the lower index wins.
#[derive(Clone, Copy, Debug)]
pub struct Route<'a> {
    /// Element type of the logits.
    pub dtype: Dtype,
    /// Number of tokens.
    pub tokens: usize,
    /// Number of experts.
    pub num_experts: usize,
    /// Experts per token.
    pub per_token: usize,
    /// How the probabilities become scores.
    pub mode: RouterScores,
    /// `[tokens, num_experts]`.
    pub logits: &'a Region,
    /// i32, `[tokens, per_token]`, the most probable first.
    pub experts: &'a Region,
    /// F32, `[tokens, per_token]`.
    pub scores: &'a Region,
}

impl Route<'_> {
    /// Launches the kernel.
    ///
    /// # Errors
    /// If a region is too small, there are too many experts, or the launch fails.
    pub fn launch(&self) -> Result<()> {
        let Self { tokens, num_experts, per_token, .. } = *self;
        if per_token > num_experts || num_experts > MOST_EXPERTS {
            return Err(Error::Unsupported(format!("{per_token} of {num_experts} experts on a GPU")));
        }
        let params = RouteParams {
            logits: self.logits.checked("logits", tokens * num_experts, self.dtype.size())?,
            experts: self.experts.checked("experts", tokens * per_token, 4)?,
            scores: self.scores.checked("scores", tokens * per_token, 4)?,
            tokens: int("tokens", tokens)?,
            num_experts: int("experts", num_experts)?,
            per_token: int("experts", per_token)?,
            mode: self.mode as i32,
        };
        let grid = [tokens.div_ceil(WARPS), 1, 1];
        launch(&**self.logits.gpu(), of(ROUTE, self.dtype), grid, WARPS * 32, 0, &params)
    }
}

/// Sorts assignments (`token * per_token + place`) by expert, stably.
#[derive(Clone, Copy, Debug)]
pub struct ExpertRows<'a> {
    /// `tokens * per_token`.
    pub assignments: usize,
    /// Number of experts.
    pub num_experts: usize,
    /// i32, `[assignments]`.
    pub experts: &'a Region,
    /// i32, `[num_experts + 1]`: first sorted row of each expert.
    pub offsets: &'a Region,
    /// i32, `[assignments]`: the assignment of each sorted row.
    pub sources: &'a Region,
    /// i32, `[assignments]`: the sorted row of each assignment.
    pub slots: &'a Region,
}

impl ExpertRows<'_> {
    /// Launches the kernel.
    ///
    /// # Errors
    /// If a region is too small or the launch fails.
    pub fn launch(&self) -> Result<()> {
        let params = ExpertRowsParams {
            experts: self.experts.checked("experts", self.assignments, 4)?,
            offsets: self.offsets.checked("offsets", self.num_experts + 1, 4)?,
            sources: self.sources.checked("sources", self.assignments, 4)?,
            slots: self.slots.checked("slots", self.assignments, 4)?,
            assignments: int("assignments", self.assignments)?,
            num_experts: int("experts", self.num_experts)?,
        };
        let kernel: KernelId = of(SORT, Dtype::F32);
        let grid = [self.num_experts.div_ceil(WARPS), 1, 1];
        launch(&**self.experts.gpu(), kernel, grid, WARPS * 32, 0, &params)
    }
}

/// `out[row] = xs[source(row)] @ weight[expert(row)]^T` for rows sorted by expert; F32 sums, rounded once. Offsets and
/// sources must come from [`ExpertRows`]; the kernel does not check them.
#[derive(Clone, Copy, Debug)]
pub struct GroupedMatMul<'a> {
    /// Element type of xs, weight and out.
    pub dtype: Dtype,
    /// Sorted rows (assignments).
    pub rows: usize,
    /// Most rows that one expert can have: the number of tokens.
    pub most_rows: usize,
    /// Number of experts.
    pub num_experts: usize,
    /// Columns of out.
    pub n: usize,
    /// Summed elements per product (columns of xs).
    pub k: usize,
    /// `[tokens, k]` if `sources` is given, else `[rows, k]` in sorted order.
    pub xs: &'a Region,
    /// i32, `[rows]`, and a divisor (`per_token`): row `i` of `out` uses row `sources[i] / divisor` of `xs`. `None` if
    /// `xs` is sorted.
    pub sources: Option<(&'a Region, usize)>,
    /// `[num_experts, n, k]`.
    pub weight: &'a Region,
    /// i32, `[num_experts + 1]`.
    pub offsets: &'a Region,
    /// `[rows, n]`.
    pub out: &'a Region,
}

impl GroupedMatMul<'_> {
    /// Launches the kernel.
    ///
    /// # Errors
    /// If a region is too small or the launch fails.
    pub fn launch(&self) -> Result<()> {
        let (size, Self { rows, n, k, num_experts, .. }) = (self.dtype.size(), *self);
        let divisor = self.sources.map_or(1, |(_, divisor)| divisor.max(1));
        let (xs_rows, sources) = (rows / divisor, self.sources.map(|(sources, _)| sources));
        let xs = self.xs.checked("xs of experts", xs_rows * k, size)?;
        let weight = self.weight.checked("weight of experts", num_experts * n * k, size)?;
        let aligned = (k * size).is_multiple_of(16) && xs.is_multiple_of(16) && weight.is_multiple_of(16);
        let params = GroupedParams {
            xs,
            weight,
            offsets: self.offsets.checked("offsets", num_experts + 1, 4)?,
            sources: optional(sources, "sources", rows, 4)?,
            out: self.out.checked("out of experts", rows * n, size)?,
            n: int("columns", n)?,
            k: int("columns", k)?,
            divisor: int("divisor", divisor)?,
            vector: i32::from(aligned),
        };
        let grid = [n.div_ceil(TILE), self.most_rows.div_ceil(TILE), num_experts];
        // Two stages of both operands, 32 columns each (F32: one stage of 16 columns, transposed).
        let shared = if self.dtype == Dtype::F32 { 2 * 16 * (TILE + 4) * 4 } else { 2 * 2 * TILE * 32 * 2 };
        launch(&**self.out.gpu(), of(GROUPED, self.dtype), grid, 128, shared, &params)
    }
}

/// `out[token]` = sum of `score * ys[row]` over the token's experts in ascending order; F32, rounded once. Slots and
/// experts must come from [`ExpertRows`] and [`Route`]; the kernel does not check them.
#[derive(Clone, Copy, Debug)]
pub struct MixExperts<'a> {
    /// Element type of ys and out.
    pub dtype: Dtype,
    /// Number of tokens.
    pub tokens: usize,
    /// Experts per token.
    pub per_token: usize,
    /// Features.
    pub hidden: usize,
    /// `[tokens * per_token, hidden]`, sorted by expert.
    pub ys: &'a Region,
    /// i32, `[tokens * per_token]`.
    pub slots: &'a Region,
    /// i32, `[tokens * per_token]`.
    pub experts: &'a Region,
    /// F32, `[tokens * per_token]`.
    pub scores: &'a Region,
    /// `[tokens, hidden]`.
    pub out: &'a Region,
}

impl MixExperts<'_> {
    /// Launches the kernel.
    ///
    /// # Errors
    /// If a region is too small, or the launch fails.
    pub fn launch(&self) -> Result<()> {
        let (size, Self { tokens, per_token, hidden, .. }) = (self.dtype.size(), *self);
        let rows = tokens * per_token;
        let params = MixParams {
            ys: self.ys.checked("ys of experts", rows * hidden, size)?,
            slots: self.slots.checked("slots", rows, 4)?,
            experts: self.experts.checked("experts", rows, 4)?,
            scores: self.scores.checked("scores", rows, 4)?,
            out: self.out.checked("out of experts", tokens * hidden, size)?,
            per_token: int("experts", per_token)?,
            hidden: int("features", hidden)?,
        };
        launch(&**self.out.gpu(), of(MIX, self.dtype), [tokens, 1, 1], MIX_THREADS, 0, &params)
    }
}
