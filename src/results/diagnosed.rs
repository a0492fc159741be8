//! The result of diagnosing a variant that diverges, stored in `diagnosed.json`, and its sentence.

use compare::units::count;
use reference::protocol::Dtype;
use serde::{Deserialize, Serialize};

use super::localized::absent_is_infinite;
use crate::spec::variant::dtype_name;

/// What a variant that diverges computes instead, as far as it was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Diagnosed {
    /// The case's name.
    pub case: String,
    /// The variant that was made to commit mistakes.
    pub trusted: String,
    /// The variant that diverges from it.
    pub suspect: String,
    /// dtype of both sides' computation.
    pub dtype: Dtype,
    /// Largest relative L2 that counts as agreement.
    pub limit: f64,
    /// Whether both sides compute the same in a wider dtype, so that the mistakes of the finding are roundings.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_rounding: bool,
    /// The inputs on which both sides were compared; the first ones are those of the case.
    pub trials: Vec<Trial>,
    /// The finding.
    pub finding: Diagnosis,
    /// The finding in one sentence.
    pub sentence: String,
    /// Number of mistakes that were tried one by one.
    pub hypotheses: usize,
    /// Forward passes of the trusted side and of the suspect.
    pub forward_passes: [usize; 2],
    /// Nanoseconds of the whole diagnosis, including loading.
    pub elapsed_ns: u64,
    /// Notes that a reader needs to interpret the result.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// One batch of inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// `1 × 40 tokens`.
    pub inputs: String,
    /// Number of positions whose logits were compared.
    pub positions: usize,
    /// Relative L2 of the two sides' logits as they are.
    #[serde(deserialize_with = "absent_is_infinite")]
    pub before: f64,
    /// Relative L2 of the logits once the trusted side commits the mistakes of the finding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<f64>,
}

/// What a diagnosis found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "found", rename_all = "snake_case")]
pub enum Diagnosis {
    /// The trusted side reproduces the suspect's logits within rounding on at least two inputs when it commits these
    /// mistakes, and with none of them left out.
    Reproduced {
        /// The mistakes.
        mistakes: Vec<Mistake>,
    },
    /// Mistakes that are proven on parts of the model, and the parts in which a difference is left.
    Parts {
        /// Mistakes of which each makes a part of the model agree.
        mistakes: Vec<Mistake>,
        /// The smallest parts that still differ.
        parts: Vec<Part>,
    },
    /// Nothing that was tried explains the difference.
    Unexplained,
    /// Both sides agree in this dtype.
    Nothing,
}

/// A mistake of the suspect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mistake {
    /// The hypothesis's name.
    pub hypothesis: String,
    /// The mistake, to be read after "with".
    pub words: String,
    /// Largest relative L2 over the inputs when this mistake alone is left out.
    #[serde(deserialize_with = "absent_is_infinite")]
    pub without: f64,
    /// Other mistakes that give the same numbers on every input tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<Alternative>,
    /// The part of the model on which it was proven, if not on the whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<String>,
}

/// A mistake that gives the same numbers as another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alternative {
    /// The hypothesis's name.
    pub hypothesis: String,
    /// The mistake, to be read after "with".
    pub words: String,
}

/// A part of the model in which the two sides differ.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// `layer 1's MLP`.
    pub part: String,
    /// How that was found: `with every other output of attention and MLP zero`.
    pub how: String,
    /// Relative L2 of the logits with the rest of the model switched off.
    #[serde(deserialize_with = "absent_is_infinite")]
    pub relative_l2: f64,
}

impl Diagnosed {
    /// Whether the two variants compute different functions.
    pub fn is_divergence(&self) -> bool {
        self.finding != Diagnosis::Nothing && !self.is_rounding
    }

    /// The mistakes that were found.
    pub fn mistakes(&self) -> &[Mistake] {
        match &self.finding {
            Diagnosis::Reproduced { mistakes } | Diagnosis::Parts { mistakes, .. } => mistakes,
            Diagnosis::Unexplained | Diagnosis::Nothing => &[],
        }
    }

    /// Whether `other` concerns the same two variants of the same case.
    pub fn is_of_the_pair(&self, other: &Self) -> bool {
        // Either of two versions of transformers may be the trusted one.
        let pair = |found: &Self| {
            let mut names = [found.trusted.clone(), found.suspect.clone()];
            names.sort();
            names
        };
        self.case == other.case && pair(self) == pair(other)
    }

    /// What the diagnosis cost, as text.
    pub fn effort(&self) -> String {
        let seconds = self.elapsed_ns as f64 / 1e9;
        let [trusted, suspect] = self.forward_passes;
        format!(
            "{} tried; {} ran {} and {} {}; {seconds:.1} s",
            count(self.hypotheses, "known mistake"),
            self.trusted,
            count(trusted, "time"),
            self.suspect,
            count(suspect, "time")
        )
    }
}

