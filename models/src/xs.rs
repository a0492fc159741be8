//! The value that flows between layers.

use std::sync::Arc;

use candle_core::Tensor;

use crate::cuda::{DeviceRows, Space};
use crate::error::Result;
use crate::fused::{Float, Host, Rows, Slot};

/// The value that flows between layers, `[batch, seq, features]`.
///
/// Model files pass the value between layers and never read it; only layers access its contents.
#[derive(Clone)]
pub struct Xs(Value);

/// The contents of an [`Xs`].
#[derive(Clone)]
pub(crate) enum Value {
    /// The eager backend's value.
    Tensor(Tensor),
    /// The fused backend's value.
    Fused(Rows),
}

impl Xs {
    /// The value as a tensor. The fused backend copies it at most once, from a GPU by a download.
    ///
    /// # Errors
    /// If a GPU fails.
    pub fn tensor(&self) -> Result<&Tensor> {
        match &self.0 {
            Value::Tensor(tensor) => Ok(tensor),
            Value::Fused(rows) => rows.tensor(),
        }
    }

    /// The value as a tensor, by value.
    ///
    /// # Errors
    /// If a GPU fails.
    pub fn into_tensor(self) -> Result<Tensor> {
        match self.0 {
            Value::Tensor(tensor) => Ok(tensor),
            Value::Fused(rows) => rows.into_tensor(),
        }
    }

    /// A copy of the value for a probe. A deferred operation stays deferred, so that observing does not change which
    /// kernels run.
    pub(crate) fn observed(&self) -> Result<Tensor> {
        match &self.0 {
            Value::Tensor(tensor) => Ok(tensor.clone()),
            Value::Fused(rows) => rows.observed(),
        }
    }

    pub(crate) fn value(&self) -> &Value {
        &self.0
    }

    pub(crate) fn into_value(self) -> Value {
        self.0
    }

    /// The value as rows on the CPU, copied only if it is a tensor.
    pub(crate) fn slot<T: Float>(&self, host: &Arc<Host>) -> Result<Slot<T>> {
        if let Value::Fused(rows) = &self.0
            && let Some(slot) = T::slot(rows)
        {
            return Ok(slot.clone());
        }
        Slot::from_tensor(host, self.tensor()?)
    }

    /// The value as rows on a GPU, uploaded only if it is a tensor.
    pub(crate) fn device_rows(&self, space: &Arc<Space>) -> Result<DeviceRows> {
        match &self.0 {
            Value::Fused(Rows::Gpu(rows)) => Ok(rows.clone()),
            _ => DeviceRows::from_tensor(space, self.tensor()?),
        }
    }
}

impl From<Tensor> for Xs {
    fn from(tensor: Tensor) -> Self {
        Self(Value::Tensor(tensor))
    }
}

impl From<Value> for Xs {
    fn from(value: Value) -> Self {
        Self(value)
    }
}

impl From<Rows> for Xs {
    fn from(rows: Rows) -> Self {
        Self(Value::Fused(rows))
    }
}

impl<T: Float> From<Slot<T>> for Xs {
    fn from(slot: Slot<T>) -> Self {
        T::rows(slot).into()
    }
}

impl From<DeviceRows> for Xs {
    fn from(rows: DeviceRows) -> Self {
        Rows::Gpu(rows).into()
    }
}
