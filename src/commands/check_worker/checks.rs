//! The checks, in the order in which a run would ask.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bounds::limits::STORED_TENSOR_BYTES;
use compare::logits::Logits;
use compare::mask::Mask;
use compare::matrix::{self, Entry, PairOutcome};
use compare::metrics::Side;
use compare::verdict::Tolerances;
use reference::WorkerEnd;
use reference::protocol::{
    Capture, Dtype, Forward, Forwarded, Generate, Load, NewInputs, PROTOCOL_VERSION, Positions, Replay,
    Reply, Request, Time, Trace,
};

use super::{Bench, Check, Problem, ROWS, TOKENS, wrong};
use crate::spec::variant::{measured_dtype, measured_positions};

/// Every check.
pub(super) const CHECKS: &[Check] = &[
    Check { request: "load", is_required: true, made: load },
    Check { request: "forward", is_required: true, made: forward },
    Check { request: "forward again", is_required: true, made: repeat },
    Check { request: "time", is_required: true, made: time },
    Check { request: "load, newer protocol", is_required: true, made: newer_protocol },
    Check { request: "exit", is_required: true, made: exit },
    Check { request: "load in f64", is_required: false, made: float64 },
    Check { request: "inputs", is_required: false, made: inputs },
    Check { request: "forward with prefill", is_required: false, made: prefill },
    Check { request: "forward in chunks", is_required: false, made: chunks },
    Check { request: "generate", is_required: false, made: generate },
    Check { request: "trace", is_required: false, made: trace },
    Check { request: "capture", is_required: false, made: capture },
    Check { request: "replay", is_required: false, made: replay },
];

impl Bench<'_> {
    fn ask(&mut self, request: &Request) -> Result<Reply, Problem> {
        let (timeout, stop) = (self.subject.timeout, self.subject.stop);
        Ok(self.worker()?.ask(request, timeout, stop)?)
    }

    /// Asks for logits in the file `name`, and checks the file against the reply.
    fn logits(&mut self, name: &str, forward: Forward) -> Result<(PathBuf, Forwarded), Problem> {
        let path = self.path(name);
        let Reply::Forwarded(reply) =
            self.ask(&Request::Forward(Forward { logits: path.clone(), ..forward }))?
        else {
            return wrong("the reply is not `forwarded`");
        };
        let logits = open(&path, reply.positions)?;
        let shape = logits.shape().to_vec();
        if reply.shape != shape && reply.shape.len() == 3 {
            return wrong(format!("the reply says shape {:?}, the file has {shape:?}", reply.shape));
        }
        if shape[0] != ROWS {
            return wrong(format!("the logits have {} rows, the inputs {ROWS}", shape[0]));
        }
        Ok((path, reply))
    }

    /// Relative L2 of logits to other logits, over real positions.
    fn apart(&self, a: &(PathBuf, Forwarded), b: &(PathBuf, Forwarded)) -> Result<f64, Problem> {
        let mask = Mask::of_inputs(&self.load.inputs).or_else(|error| wrong(error.to_string()))?;
        let entry = |(path, reply): &(PathBuf, Forwarded)| {
            Entry::of_file(path, measured_positions(reply.positions), measured_dtype(Dtype::F32))
        };
        let found = matrix::of_pair(&[entry(a), entry(b)], mask.as_ref());
        match found.or_else(|error| wrong(error.to_string()))? {
            PairOutcome::Compared(pair) => Ok(pair.relative_l2(Side::A)),
            other => wrong(format!("the logits cannot be compared: {other:?}")),
        }
    }

    /// Checks that logits are those of one full-sequence forward pass up to rounding in f32.
    fn same(&mut self, name: &str, forward: &Forward) -> Result<String, Problem> {
        let whole = self.logits("whole.safetensors", Forward::new(PathBuf::new()))?;
        let other = self.logits(name, forward.clone())?;
        let is_echoed = other.1.prefill == forward.prefill && other.1.chunks == forward.chunks;
        if !is_echoed {
            return Err(Problem::Unsupported("the reply does not repeat the field".to_owned()));
        }
        let (apart, limit) = (self.apart(&whole, &other)?, Tolerances::default().relative_l2.f32);
        if apart > limit {
            return wrong(format!(
                "differs from one forward pass by a relative L2 of {apart:.1e}; rounding explains {limit:.1e}"
            ));
        }
        Ok(format!("relative L2 to one forward pass {apart:.1e}"))
    }
}

fn open(path: &Path, positions: Positions) -> Result<Logits, Problem> {
    Logits::open(path, measured_positions(positions)).or_else(|error| wrong(error.to_string()))
}

