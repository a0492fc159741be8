//! The last requests to a cell whose logits exist: its tokenizer's ids, and a repeated forward pass in the same and in a
//! second process.
//!
//! Cells of one runner share a second process where its workers can load one model after another: importing transformers
//! takes longer than a forward pass. A failure here becomes a note and never discards the cell.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use reference::protocol::{Forward, MadeTensor, Prepare, Prepared, Reply, Request, Tokenize, Tokenized};

use super::{Job, Live, Ran, Schedule, out_of_turn, verify_logits};
use crate::execute::at_once::in_threads;
use crate::execute::cell::{Completed, Outcome, TokenDifference, TokenizerParity};
use crate::execute::runner::{NoResult, Session, Start};
use crate::spec::inputs::Texts;
use compare::logits::Logits;
use compare::mask::Mask;
use compare::repeat::{Noise, Repeat, repeat};

/// A cell whose worker has ended; a second process repeats its forward pass.
pub(super) struct Repeating<'a> {
    pub(super) job: Job<'a>,
    caches: Option<PathBuf>,
    pub(super) completed: Completed,
    noise: Noise,
    interrupted: bool,
}

/// Cells that share a second process, one after the other.
type Process<'a> = Vec<Repeating<'a>>;

impl<'a> Schedule<'a> {
    /// Sends the last requests, and ends the worker.
    pub(super) fn close(&self, live: Live<'a>) -> Repeating<'a> {
        let Live { job, caches, mut session, mut completed } = live;
        let begun = Instant::now();
        let mut noise = Noise::default();
        let mut interrupted = false;
        if self.settings.noise {
            let first = self.folder.join(&completed.logits);
            let path = repeated(&first);
            match self.pass(&job, session.as_mut(), &path).and_then(|()| compared(&job, &first, &path)) {
                Ok(found) => noise.same_process = Some(found),
                Err(ended) => {
                    note(&mut completed, "no second pass in the same process", ended, &mut interrupted);
                }
            }
            let _ = std::fs::remove_file(path);
            noise.elapsed_ns = begun.elapsed().as_nanos() as u64;
        }
        if let Some(texts) = job.texts {
            match self.parity(&job, session.as_mut(), texts) {
                Ok(found) => completed.tokenizer = Some(found),
                Err(ended) => {
                    note(&mut completed, "its tokenizer was not compared", ended, &mut interrupted);
                }
            }
        }
        if let Some(wanted) = job.processed {
            match self.processor(&job, session.as_mut(), wanted) {
                Ok(found) => completed.processor = Some(found),
                Err(ended) => {
                    note(&mut completed, "its processor was not compared", ended, &mut interrupted);
                }
            }
        }
        session.end();
        Repeating { job, caches, completed, noise, interrupted }
    }

    /// Records a cell whose worker has ended; if a second process is due, as an unfinished one.
    pub(super) fn closed(&self, cell: Repeating<'a>, repeating: &mut Vec<Repeating<'a>>, ran: &mut Ran) {
        if self.settings.noise && !cell.interrupted {
            let unfinished = Some(super::not_finished());
            let landed = Completed { unfinished, ..cell.completed.clone() };
            self.keep(&cell.job, Outcome::Completed(landed), ran);
            repeating.push(cell);
        } else {
            self.record(cell, ran);
        }
    }

    /// Repeats the forward pass of each cell in a second process, several processes at a time.
    pub(super) fn second_processes(&self, cells: Vec<Repeating<'a>>, ran: &mut Ran) {
        if cells.is_empty() {
            return;
        }
        let task = self.progress.task("noise floor", cells.len() as u64);
        let largest = cells.iter().map(|cell| cell.job.held_bytes(&cell.completed)).max().unwrap_or(0).max(1);
        let fitting = (self.settings.memory_budget / largest) as usize;
        let threads = self.settings.first_passes_at_once.min(fitting).max(1);
        let waiting = Mutex::new(processes(cells).into_iter());
        let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = |cells: Process<'a>| {
            let names: Vec<String> = names(&cells).collect();
            task.doing(&names.join(", "));
            self.second_process(cells)
        };
        in_threads(threads, next, work, |cells| {
            for cell in cells {
                self.record(cell, ran);
                task.done_one();
            }
        });
    }

