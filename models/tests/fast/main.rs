//! What holds for native models on the CPU: `cargo t` runs it.

mod golden;
mod laws;
mod lists;
mod load;
