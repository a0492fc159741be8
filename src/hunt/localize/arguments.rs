//! A module's further tensor arguments (masks, rotary tables, chosen experts and their weights), matched between the two
//! sides.

use std::path::Path;

use reference::protocol::{Argument, CapturedModule, CapturedTensor, StoredArgument};

use super::live::Open;

/// The further arguments of one call on both sides.
pub(super) struct Matched<'a> {
    /// Those of one kind and with as many elements on both sides, which a replay can exchange.
    pub(super) both: Vec<[&'a Argument; 2]>,
    /// The names, on the second side where it has them, of those that cannot be exchanged.
    pub(super) others: Vec<&'a str>,
    /// Those of both sides that differ in their last axis: a rotary table of another width.
    pub(super) widths: Vec<[&'a Argument; 2]>,
}

/// Matches the arguments of two calls by name, the rest by their order if there are as many on both sides.
///
/// Native modules have no further arguments: what transformers passes is inside of them. Through a KV cache masks and
/// tables are those of single forward passes, so they are not matched either.
pub(super) fn matched<'a>(open: &Open, [a, b]: &'a [CapturedModule; 2]) -> Matched<'a> {
    let mut matched = Matched { both: Vec::new(), others: Vec::new(), widths: Vec::new() };
    let is_cached = open.request.sides.iter().any(|side| side.prefill.is_some());
    if is_cached || [a, b].iter().any(|module| module.class == "native") {
        return matched;
    }
    let named = |name: &str, side: &'a CapturedModule| side.further.iter().find(|other| other.name == name);
    let alone = |side: &'a CapturedModule, other: &'a CapturedModule| -> Vec<&'a Argument> {
        side.further.iter().filter(|argument| named(&argument.name, other).is_none()).collect()
    };
    let mut pairs: Vec<[&Argument; 2]> =
        a.further.iter().filter_map(|argument| Some([argument, named(&argument.name, b)?])).collect();
    let (only_a, only_b) = (alone(a, b), alone(b, a));
    let is_alike = |[a, b]: [&Argument; 2]| trimmed(&a.tensor) == trimmed(&b.tensor) && of_one_kind([a, b]);
    if only_a.len() == only_b.len() && only_a.iter().zip(&only_b).all(|(a, b)| is_alike([a, b])) {
        pairs.extend(only_a.into_iter().zip(only_b).map(|(a, b)| [a, b]));
    } else {
        matched.others.extend(only_a.iter().chain(&only_b).map(|argument| argument.name.as_str()));
    }
    for pair in pairs {
        match (of_one_kind(pair), trimmed(&pair[0].tensor), trimmed(&pair[1].tensor)) {
            (true, a, b) if a == b => matched.both.push(pair),
            (true, [before_a @ .., _], [before_b @ .., _]) if before_a == before_b => {
                matched.others.push(&pair[1].name);
                matched.widths.push(pair);
            }
            _ => matched.others.push(&pair[1].name),
        }
    }
    matched
}

/// The shape without leading axes of one element, which broadcasting adds.
fn trimmed(tensor: &CapturedTensor) -> &[usize] {
    let ones = tensor.shape.iter().take_while(|&&length| length == 1).count();
    &tensor.shape[ones..]
}

/// Whether both are floating-point numbers, or integers, or truth values.
fn of_one_kind(pair: [&Argument; 2]) -> bool {
    let kind = |argument: &Argument| {
        let dtype = argument.tensor.dtype.as_str();
        (dtype == "bool", dtype.contains("int"))
    };
    kind(pair[0]) == kind(pair[1])
}

/// The arguments of the side `from` in place of those of the side that is replayed.
pub(super) fn replacing(pairs: &[[&Argument; 2]], from: usize, folder: &Path) -> Vec<StoredArgument> {
    let own = folder.join(from.to_string());
    let stored = |pair: &[&Argument; 2]| {
        let (value, place) = (pair[from], pair[1 - from]);
        Some(StoredArgument {
            name: place.name.clone(),
            input: own.join(value.tensor.file.as_ref()?),
            shape: place.tensor.shape.clone(),
        })
    };
    pairs.iter().filter_map(stored).collect()
}