impl std::fmt::Display for Diagnosed {
    /// What `tfcheck diagnose` prints.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(formatter, "{}: {} / {}", self.case, self.trusted, self.suspect)?;
        writeln!(formatter, "  {}", self.sentence)?;
        writeln!(formatter, "  {}", self.effort())?;
        self.notes.iter().try_for_each(|note| writeln!(formatter, "  note: {note}"))
    }
}

/// `a`, `a and b`, `a, b and c`.
fn joined(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

const ORDINALS: [&str; 8] = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"];

/// Formats a diagnosis as one sentence.
pub(crate) fn sentence(diagnosed: &Diagnosed) -> String {
    let Diagnosed { trusted, suspect, limit, .. } = diagnosed;
    let dtype = dtype_name(diagnosed.dtype);
    match &diagnosed.finding {
        Diagnosis::Reproduced { mistakes } => {
            let words: Vec<String> = mistakes.iter().map(|mistake| mistake.words.clone()).collect();
            let wider = if diagnosed.is_rounding { "; in a wider dtype both compute the same" } else { "" };
            format!(
                "{suspect} computes what {trusted} computes with {} ({}{}){}{wider}",
                joined(&words),
                reached(diagnosed),
                left_out(mistakes),
                alternatives(mistakes)
            )
        }
        Diagnosis::Parts { mistakes, parts } => {
            let places: Vec<String> = parts
                .iter()
                .map(|part| format!("{} ({:.1e} {})", part.part, part.relative_l2, part.how))
                .collect();
            let before = diagnosed.trials.first().map_or(f64::NAN, |trial| trial.before);
            if mistakes.is_empty() {
                return format!(
                    "{suspect} differs from {trusted} by {before:.1e} in {dtype}; the difference lies in {}",
                    joined(&places)
                );
            }
            let words: Vec<String> = mistakes
                .iter()
                .map(|mistake| match &mistake.on {
                    Some(part) => format!("{} (proven on {part})", mistake.words),
                    None => mistake.words.clone(),
                })
                .collect();
            let left = diagnosed.trials.first().and_then(|trial| trial.after);
            let left = left.map_or_else(String::new, |left| {
                // With one of several mistakes the numbers may be further apart than without any.
                let explained = ((1.0 - left / before) * 100.0).floor();
                let share = if explained >= 1.0 {
                    format!(" ({explained} % of it explained)")
                } else {
                    String::new()
                };
                format!(" {left:.1e} is left{share}, and")
            });
            let rest = if places.is_empty() {
                "the rest was not found".to_owned()
            } else {
                format!("the rest lies in {}", joined(&places))
            };
            format!(
                "{suspect} differs from {trusted} by {before:.1e} in {dtype}: with {}{left} {rest}",
                joined(&words)
            )
        }
        Diagnosis::Unexplained => {
            let before = diagnosed.trials.first().map_or(f64::NAN, |trial| trial.before);
            format!(
                "{suspect} differs from {trusted} by {before:.1e} in {dtype}, and none of the {} that apply to this checkpoint explains it",
                count(diagnosed.hypotheses, "known mistake")
            )
        }
        Diagnosis::Nothing => format!("{trusted} and {suspect} agree in {dtype} within {limit:.1e}"),
    }
}

/// `relative L2 6.0e-7 over 48 positions, and 5.1e-7 on a second input`.
fn reached(diagnosed: &Diagnosed) -> String {
    let mut trials = diagnosed.trials.iter().filter_map(|trial| Some((trial, trial.after?)));
    let Some((first, left)) = trials.next() else { return String::new() };
    let mut words = format!("relative L2 {left:.1e} over {}", count(first.positions, "position"));
    for ((_, left), ordinal) in trials.zip(&ORDINALS[1..]) {
        words = format!("{words}, and {left:.1e} on a {ordinal} input");
    }
    words
}

/// `; without the first 6.2e-1, without the second 5.3e-1`.
fn left_out(mistakes: &[Mistake]) -> String {
    if let [one] = mistakes {
        return format!("; without it {:.1e}", one.without);
    }
    let each = mistakes.iter().zip(ORDINALS);
    let words: Vec<String> =
        each.map(|(mistake, ordinal)| format!("without the {ordinal} {:.1e}", mistake.without)).collect();
    format!("; {}", words.join(", "))
}

fn alternatives(mistakes: &[Mistake]) -> String {
    let words = mistakes.iter().filter(|mistake| !mistake.alternatives.is_empty()).map(|mistake| {
        let others: Vec<String> = mistake.alternatives.iter().map(|other| other.words.clone()).collect();
        format!("; with {} in place of {} the numbers are the same", joined(&others), mistake.words)
    });
    words.collect()
}
