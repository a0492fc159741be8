//! Tests of the native models on the CPU; `cargo t` runs them.

mod golden;
mod laws;
mod lists;
mod load;
