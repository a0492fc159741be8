//! A scripted runner inside the test process, for the scheduler's tests.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use candle_core::{Device, Tensor};
use reference::protocol::{Forwarded, LOGITS, Positions, Ready, Reply, Request, Timed, Tokenized};

use crate::execute::cell::FailureKind;
use crate::execute::runner::{NoResult, Runner, Session, Start};

/// The behaviour of a fake worker on each request.
#[derive(Clone, Debug, Default)]
pub(super) struct Script {
    /// If set, starting the worker fails with this.
    pub(super) start: Option<NoResult>,
    /// If set, `load` fails with this.
    pub(super) load: Option<NoResult>,
    /// If set, this `load` of all workers of its name, counted from 0, ends the worker.
    pub(super) lost_at: Option<usize>,
    /// How long `load` takes.
    pub(super) pause: Duration,
    /// If set, `forward` fails with this.
    pub(super) forward: Option<NoResult>,
    /// If set, every `forward` after the first fails with this, also in a second worker.
    pub(super) again: Option<NoResult>,
    /// Added to the first logit on each further `forward` of any worker, to simulate a nondeterministic one.
    pub(super) drift: f32,
    /// The token ids that `tokenize` returns; unsupported if `None`.
    pub(super) ids: Option<Vec<Vec<i64>>>,
    /// The n-th `time` request fails with the n-th entry; it succeeds if that is `None` or absent.
    pub(super) time: VecDeque<Option<NoResult>>,
    /// The calibration-loop reading of the n-th round that requests one; 100 ns after the last entry.
    pub(super) yardstick_ns: VecDeque<u64>,
    /// If set, `trace` fails with this.
    pub(super) trace: Option<NoResult>,
    /// If set, the worker reports logits without writing the file.
    pub(super) forget_logits: bool,
    /// Values of the logits, `[1, 1, n]`.
    pub(super) logits: Vec<f32>,
    /// Peak memory in the replies, in bytes.
    pub(super) peak_bytes: u64,
    /// [`Runner::is_reusable`].
    pub(super) reusable: bool,
}

/// Requests in their order, over all fake workers that share the journal: `a load`, `a time`, `b end`, …
pub(super) type Journal = Arc<Mutex<Vec<String>>>;

/// A runner that follows a [`Script`].
#[derive(Clone, Debug)]
pub(super) struct FakeRunner {
    /// Its name in the journal.
    pub(super) name: String,
    /// The workers' behaviour.
    pub(super) script: Script,
    /// Where its workers record their requests.
    pub(super) journal: Journal,
}

impl FakeRunner {
    fn note(&self, what: &str) {
        let mut journal = self.journal.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        journal.push(format!("{} {what}", self.name));
    }
}

impl Runner for FakeRunner {
    fn start<'a>(
        &'a self,
        _log: PathBuf,
        stop: &'a AtomicBool,
        how: Start<'_>,
    ) -> Result<Box<dyn Session + 'a>, NoResult> {
        if let Some(ended) = &self.script.start {
            return Err(ended.clone());
        }
        if how.caches.is_some() {
            self.note("start with caches");
        }
        Ok(Box::new(FakeSession { runner: self.clone(), stop }))
    }

    fn is_reusable(&self) -> bool {
        self.script.reusable
    }
}

struct FakeSession<'a> {
    runner: FakeRunner,
    stop: &'a AtomicBool,
}

impl FakeSession<'_> {
    /// Number of requests of this kind to workers of this name.
    fn count(&self, what: &str) -> usize {
        let journal = self.runner.journal.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let line = format!("{} {what}", self.runner.name);
        journal.iter().filter(|known| **known == line).count()
    }

    fn note(&self, what: &str) {
        self.runner.note(what);
    }
}

fn or_end(ended: Option<NoResult>, reply: Reply) -> Result<Reply, NoResult> {
    ended.map_or(Ok(reply), Err)
}

