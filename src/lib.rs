//! tfcheck runs one checkpoint and one frozen input through many variants of a transformer and reports which variants
//! compute the same logits, which differ, and how fast each one is.
//!
//! Each module imports only modules above it in this list; `tests/fast/layers.rs` checks this.

pub mod spec;
pub mod execute;
pub mod results;
pub mod judge;
pub mod hunt;
pub mod report;
pub mod commands;
pub mod cli;
pub mod app;
#[doc(hidden)]
pub mod fuzzing;

/// The test of a port against a recording of `tfcheck record`, from the crate `tfcheck-port`.
pub use tfcheck_port::assert_port;
