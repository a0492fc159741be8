//! Detection rate and false alarms on simulated noise, and properties of the estimate.

use super::*;

/// Simulated times of a loaded machine. Both variants of a round share a drift, each variant's turn (its passes in one
/// round) has an offset of its own, each pass has an exponential delay, and occasionally a burst slows a whole turn down.
struct Machine {
    random: Random,
    /// Standard deviation of the drift that both variants of a round share, on a log scale.
    drift: f64,
    /// Standard deviation of the offset of one variant's turn, on a log scale.
    turn: f64,
    /// Mean of a pass's exponential delay, as a share of its time.
    pass: f64,
    /// Probability that a turn is slowed down by 10 %.
    burst: f64,
}

impl Machine {
    /// Two cores of a server without other load: 1 % drift, 0.5 % per turn, 1 % per pass.
    fn quiet(seed: u64) -> Self {
        Self { random: Random(seed), drift: 0.01, turn: 0.005, pass: 0.01, burst: 0.0 }
    }

    /// A shared machine: 10 % drift, 2 % per turn, 5 % per pass, a burst in one turn of ten.
    fn shared(seed: u64) -> Self {
        Self { random: Random(seed), drift: 0.1, turn: 0.02, pass: 0.05, burst: 0.1 }
    }

    fn uniform(&mut self) -> f64 {
        (self.random.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Irwin–Hall sum of 12 uniforms, which approximates the standard normal.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }

    fn turn(&mut self, center_ms: f64, passes: usize) -> Vec<u64> {
        let burst = if self.uniform() < self.burst { 1.1 } else { 1.0 };
        let center = center_ms * burst * (self.turn * self.normal()).exp();
        let pass = |machine: &mut Self| {
            let delay = -machine.pass * (1.0 - machine.uniform()).ln();
            (center * (1.0 + delay) * 1e6) as u64
        };
        (0..passes).map(|_| pass(self)).collect()
    }

    /// `rounds` interleaved rounds of a baseline of 30 ms and of a variant of `slower` × 30 ms, `passes` passes each.
    fn time(&mut self, slower: f64, rounds: usize, passes: usize) -> [Vec<Vec<u64>>; 2] {
        let mut both = [Vec::new(), Vec::new()];
        for _ in 0..rounds {
            let drift = (self.drift * self.normal()).exp();
            both[0].push(self.turn(30.0 * drift, passes));
            both[1].push(self.turn(30.0 * slower * drift, passes));
        }
        both
    }
}

/// Number of `runs` simulated runs in which the second variant is reported slower by more than 3 %.
fn called(machine: fn(u64) -> Machine, slower: f64, rounds: usize, runs: u64) -> u64 {
    let is_called = |seed: &u64| {
        let [baseline, variant] = machine(*seed).time(slower, rounds, 5);
        change(&baseline, &variant, Statistic::P50, true).unwrap().is_slower_by(0.03)
    };
    (0..runs).filter(is_called).count() as u64
}

#[test]
fn a_slow_down_of_5_percent_is_detected_on_a_quiet_machine_without_false_alarms() {
    assert!(called(Machine::quiet, 1.05, 10, 100) >= 99, "power");
    assert_eq!(called(Machine::quiet, 1.0, 10, 200), 0, "false alarms");
    // tfcheck's default is three rounds.
    assert!(called(Machine::quiet, 1.05, 3, 100) >= 90, "power of three rounds");
    assert_eq!(called(Machine::quiet, 1.0, 3, 200), 0, "false alarms of three rounds");
}

#[test]
fn a_shared_machine_causes_at_most_2_5_percent_false_alarms() {
    // A one-sided error of 2.5 % of 400 runs is expected of the interval; the minimum effect must not add to it.
    assert!(called(Machine::shared, 1.0, 10, 400) <= 10, "false alarms");
    assert!(called(Machine::shared, 1.15, 10, 100) >= 90, "a large slow-down is still found");
}

#[test]
fn the_interval_covers_the_true_ratio_in_about_95_percent_of_runs() {
    for rounds in [3, 5, 10] {
        let holds = |seed: &u64| {
            let [baseline, variant] = Machine::quiet(1000 + seed).time(1.05, rounds, 5);
            let interval = change(&baseline, &variant, Statistic::P50, true).unwrap().interval;
            interval.low <= 1.05 && 1.05 <= interval.high
        };
        let held = (0..200).filter(holds).count();
        // 95 % of 200 is 190, and four standard deviations of the count are 12. A larger count is expected: passes are
        // redrawn although the rounds' statistics already contain their scatter.
        assert!(held >= 178, "{held} of 200 with {rounds} rounds");
    }
}

#[test]
fn load_during_a_whole_round_cancels() {
    let steady = |ms: u64| vec![ms * 1_000_000; 4];
    let baseline: Vec<_> = [10, 17, 11, 30, 12].map(steady).into();
    let variant: Vec<_> = [20, 34, 22, 60, 24].map(steady).into();
    let change = change(&baseline, &variant, Statistic::Mean, true).unwrap();
    assert!((change.ratio - 2.0).abs() < 1e-12, "{change:?}");
    assert!((change.interval.low - 2.0).abs() < 1e-12 && (change.interval.high - 2.0).abs() < 1e-12);
    assert!(change.is_slower_by(0.99) && !change.is_slower_by(1.01) && !change.is_faster_by(0.0));
}

#[test]
fn rounds_without_samples_of_both_sides_are_ignored() {
    let of = |ms: &[u64]| -> Vec<Vec<u64>> { ms.iter().map(|&ms| vec![ms * 1_000_000]).collect() };
    let mut variant = of(&[11, 99, 11]);
    variant[1].clear();
    let paired = change(&of(&[10, 10, 10, 77]), &variant, Statistic::P50, true).unwrap();
    assert_eq!(paired.rounds, 2);
    assert!((paired.ratio - 1.1).abs() < 1e-12);
    assert_eq!(change(&[], &variant, Statistic::P50, true), None);
    assert_eq!(change(&of(&[10]), &[vec![]], Statistic::P50, false), None);
}

#[test]
fn one_round_never_reports_a_slow_down() {
    let change = change(&[vec![1_000_000; 50]], &[vec![2_000_000; 50]], Statistic::P50, true).unwrap();
    assert!((change.ratio - 2.0).abs() < 1e-12);
    assert!(!change.is_slower_by(0.05), "{change:?}");
    assert_eq!(change.text(), "rose by 100.0 % (no interval: only one round)");
}

#[test]
fn few_rounds_widen_the_interval() {
    // Student's t for 2 degrees of freedom, 4.303, over 1.96, times sqrt(3/2).
    assert!((stretch(3) - 2.689).abs() < 1e-3);
    // Student's t for 30 degrees of freedom is 2.0423 (tables).
    assert!((stretch(31) * 1.960 * (30.0_f64 / 31.0).sqrt() - 2.0423).abs() < 0.004 * 2.0423);
}
