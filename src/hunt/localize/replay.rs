//! Replays one module with the other side's input and further arguments, and finds the arguments that make it differ.

use std::path::Path;

use reference::protocol::{Argument, CapturedModule, CapturedTensor, Replay, Reply, Request as Ask};

use super::LocalizeError;
use super::arguments::{matched, replacing};
use super::live::{Live, Open};
use super::tensor::{self, Difference, Stored, argument_difference};
use super::walk::Limit;
use crate::results::localized::Differing;

/// Which further arguments are considered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Attention masks. Where they reach the scores, the step `mask` shows which keys differ.
    Mask,
    /// All others.
    Other,
}

impl Kind {
    fn is_of(self, argument: &Argument) -> bool {
        (self == Self::Mask) == argument.name.contains("mask")
    }
}

/// The arguments of this kind that make a call differ although its first input agrees: its output agrees as soon as it gets
/// the other side's. Empty if none differs, or if the call differs with the other side's arguments too.
pub(super) fn differing(
    open: &Open,
    sides: &mut [Live; 2],
    folder: &Path,
    calls: &[CapturedModule; 2],
    (limit, kind): (Limit, Kind),
) -> Result<Vec<Differing>, LocalizeError> {
    let io = |error| LocalizeError::io(folder, error);
    let matched = matched(open, calls);
    let differing = |[a, b]: [&Argument; 2], relative_l2| Differing {
        module: calls[0].path.clone(),
        name: b.name.clone(),
        relative_l2,
        shapes: [a.tensor.shape.clone(), b.tensor.shape.clone()],
    };
    let widths: Vec<_> = matched.widths.iter().filter(|pair| kind.is_of(pair[1])).collect();
    if !widths.is_empty() {
        return Ok(widths.into_iter().map(|pair| differing(*pair, None)).collect());
    }
    let mut found: Vec<([&Argument; 2], f64)> = Vec::new();
    for &[a, b] in matched.both.iter().filter(|pair| kind.is_of(pair[1])) {
        // Both in the shape of the first side, where the other has other leading axes of one element.
        let of = |side: &str, argument: &Argument| {
            let tensor = CapturedTensor { shape: a.tensor.shape.clone(), ..argument.tensor.clone() };
            Stored::open(&folder.join(side), Some(&tensor)).map_err(io)
        };
        let (Some(left), Some(right)) = (of("0", a)?, of("1", b)?) else { continue };
        let mask = open.sequences.of(&calls[0].path, &left.shape);
        let apart = argument_difference(&left, &right, &mask).map_err(io)?;
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
            return Ok(choice.into_iter().map(|at| differing(found[at].0, Some(found[at].1))).collect());
        }
    }
    Ok(Vec::new())
}

/// Difference between the replayed module's output and the output of the side that supplied its input and the arguments
/// `further`; `None` if the module cannot be replayed or its output cannot be compared.
pub(super) fn replay(
    open: &Open,
    sides: &mut [Live; 2],
    folder: &Path,
    calls: &[CapturedModule; 2],
    further: &[[&Argument; 2]],
) -> Result<Option<Difference>, LocalizeError> {
    let io = |error| LocalizeError::io(folder, error);
    let Some([expected, replayed]) = fed(open, sides, folder, calls, further)? else { return Ok(None) };
    let mask = open.sequences.of(&calls[0].path, &expected.shape);
    tensor::difference(&expected, &replayed, &mask).map_err(io)
}

/// Replays a module with the other side's input and arguments `further`. Returns that side's output and the replayed
/// output; `None` if the module cannot be replayed.
pub(super) fn fed(
    open: &Open,
    sides: &mut [Live; 2],
    folder: &Path,
    calls: &[CapturedModule; 2],
    further: &[[&Argument; 2]],
) -> Result<Option<[Stored; 2]>, LocalizeError> {
    let io = |error| LocalizeError::io(folder, error);
    let Some(fed) = open.request.fed() else { return Ok(None) };
    let (from, to) = (&calls[1 - fed], &calls[fed]);
    let own = folder.join((1 - fed).to_string());
    let (Some(input), Some(like)) = (&from.input, &to.input) else { return Ok(None) };
    let Some(expected) = Stored::open(&own, from.output.as_ref()).map_err(io)? else { return Ok(None) };
    let Some(file) = &input.file else { return Ok(None) };
    if input.shape.iter().product::<usize>() != like.shape.iter().product::<usize>() {
        return Ok(None);
    }
    let (mut path, other) = (own.join(file), folder.join("input"));
    let stored = Stored::at(&path, &input.shape).map_err(io)?;
    let mask = open.sequences.of(&calls[0].path, &input.shape);
    if stored.laid_out_as(&like.shape, &mask, &other).map_err(io)? {
        path = other;
    }
    // The old file is removed, not overwritten, so that an open handle to it stays valid.
    let output = folder.join("replayed");
    match std::fs::remove_file(&output) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    let side = &mut sides[fed];
    let ask = Replay {
        module: to.path.clone(),
        call: to.call,
        input: path,
        shape: like.shape.clone(),
        further: replacing(further, 1 - fed, folder),
        output: output.clone(),
    };
    let Reply::Replayed(replayed) = side.ask(&Ask::Replay(ask))? else { return Err(side.out_of_turn()) };
    let replayed = Stored::at(&output, &replayed.shape).map_err(io)?;
    Ok(Some([expected, replayed]))
}
