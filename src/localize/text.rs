//! A finding in one sentence.

use super::level::ROOT;
use super::{Divergence, Finding, Localized, NearTies};
use crate::variant::dtype_name;

pub(super) fn sentence(localized: &Localized) -> String {
    let Localized { a, b, threshold, .. } = localized;
    let dtype = dtype_name(localized.dtype);
    match &localized.finding {
        Finding::Module(divergence) => module(divergence, localized, dtype),
        Finding::Execution { variant, what, relative_l2 } => format!(
            "the modules of {a} and {b} agree in {dtype}; {variant} departs from its own eager pass by {relative_l2:.1e}: the fault lies in {what}"
        ),
        Finding::Logits { reason } => {
            let apart = localized.logits.map_or_else(String::new, |apart| format!(" by {apart:.1e}"));
            format!("the logits depart{apart} in {dtype}, and no module can be named: {reason}")
        }
        Finding::Spread { near_ties: Some(near_ties), .. } => format!(
            "the mathematics of {a} and {b} is the same in {dtype}: {}",
            self::near_ties(near_ties, localized)
        ),
        Finding::Spread { first, near_ties: None } => format!(
            "no module departs by itself in {dtype}: fed the same input, all agree within {threshold:.1e}; rounding grows until {first}"
        ),
        Finding::Nothing => format!("{a} and {b} agree in {dtype} within {threshold:.1e}"),
    }
}

/// Why a choice of other experts is rounding.
pub(super) fn near_ties(found: &NearTies, localized: &Localized) -> String {
    let NearTies { router, tokens, of, scores, worst } = found;
    let [source, _] = localized.source_and_fed();
    format!(
        "fed {source}'s input, every module agrees at every position (to {worst:.1e}), and {tokens} of {of} tokens go to other experts at near-ties of routers: {router} is the first to choose otherwise, where its scores differ by no more than {scores:.1e}"
    )
}

fn module(found: &Divergence, localized: &Localized, dtype: &str) -> String {
    let (threshold, [source, fed]) = (localized.threshold, localized.source_and_fed());
    let who = if found.path == ROOT { "the model's own code".to_owned() } else { found.path.clone() };
    let classes = match (found.class_a.as_str(), found.class_b.as_str()) {
        ("", _) | (_, "") => String::new(),
        (one, other) if one == other => format!(" ({one})"),
        (one, other) => format!(" ({one} against {other})"),
    };
    let place = found.between.as_ref().map(|between| match (&between.after, &between.before) {
        (Some(after), Some(before)) => format!(", in its own code between {after} and {before},"),
        (Some(after), None) => format!(", in its own code after {after},"),
        (None, Some(before)) => format!(", in its own code before {before},"),
        (None, None) => String::new(),
    });
    let input = match found.input {
        Some(input) => format!("its input agrees ({input:.1e})"),
        None => "nothing before it departs".to_owned(),
    };
    let worst = found.worst.map_or_else(String::new, |worst| {
        format!(", most at row {} position {} ({:.1e})", worst.row, worst.position, worst.relative_l2)
    });
    let replayed = match found.replayed {
        Some(replayed) if replayed > threshold => {
            let whose = if localized.is_first_fed { format!("{source}'s") } else { "its own".to_owned() };
            format!("; fed {source}'s input, {fed} still departs ({replayed:.1e}): the fault is {whose}")
        }
        Some(replayed) => format!(
            "; fed {source}'s input, {fed} agrees ({replayed:.1e}): it hands on a difference below {threshold:.0e}"
        ),
        None => String::new(),
    };
    let place = place.unwrap_or_default();
    format!(
        "{who}{classes}{place} departs by {:.1e} in {dtype} though {input}{worst}{replayed}",
        found.output
    )
}
