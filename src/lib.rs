//! tfcheck runs one checkpoint and one frozen input through many variants of a transformer and says
//! who computes what, how fast, and who is wrong.

pub mod against;
pub mod app;
mod atomic;
pub mod baseline;
pub mod bench;
pub mod bisect;
pub mod checkpoint;
pub mod cli;
pub mod compare;
pub mod compare_runs;
pub mod config;
pub mod explain;
pub mod gates;
pub mod gpu_check;
pub mod history;
pub mod inputs;
pub mod localize;
pub mod machine;
pub mod outcome;
pub mod plan;
pub mod progress;
pub mod record;
pub mod report;
pub mod results;
pub mod run;
pub mod runner;
pub mod schedule;
pub mod scoreboard;
pub mod summary;
pub mod timing;
pub mod variant;
pub mod worker;
pub mod yardstick;

/// The test of a port against a recording of `tfcheck record`; crate `tfcheck-assert` has it alone.
pub use tfcheck_assert::assert_port;
