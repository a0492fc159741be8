//! The inputs through what a model keeps between forward passes: a KV cache, or the states of a state-space model.

use std::ops::Range;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PySlice};

use super::auto::Drive;
use super::clock::Clock;
use super::context::within;
use super::failure::Stop;
use super::inputs::Takes;
use super::load::{Loaded, torch_dtype};
use super::output::{Returned, main};
use super::pictures::later_positions;
use protocol::{
    ATTENTION_MASK, DECODER_ATTENTION_MASK, DECODER_INPUT_IDS, INPUT_IDS, LOGITS, Output, POSITION_IDS, Role,
    forward_passes, role,
};

/// The argument and the field by which a model passes on what it keeps. The first is a KV cache, in hybrid models with
/// states; the second is the name of it and of Mamba's states since 5.24. The others are the states of Mamba
/// (`modeling_mamba.py`) and of RWKV (`modeling_rwkv.py`).
const CACHES: [&str; 4] = [KV_CACHE, "cache", "cache_params", "state"];
const KV_CACHE: &str = "past_key_values";
/// The argument by which an encoder-decoder takes its encoder's states.
pub(super) const ENCODER_OUTPUTS: &str = "encoder_outputs";
/// Which tokens stand for pictures, by which Qwen counts positions.
const PICTURES: &str = "mm_token_type_ids";
/// Where the tokens of a forward pass lie among all; Mamba needs it next to its states (4.40 to 4.57).
pub(super) const CACHE_POSITION: &str = "cache_position";

