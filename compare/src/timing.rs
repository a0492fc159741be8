//! Percentiles, confidence intervals and ratios of the times of a cell's steady forward passes.
//!
//! Forward passes of one round share the machine's state, so a bootstrap over single passes would treat dependent samples
//! as independent. The bootstrap therefore resamples whole rounds first, and passes within each round second.

mod change;

pub use change::{Change, Statistic, change};

/// Resamples of a bootstrap: the limits of a 95 % percentile interval are then stable to about 1 % of its width.
const RESAMPLES: usize = 2000;
/// Confidence of every interval.
pub const CONFIDENCE: f64 = 0.95;
/// Seed of every bootstrap; fixed, so that a saved run always gives the same intervals.
const SEED: u64 = 0x7463_6865_636b_0001;

/// An interval of confidence [`CONFIDENCE`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Lower limit.
    pub low: f64,
    /// Upper limit.
    pub high: f64,
}

/// Summary of a cell's samples; times in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Number of samples.
    pub n: usize,
    /// Number of interleaved rounds.
    pub rounds: usize,
    /// Arithmetic mean.
    pub mean_ms: f64,
    /// Median.
    pub p50_ms: f64,
    /// 90th percentile.
    pub p90_ms: f64,
    /// 99th percentile; between the largest two samples while n ≤ 100.
    pub p99_ms: f64,
    /// Smallest.
    pub min_ms: f64,
    /// Largest.
    pub max_ms: f64,
    /// Bootstrap interval of the median.
    pub median_interval_ms: Interval,
    /// Samples beyond Tukey's fences (1.5 interquartile ranges outside the quartiles).
    pub outliers: usize,
}

/// Speed-up of a variant over a baseline.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpeedUp {
    /// Baseline's median over the variant's median; above 1 if the variant is faster.
    pub ratio: f64,
    /// Bootstrap interval of the ratio over paired rounds.
    pub interval: Interval,
}

/// Summarises the rounds of one cell, in nanoseconds; `None` if there is no sample.
pub fn summarize(rounds_ns: &[Vec<u64>]) -> Option<Summary> {
    let rounds = to_ms(rounds_ns);
    let sorted = sorted(rounds.concat());
    let (&min_ms, &max_ms) = (sorted.first()?, sorted.last()?);
    let (lower, upper) = (quantile(&sorted, 0.25), quantile(&sorted, 0.75));
    let reach = 1.5 * (upper - lower);
    Some(Summary {
        n: sorted.len(),
        rounds: rounds.len(),
        mean_ms: sorted.iter().sum::<f64>() / sorted.len() as f64,
        p50_ms: quantile(&sorted, 0.5),
        p90_ms: quantile(&sorted, 0.9),
        p99_ms: quantile(&sorted, 0.99),
        min_ms,
        max_ms,
        median_interval_ms: bootstrap(&mut |random| {
            let picked = pick_rounds(rounds.len(), random);
            median_of(&rounds, &picked, random)
        }),
        outliers: sorted.iter().filter(|&&x| x < lower - reach || x > upper + reach).count(),
    })
}

/// Speed-up of a variant over a baseline that was timed in the same interleaved rounds. Rounds without a sample of both
/// are ignored; `None` if no round has samples of both.
pub fn speed_up(baseline_ns: &[Vec<u64>], variant_ns: &[Vec<u64>]) -> Option<SpeedUp> {
    let common = |index: &usize| !baseline_ns[*index].is_empty() && !variant_ns[*index].is_empty();
    let indices: Vec<usize> = (0..baseline_ns.len().min(variant_ns.len())).filter(common).collect();
    if indices.is_empty() {
        return None;
    }
    let baseline: Vec<Vec<f64>> = indices.iter().map(|&i| to_ms(&baseline_ns[i..=i]).concat()).collect();
    let variant: Vec<Vec<f64>> = indices.iter().map(|&i| to_ms(&variant_ns[i..=i]).concat()).collect();
    let ratio = quantile(&sorted(baseline.concat()), 0.5) / quantile(&sorted(variant.concat()), 0.5);
    let interval = bootstrap(&mut |random| {
        let picked = pick_rounds(indices.len(), random);
        median_of(&baseline, &picked, random) / median_of(&variant, &picked, random)
    });
    Some(SpeedUp { ratio, interval })
}

/// Hyndman–Fan type 7 (numpy's default): linear between the order statistics around `(n − 1)·q`.
///
/// `sorted` is ascending; `q` is in `[0, 1]`. NaN for an empty slice.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let at = last as f64 * q.clamp(0.0, 1.0);
    let below = at.floor() as usize;
    let share = at - below as f64;
    let low = sorted[below];
    let high = sorted[(below + 1).min(last)];
    if share == 0.0 { low } else { low + (high - low) * share }
}

/// Draws `rounds` round indices with replacement.
fn pick_rounds(rounds: usize, random: &mut Random) -> Vec<usize> {
    (0..rounds).map(|_| random.below(rounds)).collect()
}

/// Median of samples drawn with replacement within each picked round, as many per round as it has.
fn median_of(rounds: &[Vec<f64>], picked: &[usize], random: &mut Random) -> f64 {
    let mut drawn = Vec::new();
    for &round in picked {
        let samples = &rounds[round];
        drawn.extend((0..samples.len()).map(|_| samples[random.below(samples.len())]));
    }
    if drawn.is_empty() {
        return f64::NAN;
    }
    quantile(&sorted(drawn), 0.5)
}

