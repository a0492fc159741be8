//! Products of 1 to 8 rows with a weight, which is read once; their speed is limited by memory bandwidth.

use super::elementwise::Activation;
use super::launch::{Params, int, launch, optional, params};
use crate::cuda::dtype::Dtype;
use crate::cuda::gpu::Region;
use crate::cuda::kernel_id::{Kernels, kernels, of};
use crate::error::{Error, Result};

/// By number of rows: 1, 2, 4, 8.
const GEMV: [Kernels; 4] =
    [kernels!(Gemv, "gemv_1"), kernels!(Gemv, "gemv_2"), kernels!(Gemv, "gemv_4"), kernels!(Gemv, "gemv_8")];
pub(super) const KERNELS: &[Kernels] = &GEMV;
pub(super) const LAYOUTS: &[fn() -> String] = &[GemvParams::layout];
/// Warps per block; each computes one output column at a time.
const WARPS: usize = 4;
/// Most bytes of shared memory for the rows; two blocks still fit on a multiprocessor.
const MOST_SHARED: usize = 80 << 10;

params! {
    struct GemvParams {
        xs: u64,
        weight: u64,
        bias: u64,
        norm_weight: u64,
        norm_bias: u64,
        out: u64,
        residual: u64,
        rows: i32,
        n: i32,
        k: i32,
        xs_row: i32,
        out_row: i32,
        epilogue: i32,
        activation: i32,
        wide: i32,
        norm: i32,
        vector: i32,
        factor: f32,
        eps: f32,
    }
}

/// What is done with a sum to which the bias has been added.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GemvEpilogue {
    /// Stores the sum.
    Store,
    /// Stores the sum times a factor.
    Scale(f32),
    /// `out += factor * sum`, rounded once: the residual connection.
    Add(f32),
    /// Stores the activation of the sum.
    Activate(Activation),
    /// Stores `cap * tanh(sum / cap)`.
    SoftCap(f32),
    /// The weight is `[2 n, k]`, the gate's rows first, and the bias `[2 n]`: `out = activation(gate) * up`.
    Gate(Activation),
}

/// A norm of the input rows, rounded to the element type as in a separate norm.
#[derive(Clone, Copy, Debug)]
pub struct RowNorm<'a> {
    /// F32, `[k]`; `None` is ones.
    pub weight: Option<&'a Region>,
    /// F32, `[k]`; `None` is zeros.
    pub bias: Option<&'a Region>,
    /// Layer norm with a mean (true) or RMS norm.
    pub centred: bool,
    /// Added to the variance.
    pub eps: f32,
}

/// `out = epilogue(norm(xs) @ weight^T + bias)` for at most 8 rows.
#[derive(Clone, Copy, Debug)]
pub struct Gemv<'a> {
    /// Element type of xs and weight.
    pub dtype: Dtype,
    /// Element type of out and bias: `dtype` or F32.
    pub out_dtype: Dtype,
    /// Number of rows, 1 to 8.
    pub rows: usize,
    /// Columns of out.
    pub n: usize,
    /// Summed elements per product.
    pub k: usize,
    /// `[rows, k]`.
    pub xs: &'a Region,
    /// Elements from one row of `xs` to the next.
    pub xs_row: usize,
    /// `[n, k]`, or `[2 n, k]` with [`GemvEpilogue::Gate`].
    pub weight: &'a Region,
    /// One element per row of the weight.
    pub bias: Option<&'a Region>,
    /// A norm before the product.
    pub norm: Option<RowNorm<'a>>,
    /// What is done with the sums.
    pub epilogue: GemvEpilogue,
    /// `[rows, n]`; must not be `xs`.
    pub out: &'a Region,
    /// Elements from one row of `out` to the next.
    pub out_row: usize,
}

