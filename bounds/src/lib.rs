//! What every crate of tfcheck needs to handle untrusted data: the limits, files that are read within them, and foreign
//! text made fit to be shown.
//!
//! Checkpoints, hubs, workers, run folders and configs are untrusted. A size from them is compared with its limit in
//! [`limits`] before memory is allocated or a loop begins, a file that they name is opened by [`mod@file`] alone, and their
//! text reaches a terminal or a report through [`shown()`], [`lines()`] or [`styled()`] alone.

mod caught;
pub mod config;
pub mod file;
mod json;
pub mod limits;
mod shown;

pub use caught::caught;
pub use json::parse;
pub use limits::{Exceeded, Limit};
pub use shown::{lines, shown, styled};
