//! How much slower one variant is than another, and whether the difference is distinguishable from noise.
//!
//! Each round gives one statistic per variant, for example the median; the change is the difference of their logarithms.
//! If the rounds were interleaved, the logarithms are subtracted within each round, so that load during a whole round
//! cancels. The differences are averaged by the Hodges–Lehmann estimator (the median of all pairwise means), which is
//! robust to a burst of noise in one round and needs few rounds.

use super::{CONFIDENCE, Interval, RESAMPLES, Random, SEED, quantile, sorted, to_ms};

/// The statistic of a round's times that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistic {
    /// The median.
    P50,
    /// The 90th percentile.
    P90,
    /// The 99th percentile.
    P99,
    /// The arithmetic mean.
    Mean,
}

/// A variant's time over a baseline's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// Variant's time over the baseline's; above 1 if the variant is slower.
    pub ratio: f64,
    /// Bootstrap interval of the ratio, of confidence [`CONFIDENCE`]; `[0, ∞]` for a single round, from which the
    /// variation between rounds cannot be estimated.
    pub interval: Interval,
    /// Number of rounds compared; if they were not interleaved, the smaller side's number.
    pub rounds: usize,
}

impl Statistic {
    /// `p50`, `mean`.
    pub fn name(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::P90 => "p90",
            Self::P99 => "p99",
            Self::Mean => "mean",
        }
    }

    fn of(self, values: &[f64]) -> f64 {
        let q = match self {
            Self::Mean => return values.iter().sum::<f64>() / values.len() as f64,
            Self::P50 => 0.5,
            Self::P90 => 0.9,
            Self::P99 => 0.99,
        };
        quantile(&sorted(values.to_vec()), q)
    }
}

impl Change {
    /// `rose by 5.1 % (interval +4.0 % to +6.3 %, 10 rounds)`.
    pub fn text(&self) -> String {
        let percent = |ratio: f64| format!("{:+.1} %", 100.0 * (ratio - 1.0));
        let word = if self.ratio < 1.0 { "fell" } else { "rose" };
        let change = format!("{word} by {:.1} %", 100.0 * (self.ratio - 1.0).abs());
        match self.rounds {
            1 => format!("{change} (no interval: only one round)"),
            rounds => format!(
                "{change} (interval {} to {}, {rounds} rounds)",
                percent(self.interval.low),
                percent(self.interval.high)
            ),
        }
    }

    /// Whether the variant is slower by more than `minimum` (0.05 for 5 %) and the interval excludes 1.
    pub fn is_slower_by(&self, minimum: f64) -> bool {
        self.ratio - 1.0 > minimum && self.interval.low > 1.0
    }

    /// Whether the variant is faster by more than `minimum` (0.05 for 5 %) and the interval excludes 1.
    pub fn is_faster_by(&self, minimum: f64) -> bool {
        1.0 - self.ratio > minimum && self.interval.high < 1.0
    }

    /// The smallest slow-down that these rounds can distinguish from noise, 0.05 for 5 %: the interval's lower half-width.
    pub fn resolution(&self) -> f64 {
        self.ratio / self.interval.low - 1.0
    }
}

