//! Captures modules on both sides and measures their differences.

use std::collections::HashMap;
use std::path::Path;

use reference::protocol::{Capture, Captured, CapturedModule, Dtype, Reply, Request as Ask};
use tempfile::TempDir;

use super::LocalizeError;
use super::arguments::matched;
use super::cached;
use super::live::{Found, Live, Open};
use super::replay::{Kind, differing, replay};
use super::tensor::{self, Difference, Stored};
use super::walk::{Limit, Measured};
use crate::results::localized::ModuleError;

/// A module call that both sides have.
#[derive(Clone, Debug)]
pub(super) struct Name {
    pub(super) path: [String; 2],
    pub(super) call: usize,
}

/// Captured and measured modules of one level of the module tree.
pub(super) struct Level {
    /// Holds the captured tensors.
    pub(super) folder: TempDir,
    /// The captured calls of both sides, in the order of `measured`.
    pub(super) calls: Vec<[CapturedModule; 2]>,
    pub(super) measured: Vec<Measured>,
    /// The first module whose output differs, whatever its input.
    pub(super) first: Option<String>,
}

/// Captures the chosen modules on both sides and measures them.
pub(super) fn capture(
    open: &Open,
    sides: &mut [Live; 2],
    chosen: &[&Name],
    found: &mut Found,
    limit: Limit,
) -> Result<Level, LocalizeError> {
    let io = |error| LocalizeError::io(open.scratch, error);
    let folder = tempfile::Builder::new().prefix("level-").tempdir_in(open.scratch).map_err(io)?;
    let mut lists: Vec<HashMap<(String, usize), CapturedModule>> = Vec::new();
    for (index, side) in sides.iter_mut().enumerate() {
        let own = folder.path().join(index.to_string());
        std::fs::create_dir(&own).map_err(io)?;
        let mut modules: Vec<String> = chosen.iter().map(|name| name.path[index].clone()).collect();
        modules.dedup();
        let (max_bytes, prefill) = (open.request.options.max_bytes / 2, side.side.prefill);
        let Reply::Captured(captured) = side.ask(&Ask::Capture(Capture {
            folder: own.clone(),
            modules,
            max_bytes,
            prefill,
            chunks: Vec::new(),
        }))?
        else {
            return Err(side.out_of_turn());
        };
        account(found, side, &captured);
        let modules = joined(open, side, captured, &own)?;
        let calls = modules.into_iter().map(|module| ((module.path.clone(), module.call), module));
        lists.push(calls.collect());
    }
    let mut level = Level { folder, calls: Vec::new(), measured: Vec::new(), first: None };
    for name in chosen {
        let call = |index: usize| lists[index].get(&(name.path[index].clone(), name.call)).cloned();
        let (Some(a), Some(b)) = (call(0), call(1)) else { continue };
        let mut calls = [a, b];
        let mut measured = measure(open, level.folder.path(), &calls)?;
        let differs = |measured: &Measured| limit.is_passed(measured.output);
        if differs(&measured) {
            // Calls may follow the order of a set, which differs between processes, so this call may match another
            // call of the second side.
            let others =
                lists[1].iter().filter(|((path, call), _)| *path == name.path[1] && *call != name.call);
            for (_, other) in others {
                let turned = [calls[0].clone(), other.clone()];
                let again = measure(open, level.folder.path(), &turned)?;
                if again.output.is_some() && !differs(&again) {
                    (calls, measured) = (turned, again);
                    break;
                }
            }
        }
        let differs = differs(&measured);
        if differs && level.first.is_none() {
            level.first = Some(measured.path.clone());
        }
        let apart = |difference: Option<Difference>| difference.map(|found| found.relative_l2);
        let mut module = ModuleError {
            path: measured.path.clone(),
            call: name.call,
            input: apart(measured.input),
            output: apart(measured.output),
            replayed: None,
        };
        if found.dtype != Dtype::F64 {
            // Rounding errors grow from module to module, so each module is replayed with the other side's input.
            let further = matched(open, &calls).both;
            let fed = replay(open, sides, level.folder.path(), &calls, &further)?;
            module.replayed = apart(fed);
            measured.input = fed.map(|_| Difference::default()).or(measured.input);
            measured.is_other_output &= fed.is_none();
            measured.output = fed.or(measured.output);
        } else if differs && !limit.is_passed(measured.input) {
            measured.arguments = differing(open, sides, level.folder.path(), &calls, (limit, Kind::Other))?;
        }
        found.measured(module);
        level.measured.push(measured);
        level.calls.push(calls);
    }
    found.modules += level.measured.len();
    Ok(level)
}

