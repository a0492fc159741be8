//! What a gate can be on: each metric's name, its limits, and how it is read from a pair.

use crate::spec::nearest::nearest;
use compare::metrics::PairMetrics;
use compare::timing::Statistic;
use compare::verdict::Decision;

/// Verdicts from the best to the worst; a pair that was not compared has no place among them.
pub(crate) const VERDICTS: [&str; 4] = ["identical", "same_mathematics", "worse_rounding", "diverged"];

/// The place of a verdict in [`VERDICTS`]; NaN for one that has none.
pub(crate) fn rank(decision: &Decision) -> f64 {
    match decision {
        Decision::Identical => 0.0,
        Decision::SameMathematics => 1.0,
        Decision::WorseRounding { .. } => 2.0,
        Decision::Diverged => 3.0,
        Decision::Incomparable { .. } | Decision::NotRun { .. } => f64::NAN,
    }
}

/// What a gate is on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Metric {
    Loads,
    Verdict,
    Pair(PairMetric),
    Time(Statistic),
    PeakBytes,
}

/// A number of [`PairMetrics`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PairMetric {
    L2,
    RelativeL2,
    Nmse,
    Rmse,
    Cosine,
    MaxAbs,
    MaxUlp,
    WorstPosition,
    KlMean,
    KlMedian,
    KlP999,
    KlMax,
    Top1,
    TopK,
}

/// Every name that a gate may use; where a metric has two, the first is the one that is listed.
const METRICS: &[(&[&str], Metric)] = &[
    (&["verdict"], Metric::Verdict),
    (&["loads"], Metric::Loads),
    (&["l2"], Metric::Pair(PairMetric::L2)),
    (&["relative_l2", "rel_l2"], Metric::Pair(PairMetric::RelativeL2)),
    (&["nmse"], Metric::Pair(PairMetric::Nmse)),
    (&["rmse"], Metric::Pair(PairMetric::Rmse)),
    (&["cosine"], Metric::Pair(PairMetric::Cosine)),
    (&["max_abs"], Metric::Pair(PairMetric::MaxAbs)),
    (&["max_ulp"], Metric::Pair(PairMetric::MaxUlp)),
    (&["worst_position"], Metric::Pair(PairMetric::WorstPosition)),
    (&["kl_mean"], Metric::Pair(PairMetric::KlMean)),
    (&["kl_median"], Metric::Pair(PairMetric::KlMedian)),
    (&["kl_p999"], Metric::Pair(PairMetric::KlP999)),
    (&["kl_max"], Metric::Pair(PairMetric::KlMax)),
    (&["top1", "top1_agreement"], Metric::Pair(PairMetric::Top1)),
    (&["top_k", "top_k_agreement"], Metric::Pair(PairMetric::TopK)),
    (&["p50"], Metric::Time(Statistic::P50)),
    (&["p90"], Metric::Time(Statistic::P90)),
    (&["p99"], Metric::Time(Statistic::P99)),
    (&["mean"], Metric::Time(Statistic::Mean)),
    (&["peak_bytes"], Metric::PeakBytes),
];

impl Metric {
    pub(crate) fn named(name: &str) -> Option<Self> {
        METRICS.iter().find(|(names, _)| names.contains(&name)).map(|(_, metric)| *metric)
    }

