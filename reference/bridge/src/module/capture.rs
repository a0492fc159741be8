//! Forward passes that write module inputs and outputs, or replay one module with a stored input.

use std::ffi::CString;
use std::path::Path;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde_json::Value;

use super::context::within;
use super::failure::Stop;
use super::forward;
use super::load::Loaded;
use protocol::{Capture, Captured, CapturedModule, Dtype, Replay, Replayed};

/// Runs one forward pass without capture and one with capture.
pub(super) fn capture(py: Python<'_>, loaded: &Loaded, request: &Capture) -> Result<Captured, Stop> {
    let module = module(py, loaded)?;
    let (plain, plain_time) = forward::compute(py, loaded, request.prefill, &request.chunks)?;
    let arguments =
        (request.folder.as_os_str(), request.modules.clone(), request.max_bytes, element(py, loaded)?);
    let writer = module.getattr("Writer")?.call1(arguments)?;
    let hooks = module.getattr("Hooks")?.call1((&loaded.model, &writer))?;
    let (captured, time) = within(&hooks, || forward::compute(py, loaded, request.prefill, &request.chunks))?;
    let unchanged = module.call_method1("same", (&plain[0].tensor, &captured[0].tensor))?.extract()?;
    let room: u64 = writer.getattr("room")?.extract()?;
    let records = py.import("json")?.call_method1("dumps", (writer.getattr("records")?,))?;
    let records: Value = serde_json::from_str(records.extract::<&str>()?)
        .map_err(|error| Stop::exception(format!("the captured modules: {error}")))?;
    let modules: Vec<CapturedModule> = serde_json::from_value(records)
        .map_err(|error| Stop::exception(format!("the captured modules: {error}")))?;
    Ok(Captured {
        modules,
        unchanged,
        bytes: request.max_bytes - room,
        elapsed_ns: time.as_nanos() as u64,
        plain_ns: plain_time.as_nanos() as u64,
    })
}

/// Runs a forward pass up to the end of the module, whose inputs are replaced by the stored tensors.
pub(super) fn replay(py: Python<'_>, loaded: &Loaded, request: &Replay) -> Result<Replayed, Stop> {
    let module = module(py, loaded)?;
    let element = element(py, loaded)?;
    let read = |file: &Path, shape: &[usize]| {
        module.call_method1("read", (file.as_os_str(), &element, shape.to_vec()))
    };
    let stored = read(&request.input, &request.shape)?;
    let further = PyDict::new(py);
    for argument in &request.further {
        further.set_item(&argument.name, read(&argument.input, &argument.shape)?)?;
    }
    let arguments = (&request.module, request.call, stored, further, request.output.as_os_str(), &element);
    let feeder = module.getattr("Feeder")?.call1(arguments)?;
    let hooks = module.getattr("Hooks")?.call1((&loaded.model, &feeder))?;
    let ended = within(&hooks, || forward::pass(py, loaded).map(drop));
    // The replay ends the forward pass with the exception `Finished`.
    match (feeder.getattr("shape")?.extract::<Option<Vec<usize>>>()?, ended) {
        (Some(shape), _) => Ok(Replayed { shape }),
        (None, Err(error)) => Err(error.into()),
        (None, Ok(())) => Err(Stop::exception(format!("{} has no call {}", request.module, request.call))),
    }
}

fn module<'py>(py: Python<'py>, loaded: &Loaded) -> Result<Bound<'py, PyModule>, Stop> {
    if loaded.mode.is_compiled() {
        return Err(Stop::unsupported("a compiled model has no modules to capture".into()));
    }
    let code = CString::new(include_str!("capture.py"))
        .map_err(|error| Stop::exception(format!("capture.py: {error}")))?;
    Ok(PyModule::from_code(py, &code, c"tfcheck_capture.py", c"tfcheck_capture")?)
}

/// The torch dtype in which tensors are stored.
fn element<'py>(py: Python<'py>, loaded: &Loaded) -> PyResult<Bound<'py, PyAny>> {
    loaded.torch.bind(py).getattr(if loaded.dtype == Dtype::F64 { "float64" } else { "float32" })
}
