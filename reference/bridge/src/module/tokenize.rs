//! The version's own tokenizer, whose ids are compared with the run's inputs.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::failure::Stop;
use protocol::{Tokenize, Tokenized};

/// Token ids of each text from `AutoTokenizer`.
pub(super) fn tokenize(py: Python<'_>, request: &Tokenize) -> Result<Tokenized, Stop> {
    let keywords = PyDict::new(py);
    keywords.set_item("local_files_only", true)?;
    keywords.set_item("trust_remote_code", false)?;
    let tokenizer = py.import("transformers")?.getattr("AutoTokenizer")?.call_method(
        "from_pretrained",
        (request.checkpoint.as_os_str(),),
        Some(&keywords),
    )?;
    let keywords = PyDict::new(py);
    keywords.set_item("add_special_tokens", request.add_special_tokens)?;
    let ids = request
        .texts
        .iter()
        .map(|text| tokenizer.call_method("encode", (text,), Some(&keywords))?.extract())
        .collect::<PyResult<Vec<Vec<i64>>>>()?;
    Ok(Tokenized { ids, class: tokenizer.get_type().name()?.to_string() })
}
