//! Kernel identifiers: source file, element type, name.

use super::dtype::Dtype;

/// A translation unit: one `.cu` file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// `embed.cu`.
    Embed,
    /// `norm.cu`.
    Norm,
    /// `rope.cu`.
    Rope,
    /// `prefill.cu`: 16-bit attention on tensor cores.
    Prefill,
    /// `prefill_f32.cu`.
    PrefillF32,
    /// `decode.cu`.
    Decode,
    /// `gemv.cu`.
    Gemv,
    /// `elementwise.cu`.
    Elementwise,
    /// `experts.cu`.
    Experts,
    /// `grouped.cu`.
    Grouped,
}

impl Source {
    /// All sources.
    pub const ALL: [Self; 10] = [
        Self::Embed,
        Self::Norm,
        Self::Rope,
        Self::Prefill,
        Self::PrefillF32,
        Self::Decode,
        Self::Gemv,
        Self::Elementwise,
        Self::Experts,
        Self::Grouped,
    ];
}

/// An entry point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KernelId {
    /// Its source file.
    pub source: Source,
    /// Its element type, which [`Source::text`] must include.
    pub dtype: Dtype,
    /// Its `extern "C"` name.
    pub name: &'static str,
}

/// The kernels of one name: F32, BF16, F16.
pub(super) type Kernels = [KernelId; 3];

pub(super) const fn of(kernels: Kernels, dtype: Dtype) -> KernelId {
    match dtype {
        Dtype::F32 => kernels[0],
        Dtype::Bf16 => kernels[1],
        Dtype::F16 => kernels[2],
    }
}

/// The three kernels `<name>_f32`, `<name>_bf16` and `<name>_f16` of a source.
macro_rules! kernels {
    ($source:ident, $name:literal) => {
        [
            $crate::cuda::kernel_id::KernelId {
                source: $crate::cuda::kernel_id::Source::$source,
                dtype: $crate::cuda::dtype::Dtype::F32,
                name: concat!($name, "_f32"),
            },
            $crate::cuda::kernel_id::KernelId {
                source: $crate::cuda::kernel_id::Source::$source,
                dtype: $crate::cuda::dtype::Dtype::Bf16,
                name: concat!($name, "_bf16"),
            },
            $crate::cuda::kernel_id::KernelId {
                source: $crate::cuda::kernel_id::Source::$source,
                dtype: $crate::cuda::dtype::Dtype::F16,
                name: concat!($name, "_f16"),
            },
        ]
    };
}
pub(super) use kernels;
