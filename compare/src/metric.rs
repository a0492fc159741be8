//! The table of metrics: a row per number of a pair, with its names, unit, format and getter.
//!
//! Gates, JSON, CSV, Markdown, HTML, the terminal and `explain` iterate over [`METRICS`]. To add a metric, compute it in
//! [`super::metrics::PairMetrics`] and add a row here and in docs/metrics.md.

mod layout;
mod value;

use super::metrics::{Distribution, KlSummary, NonFinite, PairMetrics, Side, relative};
pub use layout::{Group, columns, lines};
pub use value::{Format, Value};

/// One number of a pair.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Key in gates; also in JSON and CSV unless `json` or `csv` gives another one.
    pub name: &'static str,
    /// Other names that gates accept.
    pub aliases: &'static [&'static str],
    /// Title in tables and text unless `column` or `line` gives another one.
    pub title: &'static str,
    /// `logits`, `nats` or `ULP`; empty for a number without a unit.
    pub unit: &'static str,
    /// How tables and text show the value.
    pub format: Format,
    /// Whether a smaller or a larger value means that the sides are closer.
    pub direction: Direction,
    /// Whether it can be given as a percentage.
    pub is_share: bool,
    /// Whether a gate can test it.
    pub is_gate: bool,
    /// Its keys in summary.json; `/` separates the names of nested objects.
    pub json: Keys,
    /// Its columns in matrix.csv; a place adds `_row`, `_position` and `_token`.
    pub csv: Keys,
    /// Place in the table "Metrics per pair".
    pub column: Shown,
    /// Place in the output of `tfcheck explain`.
    pub line: Shown,
    /// Gets the value with the given side as the reference (for KL, as the first operand). With side `None` it takes the
    /// larger norm, or the larger of the two divergences. Returns `None` if the metric was not measured.
    pub get: fn(&PairMetrics, Option<Side>) -> Option<Value>,
}

/// Which values mean that two sides are closer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Identical sides give 0.
    SmallerIsCloser,
    /// Identical sides give 1.
    LargerIsCloser,
}

/// Keys of a metric in JSON or CSV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// [`Metric::name`].
    Name,
    /// The format lacks it.
    None,
    /// These keys, each with the side that is the reference.
    Of(&'static [(&'static str, Side)]),
}

/// Place of a metric among the columns of a table or the lines of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Not shown.
    No,
    /// In a group of its own, under its title, after all groups that have a place.
    Alone,
    /// First of a group.
    First {
        /// Place among the groups.
        place: u8,
        /// Title of the group; `{dtype}` becomes the pair's lower dtype.
        title: &'static str,
        /// Text before the number.
        before: &'static str,
    },
    /// In the group of the preceding row of [`METRICS`].
    Joined {
        /// Text between the preceding number and this one.
        before: &'static str,
        /// Text after the number.
        after: &'static str,
    },
    /// In a group that is shown once with each side as the reference.
    PerSide {
        /// Place among the groups.
        place: u8,
    },
}

impl Keys {
    /// Each key with its side.
    pub fn of(self, metric: &Metric) -> Vec<(&'static str, Side)> {
        match self {
            Self::Name => vec![(metric.name, Side::A)],
            Self::None => Vec::new(),
            Self::Of(keys) => keys.to_vec(),
        }
    }
}

/// Metrics are equal if their names are equal.
impl PartialEq for Metric {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Metric {
    /// Default of a row: shown everywhere, usable in gates, smaller is closer.
    const ROW: Self = Self {
        name: "",
        aliases: &[],
        title: "",
        unit: "",
        format: Format::Digits(3),
        direction: Direction::SmallerIsCloser,
        is_share: false,
        is_gate: true,
        json: Keys::Name,
        csv: Keys::Name,
        column: Shown::Alone,
        line: Shown::Alone,
        get: |_, _| None,
    };

    /// The row whose name or alias is `name`, if gates can test it.
    pub fn named(name: &str) -> Option<&'static Self> {
        METRICS
            .iter()
            .find(|metric| metric.is_gate && (metric.name == name || metric.aliases.contains(&name)))
    }

    /// The number that gates compare; neither side is the reference. `None` if it was not measured, NaN if it is not
    /// defined. An identical pair gives 0 (1 where larger is closer), even if it holds NaN.
    pub fn of(&self, pair: &PairMetrics) -> Option<f64> {
        if pair.identical {
            return Some(match self.direction {
                Direction::SmallerIsCloser => 0.0,
                Direction::LargerIsCloser => 1.0,
            });
        }
        Some((self.get)(pair, None)?.number())
    }

