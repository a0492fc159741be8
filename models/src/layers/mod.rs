//! The layers that several architectures share. Each layer has both backends, so that a model file is written once.
//!
//! # Adding an architecture
//! 1. Write `src/<model_type>.rs` in the order Config, Attention, Mlp, Block, Model; `llama.rs` is the plain example,
//!    `gemma3_text.rs` the one with several layer types. Add its `mod` line to `lib.rs`, its synthetic checkpoints to a
//!    table of `checkpoints/`, and its row to `registry.rs`. Every other list is derived from that row, or a test of
//!    `tests/fast/lists.rs` fails until the list has the architecture.
//! 2. `Config::read(&ConfigReader)` takes transformers' defaults for absent keys, cited by file and version; an unknown
//!    value is an error ([`ConfigReader::unknown`](crate::ConfigReader::unknown)). Do not read a key that you do not use:
//!    the run lists unread keys. Refuse a key that would change the computation in a way that you leave out
//!    (`refuse_unless`).
//! 3. Load every layer with [`Weights::pp`](crate::Weights::pp) under the checkpoint's own names; a layer keeps
//!    `weights.path()` as its module path. [`Weights::body`](crate::Weights::body) finds the weights of the model under a
//!    head, whether the checkpoint was saved with the head or without. Wrap your own modules' `forward` in
//!    [`Pass::module`](crate::Pass::module), so that a probe observes every boundary under transformers' path.
//! 4. A decoder loads through [`DecoderBody`], and [`DecoderEnds::forward`] runs embedding, your layers, final norm and
//!    head. Make rope tables ([`RotaryEmbedding::forward`]) and masks ([`Mask::causal`], [`Mask::bidirectional`]) once
//!    per pass and layer type. A block takes its `xs` by value and gives it to [`add`], so that the fused backend may add
//!    in place.
//!    A model of more than one sequence lists its further inputs in [`Model::inputs`](crate::Model::inputs), runs a part
//!    over another sequence with `Pass::over`, and its decoder attends to a [`Memory`] (`t5.rs`, `whisper.rs`, `clip.rs`), or
//!    it puts the result in the places of tokens ([`put_at`], `qwen2_vl.rs`).
//! 5. [`Xs`](crate::Xs) is opaque: use layers, and [`add`], [`scale`], [`soft_cap`], [`multiply`] between them. If you need
//!    another operation, add a layer for it here (in the eager backend with [`rounded`], so that 16-bit dtypes round once
//!    per operation as torch does), never tensor code in the model file.
//! 6. Repeat a layer before you add an option to a shared one.
//! 7. `tests/golden/make.py` writes tiny checkpoints and transformers' logits for them; add a case there. `tests/fast/laws.rs`
//!    tests every decoder that [`synthetic`](crate::synthetic) has; `tests/features.py` needs an entry for each new
//!    config key.
//! 8. `cargo run --release --example judge -- FOLDER...` compares checkpoints with the outputs that `tests/truth.py` wrote
//!    for them. Then change one feature of your file and check that the comparison fails.
//!
//! # The fused backend
//! `Weights::workspace` is present in the fused backend and absent in the eager one. A layer with fused kernels packs its
//! weights at load and works on buffers of the workspace (`fused.rs`); a layer without them reads
//! [`Xs::tensor`](crate::Xs::tensor) and returns a tensor, which costs a copy and is correct: the next fused layer copies
//! it into a buffer. So the eager code of a new layer is enough for both backends.
//!
//! The output of a [`Linear`] or of a norm of whole rows is deferred until it is read. [`add`] does not read it: the
//! deferred operation adds its result to the residual stream itself. [`scale`], [`soft_cap`] and an activation are folded
//! into it too. So a block is written as in the paper and runs without extra passes over memory.
//!
//! Most layers do not depend on the device: `fused.rs` dispatches each operation to the CPU kernels or to `cuda/`. On
//! a GPU a forward pass may be captured as a CUDA graph and launched again on other inputs. Therefore a layer must
//! not read values back from the GPU during the forward pass, and values that it computes on the host from the pass
//! (ids, tables, biases) go through `DevicePass::input`, which recomputes them for every forward pass. A layer that
//! reads a tensor on a GPU is correct, but its model's forward passes are not captured.
//!
//! # dtypes
//! In F64 everything is F64 (the oracle). In F32, BF16 and F16 the operations follow transformers 5.23.0's eager code:
//! norms, softmax and rope tables in F32, the rest in the model's dtype, one rounding per operation.

mod activation;
mod alibi;
mod attention;
mod convolution;
mod cross;
mod decoder;
mod elementwise;
mod embedding;
mod experts;
mod grid;
mod groups;
mod ids;
mod layer_norm;
mod linear;
mod mask;
mod mlp;
mod norm;
mod packed;
mod patches;
mod pooling;
mod relative;
mod rope;
mod rope_parameters;
mod segments;
mod similarity;
mod split;
mod unfused_linear;
mod wide_linear;
mod window;

pub use activation::Activation;
pub use alibi::Alibi;
pub use attention::Attention;
pub use convolution::Convolution;
pub use cross::Memory;
pub use decoder::{DecoderBody, DecoderEnds, FinalNorm};
pub use elementwise::{
    add, add_wide, clamp_f16, divide, limit_f16, multiply, residual, rounded, scale, soft_cap,
};
pub use embedding::Embedding;
pub use experts::{ExpertsConfig, RouterScores, SparseMoe};
pub use grid::{Grid, Stands, TokenPositions, patch_positions};
pub use groups::split_groups;
pub use ids::{position_ids, position_ids_after, token_type_ids};
pub use layer_norm::LayerNorm;
pub use linear::{Joined, Linear};
pub use mask::Mask;
pub use mlp::{GateUp, GatedMlp};
pub use norm::RmsNorm;
pub use patches::{FlatPatches, PatchEmbedding, after_token, merge_neighbours, put_at};
pub use pooling::{first_position, mean_of_real_tokens, one_per_row, position_of_each};
pub use relative::{Buckets, RelativeBias};
pub use rope::{Rope, RotaryEmbedding, Rotation};
pub use rope_parameters::{RopeParameters, RopeScaling};
pub(crate) use rope_parameters::{described, read_longrope};
pub use similarity::Similarity;
pub use split::split;
pub use unfused_linear::UnfusedLinear;
pub use wide_linear::WideLinear;
pub use window::{LayerType, PerLayerType};

use candle_core::DType;

/// The dtype in which sums are accumulated: F64 for F64, else F32.
pub(crate) fn accumulation(dtype: DType) -> DType {
    match dtype {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}
