//! A port as a worker of tfcheck.

use std::error::Error;
use std::process::ExitCode;
use std::time::Instant;

use protocol::{
    Capture, Captured, Failed, Forward, Forwarded, Load, Mode, NewInputs, Ready, Replay, Replayed,
    TakenInputs, Trace,
};

use crate::port::Port;
use crate::running::Running;
use crate::worker::{
    Checkpoint, ChromeTrace, Engine, Feeder, Writer, device, dtype, element, exception, failure, guarded,
    not_loaded, run, same, unsupported,
};

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
