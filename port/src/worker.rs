//! The worker's side of the protocol: [`run`] answers tfcheck's requests with any [`Engine`].
//!
//! [`crate::serve`] is the engine of a port. tfcheck's own workers implement [`Engine`] themselves.

mod capture;
mod checkpoint;
mod chrome_trace;
mod failure;
mod tensors;

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::ops::Range;
use std::sync::mpsc;
use std::time::Instant;

use protocol::{
    Capture, Captured, Failed, Forward, Forwarded, Generate, Generated, Load, NewInputs, PROTOCOL_VERSION,
    REPLY_FD_VARIABLE, REQUEST_FD_VARIABLE, Ready, Replay, Replayed, Reply, Request, TakenInputs, Time,
    Timed, Trace, forward_passes, yardstick,
};

pub use capture::{Feeder, Writer, element, same};
pub use checkpoint::Checkpoint;
pub use chrome_trace::ChromeTrace;
pub use failure::{exception, failure, guarded, not_loaded, unsupported};
pub use tensors::{FileInputs, device, dtype, inputs, write_logits, write_outputs};

/// The computation inside a worker process. Every method answers one request.
pub trait Engine {
    /// Loads the checkpoint and the inputs.
    ///
    /// # Errors
    /// When the engine does not support the request, or a file lacks what it needs.
    fn load(&mut self, load: &Load) -> Result<Ready, Failed>;

    /// One full-sequence forward pass, or a prefill with decode steps; the logits are written to `forward.logits`.
    ///
    /// # Errors
    /// When the pass fails or the logits cannot be written.
    fn forward(&mut self, forward: &Forward) -> Result<Forwarded, Failed>;

    /// One forward pass whose result is dropped; it is complete when this returns.
    ///
    /// # Errors
    /// When the pass fails.
    fn pass(&mut self) -> Result<(), Failed>;

    /// Nanoseconds of one forward pass whose result is dropped, measured on the device if it has a clock.
    ///
    /// # Errors
    /// When the pass fails.
    fn timed_pass(&mut self) -> Result<u64, Failed> {
        let start = Instant::now();
        self.pass()?;
        Ok(start.elapsed().as_nanos() as u64)
    }

    /// Peak memory so far in bytes; `None` if unknown.
    fn peak_bytes(&self) -> Option<u64> {
        peak_resident_bytes()
    }

    /// Nanoseconds of each of `tokens` tokens that are decoded one by one after the inputs; empty without a KV cache.
    ///
    /// # Errors
    /// When a pass fails.
    fn decode(&mut self, tokens: usize) -> Result<Vec<u64>, Failed>;

    /// One forward pass as a Chrome trace.
    ///
    /// # Errors
    /// When the pass fails or the trace cannot be written.
    fn trace(&mut self, trace: &Trace) -> Result<(), Failed>;

    /// One forward pass that writes inputs and outputs of modules.
    ///
    /// # Errors
    /// When the engine exposes no modules, the pass fails or the tensors cannot be written.
    fn capture(&mut self, _capture: &Capture) -> Result<Captured, Failed> {
        Err(no_modules())
    }

    /// One forward pass in which one module is replayed with a stored input.
    ///
    /// # Errors
    /// When the engine exposes no modules, the pass fails, or a file cannot be read or written.
    fn replay(&mut self, _replay: &Replay) -> Result<Replayed, Failed> {
        Err(no_modules())
    }

    /// Gives the loaded model other inputs.
    ///
    /// # Errors
    /// When the engine cannot take others, or the file does not hold them.
    fn inputs(&mut self, _inputs: &NewInputs) -> Result<TakenInputs, Failed> {
        Err(unsupported("it takes its inputs only when it loads a model"))
    }

    /// Tokens that are generated greedily after the inputs.
    ///
    /// # Errors
    /// When the engine generates nothing, or a forward pass fails.
    fn generate(&mut self, _generate: &Generate) -> Result<Generated, Failed> {
        Err(unsupported("it has no code that generates tokens"))
    }
}

