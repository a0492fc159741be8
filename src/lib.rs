//! tfcheck runs one checkpoint and one frozen input through many variants of a transformer and says
//! who computes what, how fast, and who is wrong.
//!
//! Each module imports only modules above it in this list; `tests/layers.rs` holds that.

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
