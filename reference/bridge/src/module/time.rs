//! A round of timed passes.

use pyo3::prelude::*;

use super::failure::Stop;
use super::load::Loaded;
use super::{forward, memory};
use crate::protocol::{Time, Timed};

/// Warms up and times; every pass drops its result before the next.
pub(super) fn time(py: Python<'_>, loaded: &Loaded, request: &Time) -> Result<Timed, Stop> {
    for _ in 0..request.warm_up {
        forward::pass(py, loaded)?;
    }
    let mut samples_ns = Vec::with_capacity(request.iterations);
    for _ in 0..request.iterations {
        let (_, elapsed) = forward::pass(py, loaded)?;
        samples_ns.push(elapsed.as_nanos() as u64);
    }
    Ok(Timed { samples_ns, peak_bytes: memory::peak_bytes(loaded.torch.bind(py), &loaded.device)? })
}