/// Answers requests until `exit` or the end of the request stream.
///
/// # Errors
/// When the descriptors cannot be opened or written.
pub fn run(engine: &mut dyn Engine) -> io::Result<()> {
    let requests = File::open(descriptor(REQUEST_FD_VARIABLE, 3))?;
    let mut replies = OpenOptions::new().write(true).open(descriptor(REPLY_FD_VARIABLE, 4))?;
    for line in lines_until_abandoned(requests) {
        let reply = match serde_json::from_str(&line) {
            Ok(Request::Exit) => break,
            // After a panic the worker answers nothing but `exit`, as after every failure.
            Ok(request) => guarded(|| answer(engine, &request)).unwrap_or_else(Reply::Failed),
            Err(error) => {
                Reply::Failed(exception(format!("the request is not one that this worker knows: {error}")))
            }
        };
        let mut line = serde_json::to_vec(&reply)?;
        line.push(b'\n');
        replies.write_all(&line)?;
    }
    Ok(())
}

/// Where the forward passes that were asked for begin and end; `None` for one over all tokens.
///
/// # Errors
/// As [`forward_passes`].
pub fn steps(
    prefill: Option<usize>,
    chunks: &[usize],
    seq: usize,
) -> Result<Option<Vec<Range<usize>>>, Failed> {
    forward_passes(prefill, chunks, seq).map_err(exception)
}

fn no_modules() -> Failed {
    unsupported("it exposes no modules")
}

/// Peak resident set of this process so far in bytes; `None` if the system does not report it.
pub fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

fn answer(engine: &mut dyn Engine, request: &Request) -> Result<Reply, Failed> {
    match request {
        Request::Load(load) if load.protocol != PROTOCOL_VERSION => Err(exception(format!(
            "tfcheck speaks protocol {}, this worker {PROTOCOL_VERSION}",
            load.protocol
        ))),
        Request::Load(load) => engine.load(load).map(Reply::Ready),
        Request::Forward(forward) => engine.forward(forward).map(Reply::Forwarded),
        Request::Time(time) => yardstick::beside(time, || timed(engine, time)).map(Reply::Timed),
        Request::Trace(trace) => engine.trace(trace).map(|()| Reply::Traced),
        Request::Capture(capture) => engine.capture(capture).map(Reply::Captured),
        Request::Replay(replay) => engine.replay(replay).map(Reply::Replayed),
        Request::Inputs(inputs) => engine.inputs(inputs).map(Reply::Taken),
        Request::Generate(generate) => engine.generate(generate).map(Reply::Generated),
        Request::Tokenize(_) => Err(unsupported("it has no tokenizer of its own")),
        Request::Prepare(_) => Err(unsupported("it has no processor of its own")),
        Request::Make(_) => Err(unsupported("it makes no checkpoints")),
        Request::Exit => Err(exception("`exit` is not answered")),
    }
}

fn timed(engine: &mut dyn Engine, time: &Time) -> Result<Timed, Failed> {
    for _ in 0..time.warm_up {
        engine.pass()?;
    }
    let mut samples_ns = Vec::with_capacity(time.iterations);
    for _ in 0..time.iterations {
        samples_ns.push(engine.timed_pass()?);
    }
    let mut timed = Timed { samples_ns, ..Timed::default() };
    // The times of the forward passes stay.
    match if time.decode == 0 { Ok(Vec::new()) } else { engine.decode(time.decode) } {
        Ok(decode_ns) => timed.decode_ns = decode_ns,
        Err(failed) => timed.notes.push(failed.not_decoded()),
    }
    timed.peak_bytes = engine.peak_bytes();
    Ok(timed)
}

/// The path that reopens an inherited descriptor without unsafe code.
fn descriptor(variable: &str, usual: u32) -> String {
    let number = std::env::var(variable).ok().and_then(|value| value.parse().ok()).unwrap_or(usual);
    format!("/dev/fd/{number}")
}

/// Request lines, read on a separate thread. The end of the stream means that tfcheck has exited, so this process ends at
/// once.
fn lines_until_abandoned(requests: File) -> mpsc::IntoIter<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(requests).lines() {
            let Ok(line) = line else { break };
            if sender.send(line).is_err() {
                return;
            }
        }
        std::process::exit(1);
    });
    receiver.into_iter()
}
