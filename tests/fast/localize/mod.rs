//! First divergence: bugs planted in native checkpoints are localised to the right module, and rounding is never one.

mod cli;
mod native;
