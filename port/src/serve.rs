//! A port as a worker of tfcheck.

use std::error::Error;
use std::process::ExitCode;
use std::time::Instant;

use candle_core::Tensor;
use protocol::{
    ATTENTION_MASK, Capture, Captured, Failed, Forward, Forwarded, Load, Mode, NewInputs, Positions, Ready,
    Replay, Replayed, TakenInputs, Trace,
};

use crate::named::NamedTensors;
use crate::recording::Inputs;
use crate::running::Running;
use crate::worker::{
    Checkpoint, ChromeTrace, Engine, Feeder, Writer, device, dtype, element, exception, failure, guarded,
    not_loaded, run, same, unsupported,
};

/// A port that is loaded.
pub struct Port {
    pub(crate) pass: Pass,
    pub(crate) caches: bool,
    pub(crate) reads_mask: bool,
    pub(crate) positions: Option<Positions>,
}

/// One forward pass.
pub(crate) enum Pass {
    /// Over tokens, of which the first has this position; 0 empties the KV cache first.
    Text(Box<TextPass>),
    /// Over the tensors of these names.
    Tensors(&'static [&'static str], Box<TensorsPass>),
}

pub(crate) type TextPass = dyn FnMut(&Inputs, usize) -> candle_core::Result<Tensor>;

pub(crate) type TensorsPass = dyn FnMut(&NamedTensors) -> candle_core::Result<Tensor>;

impl Port {
    /// A port without a KV cache: a function from [`Inputs`] to logits.
    ///
    /// Logits are `[batch, seq, vocab_size]`, or for last positions alone `[batch, 1, vocab_size]` or `[batch,
    /// vocab_size]`; a classifier gives `[batch, labels]`.
    pub fn new(mut pass: impl FnMut(&Inputs) -> candle_core::Result<Tensor> + 'static) -> Self {
        Self {
            pass: Pass::Text(Box::new(move |inputs, _| pass(inputs))),
            caches: false,
            reads_mask: true,
            positions: None,
        }
    }

    /// A port that takes other tensors than text: images, sound, tokens of a decoder. It takes those of the names `takes`, which
    /// are transformers' arguments.
    ///
    /// Its output is `[batch, positions, width]`, `[batch, width]` for whole rows, or has more axes, of which all but the first
    /// and the last are positions.
    pub fn of_tensors(
        takes: &'static [&'static str],
        pass: impl FnMut(&NamedTensors) -> candle_core::Result<Tensor> + 'static,
    ) -> Self {
        Self {
            pass: Pass::Tensors(takes, Box::new(pass)),
            caches: false,
            reads_mask: takes.contains(&ATTENTION_MASK),
            positions: None,
        }
    }

    /// A port with a KV cache. The second argument is the position of the inputs' first token, which is the number of
    /// tokens in the cache; for 0 the port must empty its cache. The attention mask covers the cached tokens too.
    pub fn cached(pass: impl FnMut(&Inputs, usize) -> candle_core::Result<Tensor> + 'static) -> Self {
        Self { pass: Pass::Text(Box::new(pass)), caches: true, reads_mask: true, positions: None }
    }

    /// A port whose cache cannot continue after a prefill.
    #[must_use]
    pub fn without_cache(self) -> Self {
        Self { caches: false, ..self }
    }

    /// A port that does not look at the attention mask; tfcheck then says that padded rows attend to their padding.
    #[must_use]
    pub fn without_mask(self) -> Self {
        Self { reads_mask: false, ..self }
    }

    /// The positions of the logits, where their shape does not tell.
    #[must_use]
    pub fn giving(self, positions: Positions) -> Self {
        Self { positions: Some(positions), ..self }
    }

    /// [`Self::giving`], unless the positions are known.
    #[must_use]
    pub fn giving_by_default(self, positions: Positions) -> Self {
        Self { positions: self.positions.or(Some(positions)), ..self }
    }
}

