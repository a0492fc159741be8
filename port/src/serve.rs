//! A port as a worker of tfcheck, and what every port's engine shares.

use std::error::Error;
use std::ops::Range;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use candle_core::{Device, Tensor};
use protocol::{
    ATTENTION_MASK, Capture, Captured, Failed, Forward, Forwarded, Load, Mode, NewInputs, POSITION_IDS,
    Positions, Ready, Replay, Replayed, TakenInputs, Trace,
};

use crate::recording::Inputs;
use crate::worker::{
    Checkpoint, ChromeTrace, Engine, Feeder, Writer, dtype, element, exception, failure, guarded, inputs,
    not_loaded, peak_resident_bytes, run, same, steps, unsupported, write_logits,
};

/// A port that is loaded.
pub struct Port {
    pass: Box<Pass>,
    caches: bool,
    reads_mask: bool,
    positions: Option<Positions>,
}

/// One forward pass over inputs whose first token has this position; 0 empties the KV cache first.
type Pass = dyn FnMut(&Inputs, usize) -> candle_core::Result<Tensor>;

impl Port {
    /// A port without a KV cache: a function from [`Inputs`] to logits.
    ///
    /// Logits are `[batch, seq, vocab_size]`, or for last positions alone `[batch, 1, vocab_size]` or `[batch,
    /// vocab_size]`; a classifier gives `[batch, labels]`.
    pub fn new(mut pass: impl FnMut(&Inputs) -> candle_core::Result<Tensor> + 'static) -> Self {
        Self {
            pass: Box::new(move |inputs, _| pass(inputs)),
            caches: false,
            reads_mask: true,
            positions: None,
        }
    }

