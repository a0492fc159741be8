//! The engine of the ports that candle-transformers ships.
//!
//! A port runs as in its own examples: one full-sequence forward pass from an empty cache, or a prefill and one pass per
//! further token; it gets a padding mask only if its `forward` takes one. `adapters` has one entry per port, which loads
//! from a `checkpoint`.

mod adapters;
mod checkpoint;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use reference::protocol::{
    ATTENTION_MASK, Failed, Forward, Forwarded, Load, Mode, NewInputs, POSITION_IDS, Positions, Ready,
    TakenInputs, Trace,
};

use super::failure::{not_loaded, unsupported};
use super::place::device;
use super::tensors::{dtype, inputs, write_logits};
use super::{Engine, exception, peak_resident_bytes, steps};
use adapters::{ADAPTERS, Adapter};
use checkpoint::Checkpoint;

/// The inputs of a port.
struct Batch {
    /// Token ids, `[batch, seq]`, u32.
    input_ids: Tensor,
    /// 1 for a real token and 0 for padding, `[batch, seq]`, u32.
    attention_mask: Tensor,
}

/// One forward pass of a loaded port over a batch whose first token has this position; 0 empties the cache first.
type Pass = Box<dyn FnMut(&Batch, usize) -> candle_core::Result<Tensor>>;

struct Loaded {
    pass: Pass,
    batch: Batch,
    adapter: &'static Adapter,
    device: Device,
}

/// The engine that runs ports.
#[derive(Default)]
pub struct PortEngine {
    loaded: Option<Loaded>,
}

impl Engine for PortEngine {
    fn load(&mut self, load: &Load) -> Result<Ready, Failed> {
        let start = Instant::now();
        if load.mode != Mode::Eager {
            return Err(unsupported("candle-transformers has one mode, eager"));
        }
        let device = device(&load.device)?;
        let mut checkpoint = Checkpoint::open(&load.checkpoint, dtype(load.dtype), &device)?;
        let adapter = adapter(&checkpoint.model_type)?;
        let batch = batch(&load.inputs, &device)?;
        let padding = padding(&batch, adapter)?;
        let mut notes = vec![format!("candle_transformers::models::{}", adapter.module)];
        if let Some(note) = checkpoint.fill(adapter.fill) {
            notes.push(note);
        }
        let pass = guarded(|| (adapter.load)(&checkpoint))?;
        if padding && !adapter.reads_mask {
            notes.push("the port takes no padding mask: padded sequences attend to their padding".into());
        }
        let unread = checkpoint.unread();
        if !unread.is_empty() {
            notes.push(format!("tensors that the port does not read: {}", unread.join(", ")));
        }
        self.loaded = Some(Loaded { pass, batch, adapter, device });
        Ok(Ready {
            libraries: [("candle-transformers".to_owned(), super::CANDLE_TRANSFORMERS.to_owned())].into(),
            load_ns: start.elapsed().as_nanos() as u64,
            notes,
            // Unknown because serde silently drops keys that a port's `Config` does not have.
            ignored_keys: None,
            translated: Vec::new(),
            unread_tensors: Some(unread),
        })
    }

    fn forward(&mut self, forward: &Forward) -> Result<Forwarded, Failed> {
        let start = Instant::now();
        let seq = self.loaded.as_ref().ok_or_else(not_loaded)?.batch.input_ids.dim(1).map_err(failure)?;
        let (logits, positions) = match steps(forward.prefill, &forward.chunks, seq)? {
            None => self.logits()?,
            Some(steps) => self.through_the_cache(steps)?,
        };
        let elapsed_ns = start.elapsed().as_nanos() as u64;
        let shape = logits.dims().to_vec();
        write_logits(&logits, &forward.logits)?;
        Ok(Forwarded {
            elapsed_ns,
            shape,
            positions,
            prefill: forward.prefill,
            chunks: forward.chunks.clone(),
            peak_bytes: peak_resident_bytes(),
            graphs: None,
            notes: Vec::new(),
        })
    }

    fn pass(&mut self) -> Result<(), Failed> {
        self.logits().map(drop)
    }

    fn decode(&mut self, _tokens: usize) -> Result<Vec<u64>, Failed> {
        // Decoding is not timed: the ports' caches have no common interface.
        Ok(Vec::new())
    }

    fn trace(&mut self, _trace: &Trace) -> Result<(), Failed> {
        Err(unsupported("candle-transformers ports cannot be traced: they have no hooks"))
    }

    fn inputs(&mut self, new: &NewInputs) -> Result<TakenInputs, Failed> {
        let loaded = self.loaded.as_mut().ok_or_else(not_loaded)?;
        let batch = batch(&new.inputs, &loaded.device)?;
        padding(&batch, loaded.adapter)?;
        loaded.batch = batch;
        let mut unused = vec![POSITION_IDS.to_owned()];
        if !loaded.adapter.reads_mask {
            unused.push(ATTENTION_MASK.to_owned());
        }
        Ok(TakenInputs { unused })
    }
}

