//! float64 throughout a model.
//!
//! transformers casts norms, softmax, rope tables and router logits to float32 regardless of the dtype
//! (`LlamaRMSNorm`, `eager_attention_forward` and `LlamaRotaryEmbedding` of `modeling_llama.py`, 4.40 to
//! 5.23). A float64 model would then be accurate to seven digits only and could not be the oracle for f32.

use std::ffi::CString;

use pyo3::prelude::*;

use super::context::within;
use super::failure::Stop;

/// Note on every model in f64.
pub(super) const NOTE: &str = "float64 throughout: transformers' casts to float32 (norms, softmax, rope tables) are widened to float64; times are not those of plain transformers";

/// The context manager under which a float64 model is built and run; empty for other dtypes.
pub(super) struct Float64(Option<Py<PyAny>>);

impl Float64 {
    /// Replaces float32 by float64 if `wanted`; otherwise changes nothing.
    pub(super) fn new(py: Python<'_>, wanted: bool) -> Result<Self, Stop> {
        if !wanted {
            return Ok(Self(None));
        }
        let code = CString::new(include_str!("float64.py"))
            .map_err(|error| Stop::exception(format!("float64.py: {error}")))?;
        let module = PyModule::from_code(py, &code, c"tfcheck_float64.py", c"tfcheck_float64")?;
        Ok(Self(Some(module.getattr("Float64")?.call0()?.unbind())))
    }

    /// Runs `body` under the context manager.
    pub(super) fn within<T>(&self, py: Python<'_>, body: impl FnOnce() -> PyResult<T>) -> PyResult<T> {
        match &self.0 {
            Some(mode) => within(mode.bind(py), body),
            None => body(),
        }
    }

    /// Prepares a model that was built inside [`Self::within`]: the experts of 5.x run one by one, because
    /// their grouped matrix product does not support float64. Fails if a floating-point tensor is not
    /// float64.
    pub(super) fn settle(&self, model: &Bound<'_, PyAny>) -> Result<(), Stop> {
        if self.0.is_none() {
            return Ok(());
        }
        let by_choice = model.hasattr("set_experts_implementation")?
            && model.call_method0("_can_set_experts_implementation")?.is_truthy()?;
        if by_choice {
            model.call_method1("set_experts_implementation", ("eager",))?;
        }
        for kind in ["named_parameters", "named_buffers"] {
            for item in model.call_method0(kind)?.try_iter()? {
                let (name, tensor): (String, Bound<'_, PyAny>) = item?.extract()?;
                let dtype = tensor.getattr("dtype")?;
                let floating: bool = dtype.getattr("is_floating_point")?.extract()?;
                let bytes: usize = dtype.getattr("itemsize")?.extract()?;
                if floating && bytes != 8 {
                    return Err(Stop::exception(format!("{name} is {} in a model of float64", dtype.str()?)));
                }
            }
        }
        Ok(())
    }
}
