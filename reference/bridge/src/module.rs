//! The extension module `tfcheck_bridge`: torch and transformers, driven from Rust.

mod auto;
mod cached;
mod capture;
mod clock;
mod compile;
mod context;
mod descriptors;
mod dlpack;
mod failure;
mod float64;
mod forward;
mod generate;
mod ignored;
mod inputs;
mod load;
mod make;
mod memory;
mod output;
mod paused;
mod pictures;
mod processor;
mod report;
mod serve;
mod static_cache;
mod template;
mod time;
mod tokenize;
mod trace;

use pyo3::prelude::*;

/// Serves the protocol until an exit request arrives.
#[pyfunction]
fn main(py: Python<'_>) -> PyResult<()> {
    serve::serve(py)
}

/// Forks workers that serve the protocol.
#[pyfunction]
fn fork_workers(py: Python<'_>) -> PyResult<()> {
    template::serve(py)
}

#[pymodule]
fn tfcheck_bridge(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(main, module)?)?;
    module.add_function(wrap_pyfunction!(fork_workers, module)?)
}