    /// The value as tables show it, with `side` as the reference; `—` if it was not measured.
    pub fn text(&self, pair: &PairMetrics, side: Side) -> String {
        (self.get)(pair, Some(side)).map_or_else(|| "—".to_owned(), |value| value.text(self.format))
    }

    /// `number` in this metric's format.
    pub fn written(&self, number: f64) -> String {
        Value::Number(number).text(self.format)
    }
}

const LOGITS: &str = "logits";
const NATS: &str = "nats";

/// `‖a − b‖`.
pub const L2: Metric = Metric {
    name: "l2",
    title: "L2",
    unit: LOGITS,
    format: Format::Decimals(6),
    column: Shown::No,
    line: Shown::First { place: 0, title: "L2", before: "" },
    get: |pair, _| number(pair.l2),
    ..Metric::ROW
};

/// `‖a − b‖` over the norm of a side.
pub const RELATIVE_L2: Metric = Metric {
    name: "relative_l2",
    aliases: &["rel_l2"],
    title: "relative L2",
    is_share: true,
    json: Keys::Of(&[("relative_l2_to_a", Side::A), ("relative_l2_to_b", Side::B)]),
    csv: Keys::Of(&[("relative_l2_to_a", Side::A), ("relative_l2_to_b", Side::B)]),
    column: Shown::No,
    line: Shown::PerSide { place: 1 },
    get: |pair, side| number(relative_l2(pair, side)),
    ..Metric::ROW
};

/// Root of the mean square difference.
pub const RMSE: Metric = Metric {
    name: "rmse",
    title: "RMSE",
    unit: LOGITS,
    column: Shown::No,
    line: Shown::First { place: 2, title: "RMSE", before: "" },
    get: |pair, _| number(pair.rmse()),
    ..Metric::ROW
};

/// The largest difference.
pub const MAX_ABS: Metric = Metric {
    name: "max_abs",
    title: "max abs",
    unit: LOGITS,
    column: Shown::First { place: 0, title: "Max abs (row, position, token)", before: "" },
    line: Shown::First { place: 4, title: "largest", before: "" },
    get: |pair, _| number(pair.max_abs),
    ..Metric::ROW
};

