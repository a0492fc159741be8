//! Weights on a GPU, laid out as checkpoints have them.

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
    /// Tensors `[n_i, k]`, one under the other, together `[n, k]`; each is loaded when the one before is uploaded.
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

    /// A tensor, `[n, k]`.
    pub(crate) fn of(space: &Arc<Space>, weight: &Tensor, bias: Option<&[f32]>) -> Result<Self> {
        let (n, k) = weight.dims2()?;
        let region = space.room(n * k)?;
        space.upload(weight, &region)?;
        let bias = bias.map(|bias| space.keep_rounded(bias)).transpose()?;
        Ok(Self { space: Arc::clone(space), weight: region, bias, n, k })
    }

    /// The same weight, not copied, with a bias.
    pub(crate) fn with_bias(&self, bias: &[f32]) -> Result<Self> {
        let bias = Some(self.space.keep_rounded(bias)?);
        Ok(Self { space: Arc::clone(&self.space), weight: self.weight.clone(), bias, ..*self })
    }

    /// Where it lies.
    pub(crate) fn space(&self) -> &Arc<Space> {
        &self.space
    }

    /// Columns of the output.
    pub(crate) fn n(&self) -> usize {
        self.n
    }
}

/// Copies tensors to `region`, one under the other.
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

/// A norm of neighbouring groups of columns.
#[derive(Debug)]
pub(crate) struct DeviceNorm {
    /// F32, one row, or one a group.
    weight: Region,
    weights: usize,
    /// F32, as long as a row of `weight`.
    bias: Option<Region>,
    size: usize,
    eps: f32,
    centred: bool,
    dtype: Dtype,
}

impl DeviceNorm {
    /// One weight for all groups, or one for each.
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

    /// How many groups so many columns are.
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

    /// `form` on `[rows, columns]`, each operand with the distance of its rows; what adds, adds to `out`.
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

    /// For a product that norms its own rows.
    pub(super) fn of_rows(&self) -> RowNorm<'_> {
        RowNorm { weight: Some(&self.weight), bias: self.bias.as_ref(), centred: self.centred, eps: self.eps }
    }

    /// For attention that norms its own heads: one weight for all, or one a head, and no bias.
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
