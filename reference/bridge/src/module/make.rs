//! A checkpoint that the release's own class makes: its weights have the names and shapes under which the release saves
//! them. tfcheck then draws their values.

use pyo3::exceptions::PyAttributeError;
use pyo3::prelude::*;

use super::failure::Stop;
use protocol::Make;

/// Constructs the class from its config and saves the model.
pub(super) fn make(py: Python<'_>, request: &Make) -> Result<(), Stop> {
    // Tensors that tfcheck leaves as they are may be initialised at random.
    py.import("torch")?.call_method1("manual_seed", (request.seed,))?;
    let transformers = py.import("transformers")?;
    let class = transformers.getattr(request.class.as_str()).map_err(|error| {
        if !error.is_instance_of::<PyAttributeError>(py) {
            return Stop::from(error);
        }
        let version = transformers.getattr("__version__").map(|version| version.to_string());
        Stop::unsupported(format!(
            "transformers {} has no class {}",
            version.unwrap_or_default(),
            request.class
        ))
    })?;
    let values = py.import("json")?.call_method1("loads", (&request.config,))?;
    let config = class.getattr("config_class")?.call_method1("from_dict", (values,))?;
    let model = class.call1((config,))?;
    model.call_method1("save_pretrained", (request.folder.as_os_str(),))?;
    Ok(())
}
