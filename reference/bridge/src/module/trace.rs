//! One profiled forward pass as a Chrome trace.

use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyList, PyTuple};

use super::context::within;
use super::failure::Stop;
use super::forward;
use super::load::Loaded;
use protocol::Trace;

/// Profiles one forward pass; in eager mode every module has a range.
pub(super) fn trace(py: Python<'_>, loaded: &Loaded, request: &Trace) -> Result<(), Stop> {
    let profiler = py.import("torch.profiler")?;
    let kinds = profiler.getattr("ProfilerActivity")?;
    let activities = PyList::new(py, [kinds.getattr("CPU")?])?;
    if loaded.device.starts_with("cuda") {
        activities.append(kinds.getattr("CUDA")?)?;
    }
    let keywords = PyDict::new(py);
    keywords.set_item("activities", activities)?;
    keywords.set_item("record_shapes", true)?;
    let profile = profiler.call_method("profile", (), Some(&keywords))?;
    // Hooks would cause graph breaks in a compiled model, whose kernels have names of their own.
    let hooks =
        if loaded.mode.is_compiled() { Vec::new() } else { name_modules(&profiler, loaded.model.bind(py))? };
    let result = within(&profile, || forward::pass(py, loaded));
    for hook in hooks {
        hook.call_method0("remove")?;
    }
    result?;
    let temporary = forward::temporary(&request.path);
    profile.call_method1("export_chrome_trace", (temporary.as_os_str(),))?;
    forward::publish(&temporary, &request.path)
}

/// Opens a profiler range, named by the module's path, around every module's forward; returns the hooks to
/// remove.
fn name_modules<'py>(
    profiler: &Bound<'py, PyModule>,
    model: &Bound<'py, PyAny>,
) -> PyResult<Vec<Bound<'py, PyAny>>> {
    let py = model.py();
    let range = profiler.getattr("record_function")?;
    // The hooks return None, because another value would replace the module's arguments or output. Modules
    // nest, so the range to close is the one opened last.
    let open: Arc<Mutex<Vec<Py<PyAny>>>> = Arc::default();
    let mut hooks = Vec::new();
    for item in model.call_method0("named_modules")?.try_iter()? {
        let (path, module): (String, Bound<'_, PyAny>) = item?.extract()?;
        if path.is_empty() {
            continue;
        }
        let (range, opened) = (range.clone().unbind(), Arc::clone(&open));
        let enter = PyCFunction::new_closure(
            py,
            None,
            None,
            move |arguments: &Bound<'_, PyTuple>, _: Option<&Bound<'_, PyDict>>| -> PyResult<Py<PyAny>> {
                let range = range.bind(arguments.py()).call1((path.as_str(),))?;
                range.call_method0("__enter__")?;
                if let Ok(mut opened) = opened.lock() {
                    opened.push(range.unbind());
                }
                Ok(arguments.py().None())
            },
        )?;
        let opened = Arc::clone(&open);
        let leave = PyCFunction::new_closure(
            py,
            None,
            None,
            move |arguments: &Bound<'_, PyTuple>, _: Option<&Bound<'_, PyDict>>| -> PyResult<Py<PyAny>> {
                let py = arguments.py();
                let range = opened.lock().ok().and_then(|mut opened| opened.pop());
                if let Some(range) = range {
                    let none = py.None();
                    range.call_method1(py, "__exit__", (&none, &none, &none))?;
                }
                Ok(py.None())
            },
        )?;
        hooks.push(module.call_method1("register_forward_pre_hook", (enter,))?);
        hooks.push(module.call_method1("register_forward_hook", (leave,))?);
    }
    Ok(hooks)
}
