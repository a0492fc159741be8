//! A checkpoint's own processor: it makes the inputs of a run, and each release's is compared with them.

use std::ffi::CString;

use pyo3::prelude::*;

use super::failure::Stop;
use protocol::{MadeTensor, Prepare, Prepared};

/// Puts pictures, sounds and texts through the checkpoint's processor, and writes the tensors or compares them with frozen
/// ones.
pub(super) fn prepare(py: Python<'_>, request: &Prepare) -> Result<Prepared, Stop> {
    let code = CString::new(include_str!("processor.py"))
        .map_err(|error| Stop::exception(format!("processor.py: {error}")))?;
    let module = PyModule::from_code(py, &code, c"tfcheck_processor.py", c"tfcheck_processor")?;
    let arguments = (
        request.checkpoint.as_os_str(),
        request.texts.clone(),
        request.images.clone(),
        request.audio.clone(),
        request.chat,
    );
    let (class, texts, tensors): (String, Vec<String>, Bound<'_, PyAny>) =
        module.call_method1("prepare", arguments)?.extract()?;
    let compared = match (&request.frozen, &request.path) {
        (Some(frozen), _) => {
            type Row = (String, Option<f64>, Option<String>, Option<Vec<usize>>);
            let rows: Vec<Row> = module.call_method1("compare", (frozen.as_os_str(), tensors))?.extract()?;
            rows.into_iter()
                .map(|(name, relative_l2, problem, first)| MadeTensor { name, relative_l2, problem, first })
                .collect()
        }
        (None, Some(path)) => {
            module.call_method1("write", (tensors, path.as_os_str()))?;
            Vec::new()
        }
        (None, None) => return Err(Stop::exception("the tensors are neither written nor compared".into())),
    };
    Ok(Prepared { class, texts, compared })
}