impl Session for FakeSession<'_> {
    fn ask(&mut self, request: &Request, _timeout: Duration) -> Result<Reply, NoResult> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(NoResult::Interrupted);
        }
        let script = &mut self.runner.script;
        match request {
            Request::Load(_) => {
                let boom = || NoResult::failed(FailureKind::Crashed, "killed by signal 11");
                let is_lost = script.lost_at.is_some_and(|at| at == self.count("load"));
                let ended = self.runner.script.load.clone().or_else(|| is_lost.then(boom));
                self.note("load");
                std::thread::sleep(self.runner.script.pause);
                or_end(ended, Reply::Ready(Ready::default()))
            }
            Request::Forward(forward) => {
                let (ended, forget) = (script.forward.clone(), script.forget_logits);
                let (mut logits, peak_bytes) = (script.logits.clone(), script.peak_bytes);
                let (again, drift) = (script.again.clone(), script.drift);
                let before = self.count("forward");
                self.note("forward");
                let ended = if before > 0 { ended.or(again) } else { ended };
                if let Some(first) = logits.first_mut() {
                    *first += drift * before as f32;
                }
                let shape = vec![1, 1, logits.len()];
                if ended.is_none() && !forget {
                    write_logits(&logits, &forward.logits)
                        .map_err(|error| NoResult::failed(FailureKind::Exception, error))?;
                }
                or_end(
                    ended,
                    Reply::Forwarded(Forwarded {
                        elapsed_ns: 5_000_000,
                        shape,
                        positions: Positions::All,
                        prefill: forward.prefill,
                        chunks: forward.chunks.clone(),
                        peak_bytes: Some(peak_bytes),
                        outputs: Vec::new(),
                        graphs: None,
                        notes: Vec::new(),
                    }),
                )
            }
            Request::Time(time) => {
                let ended = script.time.pop_front().flatten();
                let reading = script.yardstick_ns.pop_front().unwrap_or(100);
                let yardstick_ns = (time.yardstick > 0).then_some(reading);
                let is_busy = yardstick_ns.zip(time.quiet_ns).is_some_and(|(now, quiet)| now > quiet);
                let samples = |n: usize| if is_busy { 0 } else { n };
                let reply = Timed {
                    samples_ns: vec![1_000_000; samples(time.iterations)],
                    decode_ns: vec![100_000; samples(time.decode)],
                    yardstick_ns,
                    ..Timed::default()
                };
                self.note("time");
                or_end(ended, Reply::Timed(reply))
            }
            Request::Trace(trace) => {
                let ended = script.trace.clone();
                self.note("trace");
                if ended.is_none() {
                    std::fs::write(&trace.path, "{\"traceEvents\":[]}")
                        .map_err(|error| NoResult::failed(FailureKind::Exception, error.to_string()))?;
                }
                or_end(ended, Reply::Traced)
            }
            Request::Capture(_)
            | Request::Replay(_)
            | Request::Inputs(_)
            | Request::Generate(_)
            | Request::Make(_)
            | Request::Prepare(_) => Err(NoResult::Unsupported("it exposes no modules".to_owned())),
            Request::Tokenize(_) => {
                let ids = script.ids.clone();
                self.note("tokenize");
                let unsupported = || NoResult::Unsupported("no tokenizer".into());
                let ids = ids.ok_or_else(unsupported)?;
                Ok(Reply::Tokenized(Tokenized { ids, class: "FakeTokenizer".into() }))
            }
            Request::Exit => Ok(Reply::Traced),
        }
    }

    fn end(self: Box<Self>) {
        self.note("end");
    }
}

fn write_logits(logits: &[f32], path: &std::path::Path) -> Result<(), String> {
    let tensor =
        Tensor::from_slice(logits, (1, 1, logits.len()), &Device::Cpu).map_err(|error| error.to_string())?;
    candle_core::safetensors::save(&[(LOGITS, tensor)].into(), path).map_err(|error| error.to_string())
}