/// All metrics, in the order of summary.json and matrix.csv.
pub static METRICS: &[Metric] = &[
    L2,
    RELATIVE_L2,
    RMSE,
    Metric {
        name: "nmse",
        title: "NMSE",
        json: Keys::Of(&[("nmse_to_a", Side::A), ("nmse_to_b", Side::B)]),
        csv: Keys::Of(&[("nmse_to_a", Side::A)]),
        column: Shown::First { place: 3, title: "NMSE", before: "" },
        line: Shown::No,
        get: |pair, side| number(relative_l2(pair, side).powi(2)),
        ..Metric::ROW
    },
    Metric {
        name: "cosine",
        title: "cosine",
        format: Format::Decimals(9),
        direction: Direction::LargerIsCloser,
        column: Shown::First { place: 2, title: "Cosine", before: "" },
        line: Shown::First { place: 3, title: "cosine", before: "" },
        get: |pair, _| number(pair.cosine),
        ..Metric::ROW
    },
    MAX_ABS,
    Metric {
        name: "max_abs_at",
        format: Format::Element,
        is_gate: false,
        csv: Keys::Of(&[("max_abs", Side::A)]),
        column: Shown::Joined { before: " at ", after: "" },
        line: Shown::Joined { before: " at ", after: "" },
        get: |pair, _| Some(Value::Element(pair.max_abs_at)),
        ..Metric::ROW
    },
    Metric {
        name: "max_ulp",
        title: "max ULP",
        unit: "ULP",
        format: Format::Count,
        column: Shown::First { place: 1, title: "Max ULP", before: "" },
        line: Shown::First { place: 5, title: "largest in ULP", before: "" },
        // Undefined, not absent, so that a gate on it fails if a NaN was compared.
        get: |pair, _| Some(pair.max_ulp.map_or(Value::Undefined, Value::Count)),
        ..Metric::ROW
    },
    Metric {
        name: "lower_dtype",
        format: Format::Word,
        is_gate: false,
        csv: Keys::Of(&[("ulp_dtype", Side::A)]),
        column: Shown::Joined { before: " (", after: ")" },
        line: Shown::Joined { before: " of ", after: "" },
        get: |pair, _| Some(Value::Word(pair.lower_dtype.name())),
        ..Metric::ROW
    },
    Metric {
        name: "rounded_l2",
        unit: LOGITS,
        is_gate: false,
        json: Keys::Of(&[("rounded/l2", Side::A)]),
        column: Shown::No,
        line: Shown::First { place: 6, title: "both in {dtype}", before: "L2 " },
        get: |pair, _| number(pair.rounded?.l2),
        ..Metric::ROW
    },
    Metric {
        name: "rounded_max_abs",
        unit: LOGITS,
        is_gate: false,
        json: Keys::Of(&[("rounded/max_abs", Side::A)]),
        column: Shown::No,
        line: Shown::Joined { before: ", largest ", after: "" },
        get: |pair, _| number(pair.rounded?.max_abs),
        ..Metric::ROW
    },
    Metric {
        name: "worst_position",
        title: "worst position",
        is_share: true,
        json: Keys::Of(&[("worst_position/relative_l2", Side::A)]),
        csv: Keys::None,
        column: Shown::No,
        line: Shown::No,
        get: |pair, _| number(pair.worst_position.0),
        ..Metric::ROW
    },
    Metric {
        name: "worst_position_at",
        format: Format::Place,
        is_gate: false,
        json: Keys::Of(&[("worst_position/at", Side::A)]),
        csv: Keys::None,
        column: Shown::No,
        line: Shown::No,
        get: |pair, _| Some(Value::Place(Some(pair.worst_position.1))),
        ..Metric::ROW
    },
    Metric {
        name: "kl_mean",
        unit: NATS,
        format: Format::Digits(2),
        json: Keys::Of(&[("distribution/kl_a_b/mean", Side::A), ("distribution/kl_b_a/mean", Side::B)]),
        csv: Keys::Of(&[("kl_a_b_mean", Side::A)]),
        column: Shown::First { place: 4, title: "KL(A‖B) mean / median / 99.9 % / max", before: "" },
        line: Shown::First { place: 7, title: "KL(A‖B) in nats", before: "mean " },
        get: |pair, side| kl(pair, side, |kl| kl.mean),
        ..Metric::ROW
    },
    Metric {
        name: "kl_median",
        unit: NATS,
        format: Format::Digits(2),
        json: Keys::Of(&[("distribution/kl_a_b/median", Side::A), ("distribution/kl_b_a/median", Side::B)]),
        csv: Keys::Of(&[("kl_a_b_median", Side::A)]),
        column: Shown::Joined { before: " / ", after: "" },
        line: Shown::Joined { before: ", median ", after: "" },
        get: |pair, side| kl(pair, side, |kl| kl.median),
        ..Metric::ROW
    },
    Metric {
        name: "kl_p999",
        unit: NATS,
        format: Format::Digits(2),
        json: Keys::Of(&[("distribution/kl_a_b/p999", Side::A), ("distribution/kl_b_a/p999", Side::B)]),
        csv: Keys::Of(&[("kl_a_b_p999", Side::A)]),
        column: Shown::Joined { before: " / ", after: "" },
        line: Shown::Joined { before: ", 99.9 % ", after: "" },
        get: |pair, side| kl(pair, side, |kl| kl.p999),
        ..Metric::ROW
    },
    Metric {
        name: "kl_max",
        unit: NATS,
        format: Format::Digits(2),
        json: Keys::Of(&[("distribution/kl_a_b/max", Side::A), ("distribution/kl_b_a/max", Side::B)]),
        csv: Keys::Of(&[("kl_a_b_max", Side::A)]),
        column: Shown::Joined { before: " / ", after: "" },
        line: Shown::Joined { before: ", largest ", after: "" },
        get: |pair, side| kl(pair, side, |kl| kl.max),
        ..Metric::ROW
    },
    Metric {
        name: "kl_undefined",
        format: Format::Count,
        is_gate: false,
        json: Keys::Of(&[
            ("distribution/kl_a_b/undefined", Side::A),
            ("distribution/kl_b_a/undefined", Side::B),
        ]),
        csv: Keys::None,
        column: Shown::No,
        line: Shown::No,
        get: |pair, side| {
            let Distribution { kl, kl_reversed, .. } = pair.distribution.as_ref()?;
            Some(Value::Count(if side == Some(Side::B) { kl_reversed } else { kl }.undefined as u64))
        },
        ..Metric::ROW
    },
    Metric {
        name: "top1",
        aliases: &["top1_agreement"],
        title: "top-1 agreement",
        format: Format::Percent,
        direction: Direction::LargerIsCloser,
        is_share: true,
        json: Keys::Of(&[("distribution/top1_agreement", Side::A)]),
        csv: Keys::Of(&[("top1_agreement", Side::A)]),
        column: Shown::First { place: 5, title: "Top-1", before: "" },
        line: Shown::First { place: 8, title: "same top token", before: "" },
        get: |pair, _| number(pair.distribution.as_ref()?.top1_agreement),
        ..Metric::ROW
    },
    Metric {
        name: "top_k",
        aliases: &["top_k_agreement"],
        title: "top-k agreement",
        format: Format::Percent,
        direction: Direction::LargerIsCloser,
        is_share: true,
        json: Keys::Of(&[("distribution/top_k_agreement", Side::A)]),
        csv: Keys::Of(&[("top_k_agreement", Side::A)]),
        column: Shown::First { place: 6, title: "Top-k", before: "" },
        line: Shown::No,
        get: |pair, _| number(pair.distribution.as_ref()?.top_k_agreement),
        ..Metric::ROW
    },
    Metric {
        name: "k",
        format: Format::Count,
        is_gate: false,
        json: Keys::Of(&[("distribution/k", Side::A)]),
        column: Shown::No,
        line: Shown::No,
        get: |pair, _| Some(Value::Count(pair.distribution.as_ref()?.k as u64)),
        ..Metric::ROW
    },
    Metric {
        name: "first_greedy_divergence",
        title: "first greedy divergence",
        format: Format::Place,
        is_gate: false,
        json: Keys::Of(&[("distribution/first_greedy_divergence", Side::A)]),
        column: Shown::First { place: 7, title: "First greedy divergence", before: "" },
        line: Shown::Joined { before: " of positions; greedy decoding ", after: "" },
        get: |pair, _| Some(Value::Place(pair.distribution.as_ref()?.first_greedy_divergence)),
        ..Metric::ROW
    },
    Metric {
        name: "nan_a",
        json: Keys::Of(&[("distribution/non_finite_a/nan", Side::A)]),
        get: |pair, _| non_finite(pair, |of| of.non_finite_a, |count| count.nan),
        ..NON_FINITE
    },
    Metric {
        name: "infinite_a",
        json: Keys::Of(&[("distribution/non_finite_a/infinite", Side::A)]),
        get: |pair, _| non_finite(pair, |of| of.non_finite_a, |count| count.infinite),
        ..NON_FINITE
    },
    Metric {
        name: "nan_b",
        json: Keys::Of(&[("distribution/non_finite_b/nan", Side::A)]),
        get: |pair, _| non_finite(pair, |of| of.non_finite_b, |count| count.nan),
        ..NON_FINITE
    },
    Metric {
        name: "infinite_b",
        json: Keys::Of(&[("distribution/non_finite_b/infinite", Side::A)]),
        get: |pair, _| non_finite(pair, |of| of.non_finite_b, |count| count.infinite),
        ..NON_FINITE
    },
];

