//! First divergence: bugs planted in native checkpoints are localised to the right module.

mod cli;
mod native;
mod sequences;
