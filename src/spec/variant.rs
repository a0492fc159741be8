//! A variant (runner, version, mode, attention, dtype and device) and its names.

use reference::protocol::{Attention, Dtype, Mode, Positions};
use serde::{Deserialize, Serialize};

/// The kind of program that executes a variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Runner {
    /// A transformers version in its own environment.
    Transformers,
    /// tfcheck's own native models.
    Candle,
    /// The ports that candle-transformers ships.
    CandleTransformers,
    /// Any program that speaks the worker protocol.
    Command,
}

impl Runner {
    /// Whether the modules of its variants may be captured: a program may offer it, candle-transformers' ports do not.
    pub(crate) fn may_show_modules(self) -> bool {
        matches!(self, Self::Transformers | Self::Candle | Self::Command)
    }

    /// Whether it loads any checkpoint folder, so that it can be made to commit mistakes.
    pub(crate) fn loads_any_folder(self) -> bool {
        matches!(self, Self::Transformers | Self::Candle)
    }
}

/// The forward passes that a variant's logits come from, in a case of prefill and decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Prefill and decoding through the KV cache.
    Cached,
    /// One full-sequence forward pass over the same inputs.
    Full,
}

impl Way {
    /// What follows the variant's name in the name of its full-sequence forward pass.
    const FULL: &str = " in one pass";

    /// The name of these logits of `variant`, as runs store it and `tfcheck localize` takes it.
    pub fn name(self, variant: &str) -> String {
        match self {
            Self::Cached => variant.to_owned(),
            Self::Full => format!("{variant}{}", Self::FULL),
        }
    }

    /// The variant and the forward passes of such a name.
    pub fn parse(name: &str) -> (&str, Self) {
        name.strip_suffix(Self::FULL).map_or((name, Self::Cached), |variant| (variant, Self::Full))
    }
}

/// One way to compute a checkpoint's logits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Variant {
    /// What executes the variant.
    pub runner: Runner,
    /// The version's name (`4.54.0`, `transformers-fork`), `candle`, `candle-transformers`, or the command's name; also
    /// the name of its folder in a run.
    pub version: String,
    /// The execution mode.
    pub mode: Mode,
    /// Attention implementation; `None` if the runner has only one.
    pub attention: Option<Attention>,
    /// dtype of weights and activations; where [`Self::auto_dtype`] is set, of no meaning before the checkpoint is known.
    pub dtype: Dtype,
    /// Whether the dtype is the checkpoint's, selected by transformers itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub auto_dtype: bool,
    /// `cpu`, `cuda:0`, …
    pub device: String,
    /// True if the run has several dtypes or devices, so that names must include them.
    pub qualified: bool,
}

impl Variant {
    /// The name without the version, `eager_sdpa`, `fused`, `eager_sdpa_bf16`; file names contain it.
    pub fn note(&self) -> String {
        let mut note = mode_name(self.mode).to_owned();
        if let Some(attention) = self.attention {
            note.push('_');
            note.push_str(attention_name(attention));
        }
        if self.auto_dtype {
            note.push_str("_auto");
        } else if self.qualified {
            note.push('_');
            note.push_str(dtype_name(self.dtype));
        }
        if self.qualified && self.device != "cpu" {
            note.push('_');
            note.push_str(&self.device.replace(':', ""));
        }
        note
    }

    /// The variant's name in tables: `4.54.0_eager_sdpa`, `candle_fused`.
    pub fn name(&self) -> String {
        format!("{}_{}", self.version, self.note())
    }
}

/// `eager`, `compiled`, `frozen`, `reduce_overhead`, `max_autotune`, `fused`.
pub fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Eager => "eager",
        Mode::Compiled => "compiled",
        Mode::Frozen => "frozen",
        Mode::ReduceOverhead => "reduce_overhead",
        Mode::MaxAutotune => "max_autotune",
        Mode::Fused => "fused",
    }
}

/// `eager`, `sdpa`, `default`.
pub fn attention_name(attention: Attention) -> &'static str {
    match attention {
        Attention::Eager => "eager",
        Attention::Sdpa => "sdpa",
        Attention::Default => "default",
    }
}

/// `f64`, `f32`, `bf16`, `f16`.
pub fn dtype_name(dtype: Dtype) -> &'static str {
    measured_dtype(dtype).name()
}

/// Converts a protocol dtype to one of the crate `compare`.
pub fn measured_dtype(dtype: Dtype) -> compare::Dtype {
    match dtype {
        Dtype::F64 => compare::Dtype::F64,
        Dtype::F32 => compare::Dtype::F32,
        Dtype::Bf16 => compare::Dtype::Bf16,
        Dtype::F16 => compare::Dtype::F16,
    }
}

/// Converts a dtype of the crate `compare` to one of the protocol.
pub fn variant_dtype(dtype: compare::Dtype) -> Dtype {
    match dtype {
        compare::Dtype::F64 => Dtype::F64,
        compare::Dtype::F32 => Dtype::F32,
        compare::Dtype::Bf16 => Dtype::Bf16,
        compare::Dtype::F16 => Dtype::F16,
    }
}

/// Converts protocol positions to those of the crate `compare`.
pub fn measured_positions(positions: Positions) -> compare::Positions {
    match positions {
        Positions::All => compare::Positions::All,
        Positions::Last => compare::Positions::Last,
    }
}
