//! A checkpoint that the release's own class makes: its weights have the names and shapes under which the release saves
//! them. tfcheck then draws their values.

use std::ffi::CString;

use pyo3::exceptions::PyAttributeError;
use pyo3::prelude::*;

use super::failure::Stop;
use protocol::Make;

/// Constructs the class from its config and saves the model.
pub(super) fn make(py: Python<'_>, request: &Make) -> Result<(), Stop> {
    let model = match &request.class {
        Some(class) => of_class(py, class, request)?,
        None => small(py, request)?,
    };
    model.call_method1("save_pretrained", (request.folder.as_os_str(),))?;
    Ok(())
}

fn of_class<'py>(py: Python<'py>, class: &str, request: &Make) -> Result<Bound<'py, PyAny>, Stop> {
    // Tensors that tfcheck leaves as they are may be initialised at random.
    py.import("torch")?.call_method1("manual_seed", (request.seed,))?;
    let transformers = py.import("transformers")?;
    let found = transformers.getattr(class).map_err(|error| {
        if !error.is_instance_of::<PyAttributeError>(py) {
            return Stop::from(error);
        }
        let version = transformers.getattr("__version__").map(|version| version.to_string());
        Stop::unsupported(format!("transformers {} has no class {class}", version.unwrap_or_default()))
    })?;
    let values = py.import("json")?.call_method1("loads", (&request.config,))?;
    let config = found.getattr("config_class")?.call_method1("from_dict", (values,))?;
    Ok(found.call1((config,))?)
}

/// A small model of a `model_type` from the release's own defaults.
fn small<'py>(py: Python<'py>, request: &Make) -> Result<Bound<'py, PyAny>, Stop> {
    let code = CString::new(include_str!("small.py"))
        .map_err(|error| Stop::exception(format!("small.py: {error}")))?;
    let module = PyModule::from_code(py, &code, c"tfcheck_small.py", c"tfcheck_small")?;
    let config = py.import("json")?.call_method1("loads", (&request.config,))?;
    let model_type = config.get_item("model_type")?;
    Ok(module.call_method1("make", (model_type, request.seed))?)
}
