//! Inputs beside tokens: images, sound, the tokens of a decoder, labels, and whatever a file holds.

use std::collections::BTreeMap;

use safetensors::tensor::Dtype;
use serde::{Deserialize, Serialize};

/// A tensor that a model gets beside its tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tensor {
    /// Element type, as safetensors writes it.
    pub dtype: Dtype,
    /// Length of each axis.
    pub shape: Vec<usize>,
    /// The elements in C order, little-endian.
    #[serde(skip)]
    pub bytes: Vec<u8>,
}

/// Tensors by the names of the model's arguments.
pub type Tensors = BTreeMap<String, Tensor>;

impl Tensor {
    /// A tensor of f32 values.
    pub(super) fn floats(shape: Vec<usize>, values: impl IntoIterator<Item = f32>) -> Self {
        let bytes = values.into_iter().flat_map(f32::to_le_bytes).collect();
        Self { dtype: Dtype::F32, shape, bytes }
    }

    /// A tensor of i64 values.
    pub(super) fn integers(shape: Vec<usize>, values: impl IntoIterator<Item = i64>) -> Self {
        let bytes = values.into_iter().flat_map(i64::to_le_bytes).collect();
        Self { dtype: Dtype::I64, shape, bytes }
    }

    /// The values of an i64 tensor; `None` for another dtype.
    pub(super) fn to_integers(&self) -> Option<Vec<i64>> {
        let whole = self.bytes.as_chunks::<8>().0;
        (self.dtype == Dtype::I64).then(|| whole.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect())
    }

    /// `f32 2 × 3 × 32 × 32`.
    pub fn said(&self) -> String {
        let axes: Vec<String> = self.shape.iter().map(ToString::to_string).collect();
        format!("{} {}", format!("{:?}", self.dtype).to_lowercase(), axes.join(" × "))
    }
}
