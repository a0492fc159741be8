//! The CUDA kernels of the fused backend and their launches.
//!
//! A kernel takes one struct by value. [`Source::text`] adds static assertions that its layouts in Rust and in the
//! `.cu` file are equal. Each launch type below holds regions and shapes; `launch` checks that each region has room for
//! its shape. Values that change between forward passes (slots, positions, ranges of keys) are in device memory, so
//! that a captured CUDA graph can be launched again with other values.
//!
//! Weights are `[n, k]` row-major, as in checkpoints. The cache of a layer is two regions
//! `[batch, kv_heads, capacity, head_dim]`. Norm weights are F32; gemma's include the added 1.

mod attention;
mod elementwise;
mod embed;
mod experts;
mod gemv;
mod launch;
mod layout;
mod norm;
mod rope;

pub use attention::{Attention, AttentionBias};
pub use elementwise::{Activation, Cast, CopyColumns, Gate, Map, MapOp, MeanOfRealTokens, Softmax};
pub use embed::Embed;
pub use experts::{ExpertRows, GroupedMatMul, MixExperts, Route, RouterScores};
pub use gemv::{Gemv, GemvEpilogue, RowNorm};
pub use layout::{CacheRegions, MAX_HEAD_DIM, PassState, QkvLayout, Visible};
pub use norm::{Norm, NormForm};
pub use rope::{HeadNorm, RopeIntoCache, RopeTables};

pub use super::kernel_id::{KernelId, Source};

use super::dtype::Dtype;

impl Source {
    /// The file name.
    pub const fn name(self) -> &'static str {
        self.parts().0
    }

    /// Complete CUDA source for the kernels of these element types; it includes no header files. Compiling one type at
    /// a time takes a third of the time.
    pub fn text(self, dtypes: &[Dtype]) -> String {
        self.text_after(include_str!("kernels/device.cuh"), dtypes)
    }

    /// As [`Source::text`], with `device` in place of `device.cuh`.
    pub(super) fn text_after(self, device: &str, dtypes: &[Dtype]) -> String {
        let (name, text, layouts) = self.parts();
        let mut all = String::new();
        for dtype in dtypes {
            all.extend(["#define WITH_", &dtype.suffix().to_uppercase(), "\n"]);
        }
        for (file, text) in
            [("device", device), ("common.cuh", include_str!("kernels/common.cuh")), (name, text)]
        {
            all.extend(["#line 1 \"", file, "\"\n", text, "\n"]);
        }
        for layout in layouts {
            all.push_str(&layout());
        }
        all
    }

    /// File name, text, and layout assertions of its structs.
    const fn parts(self) -> (&'static str, &'static str, Layouts) {
        match self {
            Self::Embed => ("embed.cu", include_str!("kernels/embed.cu"), embed::LAYOUTS),
            Self::Norm => ("norm.cu", include_str!("kernels/norm.cu"), norm::LAYOUTS),
            Self::Rope => (
                "rope.cu",
                concat!(include_str!("kernels/rope.cuh"), include_str!("kernels/rope.cu")),
                rope::LAYOUTS,
            ),
            Self::Prefill => (
                "prefill.cu",
                concat!(include_str!("kernels/attention.cuh"), include_str!("kernels/prefill.cu")),
                attention::LAYOUTS,
            ),
            Self::PrefillF32 => (
                "prefill_f32.cu",
                concat!(include_str!("kernels/attention.cuh"), include_str!("kernels/prefill_f32.cu")),
                attention::LAYOUTS,
            ),
            Self::Decode => (
                "decode.cu",
                concat!(
                    include_str!("kernels/attention.cuh"),
                    include_str!("kernels/rope.cuh"),
                    include_str!("kernels/decode.cu")
                ),
                attention::DECODE_LAYOUTS,
            ),
            Self::Gemv => ("gemv.cu", include_str!("kernels/gemv.cu"), gemv::LAYOUTS),
            Self::Elementwise => {
                ("elementwise.cu", include_str!("kernels/elementwise.cu"), elementwise::LAYOUTS)
            }
            Self::Experts => ("experts.cu", include_str!("kernels/experts.cu"), experts::LAYOUTS),
            Self::Grouped => ("grouped.cu", include_str!("kernels/grouped.cu"), experts::GROUPED_LAYOUTS),
        }
    }

    /// The kernels of this file.
    pub fn kernels(self) -> impl Iterator<Item = KernelId> {
        let groups: [&[[KernelId; 3]]; 8] = [
            embed::KERNELS,
            norm::KERNELS,
            rope::KERNELS,
            attention::KERNELS,
            gemv::KERNELS,
            elementwise::KERNELS,
            experts::KERNELS,
            &[],
        ];
        groups.into_iter().flatten().flatten().copied().filter(move |kernel| kernel.source == self)
    }
}

/// Functions that return C++ static assertions of struct layouts.
type Layouts = &'static [fn() -> String];