    /// A port with a KV cache. The second argument is the position of the inputs' first token, which is the number of
    /// tokens in the cache; for 0 the port must empty its cache. The attention mask covers the cached tokens too.
    pub fn cached(pass: impl FnMut(&Inputs, usize) -> candle_core::Result<Tensor> + 'static) -> Self {
        Self { pass: Box::new(pass), caches: true, reads_mask: true, positions: None }
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

/// A loaded port with its inputs.
pub struct Running {
    port: Port,
    inputs: Inputs,
    device: Device,
    /// Whether one vector of logits belongs to a whole row.
    is_classifier: bool,
}

impl Running {
    /// A port that will compute the inputs in the file `inputs`.
    ///
    /// # Errors
    /// When the file cannot be read, or the port would give logits of padding only.
    pub fn new(port: Port, path: &Path, checkpoint: &Checkpoint) -> Result<Self, Failed> {
        let head = checkpoint.json()["architectures"][0].as_str().unwrap_or_default();
        let device = checkpoint.device().clone();
        let inputs = inputs(path, &device)?.of_text()?.for_port()?;
        let is_classifier = head.ends_with("ForSequenceClassification");
        let running = Self { port, inputs, device, is_classifier };
        running.refuse_padding_alone()?;
        Ok(running)
    }

    /// Gives the port other inputs.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn take(&mut self, new: &NewInputs) -> Result<TakenInputs, Failed> {
        self.inputs = inputs(&new.inputs, &self.device)?.of_text()?.for_port()?;
        self.refuse_padding_alone()?;
        let mut unused = vec![POSITION_IDS.to_owned()];
        if !self.port.reads_mask {
            unused.push(ATTENTION_MASK.to_owned());
        }
        Ok(TakenInputs { unused })
    }

    fn refuse_padding_alone(&self) -> Result<(), Failed> {
        let rows = self.inputs.attention_mask.to_vec2::<u32>().map_err(failure)?;
        if self.port.positions == Some(Positions::Last) && rows.iter().any(|row| row.last() == Some(&0)) {
            return Err(unsupported(
                "the port returns the last column only, which is padding in sequences padded on the right",
            ));
        }
        Ok(())
    }

    /// What a person must know of these inputs.
    ///
    /// # Errors
    /// When the mask cannot be read.
    pub fn note(&self) -> Result<Option<String>, Failed> {
        let rows = self.inputs.attention_mask.to_vec2::<u32>().map_err(failure)?;
        let is_padded = rows.iter().flatten().any(|&real| real == 0);
        Ok((is_padded && !self.port.reads_mask)
            .then(|| "the port takes no padding mask: padded sequences attend to their padding".to_owned()))
    }

    /// Answers [`protocol::Request::Forward`].
    ///
    /// # Errors
    /// When the pass fails, or the logits cannot be written.
    pub fn forward(&mut self, forward: &Forward) -> Result<Forwarded, Failed> {
        let start = Instant::now();
        let (logits, positions) = self.logits_of(forward.prefill, &forward.chunks)?;
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
            outputs: Vec::new(),
            graphs: None,
            notes: Vec::new(),
        })
    }

    /// One forward pass whose logits are dropped, complete on the device.
    ///
    /// # Errors
    /// When the pass fails.
    pub fn pass(&mut self) -> Result<(), Failed> {
        self.logits_of(None, &[]).map(drop)
    }

    /// Nanoseconds of each of `tokens` tokens after the inputs: the first token of each row again and again.
    ///
    /// # Errors
    /// When a pass fails.
    pub fn decode(&mut self, tokens: usize) -> Result<Vec<u64>, Failed> {
        if !self.port.caches {
            return Ok(Vec::new());
        }
        self.pass()?;
        let (batch, seq) = self.inputs.input_ids.dims2().map_err(failure)?;
        let ids = self.inputs.input_ids.narrow(1, 0, 1).and_then(|ids| ids.contiguous()).map_err(failure)?;
        let mut mask = self.inputs.attention_mask.clone();
        let ones = ids.ones_like().map_err(failure)?;
        let last = self.inputs.position_ids.narrow(1, seq - 1, 1).map_err(failure)?;
        let mut samples_ns = Vec::with_capacity(tokens);
        for token in 0..tokens {
            mask = Tensor::cat(&[&mask, &ones], 1).map_err(failure)?;
            let next = Tensor::full(token as u32 + 1, (batch, 1), &self.device).map_err(failure)?;
            let position_ids = (&last + next).map_err(failure)?;
            let step = Inputs { input_ids: ids.clone(), attention_mask: mask.clone(), position_ids };
            let start = Instant::now();
            guarded(|| (self.port.pass)(&step, seq + token).map_err(failure))?;
            self.device.synchronize().map_err(failure)?;
            samples_ns.push(start.elapsed().as_nanos() as u64);
        }
        Ok(samples_ns)
    }

    /// Logits of all positions, or of the last one: in one pass, or in one through the cache for each step.
    fn logits_of(&mut self, prefill: Option<usize>, chunks: &[usize]) -> Result<(Tensor, Positions), Failed> {
        let seq = self.inputs.input_ids.dim(1).map_err(failure)?;
        let Some(steps) = steps(prefill, chunks, seq)? else {
            let logits = guarded(|| (self.port.pass)(&self.inputs, 0).map_err(failure))?;
            self.device.synchronize().map_err(failure)?;
            return self.placed(logits, seq);
        };
        if !self.port.caches {
            return Err(unsupported("the port's KV cache cannot continue after a prefill"));
        }
        let mut parts = Vec::new();
        let mut positions = Positions::All;
        for Range { start, end } in steps {
            let part = |tensor: &Tensor, from: usize| {
                tensor.narrow(1, from, end - from).and_then(|part| part.contiguous()).map_err(failure)
            };
            let inputs = Inputs {
                input_ids: part(&self.inputs.input_ids, start)?,
                attention_mask: part(&self.inputs.attention_mask, 0)?,
                position_ids: part(&self.inputs.position_ids, start)?,
            };
            let logits = guarded(|| (self.port.pass)(&inputs, start).map_err(failure))?;
            let (logits, of) = self.placed(logits, end - start)?;
            if of == Positions::Last && end - start > 1 {
                positions = Positions::Last;
            }
            parts.push(logits);
        }
        self.device.synchronize().map_err(failure)?;
        if positions == Positions::Last || self.port.positions == Some(Positions::Last) {
            let last = parts.pop().ok_or_else(|| exception("no forward pass was asked for"))?;
            return Ok((last, Positions::Last));
        }
        Ok((Tensor::cat(&parts, 1).map_err(failure)?, Positions::All))
    }

    /// Logits of a pass over `seq` tokens with their sequence axis, which ports drop if they compute one position only, and
    /// their positions.
    fn placed(&self, logits: Tensor, seq: usize) -> Result<(Tensor, Positions), Failed> {
        if self.is_classifier {
            return Ok((logits, Positions::All));
        }
        let logits = if logits.rank() == 2 { logits.unsqueeze(1).map_err(failure)? } else { logits };
        let [_, held, _] = logits.dims()[..] else {
            return Err(exception(format!("the port returned logits of shape {:?}", logits.dims())));
        };
        let by_shape = if held == seq { Positions::All } else { Positions::Last };
        Ok((logits, self.port.positions.unwrap_or(by_shape)))
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
        let device = match load.device.as_str() {
            "cpu" => Device::Cpu,
            name => {
                let number = name.strip_prefix("cuda:").and_then(|number| number.parse().ok());
                let number = number.ok_or_else(|| unsupported(format!("no such device: {name}")))?;
                Device::new_cuda(number).map_err(|error| unsupported(format!("{name}: {error}")))?
            }
        };
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
