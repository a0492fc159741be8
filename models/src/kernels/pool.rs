//! A fork-join thread pool for forward passes. The calling thread also works. After a job, workers spin briefly,
//! since a forward pass starts the next job within microseconds; between forward passes they park. Starting a job
//! allocates nothing.
//!
//! A worker that wakes late finds the job closed and does not delay the caller: on a machine loaded by other
//! processes the caller does the work alone instead of waiting for a thread that is not scheduled.

#![expect(unsafe_code, reason = "a borrowed job crosses to worker threads, held back until they are done")]

use super::arena::AlignedBuf;
use super::simd::Isa;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// Time that a worker waits for the next job before it parks.
const SPIN: Duration = Duration::from_micros(100);

// The state word: the job number from bit 32 up, OPEN while workers may join, QUIT when the pool is dropped, and in
// the low bits the number of workers that run the job.
const OPEN: u64 = 1 << 31;
const QUIT: u64 = 1 << 30;
const INSIDE: u64 = QUIT - 1;
const JOB: u64 = 1 << 32;

/// A job: a borrowed closure without its lifetime, and its number of tasks.
#[derive(Clone, Copy)]
struct Job {
    closure: *const (),
    call: unsafe fn(*const (), usize, usize),
    tasks: usize,
}

struct Shared {
    state: AtomicU64,
    job: UnsafeCell<Job>,
    next_task: AtomicUsize,
    panicked: AtomicBool,
    asleep: Vec<AtomicBool>,
}

// SAFETY: `job` is written only while no worker is inside and none can join (OPEN clear), and read only by
// workers that joined through the state word; the closure behind it is Sync.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// A pool of threads, including the caller's, that runs kernels at one instruction level.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<(JoinHandle<()>, Thread)>,
    isa: Isa,
    scratch: Mutex<AlignedBuf<f32>>,
    dispatch: Mutex<()>,
}

impl Pool {
    /// A pool of `threads` (at least one, including the caller's) at the machine's best instruction level.
    ///
    /// # Panics
    /// If the system cannot start a thread.
    pub fn new(threads: usize) -> Self {
        Self::with_isa(threads, Isa::detect())
    }

    /// As [`Pool::new`] at a given level; tests and benches use it to run the weaker levels.
    ///
    /// # Panics
    /// If the machine lacks the level, or the system cannot start a thread.
    pub fn with_isa(threads: usize, isa: Isa) -> Self {
        assert!(isa <= Isa::detect(), "this machine does not have {isa:?}");
        let helpers = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(Job { closure: std::ptr::null(), call: |_, _, _| (), tasks: 0 }),
            next_task: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            asleep: (0..helpers).map(|_| AtomicBool::new(false)).collect(),
        });
        let workers = (0..helpers)
            .map(|index| {
                let shared = Arc::clone(&shared);
                let handle = std::thread::Builder::new()
                    .name(format!("kernels-{}", index + 1))
                    .spawn(move || shared.work(index))
                    .expect("the system starts a thread");
                let thread = handle.thread().clone();
                (handle, thread)
            })
            .collect();
        Self { shared, workers, isa, scratch: Mutex::new(AlignedBuf::zeroed(0)), dispatch: Mutex::new(()) }
    }

    /// Number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// The instruction level.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Calls `body(task, thread)` for each task below `tasks`, in no particular order, and returns when all calls
    /// have returned. `thread` is below [`Pool::threads`], and no two concurrent calls have the same `thread`. Not
    /// reentrant.
    ///
    /// # Panics
    /// If `body` panics.
    pub fn run<F: Fn(usize, usize) + Sync>(&self, tasks: usize, body: F) {
        if tasks <= 1 || self.workers.is_empty() {
            for task in 0..tasks {
                body(task, 0);
            }
            return;
        }
        // An earlier panic in a body poisons the lock; the state word is valid again by then.
        let _one_job_at_a_time = self.dispatch.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: the previous job is closed and empty (waited for below), so no worker reads the cell.
        unsafe {
            *shared.job.get() = Job { closure: (&raw const body).cast(), call: call::<F>, tasks };
        }
        shared.next_task.store(0, Ordering::Relaxed);
        let number = (shared.state.load(Ordering::Relaxed) & !(JOB - 1)).wrapping_add(JOB);
        shared.state.store(number | OPEN, Ordering::Release);
        // Pairs with the fence in `wait_for_job`: either the worker sees the job or this thread sees that the worker
        // is asleep.
        fence(Ordering::SeqCst);
        for (asleep, (_, thread)) in shared.asleep.iter().zip(&self.workers).take(tasks - 1) {
            if asleep.load(Ordering::Relaxed) && asleep.swap(false, Ordering::Relaxed) {
                thread.unpark();
            }
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task = shared.next_task.fetch_add(1, Ordering::Relaxed);
                if task >= tasks {
                    break;
                }
                body(task, 0);
            }
        }));
        if outcome.is_err() {
            shared.next_task.store(tasks, Ordering::Relaxed);
        }
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0_u32;
        while shared.state.load(Ordering::Acquire) & INSIDE != 0 {
            spins += 1;
            // If more threads are runnable than the machine has cores, the worker needs this core.
            if spins > 20_000 { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
        assert!(!shared.panicked.swap(false, Ordering::Relaxed), "a kernel task panicked on a worker thread");
    }

    /// At least `len` floats of scratch memory with unspecified contents; it grows if `len` exceeds all earlier
    /// requests. One kernel at a time holds it.
    pub(crate) fn scratch(&self, len: usize) -> MutexGuard<'_, AlignedBuf<f32>> {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        if scratch.len() < len {
            *scratch = AlignedBuf::zeroed(len.next_multiple_of(1 << 12));
        }
        scratch
    }
}

