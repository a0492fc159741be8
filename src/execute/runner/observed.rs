//! A runner whose workers are observed: `--verbose` shows their commands and the time of each request; given twice, also
//! their output.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use reference::protocol::{Load, Reply, Request};

use super::{NoResult, Runner, Session, Start};
use crate::execute::progress::Progress;
use crate::spec::variant::{attention_name, dtype_name, mode_name};

/// Shows the requests to another runner's workers.
pub struct ObservedRunner<'p> {
    runner: Box<dyn Runner + 'p>,
    command: String,
    progress: &'p Progress,
}

impl<'p> ObservedRunner<'p> {
    /// Observes the workers of `runner`, which are started with `command`.
    pub fn new(runner: Box<dyn Runner + 'p>, command: &[OsString], progress: &'p Progress) -> Self {
        let words: Vec<String> = command.iter().map(|word| quoted(&word.to_string_lossy())).collect();
        Self { runner, command: words.join(" "), progress }
    }
}

impl Runner for ObservedRunner<'_> {
    fn start<'a>(
        &'a self,
        log: PathBuf,
        stop: &'a AtomicBool,
        how: Start<'_>,
    ) -> Result<Box<dyn Session + 'a>, NoResult> {
        self.progress.follow(&log);
        let version = log.parent().and_then(Path::file_name).unwrap_or_default();
        let name = version.to_string_lossy().into_owned();
        self.progress.detail(&format!("{name}: $ {}", self.command));
        let session = self.runner.start(log, stop, how)?;
        Ok(Box::new(ObservedSession { session, version: name.clone(), name, progress: self.progress }))
    }

    fn is_reusable(&self) -> bool {
        self.runner.is_reusable()
    }
}

struct ObservedSession<'a> {
    session: Box<dyn Session + 'a>,
    version: String,
    /// The version and the model that it has loaded last.
    name: String,
    progress: &'a Progress,
}

impl Session for ObservedSession<'_> {
    fn ask(&mut self, request: &Request, timeout: Duration) -> Result<Reply, NoResult> {
        if let Request::Load(load) = request {
            self.name = format!("{} {}", self.version, loaded(load));
        }
        let begun = Instant::now();
        let reply = self.session.ask(request, timeout);
        let ended = if reply.is_ok() { "" } else { ", no result" };
        let seconds = begun.elapsed().as_secs_f64();
        self.progress.detail(&format!("{}: {} took {seconds:.3} s{ended}", self.name, word(request)));
        self.progress.show_output();
        reply
    }

    fn end(self: Box<Self>) {
        self.session.end();
        self.progress.show_output();
    }
}

/// `eager sdpa bf16 cuda:0`.
fn loaded(load: &Load) -> String {
    let attention =
        load.attention.map(|attention| format!(" {}", attention_name(attention))).unwrap_or_default();
    format!("{}{attention} {} {}", mode_name(load.mode), dtype_name(load.dtype), load.device)
}

fn word(request: &Request) -> &'static str {
    match request {
        Request::Load(_) => "load",
        Request::Forward(_) => "forward",
        Request::Time(_) => "time",
        Request::Trace(_) => "trace",
        Request::Capture(_) => "capture",
        Request::Replay(_) => "replay",
        Request::Tokenize(_) => "tokenize",
        Request::Prepare(_) => "prepare inputs",
        Request::Inputs(_) => "inputs",
        Request::Generate(_) => "generate",
        Request::Make(_) => "make",
        Request::Exit => "exit",
    }
}

/// Quotes one word of a command for a shell.
pub(crate) fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn a_command_can_be_pasted_into_a_shell() {
        for (word, expected) in [("a/b-c", "a/b-c"), ("", "''"), ("a b", "'a b'"), ("it's", r"'it'\''s'")] {
            assert_eq!(quoted(word), expected);
        }
    }
}
