//! `generate` of transformers, greedily.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PySlice};

use super::auto::Drive;
use super::context::within;
use super::failure::Stop;
use super::load::Loaded;
use protocol::{ATTENTION_MASK, Generate, Generated, INPUT_IDS};

/// Settings of a generation config that would choose other tokens than the most likely one, or stop early.
const PLAIN: [(&str, Option<f64>); 8] = [
    ("eos_token_id", None),
    ("forced_eos_token_id", None),
    ("forced_bos_token_id", None),
    ("suppress_tokens", None),
    ("begin_suppress_tokens", None),
    ("bad_words_ids", None),
    ("repetition_penalty", Some(1.0)),
    ("no_repeat_ngram_size", Some(0.0)),
];

/// Generates after the inputs, whose positions the model counts by itself.
pub(super) fn generate(py: Python<'_>, loaded: &Loaded, request: &Generate) -> Result<Generated, Stop> {
    let (torch, model) = (loaded.torch.bind(py), loaded.model.bind(py));
    let class = model.get_type().name()?.to_string();
    if loaded.drive == Drive::Encoder || !model.hasattr("generate")? {
        return Err(Stop::unsupported(format!("{class} generates no tokens")));
    }
    let can = model.getattr_opt("can_generate")?.map(|can| can.call0()?.extract::<bool>()).transpose()?;
    if can == Some(false) {
        return Err(Stop::unsupported(format!("{class} generates no tokens")));
    }
    let arguments = loaded.arguments.bind(py);
    let keywords = PyDict::new(py);
    for name in [INPUT_IDS, ATTENTION_MASK] {
        if let Some(value) = arguments.get_item(name)? {
            keywords.set_item(name, value)?;
        }
    }
    keywords.set_item("max_new_tokens", request.tokens)?;
    keywords.set_item("do_sample", false)?;
    keywords.set_item("num_beams", 1)?;
    keywords.set_item("use_cache", true)?;
    let own = model.getattr("generation_config")?;
    let plain = py.import("copy")?.call_method1("deepcopy", (&own,))?;
    for (name, value) in PLAIN {
        match value {
            None => plain.setattr(name, py.None())?,
            Some(value) if name.ends_with("_size") => plain.setattr(name, value as usize)?,
            Some(value) => plain.setattr(name, value)?,
        }
    }
    // Without an end token, any id will do for padding that never comes.
    plain.setattr("pad_token_id", 0)?;
    model.setattr("generation_config", &plain)?;
    let mode = torch.call_method0("inference_mode")?;
    let run = || model.call_method("generate", (), Some(&keywords));
    let generated = within(&mode, || loaded.float64.within(py, run));
    model.setattr("generation_config", own)?;
    let generated = generated?;
    let ids = arguments.get_item(INPUT_IDS)?.ok_or_else(|| Stop::exception("no input_ids".to_owned()))?;
    let seq: isize = ids.call_method1("size", (1,))?.extract()?;
    let new = generated.get_item((PySlice::full(py), PySlice::new(py, seq, isize::MAX, 1)))?;
    Ok(Generated { ids: new.call_method0("tolist")?.extract()? })
}