/// Calls a job's type-erased closure.
///
/// # Safety
/// `closure` points to a live `F`.
unsafe fn call<F: Fn(usize, usize)>(closure: *const (), task: usize, thread: usize) {
    // SAFETY: the caller's contract.
    unsafe { (*closure.cast::<F>())(task, thread) }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state.fetch_or(QUIT, Ordering::SeqCst);
        for (handle, thread) in self.workers.drain(..) {
            thread.unpark();
            // A worker catches every panic of a job, so joining cannot fail.
            let _ = handle.join();
        }
    }
}

impl Shared {
    fn work(&self, index: usize) {
        let mut last = 0;
        while let Some(job) = self.join_job(index, &mut last) {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                loop {
                    let task = self.next_task.fetch_add(1, Ordering::Relaxed);
                    if task >= job.tasks {
                        break;
                    }
                    // SAFETY: we are counted inside, so the caller of `run` still holds the closure.
                    unsafe { (job.call)(job.closure, task, index + 1) };
                }
            }));
            if outcome.is_err() {
                self.next_task.store(job.tasks, Ordering::Relaxed);
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.state.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Waits for a job that this worker has not run yet and joins it; `None` when the pool is dropped.
    fn join_job(&self, index: usize, last: &mut u64) -> Option<Job> {
        let mut state = self.wait_for_job(index, *last);
        loop {
            if state & QUIT != 0 {
                return None;
            }
            if state & OPEN == 0 || state / JOB == *last {
                state = self.wait_for_job(index, *last);
                continue;
            }
            match self.state.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    *last = state / JOB;
                    // SAFETY: counted inside an open job: the cell is not written until we leave.
                    return Some(unsafe { *self.job.get() });
                }
                Err(now) => state = now,
            }
        }
    }

    fn wait_for_job(&self, index: usize, last: u64) -> u64 {
        let wanted = |state: u64| state & QUIT != 0 || (state & OPEN != 0 && state / JOB != last);
        let start = Instant::now();
        loop {
            for _ in 0..64 {
                let state = self.state.load(Ordering::Acquire);
                if wanted(state) {
                    return state;
                }
                std::hint::spin_loop();
            }
            if start.elapsed() > SPIN {
                break;
            }
        }
        loop {
            self.asleep[index].store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            let state = self.state.load(Ordering::Acquire);
            if wanted(state) {
                self.asleep[index].store(false, Ordering::Relaxed);
                return state;
            }
            std::thread::park();
        }
    }
}

/// A mutable slice to whose disjoint parts the tasks of one job write.
pub(crate) struct Shards<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: tasks write disjoint ranges, by the contract of `slice`.
unsafe impl<T: Send> Send for Shards<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shards<T> {}

impl<T> Shards<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len() }
    }

    /// As [`Shards::new`] over memory that may be uninitialised; only [`Shards::at`] may be used.
    pub(crate) fn raw(start: *mut T, len: usize) -> Self {
        Self { start, len }
    }

    /// A pointer to element `at`, valid up to the end of the slice.
    pub(crate) fn at(&self, at: usize) -> *mut T {
        debug_assert!(at <= self.len, "{at} is past a slice of {}", self.len);
        // `wrapping_add` is safe; every use checks its own bounds by shape.
        self.start.wrapping_add(at)
    }

    /// The range `at..at + len`.
    ///
    /// # Safety
    /// No other task of the job touches the range, and the slice given to `new` is still borrowed.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's contract")]
    pub(crate) unsafe fn slice(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at + len <= self.len, "a shard lies inside its slice");
        // SAFETY: in bounds, and exclusive by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}
