//! RMS and layer norm, alone or in one pass with the residual stream.

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

/// What happens to the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormForm {
    /// `out = norm(xs)`; `out` may be `xs`.
    Norm,
    /// `residual += xs; out = norm(residual)`, the sum rounded first.
    AddThenNorm,
    /// `residual += norm(xs)`, rounded once; `out` is not written.
    NormThenAdd,
}

/// A norm of `heads` neighbouring groups of `size` elements in each row.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// Of all but the weights.
    pub dtype: Dtype,
    /// The form.
    pub form: NormForm,
    /// Layer norm with a mean (true) or RMS norm.
    pub centred: bool,
    /// Added to the variance.
    pub eps: f32,
    /// Rows.
    pub rows: usize,
    /// Groups in a row: 1, or heads.
    pub heads: usize,
    /// Elements of a group.
    pub size: usize,
    /// Groups from here on, the first at the region's start.
    pub xs: &'a Region,
    /// Elements from one row of `xs` to the next.
    pub xs_row: usize,
    /// `[rows, heads * size]` without gaps, for the forms that add.
    pub residual: Option<&'a Region>,
    /// F32, `[size]`, or `[heads, size]` where `weight_per_head`; absent is all ones.
    pub weight: Option<&'a Region>,
    /// Whether each head has its own weight.
    pub weight_per_head: bool,
    /// F32, as the weight.
    pub bias: Option<&'a Region>,
    /// As `xs`.
    pub out: &'a Region,
    /// Elements from one row of `out` to the next.
    pub out_row: usize,
}

impl Norm<'_> {
    /// Launches.
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
        // A warp does for short groups; a long row keeps a whole block busy.
        let threads = (self.size.div_ceil(8).next_multiple_of(32)).clamp(32, 256);
        let blocks = self.rows * self.heads;
        launch(&**self.xs.gpu(), of(NORM, self.dtype), [blocks, 1, 1], threads, 0, &params)
    }
}
