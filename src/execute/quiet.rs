//! Decides which timing rounds ran on a quiet machine, from the calibration-loop times ([`reference::yardstick`]) that
//! workers measure next to each round.

use std::time::Duration;

use crate::execute::cell::{Cell, Outcome};

/// A reading counts as loaded above this multiple of the machine's best reading. Quiet readings lie within 3 to 6 % of
/// the best; readings next to another loaded process or guest lie 20 to 50 % above it.
const BUSY: f64 = 1.05;
/// The best reading is this quantile of all readings, not the minimum, because clocks rise for short moments.
const BEST: f64 = 0.05;
/// At most this multiple of the wanted rounds is timed: four times as many rounds halve the random error.
const MOST: usize = 4;

/// The best reading in nanoseconds (the 5 % quantile); `None` if there are no readings.
pub fn best_ns(readings: &[u64]) -> Option<u64> {
    let mut sorted = readings.to_vec();
    sorted.sort_unstable();
    sorted.get((sorted.len() as f64 * BEST) as usize).copied()
}

/// The calibration-loop readings next to the rounds of these cells, in nanoseconds.
pub fn readings<'a>(cells: impl Iterator<Item = &'a Cell>) -> Vec<u64> {
    let of = |cell: &'a Cell| match &cell.outcome {
        Outcome::Completed(completed) => completed.yardstick_ns.as_slice(),
        _ => &[],
    };
    cells.flat_map(of).copied().collect()
}

/// Whether a reading comes from a quiet machine whose best reading is `best_ns`.
pub fn is_quiet(reading: u64, best_ns: u64) -> bool {
    reading <= limit_ns(best_ns)
}

fn limit_ns(best_ns: u64) -> u64 {
    (best_ns as f64 * BUSY) as u64
}

/// The timing rounds of a case: the wanted number, plus extra rounds while fewer than that were quiet and `patience`
/// remains.
#[derive(Debug)]
pub struct Rounds {
    wanted: usize,
    patience: Duration,
    known_ns: Option<u64>,
    readings: Vec<u64>,
    /// For each timed round, its slowest calibration-loop reading in nanoseconds and its number.
    timed: Vec<(u64, u32)>,
}

impl Rounds {
    /// `patience` limits the time spent on extra rounds and on waiting; `known_ns` is the best reading of earlier runs on
    /// the same machine.
    pub fn new(wanted: usize, patience: Duration, known_ns: Option<u64>) -> Self {
        Self { wanted, patience, known_ns, readings: Vec::new(), timed: Vec::new() }
    }

    /// Rounds timed so far.
    pub fn len(&self) -> usize {
        self.timed.len()
    }

    /// Whether no round has been timed yet.
    pub fn is_empty(&self) -> bool {
        self.timed.is_empty()
    }

    /// The slowest reading that counts as quiet; a round is not started above it. `None` if `patience` is used up or
    /// there is no reading yet.
    pub fn limit_ns(&self) -> Option<u64> {
        self.best_ns().filter(|_| !self.patience.is_zero()).map(limit_ns)
    }

    fn best_ns(&self) -> Option<u64> {
        best_ns(&self.readings).into_iter().chain(self.known_ns).min()
    }

    /// Whether to time another round: fewer than `wanted` were timed, or fewer than `wanted` were quiet and `patience`
    /// remains.
    pub fn wants_more(&self) -> bool {
        let best = self.best_ns();
        let is_quiet = |&&(reading, _): &&(u64, u32)| best.is_none_or(|best| is_quiet(reading, best));
        self.timed.len() < self.wanted
            || self.timed.len() < MOST * self.wanted
                && !self.patience.is_zero()
                && self.timed.iter().filter(is_quiet).count() < self.wanted
    }

