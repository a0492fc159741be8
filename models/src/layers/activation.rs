//! Activation functions by their exact definitions.

use candle_core::Tensor;
use serde_json::Value as Json;

use super::rounded;
use crate::config::ConfigReader;
use crate::error::Result;
use crate::fused::{Room, finished};
use crate::kernels::{self, Epilogue};
use crate::pass::Pass;
use crate::xs::{Value, Xs};

/// An activation, as `transformers/activations.py` (5.23.0) defines the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `silu`, `swish`: `x / (1 + exp(-x))`.
    Silu,
    /// `gelu`, `gelu_python`: `x / 2 * (1 + erf(x / sqrt(2)))`.
    Gelu,
    /// `gelu_pytorch_tanh`, `gelu_python_tanh`, `gelu_new`, `gelu_accurate`: `x / 2 * (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    GeluTanh,
    /// `gelu_fast`: the same with `sqrt(2/pi)` truncated to ten digits.
    GeluFast,
    /// `quick_gelu`: `x / (1 + exp(-1.702 x))`.
    QuickGelu,
    /// `relu`: `max(x, 0)`.
    Relu,
    /// `relu2`: `max(x, 0)^2`.
    ReluSquared,
    /// `tanh`.
    Tanh,
}

impl Activation {
    /// Reads the activation's name from `key`, or from `default` if the key is absent.
    ///
    /// # Errors
    /// If the name is unknown.
    pub fn read(config: &ConfigReader, key: &str, default: &str) -> Result<Self> {
        let name = config.str_or(key, default)?;
        Ok(match name {
            "silu" | "swish" => Self::Silu,
            "gelu" | "gelu_python" => Self::Gelu,
            "gelu_pytorch_tanh" | "gelu_new" | "gelu_accurate" | "gelu_python_tanh" => Self::GeluTanh,
            "gelu_fast" => Self::GeluFast,
            "quick_gelu" => Self::QuickGelu,
            "relu" => Self::Relu,
            "relu2" => Self::ReluSquared,
            "tanh" => Self::Tanh,
            _ => return Err(config.unknown(key, &Json::from(name))),
        })
    }

    /// Applies the activation as the module `path`.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn forward(self, pass: &mut Pass, path: &str, xs: &Xs) -> Result<Xs> {
        pass.module(path, xs.clone(), |_, xs| self.inline(&xs))
    }

    /// Applies the activation without a module, as transformers does where it calls a function.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn inline(self, xs: &Xs) -> Result<Xs> {
        let epilogue = Epilogue::Activate(self.kernel());
        match xs.value() {
            Value::Tensor(xs) => Ok(self.apply(xs)?.into()),
            Value::Fused(xs) => finished(xs.clone(), epilogue, Room::Now).map(Xs::from),
        }
    }

    /// The kernel of the fused backend; in F32 the truncated constant of `gelu_fast` makes no difference.
    pub(crate) fn kernel(self) -> kernels::Activation {
        match self {
            Self::Silu => kernels::Activation::Silu,
            Self::Gelu => kernels::Activation::GeluErf,
            Self::GeluTanh | Self::GeluFast => kernels::Activation::GeluTanh,
            Self::QuickGelu => kernels::Activation::QuickGelu,
            Self::Relu => kernels::Activation::Relu,
            Self::ReluSquared => kernels::Activation::ReluSquared,
            Self::Tanh => kernels::Activation::Tanh,
        }
    }

    /// Applies the activation to a tensor of any shape; computed in F32 for 16-bit dtypes and rounded once.
    pub(super) fn apply(self, xs: &Tensor) -> Result<Tensor> {
        rounded(xs, |xs| match self {
            Self::Silu => xs.silu(),
            Self::Gelu => xs.gelu_erf(),
            Self::GeluTanh => xs.gelu(),
            Self::GeluFast => {
                let inner = ((xs.sqr()? * 0.044_715)? + 1.0)?;
                let inner = (xs * 0.797_884_560_8)?.mul(&inner)?;
                (xs * 0.5)? * (inner.tanh()? + 1.0)?
            }
            Self::QuickGelu => xs / ((xs * -1.702)?.exp()? + 1.0)?,
            Self::Relu => xs.relu(),
            Self::ReluSquared => xs.relu()?.sqr(),
            Self::Tanh => xs.tanh(),
        })
    }
}
