//! The request loop: one thread reads requests, the main thread computes.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use rustix::process::{Signal, getpgrp, getpid, kill_current_process_group};

use super::failure::Stop;
use super::load::Loaded;
use super::{capture, descriptors, forward, generate, load, make, processor, time, tokenize, trace};
use protocol::yardstick;
use protocol::{Reply, Request};

/// Answers requests until [`Request::Exit`], then exits the process directly, so that no library's destructor
/// can turn a successful exit into a failure.
pub(super) fn serve(py: Python<'_>) -> PyResult<()> {
    let (requests, mut replies) = descriptors::take(py)?;
    let (sender, receiver) = channel();
    std::thread::spawn(move || read(requests, &sender));
    // Only the main thread receives; the mutex lets it wait without holding the GIL.
    let receiver = Mutex::new(receiver);
    let mut loaded = None;
    loop {
        let received = py.detach(|| receiver.lock().ok().and_then(|receiver| receiver.recv().ok()));
        let reply = match received {
            None | Some(Ok(Request::Exit)) => break,
            Some(Ok(request)) => answer(py, request, &mut loaded),
            Some(Err(reason)) => Err(Stop::exception(format!("not a request: {reason}"))),
        };
        let reply = reply.unwrap_or_else(|stop| Reply::Failed(stop.into_failed(py)));
        let mut line = serde_json::to_vec(&reply)
            .map_err(|error| PyOSError::new_err(format!("a reply is not JSON: {error}")))?;
        line.push(b'\n');
        // If tfcheck is gone, the reading thread also notices and ends this process.
        replies.write_all(&line).map_err(|error| PyOSError::new_err(format!("the reply pipe: {error}")))?;
    }
    let sys = py.import("sys")?;
    for stream in ["stdout", "stderr"] {
        sys.getattr(stream)?.call_method0("flush")?;
    }
    py.import("os")?.call_method1("_exit", (0,))?;
    Ok(())
}

fn answer(py: Python<'_>, request: Request, loaded: &mut Option<Loaded>) -> Result<Reply, Stop> {
    let missing = || Stop::exception("nothing is loaded".to_owned());
    match request {
        Request::Load(request) => {
            let (model, ready) = load::load(py, &request)?;
            *loaded = Some(model);
            Ok(Reply::Ready(ready))
        }
        Request::Forward(request) => {
            let model = loaded.as_ref().ok_or_else(missing)?;
            Ok(Reply::Forwarded(forward::forward(py, model, &request)?))
        }
        Request::Time(request) => {
            let model = loaded.as_ref().ok_or_else(missing)?;
            Ok(Reply::Timed(yardstick::beside(&request, || time::time(py, model, &request))?))
        }
        Request::Trace(request) => {
            let model = loaded.as_ref().ok_or_else(missing)?;
            trace::trace(py, model, &request)?;
            Ok(Reply::Traced)
        }
        Request::Capture(request) => {
            let model = loaded.as_ref().ok_or_else(missing)?;
            Ok(Reply::Captured(capture::capture(py, model, &request)?))
        }
        Request::Replay(request) => {
            let model = loaded.as_ref().ok_or_else(missing)?;
            Ok(Reply::Replayed(capture::replay(py, model, &request)?))
        }
        Request::Inputs(request) => {
            let model = loaded.as_mut().ok_or_else(missing)?;
            Ok(Reply::Taken(load::take_inputs(py, model, &request)?))
        }
        Request::Generate(request) => {
            let model = loaded.as_ref().ok_or_else(missing)?;
            Ok(Reply::Generated(generate::generate(py, model, &request)?))
        }
        Request::Prepare(request) => Ok(Reply::Prepared(processor::prepare(py, &request)?)),
        Request::Tokenize(request) => Ok(Reply::Tokenized(tokenize::tokenize(py, &request)?)),
        Request::Make(request) => {
            make::make(py, &request)?;
            Ok(Reply::Made)
        }
        Request::Exit => Err(missing()),
    }
}

/// Forwards requests until an exit request; end of file means that tfcheck is gone.
fn read(requests: File, sender: &Sender<Result<Request, String>>) {
    for line in BufReader::new(requests).lines() {
        let Ok(line) = line else { break };
        let request = serde_json::from_str::<Request>(&line).map_err(|error| error.to_string());
        let last = matches!(request, Ok(Request::Exit));
        if sender.send(request).is_err() {
            return;
        }
        if last {
            return;
        }
    }
    end_group();
}

/// Kills this process and everything that it started, such as compilers.
fn end_group() -> ! {
    // A worker started by hand shares the shell's process group, which must not be killed.
    if getpgrp() == getpid() {
        let _ = kill_current_process_group(Signal::KILL);
        std::thread::sleep(Duration::from_secs(1));
    }
    std::process::abort()
}