    /// Repeats the forward pass of each cell in one new process, which has ended when this returns.
    fn second_process(&self, mut cells: Process<'a>) -> Process<'a> {
        let caches = cells.iter().find_map(|cell| cell.caches.clone());
        let mut session = None;
        for cell in &mut cells {
            let begun = Instant::now();
            let first = self.folder.join(&cell.completed.logits);
            let path = repeated(&first);
            match self
                .again(&cell.job, caches.as_deref(), &mut session, &path)
                .and_then(|()| compared(&cell.job, &first, &path))
            {
                Ok(found) => cell.noise.second_process = Some(found),
                Err(ended) => {
                    // A worker that failed is not asked again.
                    session = None;
                    note(&mut cell.completed, "no pass in a second process", ended, &mut cell.interrupted);
                }
            }
            let _ = std::fs::remove_file(path);
            cell.noise.elapsed_ns += begun.elapsed().as_nanos() as u64;
        }
        if let Some(session) = session {
            session.end();
        }
        cells
    }

    /// As [`Self::pass`], in the process of `session`, which is started if there is none.
    fn again(
        &self,
        job: &Job<'a>,
        caches: Option<&Path>,
        session: &mut Option<Box<dyn Session + 'a>>,
        path: &Path,
    ) -> Result<(), NoResult> {
        let session = match session {
            Some(session) => session,
            None => session.insert(self.start(job, Start { caches, is_second: true })?),
        };
        match session.ask(&Request::Load(job.load.clone()), self.settings.timeout)? {
            Reply::Ready(_) => self.pass(job, session.as_mut(), path),
            _ => Err(out_of_turn("load")),
        }
    }

    /// Writes the final record of a cell.
    fn record(&self, cell: Repeating<'a>, ran: &mut Ran) {
        let Repeating { job, mut completed, noise, interrupted, .. } = cell;
        if self.settings.noise {
            completed.notes.extend(noise.said());
            completed.noise = Some(noise);
        }
        completed.notes.extend(completed.processor.iter().flat_map(processor_said));
        if let Some(parity) = completed.tokenizer.as_ref().filter(|parity| parity.difference.is_some()) {
            completed.notes.push(parity.said());
        }
        if interrupted {
            completed.unfinished = Some(super::not_finished());
        }
        self.keep(&job, Outcome::Completed(completed), ran);
    }

    /// Runs one more forward pass and has the worker write its logits to `path`.
    fn pass(&self, job: &Job, session: &mut dyn Session, path: &Path) -> Result<(), NoResult> {
        let request = Forward::prefilled(path.to_owned(), job.prefill);
        match session.ask(&Request::Forward(request), self.settings.timeout)? {
            Reply::Forwarded(forwarded) => {
                verify_logits(path, &forwarded.shape, forwarded.positions).map(drop)
            }
            _ => Err(out_of_turn("forward")),
        }
    }

    /// The worker's own processor beside the run's inputs.
    fn processor(
        &self,
        job: &Job,
        session: &mut dyn Session,
        wanted: &Prepare,
    ) -> Result<Prepared, NoResult> {
        let request = Prepare { frozen: Some(job.load.inputs.clone()), ..wanted.clone() };
        match session.ask(&Request::Prepare(request), self.settings.timeout)? {
            Reply::Prepared(prepared) => Ok(prepared),
            _ => Err(out_of_turn("prepare")),
        }
    }

    fn parity(
        &self,
        job: &Job,
        session: &mut dyn Session,
        texts: &Texts,
    ) -> Result<TokenizerParity, NoResult> {
        let request = Request::Tokenize(Tokenize {
            checkpoint: job.load.checkpoint.clone(),
            texts: texts.texts.clone(),
            add_special_tokens: texts.add_special_tokens,
        });
        match session.ask(&request, self.settings.timeout)? {
            Reply::Tokenized(tokenized) => Ok(held_against(texts, tokenized)),
            _ => Err(out_of_turn("tokenize")),
        }
    }
}

/// The cells by the process that repeats them. A compiler's state outlives the model that it compiled, so a compiled cell is
/// the last of its process, and finds there what its first process compiled.
fn processes(cells: Vec<Repeating>) -> Vec<Process> {
    let mut processes: Vec<Process> = Vec::new();
    let (compiled, eager): (Process, Process) =
        cells.into_iter().partition(|cell| cell.job.variant.mode.is_compiled());
    for cell in eager.into_iter().chain(compiled) {
        let open = |process: &&mut Process| {
            process
                .iter()
                .all(|known| !known.job.variant.mode.is_compiled() && is_same_worker(&known.job, &cell.job))
        };
        match processes.iter_mut().find(open) {
            Some(process) => process.push(cell),
            None => processes.push(vec![cell]),
        }
    }
    processes
}

/// Whether one worker can load the models of both.
fn is_same_worker(a: &Job, b: &Job) -> bool {
    match (&a.runner, &b.runner) {
        // Both are references into the run's runners, so equal addresses are the same runner.
        (Ok(a), Ok(b)) => a.is_reusable() && std::ptr::addr_eq(*a, *b),
        _ => false,
    }
}

fn names<'c>(cells: &'c [Repeating<'_>]) -> impl Iterator<Item = String> + 'c {
    cells.iter().map(|cell| cell.job.variant.name())
}

/// Adds a note about what was not done; an interruption is no note.
fn note(completed: &mut Completed, what: &str, ended: NoResult, interrupted: &mut bool) {
    match ended {
        NoResult::Interrupted => *interrupted = true,
        NoResult::Unsupported(reason) => completed.notes.push(format!("{what}: {reason}")),
        NoResult::Failed(failure) => completed.notes.push(format!("{what}: {}", failure.reason)),
    }
}

/// The path of the repeated logits until they are compared.
fn repeated(first: &Path) -> PathBuf {
    let name = first.file_name().unwrap_or_default().to_string_lossy();
    first.with_file_name(format!(".again-{name}"))
}

fn compared(job: &Job, first: &Path, second: &Path) -> Result<Repeat, NoResult> {
    let failed = |error: compare::logits::LogitsError| {
        NoResult::failed(crate::execute::cell::FailureKind::MissingResult, error.to_string())
    };
    let open = |path: &Path| {
        // The repeated logits hold the same positions as the first ones: `verify_logits` has checked their shape.
        let all = Logits::open(path, compare::Positions::All);
        all.map_err(failed)
    };
    let (first, second) = (open(first)?, open(second)?);
    // Padding positions are not compared. Logits of the last position only do not fit the mask; they are compared whole.
    let [batch, seq, _] = first.shape();
    let mask = Mask::fitting(Mask::of_inputs(&job.load.inputs).ok().flatten(), (batch, seq));
    repeat(&first, &second, Some(&mask)).map_err(failed)
}

/// The tensors in which a processor differs from the run's inputs, each in a sentence.
fn processor_said(found: &Prepared) -> Vec<String> {
    let differs = |tensor: &&MadeTensor| tensor.problem.is_some() || tensor.first.is_some();
    let said = |tensor: &MadeTensor| {
        let MadeTensor { name, relative_l2, problem, first } = tensor;
        let apart = relative_l2.map(|apart| format!(" by {apart:.1e}")).unwrap_or_default();
        let at = first.as_ref().map(|first| format!(", first at {first:?}")).unwrap_or_default();
        let why = problem.as_ref().map(|problem| format!(": {problem}")).unwrap_or_default();
        format!("{} makes another {name} than the run's inputs{apart}{at}{why}", found.class)
    };
    found.compared.iter().filter(differs).map(said).collect()
}

/// Compares the ids of a runner's tokenizer with those of the run.
fn held_against(texts: &Texts, found: Tokenized) -> TokenizerParity {
    let difference = texts.ids.iter().enumerate().find_map(|(text, expected)| {
        let found = found.ids.get(text).map_or(&[][..], Vec::as_slice);
        let position = (0..expected.len().max(found.len()))
            .find(|&position| expected.get(position) != found.get(position))?;
        Some(TokenDifference {
            text,
            position,
            expected: expected.get(position).copied(),
            token: texts.tokens[text].get(position).cloned(),
            found: found.get(position).copied(),
        })
    });
    TokenizerParity { class: found.class, tokens: texts.ids.iter().map(Vec::len).sum(), difference }
}
