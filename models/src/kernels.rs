//! CPU kernels of the fused backend. They read and write plain slices of f32 or bf16 ([`Element`]).
//!
//! A forward pass uses one [`Pool`] and one [`Arena`]. Weights are packed once at load ([`PackedLinear`],
//! [`PackedGateUp`]); keys and values are stored in a [`KvCache`] in the layout that the attention kernel reads.
//! After the first forward pass of a shape the kernels allocate nothing. Every kernel is written once over the vector
//! trait of `simd.rs` and runs at the instruction level that the machine has: AVX-512 with or without bf16, AVX2, or
//! portable.
//!
//! Sums are f32 in all kernels; a result is rounded once to the element type. `vdpbf16ps` treats subnormal numbers as
//! zero.

#![expect(
    clippy::inline_always,
    reason = "what an `Op` calls inherits the level's target features only by being inlined"
)]

mod arena;
mod attention;
mod cache;
mod element;
mod elementwise;
mod interleave;
mod linear;
mod math;
mod norm;
mod packing;
mod pool;
mod rope;
pub mod simd;
mod tile;

#[cfg(test)]
pub(crate) mod tests;

pub use arena::{AlignedBuf, Arena, ArenaPlan, Plain, Slot};
pub use attention::{Attention, Band, Relative, attention};
pub use cache::{CacheShape, KvCache, MAX_HEAD_DIM};
pub use element::Element;
pub use elementwise::{Embedding, TokenOutOfRange, activate, add, embed, multiply, scale, softcap, softmax};
pub use linear::Epilogue;
pub use math::Activation;
pub use norm::Norm;
pub use packing::{PackedGateUp, PackedLinear, Packing};
pub use pool::Pool;
pub use rope::{Pairing, QkvLayout, RopeTable, rope_into_cache};
