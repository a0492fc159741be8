//! Prefill and decoding through the model's KV cache, one token at a time.

use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PySlice};

use super::clock::Clock;
use super::context::within;
use super::failure::Stop;
use super::load::Loaded;
use super::output::logits;
use crate::protocol::{ATTENTION_MASK, INPUT_IDS, POSITION_IDS, Positions};

/// Name of both the argument and the output field that hold the cache, in every version.
const CACHE: &str = "past_key_values";

/// Logits of all positions, `[batch, seq, vocab_size]`: `prefill` tokens in one forward pass, each later
/// token in its own.
///
/// The prefill gets no cache and returns one (tuples up to 4.4x, a `Cache` since), which the next forward
/// pass gets unchanged. `generate` does the same but selects the tokens itself.
pub(super) fn decode<'py>(
    py: Python<'py>,
    loaded: &Loaded,
    prefill: usize,
) -> Result<(Bound<'py, PyAny>, Duration), Stop> {
    let torch = loaded.torch.bind(py);
    let model = loaded.model.bind(py);
    let arguments = loaded.arguments.bind(py);
    let class = model.get_type().name()?.to_string();
    if loaded.mode.is_compiled() {
        return Err(Stop::unsupported(
            "a compiled model is not decoded token by token: each length would be recompiled".into(),
        ));
    }
    let parameters = py
        .import("inspect")?
        .call_method1("signature", (model.getattr("forward")?,))?
        .getattr("parameters")?;
    if loaded.is_encoder || !parameters.contains(CACHE)? || !parameters.contains("use_cache")? {
        return Err(Stop::unsupported(format!("{class} has no KV cache")));
    }
    let ids = required(arguments, INPUT_IDS)?;
    let seq: usize = ids.call_method1("size", (1,))?.extract()?;
    if prefill == 0 || prefill >= seq {
        return Err(Stop::exception(format!("a prefill of {prefill} where rows have {seq} tokens")));
    }
    let mut parts = Vec::new();
    let mut past: Option<Bound<'py, PyAny>> = None;
    let mut elapsed = Duration::ZERO;
    let mut begin = 0;
    let mode = torch.call_method0("inference_mode")?;
    for end in prefill..=seq {
        let step = arguments.copy()?;
        for (name, from) in [(INPUT_IDS, begin), (POSITION_IDS, begin), (ATTENTION_MASK, 0)] {
            if let Some(whole) = arguments.get_item(name)? {
                step.set_item(name, columns(&whole, from, end)?)?;
            }
        }
        step.set_item("use_cache", true)?;
        if let Some(past) = past.take() {
            step.set_item(CACHE, past)?;
        }
        let run = || {
            let clock = Clock::start(torch, &loaded.device)?;
            let output = model.call((), Some(&step))?;
            Ok((output, clock.stop()?))
        };
        let (output, took) = within(&mode, || loaded.float64.within(py, run))?;
        elapsed += took;
        let (part, positions) = logits(&output)?;
        let width: usize = part.call_method1("size", (1,))?.extract()?;
        if positions != Positions::All || width != end - begin {
            return Err(Stop::unsupported(format!("{class} does not give logits of every position")));
        }
        parts.push(part);
        past = output.getattr_opt(CACHE)?.filter(|cache| !cache.is_none());
        if past.is_none() {
            return Err(Stop::unsupported(format!("{class} returned no {CACHE}")));
        }
        begin = end;
    }
    let keywords = PyDict::new(py);
    keywords.set_item("dim", 1)?;
    Ok((torch.call_method("cat", (parts,), Some(&keywords))?, elapsed))
}

fn required<'py>(arguments: &Bound<'py, PyDict>, name: &str) -> Result<Bound<'py, PyAny>, Stop> {
    arguments.get_item(name)?.ok_or_else(|| Stop::exception(format!("the inputs have no {name}")))
}

/// `tensor[:, from..end]`.
fn columns<'py>(tensor: &Bound<'py, PyAny>, from: usize, end: usize) -> PyResult<Bound<'py, PyAny>> {
    let py = tensor.py();
    tensor.get_item((PySlice::full(py), PySlice::new(py, from as isize, end as isize, 1)))
}
