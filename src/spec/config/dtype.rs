//! The grammar of a dtype in `dtypes`.

use std::fmt;
use std::str::FromStr;

use reference::protocol::Dtype;
use serde::{Deserialize, Serialize};

use super::SourceError;
use crate::spec::variant::dtype_name;

/// The dtype that weights are loaded in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum LoadDtype {
    /// The checkpoint's, as `dtype="auto"` selects it in transformers.
    Auto,
    /// This one.
    Named(Dtype),
}

impl LoadDtype {
    /// Every dtype that `dtypes` can list.
    pub const ALL: [Self; 5] = [
        Self::Named(Dtype::F64),
        Self::Named(Dtype::F32),
        Self::Named(Dtype::Bf16),
        Self::Named(Dtype::F16),
        Self::Auto,
    ];
}

impl From<Dtype> for LoadDtype {
    fn from(dtype: Dtype) -> Self {
        Self::Named(dtype)
    }
}

impl fmt::Display for LoadDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Named(dtype) => dtype_name(*dtype),
        })
    }
}

impl FromStr for LoadDtype {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        Self::ALL
            .into_iter()
            .find(|dtype| dtype.to_string() == text)
            .ok_or_else(|| SourceError(format!("`{text}` is not a dtype; write f64, f32, bf16, f16 or auto")))
    }
}

impl TryFrom<String> for LoadDtype {
    type Error = SourceError;

    fn try_from(text: String) -> Result<Self, SourceError> {
        text.parse()
    }
}

impl From<LoadDtype> for String {
    fn from(dtype: LoadDtype) -> Self {
        dtype.to_string()
    }
}
