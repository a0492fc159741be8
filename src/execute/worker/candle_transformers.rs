//! The engine of the ports that candle-transformers ships.
//!
//! A port runs as in its own examples: one full-sequence forward pass from an empty cache, or a prefill and one pass per
//! further token; it gets a padding mask only if its `forward` takes one. `adapters` has one entry per port, which loads
//! from a `checkpoint`.

mod adapters;
mod checkpoint;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use reference::protocol::{Failed, Forward, Forwarded, Load, Mode, Positions, Ready, Trace};

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
    positions: Positions,
    caches: bool,
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
        let padding = padding(&batch.attention_mask).map_err(failure)?;
        if padding.ends_a_row && adapter.positions == Positions::Last {
            return Err(unsupported(format!(
                "the port `{}` returns the last column only, which is padding in sequences padded on the right",
                adapter.module
            )));
        }
        let mut notes = vec![format!("candle_transformers::models::{}", adapter.module)];
        if let Some(note) = checkpoint.fill(adapter.fill) {
            notes.push(note);
        }
        let pass = guarded(|| (adapter.load)(&checkpoint))?;
        if padding.exists && !adapter.reads_mask {
            notes.push("the port takes no padding mask: padded sequences attend to their padding".into());
        }
        let unread = checkpoint.unread();
        if !unread.is_empty() {
            notes.push(format!("tensors that the port does not read: {}", unread.join(", ")));
        }
        self.loaded =
            Some(Loaded { pass, batch, positions: adapter.positions, caches: adapter.caches, device });
        Ok(Ready {
            libraries: [("candle-transformers".to_owned(), super::CANDLE_TRANSFORMERS.to_owned())].into(),
            load_ns: start.elapsed().as_nanos() as u64,
            notes,
            // Unknown because serde silently drops keys that a port's `Config` does not have.
            ignored_keys: None,
        })
    }

    fn forward(&mut self, forward: &Forward) -> Result<Forwarded, Failed> {
        let start = Instant::now();
        let (logits, positions) = match forward.prefill {
            None => self.logits()?,
            Some(prefill) => self.through_the_cache(prefill)?,
        };
        let elapsed_ns = start.elapsed().as_nanos() as u64;
        let shape = logits.dims().to_vec();
        write_logits(&logits, &forward.logits)?;
        let (prefill, peak_bytes) = (forward.prefill, peak_resident_bytes());
        Ok(Forwarded { elapsed_ns, shape, positions, prefill, peak_bytes, notes: Vec::new() })
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
}

impl PortEngine {
    /// One forward pass, complete on the device: `[batch, seq, vocab_size]`, or `[batch, 1, vocab_size]` for the last
    /// position only.
    fn logits(&mut self) -> Result<(Tensor, Positions), Failed> {
        let Loaded { pass, batch, positions, device, .. } = self.loaded.as_mut().ok_or_else(not_loaded)?;
        let logits = guarded(|| pass(batch, 0).map_err(failure))?;
        device.synchronize().map_err(failure)?;
        Ok((with_positions(logits, *positions)?, *positions))
    }

    /// As [`Self::logits`], with `prefill` tokens in one forward pass and then one token per pass.
    fn through_the_cache(&mut self, prefill: usize) -> Result<(Tensor, Positions), Failed> {
        let Loaded { pass, batch, positions, caches, device } =
            self.loaded.as_mut().ok_or_else(not_loaded)?;
        if !*caches {
            return Err(unsupported("the port's KV cache cannot continue after a prefill"));
        }
        let seq = batch.input_ids.dim(1).map_err(failure)?;
        let mut parts = Vec::new();
        for step in steps(prefill, seq)? {
            let part = |tensor: &Tensor, from: usize| {
                tensor.narrow(1, from, step.end - from).and_then(|part| part.contiguous()).map_err(failure)
            };
            let batch = Batch {
                input_ids: part(&batch.input_ids, step.start)?,
                attention_mask: part(&batch.attention_mask, 0)?,
            };
            let logits = guarded(|| pass(&batch, step.start).map_err(failure))?;
            if *positions == Positions::Last {
                parts.clear();
            }
            parts.push(with_positions(logits, *positions)?);
        }
        device.synchronize().map_err(failure)?;
        Ok((Tensor::cat(&parts, 1).map_err(failure)?, *positions))
    }
}

/// Restores the sequence axis that ports drop if they compute one position only: `[batch, seq, vocab_size]`.
fn with_positions(logits: Tensor, positions: Positions) -> Result<Tensor, Failed> {
    let drops_axis = positions == Positions::Last && logits.rank() == 2;
    if drops_axis { logits.unsqueeze(1).map_err(failure) } else { Ok(logits) }
}

fn adapter(model_type: &str) -> Result<&'static Adapter, Failed> {
    ADAPTERS.iter().find(|adapter| adapter.model_type == model_type).ok_or_else(|| {
        unsupported(format!(
            "candle-transformers {} has no port of model_type `{model_type}` that tfcheck runs",
            super::CANDLE_TRANSFORMERS
        ))
    })
}

fn batch(path: &std::path::Path, device: &Device) -> Result<Batch, Failed> {
    let inputs = inputs(path, device)?;
    let narrow = |tensor: &Tensor| tensor.to_dtype(DType::U32).map_err(failure);
    let mask =
        inputs.attention_mask.as_ref().ok_or_else(|| exception("the inputs have no attention_mask"))?;
    Ok(Batch { input_ids: narrow(&inputs.input_ids)?, attention_mask: narrow(mask)? })
}

struct Padding {
    exists: bool,
    ends_a_row: bool,
}

fn padding(mask: &Tensor) -> candle_core::Result<Padding> {
    let rows = mask.to_vec2::<u32>()?;
    Ok(Padding {
        exists: rows.iter().flatten().any(|&real| real == 0),
        ends_a_row: rows.iter().any(|row| row.last() == Some(&0)),
    })
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
