//! Groups metrics into the columns of the table "Metrics per pair" and the lines of `tfcheck explain`.

use super::{METRICS, Metric, Shown, Value};
use crate::metrics::{PairMetrics, Side};

/// Metrics that share a column or a line.
#[derive(Clone, Debug)]
pub struct Group {
    title: &'static str,
    place: u8,
    /// Whether the group is shown once for each side as the reference.
    pub is_per_side: bool,
    members: Vec<(&'static Metric, [&'static str; 2])>,
}

/// The columns of the table "Metrics per pair".
pub fn columns() -> Vec<Group> {
    groups(|metric| metric.column)
}

/// The lines of `tfcheck explain`.
pub fn lines() -> Vec<Group> {
    groups(|metric| metric.line)
}

fn groups(shown: fn(&Metric) -> Shown) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for metric in METRICS {
        let first = |place, title, before, is_per_side| {
            let members = vec![(metric, [before, ""])];
            Group { title, place, is_per_side, members }
        };
        match shown(metric) {
            Shown::No => {}
            Shown::Alone => groups.push(first(u8::MAX, metric.title, "", false)),
            Shown::First { place, title, before } => groups.push(first(place, title, before, false)),
            Shown::PerSide { place } => groups.push(first(place, metric.title, "", true)),
            Shown::Joined { before, after } => {
                if let Some(group) = groups.last_mut() {
                    group.members.push((metric, [before, after]));
                }
            }
        }
    }
    groups.sort_by_key(|group| group.place);
    groups
}

impl Group {
    /// The title of the column or line.
    pub fn title(&self, pair: &PairMetrics) -> String {
        self.title.replace("{dtype}", pair.lower_dtype.name())
    }

    /// The title with its `{dtype}` placeholder, for use without a pair.
    pub fn header(&self) -> &'static str {
        self.title
    }

    /// All values of the group for a pair; `None` if the first one was not measured or is not defined.
    pub fn text(
        &self,
        pair: &PairMetrics,
        side: Side,
        written: impl Fn(&Metric, Value) -> String,
    ) -> Option<String> {
        let mut text = String::new();
        for (index, (metric, [before, after])) in self.members.iter().enumerate() {
            match (metric.get)(pair, Some(side)).filter(|value| value.is_something()) {
                Some(value) => text.extend([*before, &written(metric, value), after]),
                None if index == 0 => return None,
                None => {}
            }
        }
        Some(text)
    }
}
