//! The metrics of gates: each metric's name, its limits, and how to read it from a pair.

use crate::spec::nearest::nearest;
use compare::metric::{METRICS, Metric as PairMetric};
use compare::timing::Statistic;
use compare::verdict::Decision;

/// Verdicts from best to worst; a pair that was not compared has none of them.
pub(crate) const VERDICTS: [&str; 4] = ["identical", "same_mathematics", "worse_rounding", "diverged"];

/// Index of a verdict in [`VERDICTS`]; NaN for a pair that was not compared.
pub(crate) fn rank(decision: &Decision) -> f64 {
    match decision {
        Decision::Identical => 0.0,
        Decision::SameMathematics => 1.0,
        Decision::WorseRounding { .. } => 2.0,
        Decision::Diverged => 3.0,
        Decision::Incomparable { .. } | Decision::NotRun { .. } => f64::NAN,
    }
}

/// The metric that a gate limits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Metric {
    Loads,
    /// Whether a relation of a variant by itself is broken.
    Relation,
    Verdict,
    Pair(&'static PairMetric),
    Time(Statistic),
    PeakBytes,
}

/// Names of the metrics that are not numbers of a pair; those are in [`METRICS`].
const OTHERS: &[(&str, Metric)] = &[
    ("verdict", Metric::Verdict),
    ("loads", Metric::Loads),
    ("relation_broken", Metric::Relation),
    ("p50", Metric::Time(Statistic::P50)),
    ("p90", Metric::Time(Statistic::P90)),
    ("p99", Metric::Time(Statistic::P99)),
    ("mean", Metric::Time(Statistic::Mean)),
    ("peak_bytes", Metric::PeakBytes),
];

impl Metric {
    pub(crate) fn named(name: &str) -> Option<Self> {
        let other = OTHERS.iter().find(|(known, _)| *known == name).map(|(_, metric)| *metric);
        other.or_else(|| PairMetric::named(name).map(Self::Pair))
    }

    /// The name of each metric.
    pub(crate) fn names() -> Vec<&'static str> {
        let (verdicts, times) = OTHERS.split_at(3);
        let others = |others: &'static [(&'static str, Self)]| others.iter().map(|(name, _)| *name);
        let pairs = METRICS.iter().filter(|metric| metric.is_gate).map(|metric| metric.name);
        others(verdicts).chain(pairs).chain(others(times)).collect()
    }

    /// Whether a gate may set a lower limit; for times and memory only an increase can be limited.
    pub(crate) fn is_two_sided(self) -> bool {
        matches!(self, Self::Verdict | Self::Pair(_))
    }

    /// An example of a gate on this metric.
    pub(crate) fn example(self) -> String {
        match self {
            Self::Loads => "loads".into(),
            Self::Relation => "relation_broken".into(),
            Self::Verdict => "verdict>=diverged".into(),
            Self::Pair(metric) => format!("{}>1e-3", metric.name),
            Self::Time(statistic) => format!("{}>5%", statistic.name()),
            Self::PeakBytes => "peak_bytes>10%".into(),
        }
    }

    /// Parses a limit of this metric; the error says what to write instead.
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
            Self::Pair(metric) if metric.is_share => share
                .unwrap_or_else(|| number(text))
                .ok_or_else(|| format!("write a number or a percentage, `{}`", self.example())),
            Self::Pair(_) if share.is_some() => Err(format!(
                "it is not a share, so its limit is not a percentage: write `{}`",
                self.example()
            )),
            Self::Pair(_) => number(text).ok_or_else(|| format!("write a number, `{}`", self.example())),
            Self::Loads | Self::Relation => Err(format!("`{}` takes no limit", self.example())),
        }
    }
}