/// A side's modules in the layout of one full-sequence forward pass.
pub(super) fn joined(
    open: &Open,
    side: &Live,
    captured: Captured,
    folder: &Path,
) -> Result<Vec<CapturedModule>, LocalizeError> {
    match side.side.prefill {
        None => Ok(captured.modules),
        prefill => {
            let (tokens, is_other) = (open.sequences.output(), |path: &str| open.sequences.is_other(path));
            cached::lengths(prefill, &[], tokens.seq())
                .and_then(|lengths| {
                    cached::joined(&captured.modules, &lengths, tokens.batch(), &is_other, folder)
                })
                .map_err(|error| LocalizeError::io(folder, error))
        }
    }
}

/// Adds the cost of a capture to `found`, and notes on tensors that were not captured.
pub(super) fn account(found: &mut Found, side: &Live, captured: &Captured) {
    found.bytes = found.bytes.saturating_add(captured.bytes);
    for (sum, more) in found.passes_ns.iter_mut().zip([captured.elapsed_ns, captured.plain_ns]) {
        *sum = sum.saturating_add(more);
    }
    if !captured.unchanged {
        found.unchanged = false;
        found.notes.push(format!(
            "{}: the captured forward pass and a plain one give different logits",
            side.side.name
        ));
    }
    let left_out = |module: &&CapturedModule| {
        [&module.input, &module.output].into_iter().flatten().any(|tensor| tensor.file.is_none())
    };
    let paths: Vec<&str> = captured.modules.iter().filter(left_out).map(|m| m.path.as_str()).collect();
    if let (Some(first), Some(last)) = (paths.first(), paths.last()) {
        found.notes.push(format!(
            "{}: --max-disk is too small for {} of {} modules, {first} to {last}",
            side.side.name,
            paths.len(),
            captured.modules.len()
        ));
    }
}

fn measure(open: &Open, folder: &Path, [a, b]: &[CapturedModule; 2]) -> Result<Measured, LocalizeError> {
    let io = |error| LocalizeError::io(folder, error);
    let of = |index: &str, tensor| Stored::open(&folder.join(index), tensor).map_err(io);
    let inputs = (of("0", a.input.as_ref())?, of("1", b.input.as_ref())?);
    let outputs = (of("0", a.output.as_ref())?, of("1", b.output.as_ref())?);
    let apart = |pair: &(Option<Stored>, Option<Stored>)| match pair {
        (Some(left), Some(right)) => {
            let mask = open.sequences.of(&a.path, &left.shape);
            tensor::difference(left, right, &mask).map_err(io)
        }
        _ => Ok(None),
    };
    let mut measured = Measured {
        path: a.path.clone(),
        input: apart(&inputs)?,
        output: apart(&outputs)?,
        ..Measured::default()
    };
    // A router returns its chosen experts after its scores.
    for (one, other) in a.more.iter().zip(&b.more).filter(|_| a.more.len() == b.more.len()) {
        let Some(apart) = apart(&(of("0", Some(one))?, of("1", Some(other))?))? else { continue };
        if measured.output.is_some_and(|first| apart.relative_l2 > first.relative_l2) {
            measured.output = Some(apart);
            measured.is_other_output = true;
        }
    }
    if let (true, (Some(left), Some(right))) = (a.path.ends_with(".softmax"), &inputs) {
        let mask = open.sequences.of(&a.path, &left.shape);
        measured.scores = tensor::scores(left, right, &mask).map_err(io)?;
        // The value of a masked score is arbitrary, so the input is compared without masked scores.
        let scores = measured.scores.map(|scores| scores.scores);
        measured.input = scores.or(measured.input);
    }
    Ok(measured)
}
