//! The process that runs foreign code: the hidden `tfcheck foreign`, which reads a request a line and writes a reply a line.
//!
//! It has a limit of memory and of CPU time, a stack of 256 MiB, and a time limit for each request; a stack overflow, an
//! allocation that fails, or a loop ends it and not tfcheck. Its input ends with tfcheck, and then it exits.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use bounds::limits::{RUN_JSON_BYTES, TEMPLATE_SECONDS, TOKENIZER_MEMORY_BYTES, TOKENIZER_SECONDS};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::{Engine, Lost, Reply, Request};

/// Bytes of the stack: foreign parsers recurse on what they read.
const STACK: usize = 256 << 20;
/// Seconds of CPU time after which the process ends even if nobody waits for it any more.
const CPU_SECONDS: u64 = 600;
/// Interval at which a wait checks the stop flag.
const SLICE: Duration = Duration::from_millis(20);
/// Bytes of its standard error that are kept.
const MOST_ERRORS: u64 = 64 << 10;

/// How to start the process.
#[derive(Clone, Debug)]
pub struct Apart {
    /// The `tfcheck` program.
    pub program: PathBuf,
    /// Set when the user asks to stop.
    pub stop: Arc<AtomicBool>,
}

/// The running process; it ends when this is dropped.
pub(in super::super) struct Process {
    child: Child,
    requests: Option<ChildStdin>,
    replies: Receiver<io::Result<Vec<u8>>>,
    errors: Receiver<Vec<u8>>,
    stop: Arc<AtomicBool>,
}

impl Process {
    pub(super) fn start(apart: &Apart) -> Result<Self, Lost> {
        let lost = |error: io::Error| Lost::Failed(format!("{}: {error}", apart.program.display()));
        let mut child = Command::new(&apart.program)
            .arg("foreign")
            // One thread: the memory of many would count against the limit.
            .env("RAYON_NUM_THREADS", "1")
            .env("TOKENIZERS_PARALLELISM", "false")
            .env("MALLOC_ARENA_MAX", "2")
            .env_remove("HF_TOKEN")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(lost)?;
        let (sender, replies) = channel();
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stdout);
                loop {
                    let mut line = Vec::new();
                    let read = reader.by_ref().take(RUN_JSON_BYTES.most).read_until(b'\n', &mut line);
                    let is_whole = read.as_ref().is_ok_and(|_| line.ends_with(b"\n"));
                    let _ = sender.send(read.map(|_| line));
                    if !is_whole {
                        return;
                    }
                }
            });
        }
        let (sender, errors) = channel();
        if let Some(stderr) = child.stderr.take() {
            std::thread::spawn(move || {
                let mut kept = Vec::new();
                let mut stderr = stderr;
                let _ = stderr.by_ref().take(MOST_ERRORS).read_to_end(&mut kept);
                let _ = sender.send(kept);
                let _ = io::copy(&mut stderr, &mut io::sink());
            });
        }
        let requests = child.stdin.take();
        Ok(Self { child, requests, replies, errors, stop: Arc::clone(&apart.stop) })
    }

    pub(super) fn ask(&mut self, request: &Request) -> Result<Reply, Lost> {
        let (limit, what) = limit(request);
        let mut line = serde_json::to_vec(request).map_err(|error| Lost::Failed(error.to_string()))?;
        line.push(b'\n');
        let sent = self.requests.as_mut().map(|pipe| pipe.write_all(&line).and_then(|()| pipe.flush()));
        if !matches!(sent, Some(Ok(()))) {
            return Err(self.died());
        }
        let begun = Instant::now();
        loop {
            match self.replies.recv_timeout(SLICE) {
                Ok(Ok(line)) if line.ends_with(b"\n") => {
                    return serde_json::from_slice(&line)
                        .map_err(|error| Lost::Failed(format!("an answer that is none: {error}")));
                }
                Ok(_) | Err(RecvTimeoutError::Disconnected) => return Err(self.died()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.stop.load(Ordering::Relaxed) {
                let _ = self.child.kill();
                return Err(Lost::Interrupted);
            }
            if begun.elapsed() > limit {
                let _ = self.child.kill();
                return Err(Lost::Failed(format!("{what} does not end within {} s", limit.as_secs())));
            }
        }
    }

    /// How the process ended, in words.
    fn died(&mut self) -> Lost {
        self.requests = None;
        let begun = Instant::now();
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break Some(status),
                Ok(None) if begun.elapsed() < Duration::from_secs(2) => std::thread::sleep(SLICE),
                _ => break None,
            }
        };
        let errors = self.errors.recv_timeout(Duration::from_secs(1)).unwrap_or_default();
        let errors = String::from_utf8_lossy(&errors).into_owned();
        let line = |words: &str| errors.lines().find(|line| line.contains(words)).map(str::to_owned);
        let signal = status.and_then(|status| status.signal());
        let cause = if line("overflowed its stack").is_some() {
            format!(
                "it nests too deeply: the process that reads it overflowed its stack of {} MiB",
                STACK >> 20
            )
        } else if line("memory allocation of").is_some() {
            format!(
                "it needs too much memory: the process that reads it may have {} GiB",
                TOKENIZER_MEMORY_BYTES.most >> 30
            )
        } else if let Some(signal) = signal {
            format!("the process that reads it was ended by signal {signal}")
        } else {
            let last = errors.lines().next_back().unwrap_or_default();
            format!("the process that reads it ended without an answer {last}")
        };
        Lost::Failed(cause.trim_end().to_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How long a request may take, and what does not end otherwise.
fn limit(request: &Request) -> (Duration, &'static str) {
    let seconds = Duration::from_secs;
    match request {
        Request::Open(_) => (seconds(TOKENIZER_SECONDS.most * 3), "reading the tokenizer"),
        Request::Render { .. } => (seconds(TEMPLATE_SECONDS.most), "the chat template"),
        Request::Encode { text, .. } => {
            // Real tokenizers take some 2 s for a MiB.
            let more = 10 * (text.len() as u64 >> 20);
            (seconds(TOKENIZER_SECONDS.most + more), "tokenising")
        }
        Request::Texts(_) | Request::Size => (seconds(TOKENIZER_SECONDS.most * 3), "reading the vocabulary"),
    }
}

/// The process itself: answers requests of standard input on standard output until it ends.
///
/// # Errors
/// When its limits cannot be set, or the pipes break.
pub fn serve() -> io::Result<()> {
    let limited = |most| Rlimit { current: Some(most), maximum: Some(most) };
    setrlimit(Resource::As, limited(TOKENIZER_MEMORY_BYTES.most))?;
    setrlimit(Resource::Cpu, limited(CPU_SECONDS))?;
    setrlimit(Resource::Core, limited(0))?;
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(answers)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("it panicked")))
}

fn answers() -> io::Result<()> {
    let mut engine = Engine::default();
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let reply = match serde_json::from_str(&line?) {
            Ok(request) => bounds::caught(|| engine.answer(request)).unwrap_or_else(Reply::Failed),
            Err(error) => Reply::Failed(format!("an unknown request: {error}")),
        };
        let mut line = serde_json::to_vec(&reply)?;
        line.push(b'\n');
        out.write_all(&line)?;
        out.flush()?;
    }
    Ok(())
}