impl Gemv<'_> {
    /// Whether this kernel supports `rows` rows of `k` elements.
    pub fn takes(dtype: Dtype, rows: usize, k: usize) -> bool {
        (1..=8).contains(&rows) && rows.next_power_of_two() * k * dtype.size() <= MOST_SHARED
    }

    /// Launches the kernel.
    ///
    /// # Errors
    /// If a region is too small, [`Gemv::takes`] is false, or the launch fails.
    pub fn launch(&self) -> Result<()> {
        self.launch_onto(self.out)
    }

    /// As [`Gemv::launch`], but [`GemvEpilogue::Add`] computes `out = residual + factor * sum`; `residual` has the
    /// layout of `out`.
    ///
    /// # Errors
    /// As [`Gemv::launch`].
    pub fn launch_onto(&self, residual: &Region) -> Result<()> {
        let Self { dtype, out_dtype, rows, n, k, norm, .. } = *self;
        let (size, out_size) = (dtype.size(), out_dtype.size());
        if rows == 0 || n == 0 {
            return Ok(());
        }
        if !Self::takes(dtype, rows, k) || self.xs_row < k || self.out_row < n {
            return Err(Error::Gpu(format!("a product of {rows} rows of {k} is not gemv's business")));
        }
        if out_dtype != dtype && out_dtype != Dtype::F32 {
            return Err(Error::Gpu(format!("{dtype:?} sums stored as {out_dtype:?}")));
        }
        let (epilogue, activation, factor) = match self.epilogue {
            GemvEpilogue::Store => (1, 0, 1.0),
            GemvEpilogue::Scale(factor) => (1, 0, factor),
            GemvEpilogue::Add(factor) => (2, 0, factor),
            GemvEpilogue::Activate(activation) => (3, activation as i32, 1.0),
            GemvEpilogue::SoftCap(cap) => (4, 0, cap),
            GemvEpilogue::Gate(activation) => (5, activation as i32, 1.0),
        };
        let columns = if epilogue == 5 { 2 * n } else { n };
        let xs = self.xs.checked("xs of gemv", (rows - 1) * self.xs_row + k, size)?;
        let weight = self.weight.checked("weight of gemv", columns * k, size)?;
        let aligned =
            |address: u64, row: usize| address.is_multiple_of(16) && (row * size).is_multiple_of(16);
        let norm_part = |region: Option<&Region>| optional(region, "weight of a norm", k, 4);
        let params = GemvParams {
            xs,
            weight,
            bias: optional(self.bias, "bias of gemv", columns, out_size)?,
            norm_weight: norm_part(norm.and_then(|norm| norm.weight))?,
            norm_bias: norm_part(norm.and_then(|norm| norm.bias))?,
            out: self.out.checked("out of gemv", (rows - 1) * self.out_row + n, out_size)?,
            residual: residual.checked("residual of gemv", (rows - 1) * self.out_row + n, out_size)?,
            rows: rows as i32,
            n: int("columns", n)?,
            k: int("columns", k)?,
            xs_row: int("row", self.xs_row)?,
            out_row: int("row", self.out_row)?,
            epilogue,
            activation,
            wide: i32::from(out_dtype != dtype),
            norm: norm.map_or(0, |norm| if norm.centred { 2 } else { 1 }),
            vector: i32::from(k.is_multiple_of(8) && aligned(weight, k) && aligned(xs, self.xs_row)),
            factor,
            eps: norm.map_or(0.0, |norm| norm.eps),
        };
        let gpu = &**self.out.gpu();
        let most = rows.next_power_of_two();
        // The grid is bounded: for many columns each block computes several per warp, so that rows are staged less
        // often.
        let blocks = n.div_ceil(WARPS).min(16 * gpu.multiprocessors());
        let kernel = of(GEMV[most.trailing_zeros() as usize], dtype);
        // Each row takes a whole number of 16-byte units.
        let shared = most * (k * size).next_multiple_of(16);
        launch(gpu, kernel, [blocks, 1, 1], WARPS * 32, shared, &params)
    }
}