/// Serves tfcheck's requests with a port, until tfcheck has no more; the `main` of a worker.
///
/// ```no_run
/// # use candle_core::{Result, Tensor};
/// # #[derive(serde::Deserialize)] struct Config {}
/// # struct Llama;
/// # impl Llama {
/// #     fn new(_: &Config, _: candle_nn::VarBuilder) -> Result<Self> { Ok(Llama) }
/// #     fn forward(&self, ids: &Tensor) -> Result<Tensor> { Ok(ids.clone()) }
/// # }
/// fn main() -> std::process::ExitCode {
///     tfcheck_port::serve("my-llama", |checkpoint| {
///         let llama = Llama::new(&checkpoint.config()?, checkpoint.var_builder())?;
///         Ok(tfcheck_port::Port::new(move |inputs| llama.forward(&inputs.input_ids)))
///     })
/// }
/// ```
///
/// In tfcheck.toml it is a variant: `[[commands]]`, `name = "mine"`, `program = ["target/release/worker"]`. dtypes (float64
/// too), timing, traces, other inputs, decoding through a cache, and the modules that [`probe!`](crate::probe) shows are
/// answered here. The tensors and config keys that the port did not read are reported.
pub fn serve<F>(name: &str, load: F) -> ExitCode
where
    F: FnMut(&Checkpoint) -> Result<Port, Box<dyn Error>>,
{
    let mut engine = PortEngine { load, running: None };
    match run(&mut engine) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The only output of this crate: tfcheck keeps it in worker.log.
            #[expect(clippy::print_stderr, reason = "this is the end of a program")]
            {
                eprintln!("{name} is a worker, which tfcheck starts: {error}");
            }
            ExitCode::FAILURE
        }
    }
}

/// The engine of a user's port.
struct PortEngine<F> {
    load: F,
    running: Option<Running>,
}

impl<F> PortEngine<F> {
    fn running(&mut self) -> Result<&mut Running, Failed> {
        self.running.as_mut().ok_or_else(not_loaded)
    }
}

impl<F: FnMut(&Checkpoint) -> Result<Port, Box<dyn Error>>> Engine for PortEngine<F> {
    fn load(&mut self, load: &Load) -> Result<Ready, Failed> {
        let start = Instant::now();
        if load.mode != Mode::Eager {
            return Err(unsupported("a port has one mode, eager"));
        }
        let device = device(&load.device)?;
        let checkpoint = Checkpoint::open(&load.checkpoint, dtype(load.dtype), &device).map_err(failure)?;
        let port = guarded(|| (self.load)(&checkpoint).map_err(|error| exception(error.to_string())))?;
        let running = Running::new(port, &load.inputs, &checkpoint)?;
        let notes = running.note()?.into_iter().collect();
        self.running = Some(running);
        Ok(Ready {
            libraries: [("tfcheck-port".to_owned(), env!("CARGO_PKG_VERSION").to_owned())].into(),
            load_ns: start.elapsed().as_nanos() as u64,
            notes,
            ignored_keys: checkpoint.unread_keys(),
            translated: Vec::new(),
            unread_tensors: Some(checkpoint.unread_tensors()),
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

    fn trace(&mut self, trace: &Trace) -> Result<(), Failed> {
        let running = self.running()?;
        let probe = ChromeTrace::new(running.device.clone());
        let (passed, probe) = crate::probe::with(probe, || running.pass());
        passed?;
        if probe.is_empty() {
            return Err(unsupported("the port shows no module with its input to `probe!`"));
        }
        std::fs::write(&trace.path, probe.json())
            .map_err(|error| exception(format!("cannot write {}: {error}", trace.path.display())))
    }

    fn capture(&mut self, capture: &Capture) -> Result<Captured, Failed> {
        let running = self.running()?;
        let start = Instant::now();
        let (plain, _) = running.logits_of(capture.prefill, &capture.chunks)?;
        let plain_ns = start.elapsed().as_nanos() as u64;
        let writer = Writer::new(capture, "port", element(plain.dtype()));
        let start = Instant::now();
        let (logits, writer) =
            crate::probe::with(writer, || running.logits_of(capture.prefill, &capture.chunks));
        let (logits, _) = logits?;
        let elapsed_ns = start.elapsed().as_nanos() as u64;
        if !writer.saw_modules() {
            return Err(unsupported("the port shows no module to `probe!`"));
        }
        let (modules, bytes) = writer.finish()?;
        let unchanged = same(&plain, &logits).map_err(failure)?;
        Ok(Captured { modules, unchanged, bytes, elapsed_ns, plain_ns })
    }

    fn replay(&mut self, replay: &Replay) -> Result<Replayed, Failed> {
        let running = self.running()?;
        let (passed, feeder) = crate::probe::with(Feeder::new(replay)?, || running.pass());
        passed?;
        feeder.finish()
    }

    fn inputs(&mut self, new: &NewInputs) -> Result<TakenInputs, Failed> {
        self.running()?.take(new)
    }
}
