//! The result of localising a divergence between two variants, stored in `localized.json`, and its sentence.

pub use compare::evidence::NearTies;
use compare::evidence::Replayed;
use compare::units::{bytes, count};
use reference::protocol::Dtype;
use serde::{Deserialize, Deserializer, Serialize};

use crate::spec::variant::dtype_name;

/// The ends of paths of steps inside an attention module, which hold no weights.
const STEPS: [&str; 5] = [".rope_q", ".rope_k", ".mask", ".scores", ".softmax"];

/// The path of the whole model, which contains all other modules.
pub const ROOT: &str = "(root)";

/// The result of localising the divergence between two variants of a case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Localized {
    /// The case's name.
    pub case: String,
    /// The first variant.
    pub a: String,
    /// The second variant.
    pub b: String,
    /// dtype of both sides' computation.
    pub dtype: Dtype,
    /// Largest relative L2 that counts as agreement.
    pub threshold: f64,
    /// Relative L2 of the logits in this dtype; `None` if they cannot be compared.
    pub logits: Option<f64>,
    /// The finding.
    pub finding: Finding,
    /// The finding in one sentence.
    pub sentence: String,
    /// Number of module calls that were compared.
    pub modules: usize,
    /// Total bytes of captured tensors; at most the disk limit of them exist at a time.
    pub captured_bytes: u64,
    /// Time of the captured forward passes divided by that of plain ones; `None` if nothing was captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overhead: Option<f64>,
    /// Nanoseconds of the whole localisation, including loading.
    pub elapsed_ns: u64,
    /// Whether the logits of every captured forward pass were bitwise equal to those of a plain one.
    pub capture_changed_nothing: bool,
    /// Whether the first side's modules were replayed with the second side's inputs, instead of the reverse.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_first_fed: bool,
    /// Notes that a reader needs to interpret the result.
    pub notes: Vec<String>,
    /// Each module call that was compared, in call order; empty in runs of a tfcheck that did not keep it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profile: Vec<ModuleError>,
}

/// How far one module call of the two sides differs, as relative L2; `None` where it cannot be compared.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModuleError {
    /// The module's path on the first side.
    pub path: String,
    /// Which of the module's calls in a forward pass, from 0.
    pub call: usize,
    /// Of what goes in.
    #[serde(with = "number_or_word")]
    pub input: Option<f64>,
    /// Of what comes out.
    #[serde(with = "number_or_word")]
    pub output: Option<f64>,
    /// Of what comes out where the module was replayed with the other side's input.
    #[serde(with = "number_or_word")]
    pub replayed: Option<f64>,
}

impl Localized {
    /// Whether the two variants compute different functions.
    pub fn is_divergence(&self) -> bool {
        !matches!(self.finding, Finding::Nothing | Finding::Spread { near_ties: Some(_), .. })
    }

    /// What the localisation cost, as text.
    pub fn effort(&self) -> String {
        let seconds = self.elapsed_ns as f64 / 1e9;
        let size = bytes(self.captured_bytes);
        let overhead =
            self.overhead.map_or_else(String::new, |times| format!(" in {times:.1} times a plain pass"));
        format!("{} compared, {size} captured{overhead}, {seconds:.1} s", count(self.modules, "module call"))
    }

    /// The near-ties (router scores closer than rounding explains) that explain a different choice of experts; `None` for
    /// other findings.
    pub(crate) fn near_ties(&self) -> Option<Replayed> {
        match &self.finding {
            Finding::Spread { near_ties: Some(near_ties), .. } => Some(self.replayed(near_ties)),
            _ => None,
        }
    }

    fn replayed(&self, near_ties: &NearTies) -> Replayed {
        let [source, _] = self.source_and_fed();
        Replayed { source: source.to_owned(), near_ties: near_ties.clone() }
    }

    /// The variant that supplied inputs, then the variant whose modules were replayed with them.
    pub(super) fn source_and_fed(&self) -> [&str; 2] {
        if self.is_first_fed { [&self.b, &self.a] } else { [&self.a, &self.b] }
    }

    /// Whether `other` concerns the same two variants of the same case.
    pub fn is_of_the_pair(&self, other: &Self) -> bool {
        (&self.case, &self.a, &self.b) == (&other.case, &other.a, &other.b)
    }

    /// Path of the first diverging module; `None` for other findings.
    pub fn path(&self) -> Option<&str> {
        match &self.finding {
            Finding::Module(divergence) => Some(&divergence.path),
            _ => None,
        }
    }
}

