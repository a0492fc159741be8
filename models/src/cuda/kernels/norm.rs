//! RMS and layer norm, alone or fused with an addition to the residual stream.

use super::launch::{Params, int, launch, optional, params};
use crate::cuda::dtype::Dtype;
use crate::cuda::gpu::Region;
use crate::cuda::kernel_id::{Kernels, kernels, of};
use crate::error::{Error, Result};

const NORM: Kernels = kernels!(Norm, "norm");
pub(super) const KERNELS: &[Kernels] = &[NORM];
pub(super) const LAYOUTS: &[fn() -> String] = &[NormParams::layout];

params! {
    struct NormParams {
        xs: u64,
        residual: u64,
        weight: u64,
        bias: u64,
        out: u64,
        size: i32,
        heads: i32,
        xs_row: i32,
        out_row: i32,
        weight_head: i32,
        form: i32,
        centred: i32,
        eps: f32,
    }
}

/// How the norm is combined with the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormForm {
    /// `out = norm(xs)`; `out` may be `xs`.
    Norm,
    /// `residual += xs; out = norm(residual)`; the sum is rounded before the norm.
    AddThenNorm,
    /// `residual += norm(xs)`, rounded once; `out` is not written.
    NormThenAdd,
}

/// A norm of `heads` adjacent groups of `size` elements in each row.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// Element type of all operands except weight and bias.
    pub dtype: Dtype,
    /// How the residual stream is updated.
    pub form: NormForm,
    /// Layer norm with a mean (true) or RMS norm.
    pub centred: bool,
    /// Added to the variance.
    pub eps: f32,
    /// Number of rows.
    pub rows: usize,
    /// Groups per row: 1, or the number of heads.
    pub heads: usize,
    /// Elements per group.
    pub size: usize,
    /// Input; the first group starts at the start of the region.
    pub xs: &'a Region,
    /// Elements from one row of `xs` to the next.
    pub xs_row: usize,
    /// `[rows, heads * size]`, contiguous; required by the modes that add.
    pub residual: Option<&'a Region>,
    /// F32, `[size]`, or `[heads, size]` if `weight_per_head`; `None` is all ones.
    pub weight: Option<&'a Region>,
    /// Whether each head has its own weight.
    pub weight_per_head: bool,
    /// F32, same shape as the weight; `None` is zeros.
    pub bias: Option<&'a Region>,
    /// Output; the first group starts at the start of the region. May be `xs`.
    pub out: &'a Region,
    /// Elements from one row of `out` to the next.
    pub out_row: usize,
}

impl Norm<'_> {
    /// Launches the kernel.
    ///
    /// # Errors
    /// If a region is too small or the launch fails.
    pub fn launch(&self) -> Result<()> {
        let (size, width) = (self.dtype.size(), self.heads * self.size);
        if self.rows == 0 || width == 0 {
            return Ok(());
        }
        if self.form != NormForm::Norm && self.residual.is_none() {
            return Err(Error::Gpu("a norm that adds has no residual".to_owned()));
        }
        if self.xs_row < width || (self.out_row < width && self.form != NormForm::NormThenAdd) {
            return Err(Error::Gpu(format!("rows of a norm are shorter than {width}")));
        }
        let weights = if self.weight_per_head { width } else { self.size };
        let params = NormParams {
            xs: self.xs.checked("xs of norm", (self.rows - 1) * self.xs_row + width, size)?,
            residual: optional(self.residual, "residual", self.rows * width, size)?,
            weight: optional(self.weight, "weight of norm", weights, 4)?,
            bias: optional(self.bias, "bias of norm", weights, 4)?,
            out: match self.form {
                NormForm::NormThenAdd => 0,
                _ => self.out.checked("out of norm", (self.rows - 1) * self.out_row + width, size)?,
            },
            size: int("size", self.size)?,
            heads: int("heads", self.heads)?,
            xs_row: int("row", self.xs_row)?,
            out_row: int("row", self.out_row)?,
            weight_head: if self.weight_per_head { int("size", self.size)? } else { 0 },
            form: self.form as i32,
            centred: i32::from(self.centred),
            eps: self.eps,
        };
        // One warp for short groups, up to 256 threads for long ones.
        let threads = (self.size.div_ceil(8).next_multiple_of(32)).clamp(32, 256);
        let blocks = self.rows * self.heads;
        launch(&**self.xs.gpu(), of(NORM, self.dtype), [blocks, 1, 1], threads, 0, &params)
    }
}