/// Percentile bootstrap of a statistic.
fn bootstrap(statistic: &mut dyn FnMut(&mut Random) -> f64) -> Interval {
    let mut random = Random(SEED);
    let drawn: Vec<f64> = (0..RESAMPLES).map(|_| statistic(&mut random)).filter(|x| !x.is_nan()).collect();
    let drawn = sorted(drawn);
    let tail = (1.0 - CONFIDENCE) / 2.0;
    Interval { low: quantile(&drawn, tail), high: quantile(&drawn, 1.0 - tail) }
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

fn to_ms(rounds_ns: &[Vec<u64>]) -> Vec<Vec<f64>> {
    rounds_ns.iter().map(|round| round.iter().map(|&ns| ns as f64 / 1e6).collect()).collect()
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform below `bound`, from the high half of a product; its bias of `bound`/2⁶⁴ is negligible here.
    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-12 * b.abs().max(1.0)
    }

    #[test]
    fn quantiles_are_those_of_numpy() {
        // numpy.quantile([1, 2, 4, 8, 16], q), method "linear" (type 7).
        let values = [1.0, 2.0, 4.0, 8.0, 16.0];
        for (q, expected) in
            [(0.0, 1.0), (0.1, 1.4), (0.25, 2.0), (0.5, 4.0), (0.9, 12.8), (0.99, 15.68), (1.0, 16.0)]
        {
            assert!(close(quantile(&values, q), expected), "{q}: {}", quantile(&values, q));
        }
        assert!(close(quantile(&[3.0], 0.99), 3.0));
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn ten_samples_do_not_make_p90_and_p99_the_largest() {
        // The Python framework that tfcheck replaces reported the maximum of ten for both.
        let rounds: Vec<Vec<u64>> = vec![(1..=10).map(|ms| ms * 1_000_000).collect()];
        let summary = summarize(&rounds).unwrap();
        assert!(close(summary.p50_ms, 5.5) && close(summary.p90_ms, 9.1) && close(summary.p99_ms, 9.91));
        assert!(close(summary.mean_ms, 5.5) && close(summary.min_ms, 1.0) && close(summary.max_ms, 10.0));
        assert_eq!((summary.n, summary.rounds, summary.outliers), (10, 1, 0));
    }

    #[test]
    fn outliers_lie_beyond_tukeys_fences() {
        // Quartiles 10 and 12, so the fences are 7 and 15.
        let rounds = vec![[10, 10, 10, 11, 12, 12, 12, 7, 15, 16].map(|ms| ms * 1_000_000).to_vec()];
        assert_eq!(summarize(&rounds).unwrap().outliers, 1);
    }

    #[test]
    fn empty_rounds_have_no_summary() {
        assert_eq!(summarize(&[]), None);
        assert_eq!(summarize(&[vec![], vec![]]), None);
        assert_eq!(speed_up(&[vec![1]], &[]), None);
        assert_eq!(speed_up(&[vec![1], vec![]], &[vec![], vec![1]]), None);
    }

    /// Rounds of five samples of `center` ± 5 % milliseconds, multiplied by the round's `drift`.
    fn rounds(center: f64, drift: &[f64], seed: u64) -> Vec<Vec<u64>> {
        let mut random = Random(seed);
        let mut sample =
            |drift: f64| (center * drift * (0.95 + 0.1 * random.below(1000) as f64 / 1000.0) * 1e6) as u64;
        drift.iter().map(|&drift| (0..5).map(|_| sample(drift)).collect()).collect()
    }

    #[test]
    fn a_drift_that_both_share_does_not_widen_the_ratio() {
        let drift = [1.0, 1.5, 1.0, 1.6, 1.1, 1.4, 1.0, 1.5, 1.2, 1.3];
        let (slow, fast) = (rounds(20.0, &drift, 1), rounds(10.0, &drift, 2));
        let speed_up = speed_up(&slow, &fast).unwrap();
        assert!(speed_up.interval.low < 2.0 && 2.0 < speed_up.interval.high, "{speed_up:?}");
        assert!(speed_up.interval.high - speed_up.interval.low < 0.4, "{speed_up:?}");
        let alone = summarize(&fast).unwrap().median_interval_ms;
        let relative = (alone.high - alone.low) / 12.0;
        let paired = (speed_up.interval.high - speed_up.interval.low) / 2.0;
        assert!(paired < relative, "pairing rounds removes the drift: {paired} against {relative}");
    }

    #[test]
    fn the_median_interval_covers_the_true_median_in_about_95_percent_of_runs() {
        let hits = (0..200)
            .filter(|&seed| {
                let interval = summarize(&rounds(10.0, &[1.0; 8], seed)).unwrap().median_interval_ms;
                interval.low <= 10.0 && 10.0 <= interval.high
            })
            .count();
        // 95 % of 200 is 190; the percentile bootstrap over 8 rounds of 5 is only approximate.
        assert!((176..=200).contains(&hits), "{hits} of 200");
    }

    proptest! {
        #[test]
        fn summaries_are_ordered(samples in prop::collection::vec(1_u64..1_000_000_000, 1..60)) {
            let summary = summarize(std::slice::from_ref(&samples)).unwrap();
            let ordered = [summary.min_ms, summary.p50_ms, summary.p90_ms, summary.p99_ms, summary.max_ms];
            prop_assert!(ordered.is_sorted());
            prop_assert!(summary.min_ms <= summary.mean_ms * (1.0 + 1e-12) && summary.mean_ms <= summary.max_ms * (1.0 + 1e-12));
            prop_assert!(summary.median_interval_ms.low <= summary.median_interval_ms.high);
            prop_assert!(summary.outliers <= samples.len() / 2);
            prop_assert_eq!(summarize(std::slice::from_ref(&samples)), Some(summary), "seeded");
        }

        #[test]
        fn a_variant_against_itself_has_a_speed_up_of_1(samples in prop::collection::vec(1_u64..1_000_000, 1..20)) {
            let rounds = [samples];
            prop_assert!(close(speed_up(&rounds, &rounds).unwrap().ratio, 1.0));
        }
    }
}
