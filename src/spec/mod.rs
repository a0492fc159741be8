//! What a run computes: config, checkpoint, inputs, variants, and the plan made from them.

pub(crate) mod atomic;
pub mod checkpoint;
pub mod config;
pub mod gate;
pub(crate) mod hash;
pub mod inputs;
pub mod machine;
pub(crate) mod nearest;
pub mod plan;
pub mod relations;
pub mod units;
pub mod variant;