/// What a localisation found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "found", rename_all = "snake_case")]
pub enum Finding {
    /// A module, or a step inside one.
    Module(Divergence),
    /// The modules agree, but one variant executes them differently: `torch.compile`, or sdpa attention.
    Execution {
        /// The variant.
        variant: String,
        /// How its execution differs from that of its eager counterpart.
        what: String,
        /// Relative L2 between its logits and those of its eager counterpart.
        #[serde(deserialize_with = "absent_is_infinite")]
        relative_l2: f64,
        /// Path of the first module at which it differs from its eager counterpart; `None` where it shows no modules.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<String>,
    },
    /// The logits differ, and at least one side exposes no modules.
    Logits {
        /// Why no module can be given.
        reason: String,
    },
    /// The logits differ, but no module has agreeing inputs and differing outputs: rounding grows from module to module.
    Spread {
        /// The first module whose output differs.
        first: String,
        /// Set if routers' near-ties make the rounding grow.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        near_ties: Option<NearTies>,
    },
    /// Both sides agree.
    Nothing,
}

/// The first diverging module: its output differs although its input agrees.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// Its path on the first side; inside an attention module also the steps `rope_q`, `rope_k`, `scores`, `mask` and
    /// `softmax`, which are not modules.
    pub path: String,
    /// Its path on the second side.
    pub path_b: String,
    /// Its class on the first side.
    pub class_a: String,
    /// Its class on the second side.
    pub class_b: String,
    /// If all children of the module agree: the children between which the module's own code diverges.
    pub between: Option<Between>,
    /// Relative L2 of the inputs; `None` if they cannot be compared.
    pub input: Option<f64>,
    /// Relative L2 of the outputs; infinite if only one side has a NaN or an infinity.
    #[serde(deserialize_with = "absent_is_infinite")]
    pub output: f64,
    /// Relative L2 of the outputs when the second side is replayed with the first side's input; `None` if it cannot be
    /// replayed.
    pub replayed: Option<f64>,
    /// The arguments by which its own code makes a child differ, if the child's first input agrees; or the masks that make
    /// the module itself differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arguments: Vec<Differing>,
    /// Arguments that the replay could not replace, because the other side has none of their kind and shape.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_replayed: Vec<String>,
    /// The position with the largest difference.
    pub worst: Option<Worst>,
}

impl Divergence {
    /// Whether the module itself agrees as soon as it gets the other side's mask.
    pub(crate) fn is_given(&self) -> bool {
        let is_own = |argument: &Differing| {
            self.path
                .strip_prefix(&argument.module)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.arguments.first().is_some_and(is_own)
    }
}

/// A part of a module's own code, between two of its children.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Between {
    /// The last child that agrees; `None` at the start of the module.
    pub after: Option<String>,
    /// The first child whose input differs; `None` at the end of the module.
    pub before: Option<String>,
}

/// An argument of a module, behind its first, that differs between the two sides.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Differing {
    /// The module's path on the first side.
    pub module: String,
    /// The parameter's name on the second side: `position_embeddings.cos`, `top_k_weights`.
    pub name: String,
    /// Relative L2 of the second side's value; `None` if the shapes differ.
    #[serde(with = "number_or_word")]
    pub relative_l2: Option<f64>,
    /// The shape on each side.
    pub shapes: [Vec<usize>; 2],
}

impl std::fmt::Display for Differing {
    /// `position_embeddings.cos of model.layers.0`.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} of {}", self.name, self.module)
    }
}

/// A position in the batch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Worst {
    /// Index of the sequence in the batch.
    pub row: usize,
    /// Position in the sequence, counting padding.
    pub position: usize,
    /// Relative L2 of this position.
    #[serde(deserialize_with = "absent_is_infinite")]
    pub relative_l2: f64,
}

/// JSON has no infinity and is given `null` in its place.
pub(super) fn absent_is_infinite<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::INFINITY))
}

/// JSON has no NaN and no infinity; they are kept as the words `NaN` and `inf`.
mod number_or_word {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[expect(clippy::ref_option, reason = "serde passes the field itself")]
    pub(super) fn serialize<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            None => serializer.serialize_none(),
            Some(number) if number.is_finite() => serializer.serialize_f64(*number),
            Some(number) => serializer.collect_str(number),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::Null => Ok(None),
            serde_json::Value::Number(number) => Ok(number.as_f64()),
            serde_json::Value::String(word) => word.parse().map(Some).map_err(D::Error::custom),
            other => Err(D::Error::custom(format!("{other} is neither a number nor a word"))),
        }
    }
}

impl std::fmt::Display for Localized {
    /// What `tfcheck localize` prints.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(formatter, "{}: {} / {}", self.case, self.a, self.b)?;
        writeln!(formatter, "  {}", self.sentence)?;
        writeln!(formatter, "  {}", self.effort())?;
        self.notes.iter().try_for_each(|note| writeln!(formatter, "  note: {note}"))
    }
}

