//! The first phase: workers load and run their first forward pass, several at a time.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use reference::protocol::{Request, Time};

use super::again::Repeating;
use super::{Job, Live, Ran, Schedule, not_finished, seconds};
use crate::execute::at_once::in_threads;
use crate::execute::cell::{Completed, Outcome};
use crate::execute::progress::Task;
use crate::execute::runner::{NoResult, Start};

/// A job that waits for its first pass.
pub(super) struct Waiting<'a> {
    job: Job<'a>,
    /// Its place among the case's jobs.
    place: usize,
    /// The folder in which its compilers keep what its second process needs.
    caches: Option<PathBuf>,
}

/// How a first pass ended.
enum First<'a> {
    /// The worker is ready to be timed.
    Live(Live<'a>),
    /// The worker is not timed and has ended.
    Closed(Repeating<'a>),
    /// There is no result, for this reason.
    Lost(Box<(Job<'a>, NoResult)>),
}

/// The jobs in their order; what they compile goes below `caches`.
pub(super) fn queue<'a>(jobs: Vec<Job<'a>>, caches: Option<&Path>) -> VecDeque<Waiting<'a>> {
    let waiting = |(place, job): (usize, Job<'a>)| {
        let caches = caches.filter(|_| job.variant.mode.is_compiled());
        Waiting { job, place, caches: caches.map(|folder| folder.join(place.to_string())) }
    };
    jobs.into_iter().enumerate().map(waiting).collect()
}

/// The jobs that wait, and the memory of the workers that are loaded or loading.
struct Queue<'q, 'a> {
    jobs: &'q mut VecDeque<Waiting<'a>>,
    loading: Vec<(String, u64)>,
    /// Bytes of each loaded worker.
    loaded: Vec<u64>,
    budget: u64,
}

impl<'a> Queue<'_, 'a> {
    /// The next job, unless its worker would exceed the memory budget beside the others. A group with only the anchor is never
    /// full.
    fn next(&mut self) -> Option<Waiting<'a>> {
        let first = self.jobs.front()?;
        // It may be as large as the largest so far.
        let bytes = self.loaded.iter().copied().chain([first.job.expected_bytes]).max().unwrap_or(0);
        let others = self.loaded.iter().chain(self.loading.iter().map(|(_, bytes)| bytes));
        let together = others.fold(bytes, |sum, bytes| sum.saturating_add(*bytes));
        let is_alone = self.loading.is_empty() && self.loaded.len() < 2;
        if together > self.budget && !is_alone {
            return None;
        }
        self.loading.push((first.job.variant.name(), bytes));
        self.jobs.pop_front()
    }

    fn names(&self) -> String {
        let names: Vec<&str> = self.loading.iter().map(|(name, _)| name.as_str()).collect();
        names.join(", ")
    }

    /// Counts a job's worker as loaded, or as ended if it holds nothing.
    fn ended(&mut self, name: &str, bytes: Option<u64>) {
        self.loading.retain(|(loading, _)| loading != name);
        self.loaded.extend(bytes);
    }
}

impl<'a> Schedule<'a> {
    /// Runs the first passes of `jobs` until none is left or the workers of `group` leave no memory for another. Workers that
    /// are to be timed join the group; the others go to `repeating`.
    pub(super) fn first_passes(
        &self,
        jobs: &mut VecDeque<Waiting<'a>>,
        group: &mut Vec<Live<'a>>,
        repeating: &mut Vec<Repeating<'a>>,
        cells: &Task,
        ran: &mut Ran,
    ) {
        let threads = self.settings.first_passes_at_once.clamp(1, jobs.len().max(1));
        let loaded = group.iter().map(|live| live.job.held_bytes(&live.completed)).collect();
        let budget = self.settings.memory_budget;
        let queue = Mutex::new(Queue { jobs, loading: Vec::new(), loaded, budget });
        let queue = || queue.lock().unwrap_or_else(PoisonError::into_inner);
        let next = || {
            let mut queue = queue();
            let waiting = (!self.stop.load(Ordering::Relaxed)).then(|| queue.next())?;
            cells.doing(&queue.names());
            waiting
        };
        let work = |Waiting { job, place, caches }| {
            let name = job.variant.name();
            let ended = self.first(job, caches);
            let bytes = match &ended {
                First::Live(live) => Some(live.job.held_bytes(&live.completed)),
                First::Closed(_) | First::Lost(_) => None,
            };
            queue().ended(&name, bytes);
            (place, ended)
        };
        let mut live = Vec::new();
        in_threads(threads, next, work, |(place, ended)| {
            match ended {
                First::Live(now) => {
                    tell(&now.job, &now.completed, cells);
                    let landed = Completed { unfinished: Some(not_finished()), ..now.completed.clone() };
                    self.keep(&now.job, Outcome::Completed(landed), ran);
                    live.push((place, now));
                }
                First::Closed(cell) => {
                    tell(&cell.job, &cell.completed, cells);
                    self.closed(cell, repeating, ran);
                }
                First::Lost(lost) => self.lost(&lost.0, lost.1, ran),
            }
            cells.done_one();
        });
        live.sort_by_key(|(place, _)| *place);
        group.extend(live.into_iter().map(|(_, live)| live));
    }

    /// Starts the worker of one job; it loads, and makes one forward pass whose logits on disk are verified.
    fn first(&self, job: Job<'a>, caches: Option<PathBuf>) -> First<'a> {
        let mut session = match self.start(&job, Start { caches: caches.as_deref(), is_second: false }) {
            Ok(session) => session,
            Err(ended) => return First::Lost(Box::new((job, ended))),
        };
        let completed = match self.forward(&job, session.as_mut()) {
            Ok(completed) => completed,
            Err(ended) => return First::Lost(Box::new((job, ended))),
        };
        let mut live = Live { job, caches, session, completed };
        if !live.job.is_timed {
            return First::Closed(self.close(live));
        }
        if self.settings.first_passes_at_once > 1 {
            self.warm(&mut live);
        }
        First::Live(live)
    }

    /// Lets a worker compile what its first round decodes, while others load.
    fn warm(&self, live: &mut Live<'a>) {
        if self.settings.decode > 0 {
            let request = Request::Time(Time { warm_up: 1, iterations: 1, decode: 1, ..Time::default() });
            // If this fails, the first round fails too and reports it.
            let _ = live.session.ask(&request, self.settings.timeout);
        }
    }
}

fn tell(job: &Job, completed: &Completed, cells: &Task) {
    let name = job.variant.name();
    let (load, first) = (seconds(completed.load_ns), seconds(completed.first_call_ns));
    cells.line(&format!("{name}: loaded in {load}, first call {first}"));
}
