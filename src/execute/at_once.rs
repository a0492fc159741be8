//! Several pieces of work at the same time.

use std::panic::resume_unwind;
use std::sync::mpsc;
use std::thread::{ScopedJoinHandle, scope};

/// Runs `work` on each item in a thread of its own; the results are in the items' order. A panic goes on in the caller.
pub fn at_once<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    scope(|scope| {
        let work = &work;
        let begun: Vec<_> = items.into_iter().map(|item| scope.spawn(move || work(item))).collect();
        let joined =
            |thread: ScopedJoinHandle<'_, R>| thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        begun.into_iter().map(joined).collect()
    })
}

/// Runs `work` on what `next` returns, in so many threads, until `next` returns `None` to each of them. Each result goes to
/// `done` in the caller's thread, as soon as it exists. A panic goes on in the caller.
pub fn in_threads<T, R: Send>(
    threads: usize,
    next: impl Fn() -> Option<T> + Sync,
    work: impl Fn(T) -> R + Sync,
    mut done: impl FnMut(R),
) {
    scope(|scope| {
        let (send, results) = mpsc::channel();
        for _ in 0..threads {
            let (send, next, work) = (send.clone(), &next, &work);
            scope.spawn(move || {
                while let Some(item) = next() {
                    if send.send(work(item)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(send);
        results.into_iter().for_each(&mut done);
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::in_threads;

    #[test]
    fn each_item_is_worked_on_once_and_each_result_reaches_the_caller() {
        for threads in [1, 2, 7] {
            let items = Mutex::new(0..20);
            let mut results = Vec::new();
            in_threads(
                threads,
                || items.lock().unwrap().next(),
                |item| item * item,
                |square| results.push(square),
            );
            results.sort_unstable();
            let expected: Vec<i32> = (0..20).map(|item| item * item).collect();
            assert_eq!(results, expected);
        }
    }
}
