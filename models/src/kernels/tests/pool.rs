use super::super::Pool;
use super::most;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[test]
fn every_task_runs_once_on_a_thread_of_the_pool() {
    let pool = Pool::new(3);
    for tasks in [0, 1, 2, 3, 50, most(1000, 60)] {
        let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        pool.run(tasks, |task, thread| {
            assert!(thread < 3);
            counts[task].fetch_add(1, Ordering::Relaxed);
        });
        assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{tasks} tasks");
    }
}

#[test]
fn thousands_of_jobs_in_a_row_lose_no_task() {
    let pool = Pool::new(4);
    let sum = AtomicUsize::new(0);
    let jobs = most(20_000, 100);
    for _ in 0..jobs {
        pool.run(5, |task, _| {
            sum.fetch_add(task + 1, Ordering::Relaxed);
        });
    }
    assert_eq!(sum.into_inner(), jobs * 15);
}

#[test]
fn parked_workers_run_later_jobs() {
    let pool = Pool::new(2);
    for _ in 0..most(3, 1) {
        std::thread::sleep(Duration::from_millis(5));
        let threads: Vec<AtomicUsize> = (0..2).map(|_| AtomicUsize::new(0)).collect();
        // Long enough for a parked worker to be scheduled on a machine loaded by other processes.
        pool.run(40, |_, thread| {
            threads[thread].fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(5));
        });
        assert!(threads[1].load(Ordering::Relaxed) > 0, "the worker took a task");
    }
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_still_works() {
    let pool = Pool::new(2);
    for _ in 0..most(20, 2) {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(8, |task, _| assert!(task != 5, "five"));
        }));
        assert!(outcome.is_err(), "task 5 panics on whichever thread takes it");
        let count = AtomicUsize::new(0);
        pool.run(8, |_, _| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 8);
    }
}

#[test]
fn concurrent_callers_complete_all_their_jobs() {
    let pool = Pool::new(2);
    let (sum, jobs) = (AtomicUsize::new(0), most(500, 10));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..jobs {
                    pool.run(3, |_, _| {
                        sum.fetch_add(1, Ordering::Relaxed);
                    });
                }
            });
        }
    });
    assert_eq!(sum.into_inner(), 4 * jobs * 3);
}