/// Defaults of the rows that count non-finite values.
const NON_FINITE: Metric =
    Metric { format: Format::Count, is_gate: false, column: Shown::No, line: Shown::No, ..Metric::ROW };

#[expect(clippy::unnecessary_wraps, reason = "what a row's function gives may be absent")]
fn number(number: f64) -> Option<Value> {
    Some(Value::Number(number))
}

fn relative_l2(pair: &PairMetrics, side: Option<Side>) -> f64 {
    match side {
        Some(side) => pair.relative_l2(side),
        None => relative(pair.l2, pair.norm_a.max(pair.norm_b)),
    }
}

fn kl(pair: &PairMetrics, side: Option<Side>, of: fn(&KlSummary) -> f64) -> Option<Value> {
    let distribution = pair.distribution.as_ref()?;
    let (there, back) = (of(&distribution.kl), of(&distribution.kl_reversed));
    number(match side {
        Some(Side::A) => there,
        Some(Side::B) => back,
        // `max` would drop a NaN.
        None if there.is_nan() || back.is_nan() => f64::NAN,
        None => there.max(back),
    })
}

fn non_finite(
    pair: &PairMetrics,
    side: fn(&Distribution) -> NonFinite,
    count: fn(NonFinite) -> u64,
) -> Option<Value> {
    Some(Value::Count(count(side(pair.distribution.as_ref()?))))
}
