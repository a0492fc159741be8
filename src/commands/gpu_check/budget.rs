//! What fits into the time that there is.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Left to the comparison of what was cut short, and to the report.
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

    /// What work may still take.
    pub(super) fn left(&self) -> Duration {
        self.total.saturating_sub(RESERVE).saturating_sub(self.elapsed())
    }
}

/// How many of the coming items, the first ones, fit into `left` by their estimates: it is the last that are dropped.
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

/// Raises a flag once its time is over; gone when dropped.
pub(super) struct Watch {
    cancel: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The flag of work under a limit, and who raised it.
#[derive(Default)]
pub(super) struct Stop {
    /// Raised by either.
    pub(super) flag: AtomicBool,
    /// Raised by the limit alone.
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
        // A small one that would fit does not pass a large one that does not: what comes first matters more.
        assert_eq!(fitting(&seconds(&[20, 600, 5]), Duration::from_secs(100)), 1);
        check(19, 0);
        assert_eq!(fitting(&[], Duration::ZERO), 0);
    }

    #[test]
    fn a_limit_raises_the_flag_and_says_that_it_was_the_limit() {
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
    fn the_report_has_time_left() {
        let budget = Budget::new(Duration::from_mins(1));
        assert!(budget.left() <= Duration::from_secs(50) && budget.left() > Duration::from_secs(45));
        assert_eq!(Budget::new(Duration::from_secs(5)).left(), Duration::ZERO);
    }
}
