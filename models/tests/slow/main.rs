//! The fused form on a GPU, which is the emulated one: every synthetic checkpoint in every dtype gives what the CPU gives
//! in F64, whatever is padding, cached, recorded or looked at.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod checkpoints;
mod memory;
mod numbers;
mod probes;
mod strict;
