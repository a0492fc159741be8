//! The timing lock between runs that go on in parallel: only one run measures times at any moment.
//!
//! Work before the timing (mostly compilation) happens in all runs in parallel. The lock is first given out when every
//! run is ready for it, and a run keeps it until it ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often a waiting run checks `stop`.
const LOOK: Duration = Duration::from_millis(100);

/// One run's handle on the timing lock.
#[derive(Debug)]
pub struct Turn {
    shared: Arc<Shared>,
    is_ready: AtomicBool,
    has_it: AtomicBool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Number of runs that do not wait for the lock yet.
    unready: usize,
    is_taken: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// One handle for each of `runs` runs.
    pub fn all(runs: usize) -> Vec<Self> {
        let state = Mutex::new(State { unready: runs, is_taken: false });
        let shared = Arc::new(Shared { state, changed: Condvar::new() });
        let place = || Self {
            shared: Arc::clone(&shared),
            is_ready: AtomicBool::new(false),
            has_it: AtomicBool::new(false),
        };
        (0..runs).map(|_| place()).collect()
    }

    /// Blocks until every run is ready and the lock is free, then holds it until this handle is dropped. Returns without
    /// the lock once `stop` is set.
    pub fn take(&self, stop: &AtomicBool) {
        let mut state = self.shared.state();
        self.ready(&mut state);
        while !self.has_it.load(Ordering::Relaxed) && !stop.load(Ordering::Relaxed) {
            if state.unready == 0 && !state.is_taken {
                state.is_taken = true;
                self.has_it.store(true, Ordering::Relaxed);
            } else {
                let waited = self.shared.changed.wait_timeout(state, LOOK);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    fn ready(&self, state: &mut State) {
        if !self.is_ready.swap(true, Ordering::Relaxed) {
            state.unready -= 1;
            self.shared.changed.notify_all();
        }
    }
}

impl Drop for Turn {
    /// Releases the lock; a handle that never took it is counted as ready, so that the other runs do not wait for it.
    fn drop(&mut self) {
        let mut state = self.shared.state();
        self.ready(&mut state);
        if self.has_it.load(Ordering::Relaxed) {
            state.is_taken = false;
        }
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn one_run_at_a_time_holds_the_lock_and_none_before_all_are_ready() {
        let (ready, inside, stop) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for (index, turn) in Turn::all(3).into_iter().enumerate() {
                let (ready, inside, stop) = (&ready, &inside, &stop);
                scope.spawn(move || {
                    std::thread::sleep(Duration::from_millis(40 * index as u64));
                    ready.fetch_add(1, Ordering::SeqCst);
                    for _ in 0..2 {
                        turn.take(stop);
                        assert_eq!(ready.load(Ordering::SeqCst), 3);
                    }
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "somebody else has it");
                    std::thread::sleep(Duration::from_millis(20));
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(turn);
                });
            }
        });
    }

    #[test]
    fn a_run_that_fails_or_is_stopped_does_not_block_the_others() {
        let [first, second, third]: [Turn; 3] = Turn::all(3).try_into().unwrap();
        let (stop, go) = (AtomicBool::new(true), AtomicBool::new(false));
        first.take(&stop);
        assert!(!first.has_it.load(Ordering::Relaxed), "it was told to stop");
        drop(second);
        third.take(&go);
        assert!(third.has_it.load(Ordering::Relaxed));
        drop(third);
        first.take(&go);
        assert!(first.has_it.load(Ordering::Relaxed));
    }
}
