//! float64 throughout a model.
//!
//! transformers casts norms, softmax, rope tables and router logits to float32 regardless of the dtype
//! (`LlamaRMSNorm`, `eager_attention_forward` and `LlamaRotaryEmbedding` of `modeling_llama.py`, 4.40 to
//! 5.23). A float64 model would then be accurate to seven digits only and could not be the oracle for f32.

use std::ffi::CString;

use pyo3::prelude::*;

use super::context::within;
use super::failure::Stop;
use super::report::listing;

/// Note on every model in f64.
pub(super) const NOTE: &str = "float64 throughout: transformers' casts to float32 (norms, softmax, rope tables) are widened to float64; times are not those of plain transformers";

/// The context manager under which a float64 model is built and run; empty for other dtypes.
pub(super) struct Float64 {
    module: Option<Py<PyModule>>,
    mode: Option<Py<PyAny>>,
}

impl Float64 {
    /// Replaces float32 by float64 if `wanted`; otherwise changes nothing.
    pub(super) fn new(py: Python<'_>, wanted: bool) -> Result<Self, Stop> {
        if !wanted {
            return Ok(Self { module: None, mode: None });
        }
        let code = CString::new(include_str!("float64.py"))
            .map_err(|error| Stop::exception(format!("float64.py: {error}")))?;
        let module = PyModule::from_code(py, &code, c"tfcheck_float64.py", c"tfcheck_float64")?;
        let mode = module.getattr("Float64")?.call0()?.unbind();
        Ok(Self { module: Some(module.unbind()), mode: Some(mode) })
    }

    /// Runs `body` under the context manager.
    pub(super) fn within<T>(&self, py: Python<'_>, body: impl FnOnce() -> PyResult<T>) -> PyResult<T> {
        match &self.mode {
            Some(mode) => within(mode.bind(py), body),
            None => body(),
        }
    }

    /// Prepares a model that was built inside [`Self::within`]: the experts of 5.x run one by one, because
    /// their grouped matrix product does not support float64, and tensors that the release keeps in another
    /// dtype are widened, which loses nothing. Returns a note on those.
    pub(super) fn settle(&self, model: &Bound<'_, PyAny>) -> Result<Option<String>, Stop> {
        let Some(module) = &self.module else { return Ok(None) };
        let by_choice = model.hasattr("set_experts_implementation")?
            && model.call_method0("_can_set_experts_implementation")?.is_truthy()?;
        if by_choice {
            model.call_method1("set_experts_implementation", ("eager",))?;
        }
        let widened: Vec<(String, String)> =
            module.bind(model.py()).call_method1("widen", (model,))?.extract()?;
        let names = widened.iter().map(|(name, dtype)| format!("{name} ({dtype})")).collect();
        Ok((!widened.is_empty())
            .then(|| format!("tensors of another dtype were widened to float64: {}", listing(&names))))
    }
}
