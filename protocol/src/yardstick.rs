//! The calibration loop: fixed arithmetic that a worker times before and after its forward passes, to detect
//! whether its cores are loaded by other processes or by another guest.
//!
//! A core of a virtual machine is often one hardware thread of a physical core. Load on the other thread
//! makes forward passes a third slower for seconds at a time (for half of the time and more on a guest with
//! two such cores), and no counter that a process can read shows it. A product of small matrices depends on
//! its core only, so its time does.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::{Time, Timed};

/// Side of the matrices, three of which fit into the L1 cache, and number of products: 2 to 3 ms, because
/// readings of a fifth of that vary by 12 % on a quiet core.
const SIDE: usize = 48;
const PRODUCTS: usize = 288;
/// Wait until idle threads of other libraries stop spinning, which OpenMP's do for some milliseconds after a
/// loop.
const SETTLED: Duration = Duration::from_millis(10);

/// Runs `passes` between two readings of the calibration loop if `time` asks for them; skips `passes` if the
/// first reading is above `time.quiet_ns`.
///
/// # Errors
/// The errors of `passes`.
pub fn beside<E>(time: &Time, passes: impl FnOnce() -> Result<Timed, E>) -> Result<Timed, E> {
    let reading = || (time.yardstick > 0).then(|| read(time.yardstick));
    let before = reading();
    if before.zip(time.quiet_ns).is_some_and(|(before, quiet)| before > quiet) {
        return Ok(Timed { yardstick_ns: before, ..Timed::default() });
    }
    let timed = passes()?;
    Ok(Timed { yardstick_ns: before.max(reading()), ..timed })
}

/// Time of the calibration loop in nanoseconds on the slowest of `threads` threads (this one included). Each
/// thread runs it once as a warm-up, then twice, and reports the better time.
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
    fn a_reading_takes_between_200_us_and_100_ms() {
        let best = (0..20).map(|_| read(2)).min().unwrap();
        assert!((200_000..100_000_000).contains(&best), "{best} ns");
    }
}
