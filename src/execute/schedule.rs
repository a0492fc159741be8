//! Runs the cells of a case, one worker process each, and writes each result as soon as it exists.
//!
//! There are four phases: correctness (load, then one forward pass whose logits are kept; `first`), interleaved timing
//! rounds, the trace, and the noise floor (a forward pass in the same process and one in a second process; `again`).
//! Workers stay loaded and idle between rounds, so that the variants of a round run under the same conditions. If the
//! loaded workers would exceed the memory budget, they are timed in groups that share the first cell as anchor. One worker
//! computes at a time, except in the first and the last phase, in which nothing is timed. On a loaded machine more rounds
//! are timed for up to `patience`.

mod accepted;
mod again;
mod first;
mod turn;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reference::protocol::{Dtype, Forward, Load, Prepare, Reply, Request, Time, Timed, Trace};

use crate::execute::cell::{Cell, Completed, Failure, FailureKind, Outcome};
use crate::execute::progress::{Progress, Task};
use crate::execute::quiet::Rounds;
use crate::execute::runner::{NoResult, Runner, Session, Start};
use crate::spec::inputs::Texts;
use crate::spec::variant::Variant;
use accepted::verify_logits;
use again::Repeating;
pub use turn::Turn;

/// One cell to run.
pub struct Job<'a> {
    /// What to run.
    pub variant: Variant,
    /// Digest of everything that the cell's numbers depend on.
    pub key: String,
    /// The runner, or the reason why there is none.
    pub runner: Result<&'a dyn Runner, NoResult>,
    /// The load request for its worker.
    pub load: Load,
    /// Whether the cell is timed and traced; an oracle is not.
    pub is_timed: bool,
    /// Tokens of the prefill, after which the other tokens are decoded through the KV cache; `None` for one full-sequence
    /// pass.
    pub prefill: Option<usize>,
    /// Texts and ids to compare the runner's own tokenizer with; `None` to skip that comparison.
    pub texts: Option<&'a Texts>,
    /// What to ask of the runner's own processor, to compare it with the run's inputs; `None` to skip that comparison.
    pub processed: Option<&'a Prepare>,
    /// Notes for the reader that are known before the cell runs.
    pub notes: Vec<String>,
    /// Bytes that its worker is expected to hold.
    pub expected_bytes: u64,
}

impl Job<'_> {
    /// Bytes that its worker holds, measured or expected.
    fn held_bytes(&self, completed: &Completed) -> u64 {
        completed.peak_bytes.unwrap_or(self.expected_bytes)
    }
}

/// How cells are timed and how long they may take.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Untimed forward passes before the first timed one.
    pub warm_up: usize,
    /// Timed forward passes per round.
    pub iterations: usize,
    /// Tokens decoded one by one and timed per round; 0 for none.
    pub decode: usize,
    /// Interleaved rounds; 0 for no timing.
    pub rounds: usize,
    /// How long a case may wait for a quiet machine and time extra rounds.
    pub patience: Duration,
    /// Number of workers that load and run their first forward pass at the same time; likewise second processes.
    pub first_passes_at_once: usize,
    /// Whether each cell leaves a trace.
    pub trace: bool,
    /// Whether each cell repeats its forward pass, in the same process and in a second one.
    pub noise: bool,
    /// Longest wait for one reply.
    pub timeout: Duration,
    /// Bytes that the loaded workers may hold in total.
    pub memory_budget: u64,
}

/// The schedule of one case.
pub struct Schedule<'a> {
    /// The case's name.
    pub case: &'a str,
    /// The case's folder, to which workers write their files. It is absolute because a command's worker runs in another
    /// working directory.
    pub folder: PathBuf,
    /// Time stamp of the run; part of each trace's file name.
    pub stamp: &'a str,
    /// Writes a cell's record in its current state; the error is the reason as text.
    pub keep: &'a (dyn Fn(&Cell) -> Result<(), String> + Sync),
    /// How cells are timed, and their limits.
    pub settings: &'a Settings,
    /// The progress display.
    pub progress: &'a Progress,
    /// Set when the user asks to stop.
    pub stop: &'a AtomicBool,
    /// The timing lock, if other runs go on in parallel.
    pub turn: Option<&'a Turn>,
    /// The best calibration-loop reading of earlier rounds on this machine, in nanoseconds.
    pub quiet_ns: Option<u64>,
}