/// Formats a finding as one sentence.
pub(crate) fn sentence(localized: &Localized) -> String {
    let Localized { a, b, threshold, .. } = localized;
    let dtype = dtype_name(localized.dtype);
    match &localized.finding {
        Finding::Module(divergence) => module(divergence, localized, dtype),
        Finding::Execution { variant, what, relative_l2, at } => {
            let at = at.as_ref().map_or_else(String::new, |at| format!(", first in {at}"));
            format!(
                "the modules of {a} and {b} agree in {dtype}; {variant} differs from its own eager pass by {relative_l2:.1e}: the cause is {what}{at}"
            )
        }
        Finding::Logits { reason } => {
            let apart = localized.logits.map_or_else(String::new, |apart| format!(" by {apart:.1e}"));
            format!("the logits differ{apart} in {dtype}, and no module could be found: {reason}")
        }
        Finding::Spread { near_ties: Some(near_ties), .. } => {
            format!("{a} and {b} compute the same function in {dtype}: {}", localized.replayed(near_ties))
        }
        Finding::Spread { first, near_ties: None } => format!(
            "no module diverges by itself in {dtype}: replayed with the same input, all agree within {threshold:.1e}; rounding accumulates until {first}"
        ),
        Finding::Nothing => format!("{a} and {b} agree in {dtype} within {threshold:.1e}"),
    }
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
        None => "nothing before it differs".to_owned(),
    };
    let worst = found.worst.map_or_else(String::new, |worst| {
        format!(", most at row {} position {} ({:.1e})", worst.row, worst.position, worst.relative_l2)
    });
    let replayed = match found.replayed {
        Some(replayed) if replayed > threshold => {
            let whose = if localized.is_first_fed { format!("{source}'s") } else { "its own".to_owned() };
            // A module that is not known to differ in a stretch of its code may hold other weights.
            let is_step = STEPS.iter().any(|step| found.path.ends_with(step));
            let what = if found.between.is_none() && !is_step { "code or weights" } else { "code" };
            let or = match found.not_replayed.join(", ") {
                names if names.is_empty() => String::new(),
                names => format!(", or an argument that could not be replayed ({names})"),
            };
            format!(
                "; replayed with {source}'s input, {fed} still differs ({replayed:.1e}): the cause is {whose} {what}{or}"
            )
        }
        Some(replayed) => format!(
            "; replayed with {source}'s input, {fed} agrees ({replayed:.1e}): it passes on an input difference below {threshold:.0e}"
        ),
        None => String::new(),
    };
    let place = place.unwrap_or_default();
    let arguments = arguments(&found.arguments, found.is_given(), fed, source);
    format!(
        "{who}{classes}{place} differs by {:.1e} in {dtype} although {input}{worst}{arguments}{replayed}",
        found.output
    )
}

/// What a module's own code passes on otherwise; empty for no argument.
fn arguments(found: &[Differing], is_own: bool, fed: &str, source: &str) -> String {
    let Some(first) = found.first() else { return String::new() };
    let names: Vec<String> = found
        .iter()
        .map(|argument| match (argument.relative_l2, &argument.shapes) {
            (Some(apart), _) => format!("{} ({apart:.1e})", argument.name),
            (None, [a, b]) => format!("{} (shapes {a:?} and {b:?})", argument.name),
        })
        .collect();
    let differ = if names.len() > 1 { "differ" } else { "differs" };
    let (names, module) = (names.join(", "), &first.module);
    if is_own {
        format!(
            "; its {names} {differ}, and with {source}'s values {fed} agrees: the cause is the code that computes them"
        )
    } else if first.relative_l2.is_some() {
        format!("; {names} of {module} {differ}, and with {source}'s values {module} of {fed} agrees")
    } else {
        format!("; {names} of {module} {differ}, so {module} itself cannot be compared")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_keeps_what_is_not_a_number() {
        let [input, output, replayed] = [Some(f64::INFINITY), None, Some(2.5e-9)];
        let module = ModuleError { path: "model.norm".to_owned(), call: 1, input, output, replayed };
        let text = serde_json::to_string(&module).unwrap();
        assert_eq!(serde_json::from_str::<ModuleError>(&text).unwrap(), module, "{text}");
        let nan = serde_json::to_string(&ModuleError { output: Some(f64::NAN), ..module }).unwrap();
        assert!(serde_json::from_str::<ModuleError>(&nan).unwrap().output.unwrap().is_nan(), "{nan}");
    }

    #[test]
    fn a_divergence_to_infinity_is_read_back_as_it_was_written() {
        let worst = Some(Worst { row: 0, position: 3, relative_l2: f64::INFINITY });
        let found = Finding::Module(Divergence { output: f64::INFINITY, worst, ..Divergence::default() });
        let text = serde_json::to_string(&found).unwrap();
        assert_eq!(serde_json::from_str::<Finding>(&text).unwrap(), found, "{text}");
    }
}
