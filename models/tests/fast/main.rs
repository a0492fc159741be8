//! Tests of the native models on the CPU; `cargo t` runs them.

mod dual_encoders;
mod golden;
mod image_texts;
mod laws;
mod lists;
mod load;
mod sequences;
mod speech;
mod towers;
