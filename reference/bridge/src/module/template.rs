//! A process that forks workers after it has imported torch and transformers, which takes seconds.

use std::ffi::CString;

use pyo3::prelude::*;
use pyo3::types::PyModule;

use super::{descriptors, serve};

/// Forks workers until tfcheck has ended. Each worker serves the protocol until an exit request arrives.
pub(super) fn serve(py: Python<'_>) -> PyResult<()> {
    let code = CString::new(include_str!("template.py"))?;
    let module = PyModule::from_code(py, &code, c"tfcheck_template.py", c"tfcheck_template")?;
    let (requests, replies) = descriptors::numbers()?;
    // Returns in a worker, whose pipes have these numbers then.
    module.call_method1("serve", (requests, requests, replies))?;
    serve::serve(py)
}
