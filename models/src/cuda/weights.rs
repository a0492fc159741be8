//! Weights on a GPU, laid out as checkpoints have them.

use std::sync::Arc;

use candle_core::Tensor;

use super::job::{Job, Work, gemv, product};
use super::kernels::{Activation, Embed, Gate, Gemv, GemvEpilogue, Norm, NormForm, RowNorm};
use super::rows::DeviceRows;
use super::{Region, Space};
use crate::error::{Error, Result};
use crate::kernels::{self, Epilogue};
use crate::pass::{Pass, Xs};
use crate::weights::Weights;

/// A weight `[n, k]`, with or without a bias `[n]`.
pub(crate) struct DeviceLinear {
    pub(super) space: Arc<Space>,
    pub(super) weight: Region,
    pub(super) bias: Option<Region>,
    pub(super) n: usize,
    pub(super) k: usize,
}

impl DeviceLinear {
    /// `weight`, `[n_i, k]`, of each module, one under the other.
    pub(crate) fn load(
        space: &Arc<Space>,
        parts: &[(Weights, usize)],
        k: usize,
        bias: Option<&[f32]>,
    ) -> Result<Self> {
        let n = parts.iter().map(|(_, n)| n).sum();
        let weight = space.room(n * k)?;
        load_under(space, parts, k, &weight)?;
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

    /// The rows of `xs` as a product reads them: a norm that they are owed stays owed where the product does it.
    fn input(&self, xs: &Xs) -> Result<DeviceRows> {
        let xs = DeviceRows::of(&self.space, xs)?.left()?;
        if xs.columns() != self.k {
            let found = xs.columns();
            return Err(Error::Inputs(format!("{found} features where {} are needed", self.k)));
        }
        if !(Gemv::takes(self.space.dtype, xs.rows(), self.k) && xs.owed_norm().is_some()) {
            xs.region()?;
        }
        Ok(xs)
    }

    /// `xs: [.., k]` to `[.., n]`, owed.
    pub(crate) fn forward(self: &Arc<Self>, xs: &Xs) -> Result<DeviceRows> {
        let work = Work::Product(Arc::clone(self), Epilogue::Store);
        Ok(DeviceRows::owed(Job { work, xs: self.input(xs)? }))
    }

    /// Rows `ids`, `[batch, seq]`, of the weight times `scale`, `[batch, seq, k]`.
    pub(crate) fn rows(&self, pass: &Pass, ids: &Tensor, scale: Option<f32>) -> Result<DeviceRows> {
        let (batch, seq) = ids.dims2()?;
        let ids = pass.device_pass()?.ids(pass, ids, self.n)?;
        let out = self.space.lend_elements(batch * seq * self.k)?;
        Embed {
            dtype: self.space.dtype,
            table: &self.weight,
            vocab: self.n,
            hidden: self.k,
            ids: &ids,
            rows: batch * seq,
            scale,
            add: false,
            out: &out,
        }
        .launch()?;
        Ok(DeviceRows::within(&self.space, out, [batch, seq, self.k], false))
    }
}

/// Copies `weight`, `[n_i, k]`, of each module to `region`, one under the other.
pub(super) fn load_under(space: &Space, parts: &[(Weights, usize)], k: usize, region: &Region) -> Result<()> {
    let mut first = 0;
    for (weights, n) in parts {
        let bytes = n * k * space.dtype.size();
        space.upload(&weights.get("weight", (*n, k))?, &region.part(first, bytes))?;
        first += bytes;
    }
    Ok(())
}

/// Gate over up, and what the gate goes through.
pub(crate) struct DeviceGateUp {
    both: Arc<DeviceLinear>,
    activation: Activation,
}

impl DeviceGateUp {
    /// `[gate, up]`, each `weight`, `[n, k]`, and where `bias` says so `bias`, `[n]`.
    pub(crate) fn load(
        space: &Arc<Space>,
        parts: [Weights; 2],
        (n, k): (usize, usize),
        activation: kernels::Activation,
        bias: bool,
    ) -> Result<Self> {
        let mut biases = Vec::new();
        for weights in parts.iter().filter(|_| bias) {
            biases.extend(weights.vector("bias", n)?);
        }
        let parts = parts.map(|weights| (weights, n));
        let both = Arc::new(DeviceLinear::load(space, &parts, k, bias.then_some(&biases[..]))?);
        Ok(Self { both, activation: activation.into() })
    }

    fn n(&self) -> usize {
        self.both.n / 2
    }

    /// `activation(gate) * up`.
    pub(crate) fn forward(&self, xs: &Xs) -> Result<DeviceRows> {
        let (xs, n, dtype) = (self.both.input(xs)?, self.n(), self.both.space.dtype);
        let out = xs.beside(n)?;
        let to = out.region()?;
        if Gemv::takes(dtype, xs.rows(), self.both.k) {
            gemv(&self.both, n, GemvEpilogue::Gate(self.activation), &xs, &to, &to)?;
            return Ok(out);
        }
        let rows = xs.beside(2 * n)?;
        product(&self.both, Epilogue::Store, &xs, &*rows.region()?)?;
        Gate {
            dtype,
            activation: self.activation,
            rows: xs.rows(),
            n,
            xs: &*rows.region()?,
            xs_row: 2 * n,
            up_first: n,
            out: &to,
            out_row: n,
        }
        .launch()?;
        Ok(out)
    }

    /// Gate and up without activation and product.
    pub(crate) fn parts(&self, xs: &Xs) -> Result<[DeviceRows; 2]> {
        let (rows, n) = (self.both.forward(xs)?, self.n());
        Ok([rows.part(0, n), rows.part(n, n)])
    }
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
    dtype: super::Dtype,
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
    pub(super) fn of_heads(&self, heads: usize, head_dim: usize) -> Option<super::kernels::HeadNorm<'_>> {
        let fits = self.size == head_dim && [1, heads].contains(&self.weights) && self.bias.is_none();
        fits.then_some(super::kernels::HeadNorm {
            weight: &self.weight,
            per_head: self.weights > 1,
            centred: self.centred,
            eps: self.eps,
        })
    }
}
