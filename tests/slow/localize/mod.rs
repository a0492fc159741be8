//! First divergence: bugs planted in a fork of transformers are localised to the right module, and rounding is never one.

mod forks;
mod planted_rounding;
mod plants;
mod rounding;
mod twins;
