//! One round of timed forward passes and of decoded tokens.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::auto::Drive;
use super::cached::{CACHE_POSITION, ENCODER_OUTPUTS, encoder_outputs, places};
use super::failure::Stop;
use super::inputs::Takes;
use super::load::Loaded;
use super::pictures::later_positions;
use super::static_cache::StaticCache;
use super::{forward, memory};
use protocol::{
    ATTENTION_MASK, DECODER_ATTENTION_MASK, DECODER_INPUT_IDS, INPUT_IDS, POSITION_IDS, Time, Timed,
};

/// Warms up and times; every forward pass drops its result before the next one.
pub(super) fn time(py: Python<'_>, loaded: &Loaded, request: &Time) -> Result<Timed, Stop> {
    for _ in 0..request.warm_up {
        forward::pass(py, loaded)?;
    }
    let mut samples_ns = Vec::with_capacity(request.iterations);
    for _ in 0..request.iterations {
        let (_, elapsed) = forward::pass(py, loaded)?;
        samples_ns.push(elapsed.as_nanos() as u64);
    }
    let mut timed = Timed { samples_ns, ..Timed::default() };
    // The times of the forward passes stay.
    match if request.decode == 0 { Ok(Vec::new()) } else { decode(py, loaded, request) } {
        Ok(decode_ns) => timed.decode_ns = decode_ns,
        Err(stop) => timed.notes.push(stop.into_failed(py).not_decoded()),
    }
    timed.peak_bytes = memory::peak_bytes(loaded.torch.bind(py), &loaded.device)?;
    Ok(timed)
}

/// Decoded tokens that are not timed. A compiled model is compiled for the first one, and again for the
/// second, when the growing cache makes a dimension dynamic.
const SETTLING: usize = 3;

/// Times one token per sequence at a time after the inputs, through the model's own cache: dynamic, or a
/// [`StaticCache`] if [`StaticCache::new`] returns one. Returns nanoseconds per token.
fn decode(py: Python<'_>, loaded: &Loaded, request: &Time) -> Result<Vec<u64>, Stop> {
    let arguments = loaded.arguments.bind(py).copy()?;
    if !arguments.contains("use_cache")? {
        return Ok(Vec::new());
    }
    arguments.set_item("use_cache", true)?;
    let fixed = StaticCache::new(py, loaded, SETTLING + request.decode)?;
    if fixed.is_none() && StaticCache::is_needed(loaded.mode) {
        return Ok(Vec::new());
    }
    if let Some(fixed) = &fixed {
        arguments.set_item("past_key_values", fixed.cache())?;
        fixed.place(&arguments, None)?;
    }
    let (output, _) = forward::call(py, loaded, &loaded.model, &arguments)?;
    arguments.del_item("past_key_values").ok();
    let Some(mut past) = cache(&output)? else {
        return Ok(Vec::new());
    };
    if let Some(encoded) = encoder_outputs(&output)? {
        arguments.set_item(ENCODER_OUTPUTS, encoded)?;
    }
    drop(output);
    // Models of images count positions by it.
    let takes_position = loaded.drive == Drive::Whole
        && Takes::of(loaded.model.bind(py))?.by_name(CACHE_POSITION).unwrap_or(false);
    let mut samples_ns = Vec::with_capacity(request.decode);
    for index in 0..SETTLING + request.decode {
        let step = next(py, loaded, &arguments, takes_position)?;
        step.set_item("past_key_values", past)?;
        let mask_name = names(&arguments)?[1];
        let mask = step.get_item(mask_name)?;
        if let Some(fixed) = &fixed {
            fixed.place(&step, Some(index))?;
        }
        let (output, elapsed) = forward::call(py, loaded, &loaded.callable, &step)?;
        if index >= SETTLING {
            samples_ns.push(elapsed.as_nanos() as u64);
        }
        let grown = cache(&output)?;
        past = grown.ok_or_else(|| Stop::exception("the model gave no cache back".into()))?;
        for (name, tensor) in [(mask_name, mask), (POSITION_IDS, step.get_item(POSITION_IDS)?)] {
            if let Some(tensor) = tensor {
                arguments.set_item(name, tensor)?;
            }
        }
    }
    Ok(samples_ns)
}

fn cache<'py>(output: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
    Ok(output.getattr_opt("past_key_values")?.filter(|past| !past.is_none()))
}

/// The arguments for the token after `arguments`: each sequence's first token again, at the next position,
/// not padding; with its place among all tokens if the model `takes_position`.
fn next<'py>(
    py: Python<'py>,
    loaded: &Loaded,
    arguments: &Bound<'py, PyDict>,
    takes_position: bool,
) -> PyResult<Bound<'py, PyDict>> {
    let torch = loaded.torch.bind(py);
    let column = |tensor: &Bound<'py, PyAny>, at: isize| tensor.call_method1("narrow", (1, at, 1));
    let [tokens, mask] = names(arguments)?;
    // An encoder-decoder's cross-attention needs the encoder's states and mask in every pass.
    let step = if tokens == DECODER_INPUT_IDS { arguments.copy()? } else { PyDict::new(py) };
    step.set_item("use_cache", true)?;
    if let Some(ids) = arguments.get_item(tokens)? {
        step.set_item(tokens, column(&ids, 0)?)?;
    }
    if let Some(known) = arguments.get_item(mask)? {
        let one = torch.call_method1("ones_like", (column(&known, 0)?,))?;
        step.set_item(mask, torch.call_method1("cat", (PyList::new(py, [known, one])?, 1))?)?;
    }
    let known = step.get_item(mask)?;
    let past: usize = match &known {
        Some(known) => known.call_method1("size", (1,))?.extract::<usize>()? - 1,
        None => 0,
    };
    if takes_position && known.is_some() {
        step.set_item(CACHE_POSITION, places(loaded, torch, past, past + 1)?)?;
    }
    if let Some(positions) = later_positions(py, loaded, known.as_ref(), past)? {
        step.set_item(POSITION_IDS, positions)?;
    } else if let Some(positions) = arguments.get_item(POSITION_IDS)? {
        step.set_item(POSITION_IDS, column(&positions, -1)?.call_method1("add", (1,))?)?;
    }
    Ok(step)
}

/// The names of the tokens that are decoded, and of their mask.
fn names(arguments: &Bound<'_, PyDict>) -> PyResult<[&'static str; 2]> {
    let has_encoder = arguments.contains(DECODER_INPUT_IDS)?;
    Ok(if has_encoder { [DECODER_INPUT_IDS, DECODER_ATTENTION_MASK] } else { [INPUT_IDS, ATTENTION_MASK] })
}