fn load(bench: &mut Bench) -> Result<String, Problem> {
    let mut worker = bench.start()?;
    let ready = worker.load(bench.load.clone(), bench.subject.timeout, bench.subject.stop)?;
    bench.worker = Some(worker);
    let versions: Vec<String> =
        ready.libraries.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let unread = match (&ready.unread_tensors, &ready.ignored_keys) {
        (None, None) => "does not say what it leaves unread".to_owned(),
        (tensors, keys) => {
            let keys = keys.iter().flatten().filter(|key| !models::is_neutral(key));
            let all: Vec<&str> = keys.chain(tensors.iter().flatten()).map(String::as_str).collect();
            if all.is_empty() {
                "reads everything".to_owned()
            } else {
                format!("leaves unread {}", all.join(", "))
            }
        }
    };
    Ok(format!("{}; {unread}", versions.join(", ")))
}

fn forward(bench: &mut Bench) -> Result<String, Problem> {
    let (path, reply) = bench.logits("first.safetensors", Forward::new(PathBuf::new()))?;
    let left: Vec<String> = std::fs::read_dir(bench.folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| !["first.safetensors", "inputs.safetensors", "worker.log"].contains(&name.as_str()))
        .filter(|name| name.ends_with("safetensors") || name.ends_with("partial"))
        .collect();
    if !left.is_empty() {
        return wrong(format!("it left other files beside the logits: {}", left.join(", ")));
    }
    let shape = open(&path, reply.positions)?.shape();
    Ok(format!("{shape:?}, {:?} positions", reply.positions).to_lowercase())
}

fn repeat(bench: &mut Bench) -> Result<String, Problem> {
    bench.same("again.safetensors", &Forward::new(PathBuf::new()))
}

fn time(bench: &mut Bench) -> Result<String, Problem> {
    let time = Time { warm_up: 1, iterations: 3, ..Time::default() };
    let Reply::Timed(timed) = bench.ask(&Request::Time(time))? else {
        return wrong("the reply is not `timed`");
    };
    if timed.samples_ns.len() != 3 || timed.samples_ns.contains(&0) {
        return wrong(format!("3 samples above 0 ns were asked for, it gave {:?}", timed.samples_ns));
    }
    Ok(format!("{} ns at best", timed.samples_ns.iter().min().copied().unwrap_or_default()))
}

fn newer_protocol(bench: &mut Bench) -> Result<String, Problem> {
    let mut worker = bench.start()?;
    let load = Load { protocol: PROTOCOL_VERSION + 1, ..bench.load.clone() };
    match worker.load(load, bench.subject.timeout, bench.subject.stop) {
        Err(WorkerEnd::Exception(failed) | WorkerEnd::Unsupported(failed)) => {
            Ok(format!("refused: {}", failed.message))
        }
        Err(ended) => Err(ended.into()),
        Ok(_) => {
            wrong(format!("it accepts a request of protocol {}, which it cannot know", PROTOCOL_VERSION + 1))
        }
    }
}

fn exit(bench: &mut Bench) -> Result<String, Problem> {
    bench.worker()?;
    let Some(worker) = bench.worker.take() else { return wrong("it is not running") };
    let grace = Duration::from_secs(2);
    let begun = std::time::Instant::now();
    worker.exit(grace);
    if begun.elapsed() >= grace {
        return wrong("it still ran 2 s after `exit`");
    }
    Ok("ended".to_owned())
}

fn float64(bench: &mut Bench) -> Result<String, Problem> {
    let narrow = bench.logits("f32.safetensors", Forward::new(PathBuf::new()))?;
    let (timeout, stop) = (bench.subject.timeout, bench.subject.stop);
    let mut worker = bench.start()?;
    worker.load(Load { dtype: Dtype::F64, ..bench.load.clone() }, timeout, stop)?;
    let path = bench.path("f64.safetensors");
    let reply = worker.forward(Forward::new(path.clone()), timeout, stop)?;
    let stored = open(&path, reply.positions)?.storage();
    if stored != compare::Dtype::F64 {
        let reason = format!("asked for float64 it gave logits of {}", stored.name());
        return Err(Problem::Unsupported(reason));
    }
    let apart = bench.apart(&(path, reply), &narrow)?;
    Ok(format!("relative L2 of f32 to it {apart:.1e}"))
}

fn inputs(bench: &mut Bench) -> Result<String, Problem> {
    let first = bench.logits("before.safetensors", Forward::new(PathBuf::new()))?;
    let Reply::Taken(taken) = bench.ask(&Request::Inputs(NewInputs { inputs: bench.load.inputs.clone() }))?
    else {
        return wrong("the reply is not `taken`");
    };
    let second = bench.logits("after.safetensors", Forward::new(PathBuf::new()))?;
    let apart = bench.apart(&first, &second)?;
    if apart > Tolerances::default().relative_l2.f32 {
        return wrong(format!(
            "the same inputs, given anew, change the logits by a relative L2 of {apart:.1e}"
        ));
    }
    if taken.unused.is_empty() {
        Ok("uses all of them".to_owned())
    } else {
        Ok(format!("unused: {}", taken.unused.join(", ")))
    }
}

