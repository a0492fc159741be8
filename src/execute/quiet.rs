//! Which rounds were timed on a quiet machine, by what workers read off their yardstick beside them
//! ([`reference::yardstick`]).

use std::time::Duration;

use crate::execute::cell::{Cell, Outcome};

/// A reading this much above the machine's best is one of a busy machine: quiet readings lie within 3 to 6 % of the best,
/// those beside a busy neighbour 20 to 50 % above it.
const BUSY: f64 = 1.05;
/// The best is this quantile of all readings, not the smallest: clocks rise for a moment now and then.
const BEST: f64 = 0.05;
/// At most so many times the wanted rounds are timed: four times as many halve what is left to chance.
const MOST: usize = 4;

/// The reading of a quiet machine; `None` without any.
pub fn best_ns(readings: &[u64]) -> Option<u64> {
    let mut sorted = readings.to_vec();
    sorted.sort_unstable();
    sorted.get((sorted.len() as f64 * BEST) as usize).copied()
}

/// What was read beside the rounds of these cells.
pub fn readings<'a>(cells: impl Iterator<Item = &'a Cell>) -> Vec<u64> {
    let of = |cell: &'a Cell| match &cell.outcome {
        Outcome::Completed(completed) => completed.yardstick_ns.as_slice(),
        _ => &[],
    };
    cells.flat_map(of).copied().collect()
}

/// Whether a reading is one of a quiet machine whose best is `best_ns`.
pub fn is_quiet(reading: u64, best_ns: u64) -> bool {
    reading <= limit_ns(best_ns)
}

fn limit_ns(best_ns: u64) -> u64 {
    (best_ns as f64 * BUSY) as u64
}

/// The rounds of a case: as many as are wanted, and more while too few of them were quiet and patience lasts.
#[derive(Debug)]
pub struct Rounds {
    wanted: usize,
    patience: Duration,
    known_ns: Option<u64>,
    readings: Vec<u64>,
    /// Slowest reading beside each round, and its number.
    timed: Vec<(u64, u32)>,
}

impl Rounds {
    /// `patience` is for what is timed beyond `wanted` rounds; `known_ns` is the best reading of earlier runs on the same
    /// machine.
    pub fn new(wanted: usize, patience: Duration, known_ns: Option<u64>) -> Self {
        Self { wanted, patience, known_ns, readings: Vec::new(), timed: Vec::new() }
    }

    /// Rounds timed so far.
    pub fn len(&self) -> usize {
        self.timed.len()
    }

    /// Whether none was timed yet.
    pub fn is_empty(&self) -> bool {
        self.timed.is_empty()
    }

    /// The slowest reading of a quiet machine, beyond which a round is not worth timing; `None` when patience is out, or
    /// nothing is known yet.
    pub fn limit_ns(&self) -> Option<u64> {
        self.best_ns().filter(|_| !self.patience.is_zero()).map(limit_ns)
    }

    fn best_ns(&self) -> Option<u64> {
        best_ns(&self.readings).into_iter().chain(self.known_ns).min()
    }

    /// Whether another round is to be timed: fewer than wanted were, or fewer of them quiet while patience lasts.
    pub fn wants_more(&self) -> bool {
        let best = self.best_ns();
        let is_quiet = |&&(reading, _): &&(u64, u32)| best.is_none_or(|best| is_quiet(reading, best));
        self.timed.len() < self.wanted
            || self.timed.len() < MOST * self.wanted
                && !self.patience.is_zero()
                && self.timed.iter().filter(is_quiet).count() < self.wanted
    }

    /// Counts a round and what was read beside it, nothing where workers have no yardstick.
    pub fn count(&mut self, round: u32, readings: &[u64], took: Duration) {
        if self.timed.len() >= self.wanted {
            self.skip(took);
        }
        self.readings.extend(readings);
        self.timed.push((readings.iter().copied().max().unwrap_or(0), round));
    }

    /// Counts the time of a round that was not timed, for the machine was busy.
    pub fn skip(&mut self, took: Duration) {
        self.patience = self.patience.saturating_sub(took);
    }

    /// The numbers of all but the quietest rounds that are wanted: what does not count of one variant alone. It is the
    /// yardstick that chooses, which does not know how long the passes took.
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
    fn one_lucky_reading_of_many_is_not_the_machine_s_best() {
        let mut readings = vec![100; 40];
        readings.push(80);
        assert_eq!(best_ns(&readings), Some(100));
        assert_eq!(best_ns(&[]), None);
        assert!(is_quiet(105, 100) && !is_quiet(106, 100));
    }

    #[test]
    fn the_quietest_rounds_count_and_more_are_timed_until_enough_are_quiet() {
        let mut rounds = Rounds::new(2, 9 * SECOND, None);
        // Nothing better is known than what a busy machine reads.
        rounds.count(0, &[130, 131], SECOND);
        assert!(rounds.wants_more());
        rounds.count(1, &[100, 104], SECOND);
        assert!(rounds.wants_more(), "now it is");
        // One busy worker makes a busy round.
        rounds.count(2, &[100, 125], SECOND);
        assert!(rounds.wants_more());
        rounds.count(3, &[100, 100], SECOND);
        assert!(!rounds.wants_more());
        assert_eq!(rounds.surplus(), [2, 0]);
    }

    #[test]
    fn patience_is_for_what_is_beyond_the_wanted_rounds_and_ends() {
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
    fn a_round_is_not_begun_on_a_busy_machine_while_patience_lasts() {
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
    fn without_patience_or_readings_rounds_count_as_they_come() {
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
