//! Gates: conditions under which a run fails, `verdict>=diverged`, `p50>5%`, `l2>1e-3`.
//!
//! A gate names what must *not* be: `l2>1e-3` fails where L2 is above 1e-3, `relation_broken` where a relation is broken.
//! `loads` alone is the one that names what must be: it fails where a variant gives no logits.

mod metric;

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::spec::nearest::nearest;
use metric::VERDICTS;
pub(crate) use metric::{Metric, rank};

/// One condition under which a run fails.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Gate {
    text: String,
    metric: Metric,
    comparison: Comparison,
    limit: f64,
}

/// The comparison of a gate; the gate fails if it is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Above,
    AtLeast,
    Below,
    AtMost,
}

/// Why a text is not a gate. The message includes the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// A metric that does not exist.
    #[error("`{name}` is not a metric of gates{}", meant(nearest.as_deref()))]
    UnknownMetric {
        /// The metric as written.
        name: String,
        /// The closest known metric.
        nearest: Option<String>,
    },
    /// A metric without a comparison, or a comparison without a metric.
    #[error("`{text}` is not a gate: write a metric, > >= < or <=, and a limit, as in `l2>1e-3`")]
    Form {
        /// The gate as written.
        text: String,
    },
    /// A limit that the metric does not accept.
    #[error("`{limit}` is not a limit for `{metric}`: {hint}")]
    Limit {
        /// The metric.
        metric: String,
        /// The limit as written.
        limit: String,
        /// The remedy.
        hint: String,
    },
    /// A comparison that the metric does not accept.
    #[error("`{metric}` supports only upper limits: write `{example}`")]
    Direction {
        /// The metric.
        metric: String,
        /// The remedy.
        example: String,
    },
}

fn meant(nearest: Option<&str>) -> String {
    match nearest {
        Some(name) => format!("; did you mean `{name}`?"),
        None => format!("; there are {}", Metric::names().join(", ")),
    }
}

/// Equality is total because a limit is always finite.
impl Eq for Gate {}

impl Gate {
    /// Parses `METRIC COMPARISON LIMIT`, or `loads`; spaces are ignored.
    ///
    /// # Errors
    /// When the text is not a gate; the error includes the remedy.
    pub fn parse(text: &str) -> Result<Self, GateError> {
        let form = || GateError::Form { text: text.trim().to_owned() };
        let at = text.find(['<', '>', '=', '!']).unwrap_or(text.len());
        let (name, rest) = (text[..at].trim(), &text[at..]);
        if name.is_empty() {
            return Err(form());
        }
        let metric = Metric::named(name).ok_or_else(|| GateError::UnknownMetric {
            name: name.to_owned(),
            nearest: nearest(name, &Metric::names()).map(str::to_owned),
        })?;
        let without_limit = match metric {
            Metric::Loads => Some("it fails if a variant produces no logits"),
            Metric::Relation => Some("it fails if a relation is broken"),
            _ => None,
        };
        if let Some(fails) = without_limit {
            return if rest.trim().is_empty() {
                Ok(Self { text: name.to_owned(), metric, comparison: Comparison::Below, limit: 1.0 })
            } else {
                Err(GateError::Limit {
                    metric: name.to_owned(),
                    limit: rest.trim().into(),
                    hint: format!("`{name}` takes no limit; {fails}"),
                })
            };
        }
        let (comparison, limit) = [
            (">=", Comparison::AtLeast),
            ("<=", Comparison::AtMost),
            (">", Comparison::Above),
            ("<", Comparison::Below),
        ]
        .into_iter()
        .find_map(|(sign, comparison)| Some((comparison, rest.strip_prefix(sign)?.trim())))
        .ok_or_else(form)?;
        if limit.is_empty() {
            return Err(form());
        }
        if !metric.is_two_sided() && matches!(comparison, Comparison::Below | Comparison::AtMost) {
            let example = metric.example();
            return Err(GateError::Direction { metric: name.to_owned(), example });
        }
        let limit_value = metric.limit(limit).map_err(|hint| GateError::Limit {
            metric: name.to_owned(),
            limit: limit.to_owned(),
            hint,
        })?;
        Ok(Self {
            text: format!("{name}{}{limit}", comparison.sign()),
            metric,
            comparison,
            limit: limit_value,
        })
    }

    /// The metric that the gate limits.
    pub(crate) fn metric(&self) -> Metric {
        self.metric
    }

    /// Whether the gate fails at `value`; NaN fails every gate.
    pub fn fails_at(&self, value: f64) -> bool {
        value.is_nan()
            || match self.comparison {
                Comparison::Above => value > self.limit,
                Comparison::AtLeast => value >= self.limit,
                Comparison::Below => value < self.limit,
                Comparison::AtMost => value <= self.limit,
            }
    }

    /// The gate as written, without spaces.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the gate limits a metric of a pair's logits.
    pub fn is_on_pairs(&self) -> bool {
        matches!(self.metric, Metric::Verdict | Metric::Pair(_))
    }

    /// Whether the gate limits times.
    pub fn is_on_times(&self) -> bool {
        matches!(self.metric, Metric::Time(_))
    }

    /// Whether the gate is on relations of variants by themselves.
    pub fn is_on_relations(&self) -> bool {
        self.metric == Metric::Relation
    }

    /// Whether the gate asks for logits and nothing more.
    pub fn is_loads(&self) -> bool {
        self.metric == Metric::Loads
    }
}

impl Comparison {
    fn sign(self) -> &'static str {
        match self {
            Self::Above => ">",
            Self::AtLeast => ">=",
            Self::Below => "<",
            Self::AtMost => "<=",
        }
    }
}

impl FromStr for Gate {
    type Err = GateError;

    fn from_str(text: &str) -> Result<Self, GateError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Gate {
    type Error = GateError;

    fn try_from(text: String) -> Result<Self, GateError> {
        Self::parse(&text)
    }
}

impl From<Gate> for String {
    fn from(gate: Gate) -> Self {
        gate.text
    }
}

impl std::fmt::Display for Gate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// The verdicts' names in gates, from best to worst.
pub fn verdict_words() -> [&'static str; 4] {
    VERDICTS
}
