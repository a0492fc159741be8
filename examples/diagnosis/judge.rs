//! Whether what tfcheck reports about a bug is right, by comparison with what was planted.

use serde::{Deserialize, Serialize};
use tfcheck::hunt::diagnose::{Diagnosed, Diagnosis, Mistake};
use tfcheck::hunt::localize::Localized;

use crate::plants;

/// How a bug was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// The mistakes are named with proof.
    Named,
    /// Mistakes are named that are not those that were made.
    WrongName,
    /// Switching parts of the network off shows where it lies.
    Surgery,
    /// Comparing modules shows where it lies.
    Modules,
    /// It is reported that the sides differ, and nothing else.
    NotFound,
    /// The sides agree in the widest dtype that both compute in.
    Agrees,
    /// The model takes inputs beside tokens, which a diagnosis does not edit, and the port shows no modules.
    NotTried,
    /// The port does not run.
    Fails,
}

/// What is right about a bug.
#[derive(Default)]
pub(crate) struct Expected {
    /// Rows of the table, each with those that compute the same; empty if no row makes the mistake.
    pub(crate) mistakes: Vec<&'static [&'static str]>,
    /// The first diverging module; empty where it is not known.
    pub(crate) module: String,
    /// What surgery reports, if it does not follow from the module.
    pub(crate) parts: &'static [&'static str],
    /// The only layer that has the bug.
    pub(crate) layer: Option<usize>,
    /// The place that a run reports, if it is more than the module.
    pub(crate) place: String,
}

/// What tfcheck found of a bug.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Found {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) diagnosed: Option<Diagnosed>,
    /// The first diverging module, or the place that a run reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) place: Option<String>,
    /// The sentence and the seconds of the comparison of modules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) compared: Option<(String, f64)>,
    /// How it was found, where that does not follow from the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) outcome: Option<Outcome>,
}

impl Found {
    pub(crate) fn of(diagnosed: Diagnosed) -> Self {
        Self { diagnosed: Some(diagnosed), ..Self::default() }
    }

    pub(crate) fn localised(found: &Localized) -> Self {
        Self {
            place: found.path().map(str::to_owned),
            compared: Some((found.sentence.clone(), found.elapsed_ns as f64 / 1e9)),
            ..Self::default()
        }
    }
}

/// How a bug was found, and whether that is right.
pub(crate) struct Verdict {
    pub(crate) outcome: Outcome,
    pub(crate) is_right: bool,
    pub(crate) seconds: f64,
    pub(crate) sentence: String,
}

/// Judges a diagnosis, or the comparison of modules where the diagnosis found nothing.
pub(crate) fn judged(found: &Found, expected: &Expected) -> Verdict {
    let diagnosing = found.diagnosed.as_ref().map_or(0.0, |diagnosed| diagnosed.elapsed_ns as f64 / 1e9);
    let verdict = |outcome, is_right| Verdict {
        outcome,
        is_right,
        seconds: diagnosing,
        sentence: found.diagnosed.as_ref().map(|diagnosed| diagnosed.sentence.clone()).unwrap_or_default(),
    };
    if let Some(outcome) = found.outcome {
        return verdict(outcome, ![Outcome::WrongName, Outcome::NotFound].contains(&outcome));
    }
    match found.diagnosed.as_ref().map(|diagnosed| &diagnosed.finding) {
        Some(Diagnosis::Reproduced { mistakes }) => {
            let is_right = are_right(mistakes, expected) && is_complete(mistakes, expected);
            return verdict(if is_right { Outcome::Named } else { Outcome::WrongName }, is_right);
        }
        Some(Diagnosis::Parts { mistakes, .. }) if !are_right(mistakes, expected) => {
            return verdict(Outcome::WrongName, false);
        }
        Some(Diagnosis::Parts { parts, .. }) => {
            return verdict(Outcome::Surgery, parts.iter().all(|part| is_place(&part.part, expected)));
        }
        Some(Diagnosis::Unexplained | Diagnosis::Nothing) | None => {}
    }
    if let (Some(place), Some((sentence, seconds))) = (&found.place, &found.compared) {
        let wanted = if expected.place.is_empty() { &expected.module } else { &expected.place };
        return Verdict {
            sentence: sentence.clone(),
            seconds: diagnosing + seconds,
            ..verdict(Outcome::Modules, place == wanted)
        };
    }
    match &found.diagnosed {
        Some(diagnosed)
            if diagnosed.finding == Diagnosis::Nothing
                && expected.mistakes.is_empty()
                && expected.module.is_empty() =>
        {
            verdict(Outcome::Agrees, true)
        }
        _ => verdict(Outcome::NotFound, false),
    }
}

/// Whether each mistake, or one that gives the same numbers, was made.
fn are_right(mistakes: &[Mistake], expected: &Expected) -> bool {
    mistakes.iter().all(|mistake| expected.mistakes.iter().any(|made| is_it(mistake, made)))
}

/// Whether each mistake that was made is among these.
fn is_complete(mistakes: &[Mistake], expected: &Expected) -> bool {
    expected.mistakes.iter().all(|made| mistakes.iter().any(|mistake| is_it(mistake, made)))
}

fn is_it(mistake: &Mistake, made: &[&str]) -> bool {
    let others = mistake.alternatives.iter().map(|other| other.hypothesis.as_str());
    std::iter::once(mistake.hypothesis.as_str()).chain(others).any(|name| made.contains(&name))
}

/// Whether a part that surgery reports is where the bug lies.
fn is_place(part: &str, expected: &Expected) -> bool {
    let (layers, kind) = split(part);
    let is_kind = match expected.parts {
        [] => plants::parts(&expected.module).contains(&kind),
        wanted => wanted.contains(&kind),
    };
    let layer = expected.layer.or_else(|| plants::layer(&expected.module));
    let is_layer = match (&layers, expected.layer, layer) {
        // The ends of the network are no layer.
        (None, _, _) | (Some(_), None, None) => true,
        (Some(layers), Some(only), _) => *layers == [only],
        (Some(layers), None, Some(first)) => layers.is_empty() || layers.contains(&first),
    };
    is_kind && is_layer
}

/// The layers of a part, none of them for every layer, and its kind: `layer 1's MLP`, `every layer's mask`, `the scores of
/// layers 0, 2`.
fn split(part: &str) -> (Option<Vec<usize>>, &str) {
    if let Some(kind) = part.strip_prefix("every layer's ") {
        return (Some(Vec::new()), kind);
    }
    if let Some((layer, kind)) = part.strip_prefix("layer ").and_then(|rest| rest.split_once("'s ")) {
        return (Some(layer.parse().into_iter().collect()), kind);
    }
    if let Some((kind, layers)) = part.strip_prefix("the ").and_then(|rest| rest.split_once(" of layers ")) {
        return (Some(layers.split(", ").filter_map(|layer| layer.parse().ok()).collect()), kind);
    }
    (None, part)
}