fn prefill(bench: &mut Bench) -> Result<String, Problem> {
    bench.same("prefill.safetensors", &Forward::prefilled(PathBuf::new(), Some(TOKENS / 2)))
}

fn chunks(bench: &mut Bench) -> Result<String, Problem> {
    let chunks = vec![TOKENS / 2, 1, TOKENS - TOKENS / 2 - 1];
    bench.same("chunks.safetensors", &Forward { chunks, ..Forward::new(PathBuf::new()) })
}

fn generate(bench: &mut Bench) -> Result<String, Problem> {
    let Reply::Generated(generated) = bench.ask(&Request::Generate(Generate { tokens: 3 }))? else {
        return wrong("the reply is not `generated`");
    };
    if generated.ids.len() != ROWS || generated.ids.iter().any(|row| row.len() != 3) {
        return wrong(format!(
            "3 tokens for each of {ROWS} rows were asked for, it gave {:?}",
            generated.ids
        ));
    }
    Ok("3 tokens a row".to_owned())
}

fn trace(bench: &mut Bench) -> Result<String, Problem> {
    let path = bench.path("trace.json");
    let Reply::Traced = bench.ask(&Request::Trace(Trace { path: path.clone() }))? else {
        return wrong("the reply is not `traced`");
    };
    let text = bounds::file::read_unlinked(&path, STORED_TENSOR_BYTES)
        .or_else(|error| wrong(format!("no trace was written: {error}")))?;
    let trace: serde_json::Value =
        serde_json::from_slice(&text).or_else(|error| wrong(format!("the trace is not JSON: {error}")))?;
    match trace["traceEvents"].as_array() {
        Some(events) => Ok(format!("{} events", events.len())),
        None => wrong("the trace has no list `traceEvents`"),
    }
}

/// A capture of every module, with its folder.
fn captured(bench: &mut Bench) -> Result<(reference::protocol::Captured, PathBuf), Problem> {
    let folder = tempfile::tempdir_in(bench.folder).or_else(|error| wrong(error.to_string()))?.keep();
    let capture = Capture {
        folder: folder.clone(),
        modules: vec!["*".to_owned()],
        max_bytes: 1 << 30,
        prefill: None,
        chunks: Vec::new(),
    };
    match bench.ask(&Request::Capture(capture))? {
        Reply::Captured(captured) => Ok((captured, folder)),
        _ => wrong("the reply is not `captured`"),
    }
}

fn capture(bench: &mut Bench) -> Result<String, Problem> {
    let (captured, folder) = captured(bench)?;
    if !captured.unchanged {
        return wrong("the forward pass that captures gives other logits than one that does not");
    }
    for module in &captured.modules {
        for tensor in [&module.input, &module.output].into_iter().flatten() {
            let Some(file) = &tensor.file else { continue };
            let size = std::fs::metadata(folder.join(file)).map_or(0, |file| file.len() as usize);
            let count: usize = tensor.shape.iter().product();
            if size != 4 * count {
                return wrong(format!(
                    "{}: the file of a tensor of shape {:?} has {size} bytes instead of {} (f32)",
                    module.path,
                    tensor.shape,
                    4 * count
                ));
            }
        }
    }
    Ok(format!("{} module calls", captured.modules.len()))
}

fn replay(bench: &mut Bench) -> Result<String, Problem> {
    let (captured, folder) = captured(bench)?;
    let mut replayed = 0;
    for module in &captured.modules {
        let (Some(input), Some(output)) = (&module.input, &module.output) else { continue };
        let (Some(file), Some(own)) = (&input.file, &output.file) else { continue };
        if !input.dtype.to_lowercase().contains('f') {
            continue;
        }
        let path = bench.path("replayed");
        let ask = Replay {
            module: module.path.clone(),
            call: module.call,
            input: folder.join(file),
            shape: input.shape.clone(),
            further: Vec::new(),
            output: path.clone(),
        };
        let Reply::Replayed(_) = bench.ask(&Request::Replay(ask))? else {
            return wrong("the reply is not `replayed`");
        };
        let read = |path: &Path| {
            bounds::file::read_unlinked(path, STORED_TENSOR_BYTES).or_else(|error| wrong(error.to_string()))
        };
        if read(&path)? != read(&folder.join(own))? {
            return wrong(format!("{}, replayed with its own input, gives another output", module.path));
        }
        replayed += 1;
    }
    if replayed == 0 {
        return Err(Problem::Unsupported("no module was captured with its input".to_owned()));
    }
    Ok(format!("{replayed} module calls give their own output again"))
}
