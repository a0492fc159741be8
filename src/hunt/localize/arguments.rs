//! A module's further tensor arguments (masks, rotary tables, chosen experts and their weights): which of them differ
//! between the two sides, and whether they are why the module's output differs.

use std::path::Path;

use reference::protocol::{Argument, CapturedModule, CapturedTensor, StoredArgument};

use super::LocalizeError;
use super::capture::replay;
use super::live::{Live, Open};
use super::tensor::{Stored, argument_difference};
use super::walk::Limit;
use crate::results::localized::Departing;

/// The further arguments of one call on both sides.
pub(super) struct Matched<'a> {
    /// Those of one kind and with as many elements on both sides, which a replay can exchange.
    pub(super) both: Vec<[&'a Argument; 2]>,
    /// The names, on the second side where it has them, of those that cannot be exchanged.
    pub(super) others: Vec<&'a str>,
    /// Those of both sides that differ in their last axis: a rotary table of another width.
    widths: Vec<[&'a Argument; 2]>,
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

/// The arguments that make a call differ although its first input agrees: its output agrees as soon as it gets the other
/// side's. Empty if none differs, or if the call differs with the other side's arguments too.
pub(super) fn departing(
    open: &Open,
    sides: &mut [Live; 2],
    folder: &Path,
    calls: &[CapturedModule; 2],
    limit: Limit,
) -> Result<Vec<Departing>, LocalizeError> {
    let io = |error| LocalizeError::io(folder, error);
    let matched = matched(open, calls);
    let departing = |[a, b]: [&Argument; 2], relative_l2| Departing {
        module: calls[0].path.clone(),
        name: b.name.clone(),
        relative_l2,
        shapes: [a.tensor.shape.clone(), b.tensor.shape.clone()],
    };
    if !matched.widths.is_empty() {
        return Ok(matched.widths.into_iter().map(|pair| departing(pair, None)).collect());
    }
    let mut found: Vec<([&Argument; 2], f64)> = Vec::new();
    for &[a, b] in &matched.both {
        // Both in the shape of the first side, where the other has other leading axes of one element.
        let of = |side: &str, argument: &Argument| {
            let tensor = CapturedTensor { shape: a.tensor.shape.clone(), ..argument.tensor.clone() };
            Stored::open(&folder.join(side), Some(&tensor)).map_err(io)
        };
        let (Some(left), Some(right)) = (of("0", a)?, of("1", b)?) else { continue };
        let apart = argument_difference(&left, &right, open.mask).map_err(io)?;
        if let Some(apart) = apart.filter(|apart| limit.is_passed(Some(*apart))) {
            found.push(([a, b], apart.relative_l2));
        }
    }
    let pairs: Vec<[&Argument; 2]> = found.iter().map(|(pair, _)| *pair).collect();
    // A single one that suffices is the cause, before all of them together.
    let mut choices: Vec<Vec<usize>> = (0..pairs.len()).map(|one| vec![one]).collect();
    if pairs.len() > 1 {
        choices.push((0..pairs.len()).collect());
    }
    for choice in choices {
        let fed: Vec<[&Argument; 2]> = choice.iter().map(|&at| pairs[at]).collect();
        let apart = replay(open, sides, folder, calls, &fed)?;
        if apart.is_some() && !limit.is_passed(apart) {
            return Ok(choice.into_iter().map(|at| departing(found[at].0, Some(found[at].1))).collect());
        }
    }
    Ok(Vec::new())
}

/// The arguments of the side `from` in place of those of the side that is replayed.
pub(super) fn stored(pairs: &[[&Argument; 2]], from: usize, folder: &Path) -> Vec<StoredArgument> {
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
