//! Tests the fused backend on the emulated GPU: every synthetic checkpoint in every dtype matches the CPU in F64, with
//! padding, through a cache, with graph capture and with a probe.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod checkpoints;
mod emulator;
mod memory;
mod numbers;
mod probes;
mod strict;
