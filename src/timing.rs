//! Samples of a cell's steady passes turned into percentiles, intervals and ratios.
//!
//! Passes of one round share the machine's state, so a bootstrap that resampled single passes would take
//! n dependent samples for n independent ones. Whole rounds are resampled first, passes within them second.

/// Resamples of a bootstrap; percentile limits of a 95 % interval are stable to about 1 % of its width.
const RESAMPLES: usize = 2000;
/// Confidence of every interval.
pub const CONFIDENCE: f64 = 0.95;
/// Fixed, so that a saved run always gives the same intervals.
const SEED: u64 = 0x7463_6865_636b_0001;

/// An interval of confidence [`CONFIDENCE`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Lower limit.
    pub low: f64,
    /// Upper limit.
    pub high: f64,
}

/// Samples summarised; times in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Number of samples.
    pub n: usize,
    /// Number of interleaved rounds that they came in.
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

/// How many times as fast as a baseline a variant is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpeedUp {
    /// Baseline's median over the variant's median; above 1 where the variant is faster.
    pub ratio: f64,
    /// Bootstrap interval of the ratio over paired rounds.
    pub interval: Interval,
}

/// Summarises the rounds of one cell; `None` without a sample.
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
        outliers: sorted
            .iter()
            .filter(|&&x| x < lower - reach || x > upper + reach)
            .count(),
    })
}

/// Speed-up of a variant against a baseline that was timed in the same interleaved rounds; rounds that
/// only one of them has are left out. `None` where no round is common.
pub fn speed_up(baseline_ns: &[Vec<u64>], variant_ns: &[Vec<u64>]) -> Option<SpeedUp> {
    let common = |index: &usize| !baseline_ns[*index].is_empty() && !variant_ns[*index].is_empty();
    let indices: Vec<usize> = (0..baseline_ns.len().min(variant_ns.len()))
        .filter(common)
        .collect();
    if indices.is_empty() {
        return None;
    }
    let baseline: Vec<Vec<f64>> = indices
        .iter()
        .map(|&i| to_ms(&baseline_ns[i..=i]).concat())
        .collect();
    let variant: Vec<Vec<f64>> = indices
        .iter()
        .map(|&i| to_ms(&variant_ns[i..=i]).concat())
        .collect();
    let ratio =
        quantile(&sorted(baseline.concat()), 0.5) / quantile(&sorted(variant.concat()), 0.5);
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
    if share == 0.0 {
        low
    } else {
        low + (high - low) * share
    }
}

/// Which rounds a resample takes. A single round has no rounds to vary over.
fn pick_rounds(rounds: usize, random: &mut Random) -> Vec<usize> {
    (0..rounds).map(|_| random.below(rounds)).collect()
}

/// Median of as many samples as the picked rounds have, drawn with replacement within each.
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
    let drawn: Vec<f64> = (0..RESAMPLES)
        .map(|_| statistic(&mut random))
        .filter(|x| !x.is_nan())
        .collect();
    let drawn = sorted(drawn);
    let tail = (1.0 - CONFIDENCE) / 2.0;
    Interval {
        low: quantile(&drawn, tail),
        high: quantile(&drawn, 1.0 - tail),
    }
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

fn to_ms(rounds_ns: &[Vec<u64>]) -> Vec<Vec<f64>> {
    rounds_ns
        .iter()
        .map(|round| round.iter().map(|&ns| ns as f64 / 1e6).collect())
        .collect()
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

    /// Uniform below `bound` (by the high product; its bias of `bound`/2⁶⁴ is immaterial here).
    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}
