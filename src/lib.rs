//! tfcheck runs one checkpoint and one frozen input through many variants of a transformer and says
//! who computes what, how fast, and who is wrong.

pub mod cli;
pub mod config;
pub mod machine;
pub mod outcome;
pub mod plan;
pub mod progress;
pub mod checkpoint;
pub mod inputs;
pub mod results;
pub mod runner;
pub mod schedule;
pub mod compare;
pub mod report;
pub mod results;
pub mod timing;
pub mod variant;
pub mod worker;