impl PortEngine {
    /// One forward pass, complete on the device: `[batch, seq, vocab_size]`, or `[batch, 1, vocab_size]` for the last
    /// position only.
    fn logits(&mut self) -> Result<(Tensor, Positions), Failed> {
        let Loaded { pass, batch, adapter, device } = self.loaded.as_mut().ok_or_else(not_loaded)?;
        let logits = guarded(|| pass(batch, 0).map_err(failure))?;
        device.synchronize().map_err(failure)?;
        Ok((with_positions(logits, adapter.positions)?, adapter.positions))
    }

    /// As [`Self::logits`], with a forward pass through the cache for each of `steps`.
    fn through_the_cache(&mut self, steps: Vec<Range<usize>>) -> Result<(Tensor, Positions), Failed> {
        let Loaded { pass, batch, adapter, device } = self.loaded.as_mut().ok_or_else(not_loaded)?;
        let positions = adapter.positions;
        if !adapter.caches {
            return Err(unsupported("the port's KV cache cannot continue after a prefill"));
        }
        let mut parts = Vec::new();
        for step in steps {
            let part = |tensor: &Tensor, from: usize| {
                tensor.narrow(1, from, step.end - from).and_then(|part| part.contiguous()).map_err(failure)
            };
            let batch = Batch {
                input_ids: part(&batch.input_ids, step.start)?,
                attention_mask: part(&batch.attention_mask, 0)?,
            };
            let logits = guarded(|| pass(&batch, step.start).map_err(failure))?;
            if positions == Positions::Last {
                parts.clear();
            }
            parts.push(with_positions(logits, positions)?);
        }
        device.synchronize().map_err(failure)?;
        Ok((Tensor::cat(&parts, 1).map_err(failure)?, positions))
    }
}

/// Restores the sequence axis that ports drop if they compute one position only: `[batch, seq, vocab_size]`.
fn with_positions(logits: Tensor, positions: Positions) -> Result<Tensor, Failed> {
    let drops_axis = positions == Positions::Last && logits.rank() == 2;
    if drops_axis { logits.unsqueeze(1).map_err(failure) } else { Ok(logits) }
}

/// What is known of a port before it is loaded.
pub(crate) struct Port {
    /// Which positions it computes.
    pub(crate) positions: Positions,
    /// Whether it decodes through a KV cache.
    pub(crate) caches: bool,
}

/// The port of an architecture, if tfcheck runs one.
pub(crate) fn port(model_type: &str) -> Option<Port> {
    find(model_type).map(|adapter| Port { positions: adapter.positions, caches: adapter.caches })
}

fn find(model_type: &str) -> Option<&'static Adapter> {
    ADAPTERS.iter().find(|adapter| adapter.model_type == model_type)
}

fn adapter(model_type: &str) -> Result<&'static Adapter, Failed> {
    find(model_type).ok_or_else(|| {
        unsupported(format!(
            "candle-transformers {} has no port of model_type `{model_type}` that tfcheck runs",
            super::CANDLE_TRANSFORMERS
        ))
    })
}

fn batch(path: &std::path::Path, device: &Device) -> Result<Batch, Failed> {
    let inputs = inputs(path, device)?;
    let narrow = |tensor: &Tensor| tensor.to_dtype(DType::U32).map_err(failure);
    let mask = inputs.attention_mask.as_ref();
    let mask = mask.ok_or_else(|| unsupported("a port is always given an attention_mask"))?;
    Ok(Batch { input_ids: narrow(&inputs.input_ids)?, attention_mask: narrow(mask)? })
}

/// Whether some of the batch is padding.
///
/// # Errors
/// Unsupported where padding is all that the port would give logits of.
fn padding(batch: &Batch, adapter: &Adapter) -> Result<bool, Failed> {
    let rows = batch.attention_mask.to_vec2::<u32>().map_err(failure)?;
    if adapter.positions == Positions::Last && rows.iter().any(|row| row.last() == Some(&0)) {
        return Err(unsupported(format!(
            "the port `{}` returns the last column only, which is padding in sequences padded on the right",
            adapter.module
        )));
    }
    Ok(rows.iter().flatten().any(|&real| real == 0))
}

/// Runs code of a port, which may panic; the panic's message becomes the reason that the tables show.
fn guarded<T>(run: impl FnOnce() -> Result<T, Failed>) -> Result<T, Failed> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message =
            message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message");
        let brief = message.split("\\n").next().unwrap_or(message);
        Err(Failed {
            traceback: message.to_owned(),
            ..exception(format!("the port panicked: {}", first_line(brief)))
        })
    })
}

/// The first line of a candle error; with `RUST_BACKTRACE` set, a backtrace follows it.
#[expect(clippy::needless_pass_by_value, reason = "it is what map_err passes")]
fn failure(error: candle_core::Error) -> Failed {
    let text = error.to_string();
    Failed { traceback: text.clone(), ..exception(first_line(&text)) }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests;
