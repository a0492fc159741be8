//! Weights on a GPU, in the layout of the checkpoint.

use std::sync::Arc;

use candle_core::Tensor;

use super::dtype::Dtype;
use super::gpu::Region;
use super::kernels::{HeadNorm, Norm, NormForm, RowNorm};
use super::space::Space;
use crate::error::{Error, Result};

/// A weight `[n, k]`, with or without a bias `[n]`.
pub(crate) struct DeviceLinear {
    pub(super) space: Arc<Space>,
    pub(super) weight: Region,
    pub(super) bias: Option<Region>,
    pub(super) n: usize,
    pub(super) k: usize,
}

impl DeviceLinear {
    /// Loads tensors `[n_i, k]` and concatenates them along the rows to `[n, k]`. Each is loaded after the previous one
    /// is uploaded, which bounds host memory.
    pub(crate) fn load(
        space: &Arc<Space>,
        tensors: impl Iterator<Item = Result<Tensor>>,
        (n, k): (usize, usize),
        bias: Option<&[f32]>,
    ) -> Result<Self> {
        let weight = space.room(n * k)?;
        upload_under(space, tensors, &weight)?;
        let bias = bias.map(|bias| space.keep_rounded(bias)).transpose()?;
        Ok(Self { space: Arc::clone(space), weight, bias, n, k })
    }

    /// Uploads `weight: [n, k]`.
    pub(crate) fn of(space: &Arc<Space>, weight: &Tensor, bias: Option<&[f32]>) -> Result<Self> {
        let (n, k) = weight.dims2()?;
        let region = space.room(n * k)?;
        space.upload(weight, &region)?;
        let bias = bias.map(|bias| space.keep_rounded(bias)).transpose()?;
        Ok(Self { space: Arc::clone(space), weight: region, bias, n, k })
    }

    /// The same weight with a bias; the weight is shared, not copied.
    pub(crate) fn with_bias(&self, bias: &[f32]) -> Result<Self> {
        let bias = Some(self.space.keep_rounded(bias)?);
        Ok(Self { space: Arc::clone(&self.space), weight: self.weight.clone(), bias, ..*self })
    }

    /// The checkpoint's device memory.
    pub(crate) fn space(&self) -> &Arc<Space> {
        &self.space
    }

    /// Output features.
    pub(crate) fn n(&self) -> usize {
        self.n
    }
}

/// Copies tensors to `region`, concatenated along the rows.
pub(super) fn upload_under(
    space: &Space,
    tensors: impl Iterator<Item = Result<Tensor>>,
    region: &Region,
) -> Result<()> {
    let mut first = 0;
    for tensor in tensors {
        let tensor = tensor?;
        let bytes = tensor.elem_count() * space.dtype.size();
        space.upload(&tensor, &region.part(first, bytes))?;
        first += bytes;
    }
    Ok(())
}

/// A norm of adjacent groups of `size` columns.
#[derive(Debug)]
pub(crate) struct DeviceNorm {
    /// F32, `[weights, size]`: one row for all groups, or one row per group.
    weight: Region,
    weights: usize,
    /// F32, `[size]`.
    bias: Option<Region>,
    size: usize,
    eps: f32,
    centred: bool,
    dtype: Dtype,
}

impl DeviceNorm {
    /// `weights`: one weight for all groups, or one per group.
    pub(crate) fn new(
        space: &Space,
        weights: &[Vec<f32>],
        bias: Option<&[f32]>,
        eps: f32,
        centred: bool,
    ) -> Result<Self> {
        Ok(Self {
            weight: space.keep(&weights.concat())?,
            weights: weights.len(),
            bias: bias.map(|bias| space.keep(bias)).transpose()?,
            size: weights.first().map_or(0, Vec::len),
            eps,
            centred,
            dtype: space.dtype,
        })
    }

    /// The number of groups in `columns` columns; `None` if the size or the number of weights does not fit.
    pub(super) fn heads_of(&self, columns: usize) -> Option<usize> {
        let heads = columns.checked_div(self.size)?;
        (heads * self.size == columns && [1, heads].contains(&self.weights)).then_some(heads)
    }

    pub(super) fn checked(&self, columns: usize) -> Result<usize> {
        let heads = self.heads_of(columns);
        heads.ok_or_else(|| {
            Error::Inputs(format!("a norm of {} weights of {} on {columns} columns", self.weights, self.size))
        })
    }

    /// Launches the norm on `[rows, columns]`; each operand comes with its row stride. Modes that add a residual add to
    /// `out`.
    pub(super) fn launch(
        &self,
        form: NormForm,
        [rows, columns]: [usize; 2],
        (xs, xs_row): (&Region, usize),
        (out, out_row): (&Region, usize),
    ) -> Result<()> {
        Norm {
            dtype: self.dtype,
            form,
            centred: self.centred,
            eps: self.eps,
            rows,
            heads: self.checked(columns)?,
            size: self.size,
            xs,
            xs_row,
            residual: (form != NormForm::Norm).then_some(out),
            weight: Some(&self.weight),
            weight_per_head: self.weights > 1,
            bias: self.bias.as_ref(),
            out,
            out_row,
        }
        .launch()
    }

    /// The norm as a parameter of a GEMV that fuses it.
    pub(super) fn of_rows(&self) -> RowNorm<'_> {
        RowNorm { weight: Some(&self.weight), bias: self.bias.as_ref(), centred: self.centred, eps: self.eps }
    }

    /// The norm as a parameter of attention that fuses it; `None` if there is a bias or the weight does not fit the
    /// heads.
    pub(super) fn of_heads(&self, heads: usize, head_dim: usize) -> Option<HeadNorm<'_>> {
        let fits = self.size == head_dim && [1, heads].contains(&self.weights) && self.bias.is_none();
        fits.then_some(HeadNorm {
            weight: &self.weight,
            per_head: self.weights > 1,
            centred: self.centred,
            eps: self.eps,
        })
    }
}
