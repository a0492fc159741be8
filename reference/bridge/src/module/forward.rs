//! One forward pass, or a prefill with decoding, whose logits are written to disk.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use safetensors::tensor::TensorView;

use super::clock::Clock;
use super::context::within;
use super::failure::Stop;
use super::load::Loaded;
use super::output::{self, Returned};
use super::{cached, compile, dlpack, memory};
use protocol::{Dtype, Forward, Forwarded, LOGITS, Positions};

/// Runs a full-sequence forward pass, or a prefill and the decoding of the other tokens, and writes what the model returned.
pub(super) fn forward(py: Python<'_>, loaded: &Loaded, request: &Forward) -> Result<Forwarded, Stop> {
    let torch = loaded.torch.bind(py);
    let (returned, elapsed) = compute(py, loaded, request.prefill, &request.chunks)?;
    let peak_bytes = memory::peak_bytes(torch, &loaded.device)?;
    let shape = store(torch, &returned, loaded.dtype, &request.logits)?;
    let (graphs, notes) = if loaded.mode.is_compiled() {
        let (graphs, notes) = compile::graphs(py)?;
        (Some(graphs), notes)
    } else {
        (None, Vec::new())
    };
    Ok(Forwarded {
        elapsed_ns: elapsed.as_nanos() as u64,
        shape,
        positions: Positions::All,
        prefill: request.prefill,
        chunks: request.chunks.clone(),
        peak_bytes,
        outputs: returned.into_iter().map(|returned| returned.output).collect(),
        graphs,
        notes,
    })
}

/// What one pass returned, or several through the cache; the main output first.
pub(super) fn compute<'py>(
    py: Python<'py>,
    loaded: &Loaded,
    prefill: Option<usize>,
    chunks: &[usize],
) -> Result<(Vec<Returned<'py>>, Duration), Stop> {
    if prefill.is_some() || !chunks.is_empty() {
        let (returned, elapsed) = cached::decode(py, loaded, prefill, chunks)?;
        return Ok((vec![returned], elapsed));
    }
    let (output, elapsed) = pass(py, loaded)?;
    Ok((output::returned(&output, loaded.arguments.bind(py))?, elapsed))
}

/// A full-sequence forward pass.
pub(super) fn pass<'py>(py: Python<'py>, loaded: &Loaded) -> PyResult<(Bound<'py, PyAny>, Duration)> {
    call(py, loaded, &loaded.callable, loaded.arguments.bind(py))
}

/// One call without gradients, timed by a [`Clock`].
pub(super) fn call<'py>(
    py: Python<'py>,
    loaded: &Loaded,
    callable: &Py<PyAny>,
    arguments: &Bound<'py, PyDict>,
) -> PyResult<(Bound<'py, PyAny>, Duration)> {
    let torch = loaded.torch.bind(py);
    let callable = callable.bind(py);
    let mode = torch.call_method0("inference_mode")?;
    let timed = || {
        let clock = Clock::start(torch, &loaded.device)?;
        let output = callable.call((), Some(arguments))?;
        Ok((output, clock.stop()?))
    };
    within(&mode, || loaded.float64.within(py, timed))
}

/// Writes what a model returned as f32 (f64 if that is the dtype) to a temporary file, syncs and renames it; returns the
/// shape of the main output.
fn store(
    torch: &Bound<'_, PyAny>,
    returned: &[Returned<'_>],
    dtype: Dtype,
    path: &Path,
) -> Result<Vec<usize>, Stop> {
    let (name, element) = match dtype {
        Dtype::F64 => ("float64", safetensors::Dtype::F64),
        // The conversion of bf16 and f16 to f32 is exact.
        Dtype::F32 | Dtype::Bf16 | Dtype::F16 => ("float32", safetensors::Dtype::F32),
    };
    let keywords = PyDict::new(torch.py());
    keywords.set_item("device", "cpu")?;
    keywords.set_item("dtype", torch.getattr(name)?)?;
    let stored = |tensor| stored(tensor, &keywords);
    let [main, others @ ..] = returned else {
        return Err(Stop::exception("the model returned nothing".into()));
    };
    let mut beside = Vec::new();
    for Returned { output, tensor } in others {
        let copied = dlpack::with_bytes(&stored(tensor)?, |shape, bytes| (shape.to_vec(), bytes.to_vec()))?;
        beside.push((output.name.as_str(), copied));
    }
    let temporary = temporary(path);
    let main = stored(&output::with_three_axes(&main.tensor)?)?;
    // The main output may be large, and is written from where it lies.
    let shape = dlpack::with_bytes(&main, |shape, bytes| {
        let others = beside.iter().map(|(name, (shape, bytes))| (*name, shape.clone(), bytes.as_slice()));
        let views = std::iter::once((LOGITS, shape.to_vec(), bytes))
            .chain(others)
            .map(|(name, shape, bytes)| Ok((name, TensorView::new(element, shape, bytes)?)))
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
            .map_err(|error| Stop::exception(format!("the outputs: {error}")))?;
        let none: Option<HashMap<String, String>> = None;
        safetensors::serialize_to_file(views, none, &temporary)
            .map_err(|error| Stop::exception(format!("{}: {error}", temporary.display())))?;
        Ok::<_, Stop>(shape.to_vec())
    })??;
    publish(&temporary, path)?;
    Ok(shape)
}

/// A tensor without gradients, contiguous, on the device and in the dtype of `keywords`.
fn stored<'py>(tensor: &Bound<'py, PyAny>, keywords: &Bound<'py, PyDict>) -> PyResult<Bound<'py, PyAny>> {
    tensor.call_method0("detach")?.call_method("to", (), Some(keywords))?.call_method0("contiguous")
}

/// A temporary file name next to `path` with the same extension, which torch's profiler checks.
pub(super) fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".part-{}-{name}", std::process::id()))
}

/// Syncs `temporary` and renames it to `path`.
pub(super) fn publish(temporary: &Path, path: &Path) -> Result<(), Stop> {
    File::open(temporary)?.sync_all()?;
    fs::rename(temporary, path)?;
    Ok(())
}
