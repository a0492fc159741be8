//! First divergence: planted faults are localised to the right module, and rounding is never one.

#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

mod cli;
mod engine;
mod forks;
mod native;
mod planted_rounding;
mod plants;
mod rounding;
mod routers;
mod setting;
#[path = "../support/mod.rs"]
mod support;
mod twins;