/// Compares a variant's rounds with a baseline's, in nanoseconds. If `paired`, round i of both was interleaved and only
/// rounds with samples of both count; otherwise the rounds are two independent samples. `None` if no round remains or
/// the ratio is not finite.
pub fn change(
    baseline_ns: &[Vec<u64>],
    variant_ns: &[Vec<u64>],
    statistic: Statistic,
    paired: bool,
) -> Option<Change> {
    let is_common = |index: &usize| {
        let has = |rounds: &[Vec<u64>]| rounds.get(*index).is_some_and(|round| !round.is_empty());
        has(baseline_ns) && has(variant_ns)
    };
    let keep = |rounds: &[Vec<u64>]| -> Vec<Vec<f64>> {
        let is_kept = |index: &usize| if paired { is_common(index) } else { !rounds[*index].is_empty() };
        (0..rounds.len()).filter(is_kept).flat_map(|index| to_ms(&rounds[index..=index])).collect()
    };
    let (baseline, variant) = (keep(baseline_ns), keep(variant_ns));
    let rounds = baseline.len().min(variant.len());
    if rounds == 0 {
        return None;
    }
    let estimate = location(
        paired,
        &baseline.iter().map(|round| statistic.of(round).ln()).collect::<Vec<_>>(),
        &variant.iter().map(|round| statistic.of(round).ln()).collect::<Vec<_>>(),
    );
    if !estimate.is_finite() {
        return None;
    }
    let interval = if rounds == 1 {
        Interval { low: 0.0, high: f64::INFINITY }
    } else {
        let mut random = Random(SEED);
        let drawn = (0..RESAMPLES).map(|_| {
            let picked: Vec<usize> = (0..baseline.len()).map(|_| random.below(baseline.len())).collect();
            let others = if paired {
                picked.clone()
            } else {
                (0..variant.len()).map(|_| random.below(variant.len())).collect()
            };
            let baseline = redrawn(&baseline, &picked, statistic, &mut random);
            let variant = redrawn(&variant, &others, statistic, &mut random);
            location(paired, &baseline, &variant)
        });
        let drawn = sorted(drawn.filter(|x| !x.is_nan()).collect());
        let tail = (1.0 - CONFIDENCE) / 2.0;
        let reach = stretch(rounds);
        Interval {
            low: (estimate - reach * (estimate - quantile(&drawn, tail)).max(0.0)).exp(),
            high: (estimate + reach * (quantile(&drawn, 1.0 - tail) - estimate).max(0.0)).exp(),
        }
    };
    Some(Change { ratio: estimate.exp(), interval, rounds })
}

/// The logarithm of the statistic of each picked round, whose samples are redrawn with replacement.
fn redrawn(rounds: &[Vec<f64>], picked: &[usize], statistic: Statistic, random: &mut Random) -> Vec<f64> {
    let figure = |&round: &usize| {
        let samples = &rounds[round];
        let drawn: Vec<f64> = samples.iter().map(|_| samples[random.below(samples.len())]).collect();
        statistic.of(&drawn).ln()
    };
    picked.iter().map(figure).collect()
}

/// Logarithm of the ratio variant / baseline, from the logarithms of each round's statistic.
fn location(paired: bool, baseline: &[f64], variant: &[f64]) -> f64 {
    if paired {
        let differences: Vec<f64> = variant.iter().zip(baseline).map(|(b, a)| b - a).collect();
        return hodges_lehmann(&differences);
    }
    hodges_lehmann(variant) - hodges_lehmann(baseline)
}

/// Median of the means of all pairs, each value with itself included (Hodges and Lehmann, 1963); NaN for an empty slice.
fn hodges_lehmann(values: &[f64]) -> f64 {
    let pairs = (0..values.len()).flat_map(|i| (0..=i).map(move |j| (i, j)));
    let mut means: Vec<f64> = pairs.map(|(i, j)| f64::midpoint(values[i], values[j])).collect();
    if means.is_empty() {
        return f64::NAN;
    }
    // Selection instead of sorting, because 100 rounds have about 5000 pairs in each resample.
    let (middle, is_even) = (means.len() / 2, means.len().is_multiple_of(2));
    let (below, &mut upper, _) = means.select_nth_unstable_by(middle, f64::total_cmp);
    if is_even {
        f64::midpoint(below.iter().copied().fold(f64::NEG_INFINITY, f64::max), upper)
    } else {
        upper
    }
}

/// Factor by which a percentile interval of few values is too narrow: Student's t over the normal's 1.96, times
/// sqrt(n / (n − 1)) (Hesterberg 2015, "What teachers should know about the bootstrap", on small samples).
fn stretch(rounds: usize) -> f64 {
    /// 97.5 % quantiles of Student's t for 1 to 10 degrees of freedom.
    const T: [f64; 10] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
    const NORMAL: f64 = 1.960;
    let n = rounds as f64;
    let freedom = rounds.saturating_sub(1).max(1);
    // First term of the Cornish–Fisher expansion, accurate to 0.4 % above ten degrees of freedom.
    let t =
        T.get(freedom - 1).copied().unwrap_or(NORMAL + (NORMAL.powi(3) + NORMAL) / (4.0 * freedom as f64));
    t / NORMAL * (n / (n - 1.0)).sqrt()
}

#[cfg(test)]
mod tests;
