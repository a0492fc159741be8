//! Products with weights on a GPU, and embedding lookups in them.

use std::sync::Arc;

use super::gpu::Region;
use super::kernels::{Activation, Embed, Gate, Gemv, GemvEpilogue};
use super::rows::{Deferred, DeviceRows, Operation, gemv, product};
use super::space::Space;
use super::weights::DeviceLinear;
use crate::error::{Error, Result};
use crate::kernels::{self, Epilogue};

impl DeviceLinear {
    /// `xs` as the left operand of a product; a deferred norm stays deferred if the product's kernel fuses it.
    fn input(&self, xs: &DeviceRows) -> Result<DeviceRows> {
        let xs = xs.left()?;
        if xs.columns() != self.k {
            let found = xs.columns();
            return Err(Error::Inputs(format!("{found} features where {} are needed", self.k)));
        }
        if !(Gemv::takes(self.space.dtype, xs.rows(), self.k) && xs.pending_norm().is_some()) {
            xs.region()?;
        }
        Ok(xs)
    }

    /// `xs: [.., k]` to `[.., n]`, deferred.
    pub(crate) fn forward(self: &Arc<Self>, xs: &DeviceRows) -> Result<DeviceRows> {
        let operation = Operation::Product(Arc::clone(self), Epilogue::Store);
        Ok(DeviceRows::deferred(Deferred { operation, xs: self.input(xs)? }))
    }

    /// Embedding lookup: rows `ids` (`[batch, seq]`, each below `n`) of the weight times `scale`; returns
    /// `[batch, seq, k]`.
    pub(crate) fn rows(
        &self,
        ids: &Region,
        [batch, seq]: [usize; 2],
        scale: Option<f32>,
    ) -> Result<DeviceRows> {
        let out = self.space.acquire_elements(batch * seq * self.k)?;
        Embed {
            dtype: self.space.dtype,
            table: &self.weight,
            vocab: self.n,
            hidden: self.k,
            ids,
            rows: batch * seq,
            scale,
            add: false,
            out: &out,
        }
        .launch()?;
        Ok(DeviceRows::within(&self.space, out, [batch, seq, self.k], false))
    }
}

/// Gate and up projections of a gated MLP in one weight, and the gate's activation.
pub(crate) struct DeviceGateUp {
    both: Arc<DeviceLinear>,
    activation: Activation,
}

impl DeviceGateUp {
    /// `both: [2 * n, k]`, the gate's rows first.
    pub(crate) fn new(both: DeviceLinear, activation: kernels::Activation) -> Self {
        Self { both: Arc::new(both), activation: activation.into() }
    }

    pub(crate) fn space(&self) -> &Arc<Space> {
        self.both.space()
    }

    fn n(&self) -> usize {
        self.both.n / 2
    }

    /// `xs: [.., k]` to `activation(gate(xs)) * up(xs)`, `[.., n]`.
    pub(crate) fn forward(&self, xs: &DeviceRows) -> Result<DeviceRows> {
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

    /// `[gate(xs), up(xs)]`, `[.., n]` each, without the activation.
    pub(crate) fn parts(&self, xs: &DeviceRows) -> Result<[DeviceRows; 2]> {
        let (rows, n) = (self.both.forward(xs)?, self.n());
        Ok([rows.part(0, n), rows.part(n, n)])
    }
}
