//! The worker of the ports that candle-transformers ships.
//!
//! It is a crate of its own, so that `tfcheck scoreboard --crate PATH` can build it against another checkout of candle. A port runs as
//! in its own examples: one full-sequence forward pass from an empty cache, or a prefill and one pass per further token; it gets a
//! padding mask only if its `forward` takes one. `adapters` has one entry per port, which loads from a `checkpoint`.

mod adapters;
mod checkpoint;
mod gguf;
mod renamed;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use candle_core::{DType, Device};

use protocol::{Failed, Forward, Forwarded, Load, Mode, NewInputs, Positions, Ready, TakenInputs, Trace};
use tfcheck_port::Running;
use tfcheck_port::worker::{self, Engine, device, dtype, failure, guarded, not_loaded, unsupported};

use adapters::{ADAPTERS, Adapter, QUANTISED};
use checkpoint::Checkpoint;

/// The `main` of a worker of ports of candle-transformers at this version.
pub fn serve(version: &str) -> ExitCode {
    match worker::run(&mut PortEngine::new(version)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "the worker lost its descriptors: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The engine that runs ports.
pub struct PortEngine {
    /// Of candle-transformers, as results report it.
    version: String,
    adapters: &'static [Adapter],
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
        let adapter = self.adapter(checkpoint.model_type())?;
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
            libraries: [("candle-transformers".to_owned(), self.version.clone())].into(),
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
    /// The engine of ports of candle-transformers at this version.
    pub fn new(version: &str) -> Self {
        Self { version: version.to_owned(), adapters: ADAPTERS, running: None }
    }

    /// The same engine for the ports that read GGUF files.
    #[must_use]
    pub fn quantised(self) -> Self {
        Self { adapters: QUANTISED, ..self }
    }

    fn adapter(&self, model_type: &str) -> Result<&'static Adapter, Failed> {
        find(self.adapters, model_type).ok_or_else(|| {
            unsupported(format!(
                "candle-transformers {} has no port of model_type `{model_type}` that tfcheck runs",
                self.version
            ))
        })
    }

    fn running(&mut self) -> Result<&mut Running, Failed> {
        self.running.as_mut().ok_or_else(not_loaded)
    }
}

/// What is known of a port before it is loaded.
pub struct Port {
    /// Which positions it computes.
    pub positions: Positions,
    /// Whether it decodes through a KV cache.
    pub caches: bool,
}

/// The port of an architecture, if tfcheck runs one.
pub fn port(model_type: &str) -> Option<Port> {
    find(ADAPTERS, model_type).map(|adapter| Port { positions: adapter.positions, caches: adapter.caches })
}

/// The module of every adapter below `candle_transformers::models`; an adapter of two ports has both, with a comma between.
pub fn modules() -> impl Iterator<Item = &'static str> {
    ADAPTERS.iter().map(|adapter| adapter.module)
}

/// Whether there is a port that reads a GGUF file of this architecture.
pub fn is_quantised(model_type: &str) -> bool {
    find(QUANTISED, model_type).is_some()
}

/// The GGUF file in f32 that the ports of llama.cpp's names get of the checkpoint in `folder`.
///
/// # Errors
/// The checkpoint cannot be read, or there is no such port of its architecture.
pub fn gguf(folder: &Path) -> Result<Vec<u8>, Failed> {
    let checkpoint = Checkpoint::open(folder, DType::F32, &Device::Cpu)?;
    let (_, file) = gguf::file(&checkpoint).map_err(failure)?;
    Ok(file.into_inner())
}

fn find(adapters: &'static [Adapter], model_type: &str) -> Option<&'static Adapter> {
    adapters.iter().find(|adapter| adapter.model_type == model_type)
}