    /// Records a timed round and its readings; `readings` is empty if the workers have no calibration loop.
    pub fn count(&mut self, round: u32, readings: &[u64], took: Duration) {
        if self.timed.len() >= self.wanted {
            self.skip(took);
        }
        self.readings.extend(readings);
        self.timed.push((readings.iter().copied().max().unwrap_or(0), round));
    }

    /// Subtracts from `patience` the time of a round that was not timed because the machine was loaded.
    pub fn skip(&mut self, took: Duration) {
        self.patience = self.patience.saturating_sub(took);
    }

    /// The numbers of all rounds except the `wanted` quietest ones; a variant that is timed alone drops them. The choice
    /// uses only the calibration-loop readings, never the times of the forward passes.
    pub fn surplus(&self) -> Vec<u32> {
        let mut rounds = self.timed.clone();
        rounds.sort_unstable();
        rounds.into_iter().skip(self.wanted).map(|(_, round)| round).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn best_ns_ignores_one_unusually_fast_reading_of_many() {
        let mut readings = vec![100; 40];
        readings.push(80);
        assert_eq!(best_ns(&readings), Some(100));
        assert_eq!(best_ns(&[]), None);
        assert!(is_quiet(105, 100) && !is_quiet(106, 100));
    }

    #[test]
    fn rounds_are_added_until_enough_are_quiet_and_only_the_quietest_count() {
        let mut rounds = Rounds::new(2, 9 * SECOND, None);
        // Only readings of a loaded machine are known so far.
        rounds.count(0, &[130, 131], SECOND);
        assert!(rounds.wants_more());
        rounds.count(1, &[100, 104], SECOND);
        assert!(rounds.wants_more(), "now it is");
        // One worker with a slow reading makes the whole round loaded.
        rounds.count(2, &[100, 125], SECOND);
        assert!(rounds.wants_more());
        rounds.count(3, &[100, 100], SECOND);
        assert!(!rounds.wants_more());
        assert_eq!(rounds.surplus(), [2, 0]);
    }

    #[test]
    fn patience_is_spent_only_on_rounds_beyond_the_wanted_ones() {
        let mut rounds = Rounds::new(1, 2 * SECOND, Some(100));
        for (number, reading) in [130, 120, 125].into_iter().enumerate() {
            assert!(rounds.wants_more(), "{number}");
            rounds.count(number as u32, &[reading], SECOND);
        }
        assert!(!rounds.wants_more());
        assert_eq!(rounds.surplus(), [2, 0], "the least busy one counts");
    }

    #[test]
    fn at_most_four_times_the_wanted_rounds_are_timed() {
        let mut rounds = Rounds::new(2, 1000 * SECOND, Some(100));
        while rounds.wants_more() {
            rounds.count(rounds.len() as u32, &[130], SECOND);
        }
        assert_eq!(rounds.len(), 8);
    }

    #[test]
    fn no_round_starts_on_a_loaded_machine_while_patience_lasts() {
        let mut rounds = Rounds::new(1, 2 * SECOND, None);
        assert_eq!(rounds.limit_ns(), None, "nothing is known");
        rounds.count(0, &[200], SECOND);
        assert_eq!(rounds.limit_ns(), Some(210));
        let mut known = Rounds::new(1, 2 * SECOND, Some(100));
        assert_eq!(known.limit_ns(), Some(105));
        known.skip(SECOND);
        known.skip(SECOND);
        assert_eq!(known.limit_ns(), None, "patience is out");
        assert!(known.wants_more());
    }

    #[test]
    fn without_patience_or_readings_the_first_wanted_rounds_count() {
        for (patience, readings) in [(Duration::ZERO, &[200][..]), (SECOND, &[])] {
            let mut rounds = Rounds::new(2, patience, Some(100));
            rounds.count(0, readings, SECOND);
            assert!(rounds.wants_more());
            rounds.count(1, readings, SECOND);
            assert!(!rounds.wants_more());
            assert!(rounds.surplus().is_empty());
        }
        assert!(!Rounds::new(0, SECOND, None).wants_more());
    }
}
