//! Imports without garbage collection.

use pyo3::prelude::*;
use pyo3::types::PyModule;

/// Pauses Python's cyclic garbage collector until it is dropped. Importing torch and transformers makes many objects and little
/// garbage, and takes a sixth longer with the collector.
pub(super) struct Paused<'py>(Bound<'py, PyModule>);

impl<'py> Paused<'py> {
    pub(super) fn collector(py: Python<'py>) -> PyResult<Self> {
        let gc = py.import("gc")?;
        gc.call_method0("disable")?;
        Ok(Self(gc))
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        // It has no way to fail.
        let _ = self.0.call_method0("enable");
    }
}