/// Logits of all positions, `[batch, seq, vocab_size]`: of `prefill` tokens in one pass and of each further one in its
/// own, or of each of `chunks` in a pass.
///
/// The first pass is given no cache and hands one out, tuples up to 4.4x and a `Cache` since, which the
/// next pass is given as it is: what `generate` does, without its own choice of tokens. Hybrid models that hand out none
/// by themselves (Jamba up to 4.57) are given an empty one of their own class.
pub(super) fn decode<'py>(
    py: Python<'py>,
    loaded: &Loaded,
    prefill: Option<usize>,
    chunks: &[usize],
) -> Result<(Returned<'py>, Duration), Stop> {
    let torch = loaded.torch.bind(py);
    let model = loaded.model.bind(py);
    let arguments = loaded.arguments.bind(py);
    let class = model.get_type().name()?.to_string();
    if loaded.mode.is_compiled() {
        return Err(Stop::unsupported(
            "a compiled model is not decoded token by token: each length would be recompiled".into(),
        ));
    }
    let takes = Takes::of(model)?;
    let is_taken = |name: &str| takes.by_name(name).unwrap_or(false);
    let cache = match CACHES.into_iter().find(|name| is_taken(name)) {
        Some(name) if loaded.drive != Drive::Encoder && (is_taken("use_cache") || takes.has_others) => name,
        // Models of several parts hand it on unnamed since 5.0.
        None if loaded.drive == Drive::Whole && takes.has_others && generates(model)? => KV_CACHE,
        _ => {
            return Err(Stop::unsupported(format!(
                "{class} takes no cache: what it keeps between calls, if anything, stays inside of it"
            )));
        }
    };
    let is_state = !["cache", KV_CACHE].contains(&cache);
    let takes_position = is_taken(CACHE_POSITION);
    // Whether the cache has a size or does not know its length (that of Jamba up to 4.57), so that the places of new tokens in it
    // must be told.
    let mut is_fixed = false;
    // An encoder-decoder caches its decoder's tokens.
    let has_encoder = arguments.contains(DECODER_INPUT_IDS)?;
    let [tokens, mask] =
        if has_encoder { [DECODER_INPUT_IDS, DECODER_ATTENTION_MASK] } else { [INPUT_IDS, ATTENTION_MASK] };
    let ids = required(arguments, tokens)?;
    let seq: usize = ids.call_method1("size", (1,))?.extract()?;
    let passes = forward_passes(prefill, chunks, seq).map_err(Stop::exception)?.unwrap_or_default();
    let mut parts = Vec::new();
    let mut past: Option<Bound<'py, PyAny>> = None;
    let mut encoded: Option<Bound<'py, PyAny>> = None;
    let mut elapsed = Duration::ZERO;
    let mode = torch.call_method0("inference_mode")?;
    for Range { start, end } in passes {
        let step = arguments.copy()?;
        for (name, from) in [(tokens, start), (POSITION_IDS, start), (mask, 0)] {
            if let Some(whole) = arguments.get_item(name)? {
                step.set_item(name, columns(&whole, from, end)?)?;
            }
        }
        if let Some(whole) = arguments.get_item("token_type_ids")? {
            step.set_item("token_type_ids", columns(&whole, start, end)?)?;
        }
        if let Some(whole) = arguments.get_item(PICTURES)? {
            // The positions of later tokens follow from those of the first pass.
            if start == 0 {
                step.set_item(PICTURES, columns(&whole, start, end)?)?;
            } else {
                step.del_item(PICTURES)?;
            }
        }
        if start > 0 && !has_encoder {
            // The images are in the cache already.
            for name in arguments.keys() {
                let name: String = name.extract()?;
                if matches!(role(&name), Role::Pixels | Role::PixelMask | Role::Features | Role::Grid) {
                    step.del_item(&name)?;
                }
            }
        }
        if let Some(encoded) = &encoded {
            step.set_item(ENCODER_OUTPUTS, encoded)?;
        }
        if start > 0
            && loaded.drive == Drive::Whole
            && let Some(positions) = later_positions(py, loaded, step.get_item(mask)?.as_ref(), start)?
        {
            step.set_item(POSITION_IDS, positions)?;
        }
        step.set_item("use_cache", true)?;
        // A `Cache` without attention layers has no length (5.24).
        let holds_states =
            is_state || past.as_ref().is_some_and(|past| past.call_method0("get_seq_length").is_err());
        if start > 0 && cache != KV_CACHE && holds_states {
            // States hold what was real; `prepare_inputs_for_generation` of `modeling_mamba.py` drops the mask as well.
            step.del_item(ATTENTION_MASK).ok();
        }
        // Models of images count positions by it.
        let is_told = is_fixed || loaded.drive == Drive::Whole || start > 0 && is_state;
        if takes_position && is_told {
            step.set_item(CACHE_POSITION, places(loaded, torch, start, end)?)?;
        }
        let is_first = past.is_none();
        if let Some(past) = past.take() {
            step.set_item(cache, past)?;
        }
        let run = || {
            let clock = Clock::start(torch, &loaded.device)?;
            let output = model.call((), Some(&step))?;
            Ok((output, clock.stop()?))
        };
        let kept = |output: &Bound<'py, PyAny>| -> PyResult<Option<Bound<'py, PyAny>>> {
            Ok(output.getattr_opt(cache)?.filter(|cache| !cache.is_none()))
        };
        let (mut output, mut took) = within(&mode, || loaded.float64.within(py, run))?;
        past = kept(&output)?;
        if past.is_none()
            && is_first
            && let Some(empty) = own_cache(py, loaded, &ids)?
        {
            is_fixed = true;
            step.set_item(cache, &empty)?;
            if takes_position {
                step.set_item(CACHE_POSITION, places(loaded, torch, start, end)?)?;
            }
            (output, took) = within(&mode, || loaded.float64.within(py, run))?;
            past = kept(&output)?;
        }
        if is_first
            && let Some(made) = &past
            && let Some(larger) = with_room(py, loaded, made, &ids, seq)?
        {
            is_fixed = true;
            step.set_item(cache, &larger)?;
            if takes_position {
                step.set_item(CACHE_POSITION, places(loaded, torch, start, end)?)?;
            }
            (output, took) = within(&mode, || loaded.float64.within(py, run))?;
            past = kept(&output)?;
        }
        elapsed += took;
        if encoded.is_none() {
            encoded = encoder_outputs(&output)?;
        }
        let part = main(&output, &step)?;
        let width: usize = part.call_method1("size", (1,))?.extract()?;
        if width != end - start {
            return Err(Stop::unsupported(format!("{class} does not give logits of every position")));
        }
        parts.push(part);
        if past.is_none() {
            return Err(Stop::unsupported(format!("{class} returned no {cache}")));
        }
    }
    let keywords = PyDict::new(py);
    keywords.set_item("dim", 1)?;
    let tensor = torch.call_method("cat", (parts,), Some(&keywords))?;
    let shape = tensor.getattr("shape")?.extract()?;
    let output = Output { name: LOGITS.to_owned(), shape, follows: Some(tokens.to_owned()) };
    Ok((Returned { output, tensor }, elapsed))
}

