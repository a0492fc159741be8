//! A fixed piece of arithmetic that a worker times beside its passes: it says whether its cores are busy with something
//! else.
//!
//! A core of a virtual machine is often half of a physical one. What the other half does makes passes a third slower for
//! seconds at a time (on a guest of two such halves for half of the time and more), and nothing that a process can read of
//! its own machine tells. A product of small matrices, which waits for nothing but its core, does.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::protocol::{Time, Timed};

/// Side of the matrices, of which three fit into a first-level cache, and how often they are multiplied: for two to three
/// milliseconds, since the readings of a fifth of one spread by 12 % on a quiet core.
const SIDE: usize = 48;
const PRODUCTS: usize = 288;
/// Until threads that wait for their next loop no longer turn on the spot, as those of OpenMP do for some milliseconds.
const SETTLED: Duration = Duration::from_millis(10);

/// Answers `time` by `passes`, between two readings where those are wanted; without them where the first is too slow.
///
/// # Errors
/// What `passes` fails with.
pub fn beside<E>(time: &Time, passes: impl FnOnce() -> Result<Timed, E>) -> Result<Timed, E> {
    let reading = || (time.yardstick > 0).then(|| read(time.yardstick));
    let before = reading();
    if before.zip(time.quiet_ns).is_some_and(|(before, quiet)| before > quiet) {
        return Ok(Timed { yardstick_ns: before, ..Timed::default() });
    }
    let timed = passes()?;
    Ok(Timed { yardstick_ns: before.max(reading()), ..timed })
}

/// Nanoseconds that the arithmetic takes now on the slowest of `threads` threads, this one among them, each of which does
/// it once unseen, for caches and clock, then twice and counts the better time.
fn read(threads: usize) -> u64 {
    std::thread::sleep(SETTLED);
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(better_of_two)).collect();
        let own = better_of_two();
        others.into_iter().map(|other| other.join().unwrap_or(own)).fold(own, u64::max)
    })
}

fn better_of_two() -> u64 {
    once();
    let first = once();
    first.min(once())
}

fn once() -> u64 {
    let a = black_box([[0.01_f32; SIDE]; SIDE]);
    let b = black_box([[0.02_f32; SIDE]; SIDE]);
    let mut c = [[0.0_f32; SIDE]; SIDE];
    let begun = Instant::now();
    for _ in 0..PRODUCTS {
        for (row, out) in a.iter().zip(&mut c) {
            for (&x, b) in row.iter().zip(&b) {
                out.iter_mut().zip(b).for_each(|(out, &b)| *out += x * b);
            }
        }
        black_box(&mut c);
    }
    begun.elapsed().as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_takes_some_milliseconds() {
        let best = (0..20).map(|_| read(2)).min().unwrap();
        assert!((200_000..100_000_000).contains(&best), "{best} ns");
    }
}
