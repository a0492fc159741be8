//! A checkpoint that the release's own class makes: its weights have the names and shapes under which the release saves
//! them. tfcheck then draws their values.

use std::ffi::{CStr, CString};

use pyo3::exceptions::{PyAttributeError, PyValueError};
use pyo3::prelude::*;

use super::failure::Stop;
use protocol::Make;

/// Constructs the class from its config and saves the model, with inputs beside it if there is no class.
pub(super) fn make(py: Python<'_>, request: &Make) -> Result<(), Stop> {
    let Some(class) = &request.class else { return small(py, request) };
    of_class(py, class, request)?.call_method1("save_pretrained", (request.folder.as_os_str(),))?;
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

/// Saves a small model of a `model_type` from the release's own defaults, and inputs that it computes something of unless they
/// are tokens alone.
fn small(py: Python<'_>, request: &Make) -> Result<(), Stop> {
    let module = |code: &str, file: &CStr, name: &CStr| -> Result<_, Stop> {
        let code = CString::new(code).map_err(|error| Stop::exception(format!("{name:?}: {error}")))?;
        Ok(PyModule::from_code(py, &code, file, name)?)
    };
    // The second imports the first.
    module(include_str!("small_inputs.py"), c"tfcheck_small_inputs.py", c"tfcheck_small_inputs")?;
    let small = module(include_str!("small.py"), c"tfcheck_small.py", c"tfcheck_small")?;
    let config = py.import("json")?.call_method1("loads", (&request.config,))?;
    let saved = small.call_method1("save", (config, request.seed, request.folder.as_os_str()));
    saved.map_err(|error| {
        if error.is_instance_of::<PyValueError>(py) {
            // The module's own sentences.
            Stop::unsupported(error.value(py).to_string())
        } else {
            Stop::from(error)
        }
    })?;
    Ok(())
}