/// The states that the encoder of an encoder-decoder computed in a forward pass, in the form in which later passes take
/// them as [`ENCODER_OUTPUTS`] and do not run the encoder again, as `generate` does it; `None` without an encoder.
pub(super) fn encoder_outputs<'py>(output: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
    let Some(states) = output.getattr_opt("encoder_last_hidden_state")?.filter(|states| !states.is_none())
    else {
        return Ok(None);
    };
    let keywords = PyDict::new(output.py());
    keywords.set_item("last_hidden_state", states)?;
    let class = output.py().import("transformers.modeling_outputs")?.getattr("BaseModelOutput")?;
    class.call((), Some(&keywords)).map(Some)
}

/// Whether `generate` works with the model.
fn generates(model: &Bound<'_, PyAny>) -> PyResult<bool> {
    match model.getattr_opt("can_generate")? {
        Some(can) => can.call0()?.extract(),
        None => Ok(false),
    }
}

/// An empty cache of the class that the model's own file defines for hybrid models, `HybridMambaAttentionDynamicCache` of
/// `modeling_jamba.py`; `None` where it defines none.
fn own_cache<'py>(
    py: Python<'py>,
    loaded: &Loaded,
    ids: &Bound<'py, PyAny>,
) -> Result<Option<Bound<'py, PyAny>>, Stop> {
    let model = loaded.model.bind(py);
    let name: String = model.get_type().getattr("__module__")?.extract()?;
    let source = py.import(name.as_str())?;
    for class in source.dir()? {
        let class: String = class.extract()?;
        if class.contains("Hybrid") && class.ends_with("Cache") {
            let batch: usize = ids.call_method1("size", (0,))?.extract()?;
            let keywords = tensors_like(py, loaded)?;
            let made =
                source.getattr(class.as_str())?.call((model.getattr("config")?, batch), Some(&keywords));
            return Ok(made.ok());
        }
    }
    Ok(None)
}

/// A cache like `made` with room for `seq` tokens, where that one has none: gemma2 and gemma3 of 4.42 to 4.52 make a
/// `HybridCache` of the prefill's length by themselves. `None` for a cache that grows.
fn with_room<'py>(
    py: Python<'py>,
    loaded: &Loaded,
    made: &Bound<'py, PyAny>,
    ids: &Bound<'py, PyAny>,
    seq: usize,
) -> Result<Option<Bound<'py, PyAny>>, Stop> {
    let class = made.get_type();
    let parameters = py.import("inspect")?.call_method1("signature", (&class,))?.getattr("parameters")?;
    if !parameters.contains("max_cache_len")? {
        return Ok(None);
    }
    // The second name is that of 4.42 to 4.46.
    let most = ["get_max_cache_shape", "get_max_length"]
        .into_iter()
        .find_map(|name| made.call_method0(name).ok()?.extract::<Option<usize>>().ok().flatten());
    if most.is_none_or(|most| most >= seq) {
        return Ok(None);
    }
    let batch: usize = ids.call_method1("size", (0,))?.extract()?;
    let keywords = tensors_like(py, loaded)?;
    let config = loaded.model.bind(py).getattr("config")?;
    Ok(Some(class.call((config, batch, seq), Some(&keywords))?))
}

/// The dtype and device of what a cache holds, as arguments.
fn tensors_like<'py>(py: Python<'py>, loaded: &Loaded) -> PyResult<Bound<'py, PyDict>> {
    let keywords = PyDict::new(py);
    keywords.set_item("dtype", loaded.torch.bind(py).getattr(torch_dtype(loaded.dtype))?)?;
    keywords.set_item("device", &loaded.device)?;
    Ok(keywords)
}

/// `from..end` on the model's device.
pub(super) fn places<'py>(
    loaded: &Loaded,
    torch: &Bound<'py, PyAny>,
    from: usize,
    end: usize,
) -> PyResult<Bound<'py, PyAny>> {
    torch.call_method1("arange", (from, end))?.call_method1("to", (&loaded.device,))
}

fn required<'py>(arguments: &Bound<'py, PyDict>, name: &str) -> Result<Bound<'py, PyAny>, Stop> {
    arguments.get_item(name)?.ok_or_else(|| Stop::exception(format!("the inputs have no {name}")))
}

/// `tensor[:, from..end]`.
fn columns<'py>(tensor: &Bound<'py, PyAny>, from: usize, end: usize) -> PyResult<Bound<'py, PyAny>> {
    let py = tensor.py();
    tensor.get_item((PySlice::full(py), PySlice::new(py, from as isize, end as isize, 1)))
}
