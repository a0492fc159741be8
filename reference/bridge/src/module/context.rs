//! Python's context managers.

use pyo3::prelude::*;

/// Runs `body` inside a Python context manager, which is exited even if `body` fails.
pub(super) fn within<T, E: From<PyErr>>(
    context: &Bound<'_, PyAny>,
    body: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    context.call_method0("__enter__")?;
    let result = body();
    let none = context.py().None();
    let left = context.call_method1("__exit__", (&none, &none, &none));
    let value = result?;
    left?;
    Ok(value)
}
