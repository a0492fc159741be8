//! Several pieces of work at the same time.

use std::panic::resume_unwind;
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