    /// One name of each.
    pub(crate) fn names() -> Vec<&'static str> {
        METRICS.iter().filter_map(|(names, _)| names.first().copied()).collect()
    }

    /// Whether a gate from below makes sense: of times and memory only a rise is looked for.
    pub(crate) fn is_two_sided(self) -> bool {
        matches!(self, Self::Verdict | Self::Pair(_))
    }

    /// A gate on this metric.
    pub(crate) fn example(self) -> String {
        match self {
            Self::Loads => "loads".into(),
            Self::Verdict => "verdict>=diverged".into(),
            Self::Pair(metric) => format!("{}>1e-3", metric.name()),
            Self::Time(statistic) => format!("{}>5%", statistic.name()),
            Self::PeakBytes => "peak_bytes>10%".into(),
        }
    }

    /// Reads a limit of this metric; the error is what to write instead.
    pub(crate) fn limit(self, text: &str) -> Result<f64, String> {
        let number = |text: &str| text.trim().parse::<f64>().ok().filter(|number| number.is_finite());
        let share = text.strip_suffix('%').map(|text| number(text).map(|number| number / 100.0));
        match self {
            Self::Verdict => {
                let word = text.replace([' ', '-'], "_");
                let at = VERDICTS.iter().position(|known| *known == word);
                at.map(|at| at as f64).ok_or_else(|| {
                    let known = VERDICTS.join(", ");
                    nearest(&word, &VERDICTS).map_or_else(
                        || format!("the verdicts are {known}"),
                        |meant| format!("did you mean `{meant}`? the verdicts are {known}"),
                    )
                })
            }
            Self::Time(_) | Self::PeakBytes => share
                .flatten()
                .filter(|share| *share >= 0.0)
                .ok_or_else(|| format!("only an increase can be limited: write `{}`", self.example())),
            Self::Pair(metric) if metric.is_share() => share
                .unwrap_or_else(|| number(text))
                .ok_or_else(|| format!("write a number or a percentage, `{}`", self.example())),
            Self::Pair(_) if share.is_some() => Err(format!(
                "it is not a share, so its limit is not a percentage: write `{}`",
                self.example()
            )),
            Self::Pair(_) => number(text).ok_or_else(|| format!("write a number, `{}`", self.example())),
            Self::Loads => Err("`loads` takes no limit".into()),
        }
    }
}

impl PairMetric {
    pub(crate) fn name(self) -> &'static str {
        let name = METRICS.iter().find(|(_, metric)| *metric == Metric::Pair(self));
        name.and_then(|(names, _)| names.first().copied()).unwrap_or("metric")
    }

    /// Whether a percentage of it makes sense.
    fn is_share(self) -> bool {
        matches!(self, Self::RelativeL2 | Self::WorstPosition | Self::Top1 | Self::TopK)
    }

    /// The number; `None` where it was not measured. Relative L2 and NMSE are relative to the larger side,
    /// as in the verdicts; of the two divergences the larger counts. Identical values (NaN included, which
    /// makes every sum NaN) differ by nothing.
    pub(crate) fn of(self, pair: &PairMetrics) -> Option<f64> {
        if pair.identical {
            return Some(match self {
                Self::Cosine | Self::Top1 | Self::TopK => 1.0,
                _ => 0.0,
            });
        }
        let larger = pair.norm_a.max(pair.norm_b);
        let relative = compare::metrics::relative(pair.l2, larger);
        let kl = |of: fn(&compare::metrics::KlSummary) -> f64| {
            let distribution = pair.distribution.as_ref()?;
            let (there, back) = (of(&distribution.kl), of(&distribution.kl_reversed));
            // `max` would drop a NaN.
            Some(if there.is_nan() || back.is_nan() { f64::NAN } else { there.max(back) })
        };
        match self {
            Self::L2 => Some(pair.l2),
            Self::RelativeL2 => Some(relative),
            Self::Nmse => Some(relative.powi(2)),
            Self::Rmse => Some(pair.rmse()),
            Self::Cosine => Some(pair.cosine),
            Self::MaxAbs => Some(pair.max_abs),
            Self::MaxUlp => Some(pair.max_ulp.map_or(f64::NAN, |ulp| ulp as f64)),
            Self::WorstPosition => Some(pair.worst_position.0),
            Self::KlMean => kl(|kl| kl.mean),
            Self::KlMedian => kl(|kl| kl.median),
            Self::KlP999 => kl(|kl| kl.p999),
            Self::KlMax => kl(|kl| kl.max),
            Self::Top1 => pair.distribution.as_ref().map(|distribution| distribution.top1_agreement),
            Self::TopK => pair.distribution.as_ref().map(|distribution| distribution.top_k_agreement),
        }
    }

    /// The number as evidence shows it.
    pub(crate) fn written(self, value: f64) -> String {
        match self {
            Self::Top1 | Self::TopK => format!("{:.2} %", 100.0 * value),
            Self::Cosine => format!("{value:.9}"),
            Self::MaxUlp => format!("{value}"),
            _ => format!("{value:.3e}"),
        }
    }
}