/// The result of a case.
#[derive(Debug, Default)]
pub struct Ran {
    /// The record of every cell that was started, even if the record could not be written.
    pub cells: Vec<Cell>,
    /// True when the user stopped it.
    pub interrupted: bool,
}

/// A worker whose logits are on disk and that is ready to be timed.
struct Live<'a> {
    job: Job<'a>,
    /// The caches of its compilers, if they outlive it.
    caches: Option<PathBuf>,
    session: Box<dyn Session + 'a>,
    completed: Completed,
}

/// A worker's index in its group and its reply to the request to time a round.
type Answer = (usize, Result<Timed, NoResult>);

impl<'a> Schedule<'a> {
    /// Runs `jobs` in order; the first one is the anchor of every timing group.
    pub fn run(&self, jobs: Vec<Job<'a>>, first_round: u32) -> Ran {
        let mut ran = Ran::default();
        let mut round = first_round;
        let mut group: Vec<Live> = Vec::new();
        // What is compiled outlives the first process of a cell, for the second one.
        let caches = tempfile::Builder::new().prefix("tfcheck-").tempdir().ok();
        let cells = self.progress.task(self.case, jobs.len() as u64);
        let mut jobs = first::queue(jobs, caches.as_ref().map(tempfile::TempDir::path));
        let mut repeating: Vec<Repeating> = Vec::new();
        while !jobs.is_empty() && !self.stop.load(Ordering::Relaxed) {
            self.first_passes(&mut jobs, &mut group, &mut repeating, &cells, &mut ran);
            if jobs.is_empty() {
                break;
            }
            self.time(&mut group, &mut round, &mut ran);
            for live in group.split_off(1.min(group.len())) {
                self.finish(live, &mut repeating, &mut ran);
            }
        }
        drop(cells);
        self.time(&mut group, &mut round, &mut ran);
        for live in group {
            self.finish(live, &mut repeating, &mut ran);
        }
        self.second_processes(repeating, &mut ran);
        ran.interrupted |= self.stop.load(Ordering::Relaxed);
        ran
    }

