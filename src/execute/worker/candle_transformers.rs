//! The engine of the ports that candle-transformers ships.
//!
//! A port runs as in its own examples: one full-sequence forward pass from an empty cache, or a prefill and one pass per
//! further token; it gets a padding mask only if its `forward` takes one. `adapters` has one entry per port, which loads
//! from a `checkpoint`.

mod adapters;
mod checkpoint;
mod renamed;

use std::time::Instant;

use reference::protocol::{
    Failed, Forward, Forwarded, Load, Mode, NewInputs, Positions, Ready, TakenInputs, Trace,
};
use tfcheck_port::Running;
use tfcheck_port::worker::{Engine, dtype, guarded, not_loaded, unsupported};

use super::place::device;
use adapters::{ADAPTERS, Adapter};
use checkpoint::Checkpoint;

/// The engine that runs ports.
#[derive(Default)]
pub struct PortEngine {
    running: Option<Running>,
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
        let mut notes = vec![format!("candle_transformers::models::{}", adapter.module)];
        notes.extend(checkpoint.fill(adapter.fill));
        let mut port = guarded(|| (adapter.load)(&checkpoint))?.giving_by_default(adapter.positions);
        if !adapter.caches {
            port = port.without_cache();
        }
        if !adapter.reads_mask {
            port = port.without_mask();
        }
        let running = Running::new(port, &load.inputs, &checkpoint.files)?;
        notes.extend(running.note()?);
        self.running = Some(running);
        Ok(Ready {
            libraries: [("candle-transformers".to_owned(), super::CANDLE_TRANSFORMERS.to_owned())].into(),
            load_ns: start.elapsed().as_nanos() as u64,
            notes,
            ignored_keys: checkpoint.files.unread_keys(),
            translated: Vec::new(),
            unread_tensors: Some(checkpoint.files.unread_tensors()),
        })
    }

    fn forward(&mut self, forward: &Forward) -> Result<Forwarded, Failed> {
        self.running()?.forward(forward)
    }

    fn pass(&mut self) -> Result<(), Failed> {
        self.running()?.pass()
    }

    fn decode(&mut self, tokens: usize) -> Result<Vec<u64>, Failed> {
        self.running()?.decode(tokens)
    }

    fn trace(&mut self, _trace: &Trace) -> Result<(), Failed> {
        Err(unsupported("candle-transformers ports cannot be traced: they have no hooks"))
    }

    fn inputs(&mut self, new: &NewInputs) -> Result<TakenInputs, Failed> {
        self.running()?.take(new)
    }
}

impl PortEngine {
    fn running(&mut self) -> Result<&mut Running, Failed> {
        self.running.as_mut().ok_or_else(not_loaded)
    }
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

#[cfg(test)]
mod tests;
