//! Ends tfcheck soon after a request to stop, whatever it waits for.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// While this exists, a request to stop ends tfcheck after this time, whatever it waits for or computes.
pub(super) struct Watch(Arc<AtomicBool>);

impl Watch {
    /// `what` is the last line on standard error.
    pub(super) fn over(stop: &Arc<AtomicBool>, after: Duration, what: String) -> Self {
        let (stop, ended) = (Arc::clone(stop), Arc::new(AtomicBool::new(false)));
        let watched = Arc::clone(&ended);
        std::thread::spawn(move || {
            let mut asked: Option<Instant> = None;
            while !watched.load(Ordering::Relaxed) {
                if stop.load(Ordering::Relaxed) {
                    asked.get_or_insert_with(Instant::now);
                }
                if asked.is_some_and(|asked| asked.elapsed() > after) {
                    reference::end_all();
                    let _ = writeln!(std::io::stderr(), "{what}");
                    std::process::exit(130);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        Self(ended)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
