//! Decides which items fit into the remaining time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time kept for comparing interrupted work and for the report.
const RESERVE: Duration = Duration::from_secs(10);

/// A time limit of the whole check.
pub(super) struct Budget {
    begun: Instant,
    total: Duration,
}

impl Budget {
    pub(super) fn new(total: Duration) -> Self {
        Self { begun: Instant::now(), total }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Time left for work.
    pub(super) fn left(&self) -> Duration {
        self.total.saturating_sub(RESERVE).saturating_sub(self.elapsed())
    }
}

/// How many items fit into `left` by their estimates, counted from the first; later ones are dropped.
pub(super) fn fitting(estimates: &[Duration], left: Duration) -> usize {
    let mut needed = Duration::ZERO;
    estimates
        .iter()
        .take_while(|estimate| {
            needed += **estimate;
            needed <= left
        })
        .count()
}

/// Raises a flag when its time is over; stops watching when dropped.
pub(super) struct Watch {
    cancel: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The stop flag of work under a time limit, and what raised it.
#[derive(Default)]
pub(super) struct Stop {
    /// Raised by the limit or by the user.
    pub(super) flag: Arc<AtomicBool>,
    /// Raised by the limit only.
    pub(super) is_late: AtomicBool,
}

impl Watch {
    /// Raises `stop` after `limit`, or as soon as `user` is raised.
    pub(super) fn new(
        stop: &std::sync::Arc<Stop>,
        user: &std::sync::Arc<AtomicBool>,
        limit: Duration,
    ) -> Self {
        let (cancel, cancelled) = channel();
        let (stop, user) = (stop.clone(), user.clone());
        let end = Instant::now() + limit;
        let thread = std::thread::spawn(move || {
            loop {
                let left = end.saturating_duration_since(Instant::now());
                let asked = user.load(Ordering::Relaxed);
                if left.is_zero() || asked {
                    stop.is_late.store(!asked, Ordering::Relaxed);
                    stop.flag.store(true, Ordering::Relaxed);
                    return;
                }
                let cancelled = cancelled.recv_timeout(left.min(Duration::from_millis(100)));
                if !matches!(cancelled, Err(std::sync::mpsc::RecvTimeoutError::Timeout)) {
                    return;
                }
            }
        });
        Self { cancel: Some(cancel), thread: Some(thread) }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.cancel.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn seconds(values: &[u64]) -> Vec<Duration> {
        values.iter().copied().map(Duration::from_secs).collect()
    }

    #[test]
    fn the_last_items_are_dropped_first() {
        let check = |left: u64, expect: usize| {
            assert_eq!(fitting(&seconds(&[20, 60, 100]), Duration::from_secs(left)), expect, "{left}");
        };
        check(1000, 3);
        check(180, 3);
        check(179, 2);
        check(80, 2);
        // A short item that would fit is not run before a longer one that does not: the order is the
        // importance.
        assert_eq!(fitting(&seconds(&[20, 600, 5]), Duration::from_secs(100)), 1);
        check(19, 0);
        assert_eq!(fitting(&[], Duration::ZERO), 0);
    }

    #[test]
    fn a_limit_raises_the_flag_and_marks_it_as_late() {
        let (stop, user) = (Arc::new(Stop::default()), Arc::new(AtomicBool::new(false)));
        drop(Watch::new(&stop, &user, Duration::from_mins(1)));
        assert!(!stop.flag.load(Ordering::Relaxed), "cancelled in time");
        let watch = Watch::new(&stop, &user, Duration::from_millis(5));
        std::thread::sleep(Duration::from_millis(300));
        assert!(stop.flag.load(Ordering::Relaxed) && stop.is_late.load(Ordering::Relaxed));
        drop(watch);

        let (stop, user) = (Arc::new(Stop::default()), Arc::new(AtomicBool::new(true)));
        let watch = Watch::new(&stop, &user, Duration::from_mins(1));
        std::thread::sleep(Duration::from_millis(300));
        assert!(stop.flag.load(Ordering::Relaxed) && !stop.is_late.load(Ordering::Relaxed));
        drop(watch);
    }

    #[test]
    fn the_budget_reserves_time_for_the_report() {
        let budget = Budget::new(Duration::from_mins(1));
        assert!(budget.left() <= Duration::from_secs(50) && budget.left() > Duration::from_secs(45));
        assert_eq!(Budget::new(Duration::from_secs(5)).left(), Duration::ZERO);
    }
}
