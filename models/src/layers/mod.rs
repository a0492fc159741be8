//! What several architectures share. Each layer has both forms; a model file is written once.
//!
//! # Adding an architecture
//! 1. `src/<model_type>.rs`, in the order Config, Attention, Mlp, Block, Model; `llama.rs` is the plain
//!    example, `gemma3_text.rs` the one with several layer types. Add the `mod` line in `lib.rs` and the
//!    row in `registry.rs`, both sorted.
//! 2. `Config::read(&ConfigReader)`: transformers' defaults for absent keys, cited by file and version;
//!    an unknown value is an error ([`ConfigReader::unknown`](crate::ConfigReader::unknown)). Do not read
//!    a key that you do not use: unread keys are listed in the run. A key that would change the
//!    computation in a way that you leave out is refused with `refuse_unless`.
//! 3. Load every layer with [`Weights::pp`](crate::Weights::pp) under the checkpoint's own names; a layer
//!    keeps `weights.path()` as its module path. [`Weights::body`](crate::Weights::body) finds what lies under a
//!    head, saved with the head or without. Wrap your own modules' `forward` in
//!    [`Pass::module`](crate::Pass::module), so that a probe sees every boundary under transformers' path.
//! 4. `Model::forward`: embed [`Pass::input_ids`](crate::Pass::input_ids); make rope tables
//!    ([`RotaryEmbedding::forward`]) and masks ([`Mask::causal`], [`Mask::bidirectional`]) once a pass
//!    and per layer type; run the blocks; norm; head.
//!    A block takes its `xs` by value and gives it to [`add`], so that the fused form may add in place.
//! 5. [`Xs`](crate::Xs) is opaque: use layers, and [`add`], [`scale`], [`soft_cap`], [`multiply`] between
//!    them. If you need another operation, add a layer for it here (its eager form with [`rounded`], so
//!    that 16-bit dtypes round once an operation as torch does), never tensor code in the model file.
//! 6. Repeat a layer before you add an option to a shared one.
//! 7. Goldens: `tests/golden/make.py` writes tiny checkpoints and the logits of transformers; add a
//!    case there. `tests/laws.rs` takes every decoder that [`synthetic`](crate::synthetic) has.
//! 8. `cargo run --release --example judge -- FOLDER...` compares checkpoints with what `tests/truth.py`
//!    says of them. Then flip a feature of your file, and see that it says so.
//!
//! # The fused form
//! `Weights::workspace` is present in it and absent in the eager form. A layer that has a
//! fused form packs its weights at load and works on slots of the workspace (`fused.rs`) with `kernels`; one
//! that has none reads [`Xs::tensor`](crate::Xs::tensor) and gives a tensor, which costs a copy and is
//! right: the next fused layer adopts it. So a new layer is right in both forms from its eager form alone.
//!
//! What a [`Linear`] or a norm of whole rows gives is computed only when it is read. [`add`] does not read it but has
//! it added to the residual stream as it is computed, and [`scale`], [`soft_cap`] and an activation likewise change
//! what is written; so a block is written as in the paper and runs without passes between its layers.
//!
//! Most layers need not know where the fused form computes: `fused.rs` sends each operation to the CPU's kernels or to
//! `cuda/`. On a GPU a pass may be recorded and run again on other inputs, so nothing may be read back within it, and
//! what a layer computes on the host from the pass (ids, tables, biases) goes through `DevicePass::feed`, which computes
//! it anew for every pass. A layer that reads a tensor there is right, but its model's passes are not recorded.
//!
//! # dtypes
//! In F64 everything is F64 (the oracle). In F32, BF16 and F16 the operations follow transformers
//! 5.23.0's eager code: norms, softmax and rope tables in F32, the rest in the model's dtype, one
//! rounding an operation.

mod activation;
mod alibi;
mod attention;
mod decoder;
mod elementwise;
mod embedding;
mod experts;
mod groups;
mod ids;
mod layer_norm;
mod linear;
mod mask;
mod mlp;
mod norm;
mod packed;
mod pooling;
mod rope;
mod rope_parameters;
mod split;
mod unfused_linear;
mod window;

pub use activation::Activation;
pub use alibi::Alibi;
pub use attention::Attention;
pub use decoder::{DecoderBody, DecoderEnds, FinalNorm};
pub use elementwise::{add, divide, multiply, rounded, scale, soft_cap};
pub use embedding::Embedding;
pub use experts::{ExpertsConfig, RouterScores, SparseMoe};
pub use groups::split_groups;
pub use ids::{position_ids, position_ids_after, token_type_ids};
pub use layer_norm::LayerNorm;
pub use linear::{Joined, Linear};
pub use mask::Mask;
pub use mlp::GatedMlp;
pub use norm::RmsNorm;
pub use pooling::{first_position, mean_of_real_tokens, one_per_row};
pub use rope::{Rope, RotaryEmbedding, Rotation};
pub use rope_parameters::{RopeParameters, RopeScaling};
pub(crate) use rope_parameters::{described, read_longrope};
pub use split::split;
pub use unfused_linear::UnfusedLinear;
pub use window::{LayerType, PerLayerType};

use candle_core::DType;

/// The dtype in which sums are accumulated: F64 for F64, else F32.
pub(crate) fn accumulation(dtype: DType) -> DType {
    match dtype {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}