    /// Starts a worker of the job.
    fn start(&self, job: &Job<'a>, how: Start<'_>) -> Result<Box<dyn Session + 'a>, NoResult> {
        job.runner.clone()?.start(self.log_path(job), self.stop, how)
    }

    fn forward(&self, job: &Job, session: &mut dyn Session) -> Result<Completed, NoResult> {
        let timeout = self.settings.timeout;
        let Reply::Ready(ready) = session.ask(&Request::Load(job.load.clone()), timeout)? else {
            return Err(out_of_turn("load"));
        };
        accepted::duration("loading", ready.load_ns, timeout)?;
        let logits =
            PathBuf::from(&job.variant.version).join(format!("logits_{}.safetensors", job.variant.note()));
        let path = self.folder.join(&logits);
        let request = Forward::prefilled(path.clone(), job.prefill);
        let Reply::Forwarded(forwarded) = session.ask(&Request::Forward(request), timeout)? else {
            return Err(out_of_turn("forward"));
        };
        if forwarded.prefill != job.prefill {
            return Err(NoResult::Unsupported(
                "the worker does not support prefill: it computed one full-sequence pass".into(),
            ));
        }
        accepted::duration("the first forward pass", forwarded.elapsed_ns, timeout)?;
        accepted::peak(forwarded.peak_bytes)?;
        let stored = verify_logits(&path, &forwarded.shape, forwarded.positions)?.storage();
        if job.load.dtype == Dtype::F64 && stored != compare::Dtype::F64 {
            let stored = stored.name();
            return Err(NoResult::Unsupported(format!("asked for float64, it wrote logits in {stored}")));
        }
        let written = accepted::written(&path, self.stop)?;
        let mut notes = job.notes.clone();
        notes.extend(ready.notes);
        notes.extend(forwarded.notes);
        Ok(Completed {
            logits,
            shape: forwarded.shape,
            positions: forwarded.positions,
            outputs: forwarded.outputs,
            written: Some(written),
            libraries: ready.libraries,
            notes,
            load_ns: ready.load_ns,
            first_call_ns: forwarded.elapsed_ns,
            peak_bytes: forwarded.peak_bytes,
            ignored_keys: ready.ignored_keys.map(|mut keys| {
                keys.retain(|key| !models::is_neutral(key));
                keys
            }),
            translated: ready.translated,
            unread_tensors: ready.unread_tensors,
            graphs: forwarded.graphs,
            ..Completed::default()
        })
    }

    /// Times a group in interleaved rounds. The order rotates by one each round, so that no variant always follows the
    /// same one.
    fn time(&self, group: &mut Vec<Live<'a>>, round: &mut u32, ran: &mut Ran) {
        if group.is_empty() {
            return;
        }
        if let Some(turn) = self.turn {
            turn.take(self.stop);
        }
        let mut rounds = Rounds::new(self.settings.rounds, self.settings.patience, self.quiet_ns);
        let progress = self.progress.task("timing", self.settings.rounds as u64);
        let mut warm_up = self.settings.warm_up;
        // With several variants every round counts: a loaded machine slows all of them, and the location of all pairs
        // varied less than that of the quietest quarter (0.9 % against 1.1 %, 16 runs of examples/slow_down.rs).
        let is_alone = group.len() == 1;
        while rounds.wants_more() && !group.is_empty() {
            let begun = Instant::now();
            let Some(answers) = self.round(group, warm_up, &rounds, &progress) else {
                rounds.skip(begun.elapsed());
                continue;
            };
            let (mut lost, mut readings) = (Vec::new(), Vec::new());
            for (index, answer) in answers {
                let completed = &mut group[index].completed;
                match answer {
                    Ok(timed) => {
                        completed.rounds_ns.push(timed.samples_ns);
                        completed.decode_rounds_ns.push(timed.decode_ns);
                        completed.round_numbers.push(*round);
                        completed.yardstick_ns.extend(timed.yardstick_ns);
                        // Every round says the same.
                        if completed.rounds_ns.len() == 1 {
                            completed.notes.extend(timed.notes);
                        }
                        readings.extend(timed.yardstick_ns);
                        completed.peak_bytes = completed.peak_bytes.max(timed.peak_bytes);
                    }
                    Err(ended) => lost.push((index, ended)),
                }
            }
            rounds.count(*round, &readings, begun.elapsed());
            *round += 1;
            warm_up = warm_up.min(1);
            if rounds.len() <= self.settings.rounds {
                progress.done_one();
            }
            lost.sort_by_key(|(index, _)| std::cmp::Reverse(*index));
            for (index, ended) in lost {
                self.cut_short(group.remove(index), ended, ran);
            }
        }
        if is_alone {
            let surplus = rounds.surplus();
            for live in group.iter_mut() {
                forget(&mut live.completed, &surplus);
            }
        }
    }

    /// Times one round: replies with the group's indices; `None` if a group's only worker found the machine loaded.
    fn round(
        &self,
        group: &mut [Live<'a>],
        warm_up: usize,
        before: &Rounds,
        progress: &Task,
    ) -> Option<Vec<Answer>> {
        let Settings { iterations, decode, timeout, .. } = *self.settings;
        // With several variants all are slowed alike, so more rounds reduce the error more than waiting for quiet ones.
        let quiet_ns = before.limit_ns().filter(|_| group.len() == 1);
        let mut answers = Vec::new();
        let mut order: Vec<usize> = (0..group.len()).collect();
        order.rotate_left(before.len() % group.len());
        for index in order {
            let live = &mut group[index];
            let (number, rounds) = (before.len() + 1, self.settings.rounds);
            progress.doing(&format!("round {number}/{rounds}: {}", live.job.variant.name()));
            // Without `patience` the reading is not used, so the calibration loop is not run.
            let yardstick = if self.settings.patience.is_zero() { 0 } else { live.job.load.threads.max(1) };
            let time = Time { warm_up, iterations, decode, yardstick, quiet_ns };
            let answer = match live.session.ask(&Request::Time(time), timeout) {
                Ok(Reply::Timed(timed)) if quiet_ns.is_some() && timed.samples_ns.is_empty() => {
                    return None;
                }
                Ok(Reply::Timed(timed)) => accepted::timed(timed, (iterations, decode), timeout),
                Ok(_) => Err(out_of_turn("time")),
                Err(ended) => Err(ended),
            };
            answers.push((index, answer));
        }
        Some(answers)
    }

    /// Writes the trace, then makes the last requests. A failed trace becomes a note because the numbers do not depend on it.
    fn finish(&self, mut live: Live<'a>, repeating: &mut Vec<Repeating<'a>>, ran: &mut Ran) {
        if self.stop.load(Ordering::Relaxed) {
            return self.cut_short(live, NoResult::Interrupted, ran);
        }
        if self.settings.trace {
            let trace = PathBuf::from(&live.job.variant.version).join(format!(
                "trace_{}_{}.json",
                self.stamp,
                live.job.variant.name()
            ));
            let path = self.folder.join(&trace);
            match live.session.ask(&Request::Trace(Trace { path: path.clone() }), self.settings.timeout) {
                Ok(Reply::Traced) if path.is_file() => live.completed.trace = Some(trace),
                Ok(_) => {
                    live.completed
                        .notes
                        .push("no trace: the worker reported one, but the file does not exist".into());
                }
                Err(NoResult::Interrupted) => return self.cut_short(live, NoResult::Interrupted, ran),
                Err(NoResult::Unsupported(reason)) => {
                    live.completed.notes.push(format!("no trace: {reason}"));
                }
                Err(NoResult::Failed(failure)) => {
                    live.completed.notes.push(format!("no trace: {}", failure.reason));
                }
            }
        }
        self.closed(self.close(live), repeating, ran);
    }

    /// Records a worker that failed after its logits were written: the logits are kept, the cell counts as unfinished.
    fn cut_short(&self, mut live: Live<'a>, ended: NoResult, ran: &mut Ran) {
        let name = live.job.variant.name();
        live.completed.unfinished = Some(match ended {
            NoResult::Interrupted => not_finished(),
            NoResult::Failed(failure) => failure,
            NoResult::Unsupported(reason) => {
                let NoResult::Failed(failure) = NoResult::failed(FailureKind::Exception, reason) else {
                    return;
                };
                failure
            }
        });
        if let Some(failure) = &live.completed.unfinished {
            self.progress.line(&format!("{name}: not timed: {}", failure.reason));
        }
        drop(live.session);
        self.keep(&live.job, Outcome::Completed(live.completed), ran);
    }

    /// Records a worker that failed before it had a result.
    fn lost(&self, job: &Job, ended: NoResult, ran: &mut Ran) {
        let outcome = match ended {
            NoResult::Interrupted => {
                ran.interrupted = true;
                return;
            }
            NoResult::Unsupported(reason) => Outcome::Unsupported { reason },
            NoResult::Failed(failure) => Outcome::Failed(failure),
        };
        let (word, reason) = match &outcome {
            Outcome::Unsupported { reason } => ("unsupported", reason),
            Outcome::Failed(failure) => ("failed", &failure.reason),
            Outcome::Completed(_) => return,
        };
        self.progress.line(&format!("{}: {word}: {reason}", job.variant.name()));
        self.keep(job, outcome, ran);
    }

    /// Records a cell on disk and in memory; a record that cannot be written to disk is still reported.
    fn keep(&self, job: &Job, outcome: Outcome, ran: &mut Ran) {
        let cell = Cell::new(&job.variant, &job.key, outcome);
        if let Err(error) = (self.keep)(&cell) {
            self.progress.line(&format!("{}: record not written: {error}", cell.name));
        }
        ran.cells.retain(|known| known.name != cell.name);
        ran.cells.push(cell);
    }

    fn log_path(&self, job: &Job) -> PathBuf {
        self.folder.join(&job.variant.version).join("worker.log")
    }
}

/// Removes the rounds with these numbers.
fn forget(completed: &mut Completed, numbers: &[u32]) {
    for number in numbers {
        let Some(at) = completed.round_numbers.iter().position(|known| known == number) else { continue };
        completed.rounds_ns.remove(at);
        completed.decode_rounds_ns.remove(at);
        completed.round_numbers.remove(at);
        if at < completed.yardstick_ns.len() {
            completed.yardstick_ns.remove(at);
        }
    }
}

fn not_finished() -> Failure {
    Failure {
        kind: FailureKind::Interrupted,
        reason: "the run ended before this variant was finished".into(),
        detail: String::new(),
        log_tail: String::new(),
    }
}

fn out_of_turn(request: &str) -> NoResult {
    NoResult::failed(
        FailureKind::MissingResult,
        format!("the worker answered `{request}` with another reply"),
    )
}

fn seconds(ns: u64) -> String {
    format!("{:.1} s", ns as f64 / 1e9)
}

#[cfg(test)]
mod tests;
