//! Classifies Python exceptions into the protocol's kinds of failure.

use std::io;

use pyo3::prelude::*;

use protocol::{Failed, FailedKind};

/// Why a request stopped: a Python exception, or an error raised by the bridge.
#[derive(Debug)]
pub(super) enum Stop {
    Raised(PyErr),
    Refused(Failed),
}

impl Stop {
    /// A request that the environment does not support.
    pub(super) fn unsupported(message: String) -> Self {
        Self::refused(FailedKind::Unsupported, message)
    }

    /// An error raised by the bridge.
    pub(super) fn exception(message: String) -> Self {
        Self::refused(FailedKind::Exception, message)
    }

    fn refused(kind: FailedKind, message: String) -> Self {
        Self::Refused(Failed { kind, error: String::new(), message, traceback: String::new() })
    }

    /// The protocol's failure, with type, message and traceback.
    pub(super) fn into_failed(self, py: Python<'_>) -> Failed {
        match self {
            Self::Refused(failed) => failed,
            Self::Raised(error) => {
                let name = error
                    .get_type(py)
                    .name()
                    .map_or_else(|_| "exception".to_owned(), |name| name.to_string());
                let text = error.value(py).to_string();
                Failed {
                    kind: kind(&name, &text),
                    message: first_line(&text),
                    traceback: traceback(py, &error).unwrap_or(text),
                    error: name,
                }
            }
        }
    }
}

impl From<PyErr> for Stop {
    fn from(error: PyErr) -> Self {
        Self::Raised(error)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::exception(error.to_string())
    }
}

/// Phrases of torch and transformers (4.40 to 5.23) that mean that a combination is not supported.
const UNSUPPORTED: [&str; 6] = [
    "not implemented for",
    "does not support an attention implementation",
    "scaled_dot_product_attention` yet",
    "Unrecognized configuration class",
    "not compiled with CUDA enabled",
    "No CUDA GPUs are available",
];
/// Phrases of a failed allocation.
const OUT_OF_MEMORY: [&str; 4] =
    ["out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory"];

fn kind(name: &str, text: &str) -> FailedKind {
    let says = |phrases: &[&str]| phrases.iter().any(|phrase| text.contains(phrase));
    if name == "OutOfMemoryError" || name == "MemoryError" || says(&OUT_OF_MEMORY) {
        FailedKind::OutOfMemory
    } else if name == "NotImplementedError" || says(&UNSUPPORTED) {
        FailedKind::Unsupported
    } else {
        FailedKind::Exception
    }
}

/// The full traceback as Python prints it, including causes.
fn traceback(py: Python<'_>, error: &PyErr) -> PyResult<String> {
    let lines: Vec<String> =
        py.import("traceback")?.call_method1("format_exception", (error.value(py),))?.extract()?;
    Ok(lines.concat())
}

/// The first non-empty line; if it ends with a colon, the next one is appended.
fn first_line(text: &str) -> String {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut said = lines.next().unwrap_or_default().to_owned();
    if let Some(next) = lines.next().filter(|_| said.ends_with(':')) {
        said = format!("{said} {next}");
    }
    // transformers asks for a request on its site after each of these.
    if let Some((what, _)) = said.split_once(" yet. Please request the support") {
        return what.to_owned();
    }
    said.chars().take(500).collect()
}
