//! A fixed piece of arithmetic, timed beside the rounds, which says whether the machine is busy with something else.
//!
//! A core of a virtual machine is often half of a physical one. What the other half does makes passes a third slower for
//! seconds at a time (1.3 times on a guest of two such halves, a fifth to a half of the time), and nothing that a process can
//! read of its own machine tells. A product of small matrices, which waits for nothing but its core, does.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A reading this much above the machine's best is one of a busy machine. On that guest nine tenths of quiet readings
/// lie within 6 % of the best, busy ones 20 to 50 % above it.
const BUSY: f64 = 1.08;
/// The best is the quantile of all readings, not the smallest: clocks rise for a moment now and then.
const BEST: f64 = 0.05;
/// Cores that are looked at, at most.
const MOST_CORES: usize = 8;
/// Side of the matrices, of which three fit into a first-level cache, and products of a reading: about half a
/// millisecond.
const SIDE: usize = 48;
const PRODUCTS: usize = 24;
/// Between two looks at a busy machine.
const PAUSE: Duration = Duration::from_millis(50);

/// The readings of one run.
#[derive(Debug)]
pub struct Yardstick {
    cores: usize,
    known_ns: Option<u64>,
    readings: Vec<u64>,
}

impl Yardstick {
    /// `known_ns` is the best of an earlier run on the same machine.
    pub fn new(known_ns: Option<u64>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_CORES);
        Self { cores, known_ns, readings: Vec::new() }
    }

    /// Nanoseconds that the arithmetic takes now on the slowest of the cores, each of which does it twice and counts
    /// the better time.
    pub fn read(&mut self) -> u64 {
        let slowest = std::thread::scope(|scope| {
            let cores: Vec<_> = (1..self.cores).map(|_| scope.spawn(better_of_two)).collect();
            let own = better_of_two();
            cores.into_iter().map(|core| core.join().unwrap_or(own)).fold(own, u64::max)
        });
        self.readings.push(slowest);
        slowest
    }

    /// Whether a reading is one of a quiet machine, by what is known so far.
    pub fn is_quiet(&self, reading: u64) -> bool {
        let best = best_ns(&self.readings).into_iter().chain(self.known_ns).min();
        best.is_none_or(|best| is_quiet(reading, best))
    }
}

/// The reading of a quiet machine; `None` without any.
pub fn best_ns(readings: &[u64]) -> Option<u64> {
    let mut sorted = readings.to_vec();
    sorted.sort_unstable();
    sorted.get((sorted.len() as f64 * BEST) as usize).copied()
}

/// Whether a reading is one of a quiet machine whose best is `best_ns`.
pub fn is_quiet(reading: u64, best_ns: u64) -> bool {
    reading as f64 <= best_ns as f64 * BUSY
}

/// How long timing may still wait for a quiet machine, and the readings beside its rounds.
#[derive(Debug)]
pub struct Patience {
    left: Duration,
    /// Number, reading and duration of each round that counts.
    rounds: Vec<(u32, u64, Duration)>,
}

impl Patience {
    /// None of the waiting done yet.
    pub fn new(left: Duration) -> Self {
        Self { left, rounds: Vec::new() }
    }

    /// Rounds that count.
    pub fn rounds(&self) -> usize {
        self.rounds.len()
    }

    /// Waits until the machine is quiet, patience is out or `stop` is set; gives the last reading.
    pub fn wait(&mut self, yardstick: &mut Yardstick, stop: &AtomicBool) -> u64 {
        loop {
            let begun = Instant::now();
            let reading = yardstick.read();
            if yardstick.is_quiet(reading) || self.left.is_zero() || stop.load(Ordering::Relaxed) {
                return reading;
            }
            std::thread::sleep(PAUSE);
            self.left = self.left.saturating_sub(begun.elapsed());
        }
    }

    /// Counts a round, and takes back those that were not quiet, by what is known now, as long as there is patience
    /// to time them again; their numbers.
    pub fn count(&mut self, round: u32, reading: u64, took: Duration, yardstick: &Yardstick) -> Vec<u32> {
        self.rounds.push((round, reading, took));
        let left = &mut self.left;
        let again = |&mut (_, reading, took): &mut (u32, u64, Duration)| {
            let is_again = !yardstick.is_quiet(reading) && !left.is_zero();
            if is_again {
                *left = left.saturating_sub(took);
            }
            is_again
        };
        self.rounds.extract_if(.., again).map(|(round, ..)| round).collect()
    }
}

fn better_of_two() -> u64 {
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

    /// A yardstick that was read before.
    fn read(readings: &[u64], known_ns: Option<u64>) -> Yardstick {
        Yardstick { cores: 1, known_ns, readings: readings.to_vec() }
    }

    #[test]
    fn what_is_quiet_is_said_by_the_best_of_this_and_of_earlier_runs() {
        let alone = read(&[130, 131, 132], None);
        assert!(alone.is_quiet(133) && !alone.is_quiet(150));
        let known = read(&[130, 131, 132], Some(100));
        assert!(!known.is_quiet(130) && known.is_quiet(107));
        assert!(read(&[], None).is_quiet(1));
        // One lucky reading of many is not the machine's best.
        let mut readings = vec![100; 40];
        readings.push(80);
        assert_eq!(best_ns(&readings), Some(100));
    }

    #[test]
    fn rounds_of_a_busy_machine_are_taken_back_as_long_as_patience_lasts() {
        let second = Duration::from_secs(1);
        let mut patience = Patience::new(2 * second);
        // Nothing better is known than what a busy machine reads.
        let busy = read(&[130; 3], None);
        assert!(patience.count(0, 130, second, &busy).is_empty());
        // Then it is.
        let quiet = read(&[100, 130, 130, 130], None);
        assert_eq!(patience.count(1, 100, second, &quiet), [0]);
        assert_eq!(patience.count(2, 125, second, &quiet), [2]);
        assert_eq!(patience.rounds(), 1);
        assert!(patience.count(3, 125, second, &quiet).is_empty(), "patience is out");
        assert_eq!(patience.rounds(), 2);
    }

    #[test]
    fn a_busy_machine_is_waited_for_no_longer_than_patience_lasts() {
        let mut yardstick = read(&[], Some(1));
        let begun = Instant::now();
        Patience::new(Duration::from_millis(120)).wait(&mut yardstick, &AtomicBool::new(false));
        assert!((120..5000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
        assert!(yardstick.readings.len() >= 2);
        let stopped = AtomicBool::new(true);
        Patience::new(Duration::from_hours(1)).wait(&mut yardstick, &stopped);
    }

    #[test]
    fn a_reading_takes_about_a_millisecond() {
        let mut yardstick = Yardstick::new(None);
        let readings: Vec<u64> = (0..20).map(|_| yardstick.read()).collect();
        let best = best_ns(&readings).unwrap();
        assert!((20_000..20_000_000).contains(&best), "{best} ns");
    }
}
