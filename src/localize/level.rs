//! One level of modules after another: captured on both sides, measured, and the suspect of the last one fed anew.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use reference::protocol::{Capture, Captured, CapturedModule, Dtype, Replay, Reply, Request as Ask};
use tempfile::TempDir;

use super::cached;
use super::drive::{Found, Live, Open};
use super::pair::pairs;
use super::routed::{self, Sifted};
use super::tensor::{self, Difference, Stored};
use super::walk::{Limit, Measured, Suspect, ancestors, is_coarse, is_in, suspect};
use super::{Between, Divergence, Finding, LocalizeError};
use crate::plan::glob;
use crate::runner::Ended;

/// The path of code that lies in no module.
pub(super) const ROOT: &str = "(root)";

/// Modules that both sides have.
pub(super) enum Names {
    /// A side exposes none, and says why.
    Hidden(String),
    /// In the first side's order, and what only one side runs.
    Common(Vec<Name>, Vec<Alone>),
}

/// A module that only one side runs.
#[derive(Clone, Debug)]
pub(super) struct Alone {
    side: usize,
    path: String,
}

/// A module call that both sides have.
#[derive(Clone, Debug)]
pub(super) struct Name {
    pub(super) path: [String; 2],
    call: usize,
}

/// Asks both sides for their modules.
pub(super) fn names(open: &Open, sides: &mut [Live; 2]) -> Result<Names, LocalizeError> {
    let mut lists: Vec<Vec<CapturedModule>> = Vec::new();
    for side in sides.iter_mut() {
        let folder = open.scratch.to_owned();
        let ask = Ask::Capture(Capture {
            folder,
            modules: vec!["*".into()],
            max_bytes: 0,
            prefill: side.side.prefill,
        });
        match side.try_ask(&ask) {
            Ok(Reply::Captured(captured)) => lists.push(joined(open, side, captured, open.scratch)?),
            Ok(_) => return Err(side.out_of_turn()),
            Err(Ended::Unsupported(reason)) => {
                return Ok(Names::Hidden(format!("{}: {reason}", side.side.name)));
            }
            Err(ended) => return Err(LocalizeError::worker(side.side, open.request.folder, ended)),
        }
    }
    let patterns = &open.request.options.modules;
    let is_wanted = |path: &str| patterns.iter().any(|pattern| glob(pattern.as_bytes(), path.as_bytes()));
    let common: Vec<Name> = pairs(&lists[0], &lists[1])
        .into_iter()
        .map(|(a, b)| {
            let path = [lists[0][a].path.clone(), lists[1][b].path.clone()];
            Name { path, call: lists[0][a].call }
        })
        .filter(|name| is_wanted(&name.path[0]))
        .collect();
    if common.is_empty() {
        let [a, b] = open.request.sides.each_ref().map(|side| side.name.clone());
        return Err(LocalizeError::NothingInCommon { a, b });
    }
    let alone = |side: usize| {
        let others: HashSet<&str> = common.iter().map(|name| name.path[side].as_str()).collect();
        let is_alone = move |module: &&CapturedModule| {
            // What does nothing in a pass that trains nothing is no difference.
            let does_nothing = ["Dropout", "Identity"].iter().any(|word| module.class.contains(word));
            !others.contains(module.path.as_str()) && !does_nothing
        };
        let alone = |module: &CapturedModule| Alone { side, path: module.path.clone() };
        lists[side].iter().filter(is_alone).map(alone).collect::<Vec<_>>()
    };
    let alone = [alone(0), alone(1)].concat();
    Ok(Names::Common(common, alone))
}

/// The suspect among the modules of one level.
pub(super) struct Level {
    /// Holds the captured tensors.
    pub(super) folder: TempDir,
    /// Of each side, the captured calls in the order of `measured`.
    pub(super) calls: Vec<[CapturedModule; 2]>,
    pub(super) measured: Vec<Measured>,
    /// The first module whose output departs, by itself or not.
    pub(super) first: Option<String>,
}

/// Goes down from the coarse modules to the deepest suspect. Where `wider_agrees`, the two agree in a wider dtype.
pub(super) fn search(
    open: &Open,
    sides: &mut [Live; 2],
    (names, alone): (&[Name], &[Alone]),
    nothing: Found,
    (threshold, wider_agrees): (f64, bool),
) -> Result<Found, LocalizeError> {
    let mut found = nothing;
    let mut limit = Limit::overall(threshold);
    let mut scope: Option<String> = None;
    let mut chosen: Vec<&Name> = names.iter().filter(|name| is_coarse(&name.path[0])).collect();
    if chosen.is_empty() {
        chosen = names.iter().collect();
    }
    if wider_agrees && routed::is_routed(names) {
        // A token that goes to another expert is one position of many.
        limit.position = threshold;
        match routed::sift(open, sides, names, &mut found, limit)? {
            Sifted::Departs(path) => {
                chosen = names.iter().filter(|name| is_in(&name.path[0], &path)).collect();
                scope = Some(path);
            }
            Sifted::Spread(spread) => {
                found.finding = spread;
                return Ok(found);
            }
        }
    }
    loop {
        let level = capture(open, sides, &chosen, &mut found, limit)?;
        let known = |path: &String| level.measured.iter().position(|module| module.path == *path);
        let Some(suspect) = suspect(&level.measured, scope.as_ref().and_then(known), limit) else {
            found.finding = match level.first {
                Some(first) if found.dtype != Dtype::F64 => Finding::Spread { first, near_ties: None },
                _ => Finding::Module(outside(&level, found.logits)),
            };
            return Ok(found);
        };
        let inside = |name: &&Name| {
            suspect.module.is_some_and(|index| is_in(&name.path[0], &level.measured[index].path))
        };
        let below: Vec<&Name> = names.iter().filter(inside).collect();
        let captured: HashSet<&str> = level.measured.iter().map(|module| module.path.as_str()).collect();
        let has_more = below.iter().any(|name| !captured.contains(name.path[0].as_str()));
        if !has_more || suspect.step.is_some() {
            let divergence = confirmed(open, sides, &level, &suspect, found.logits)?;
            if let (Some(index), true) = (suspect.module, suspect.step.is_some() || suspect.between.is_some())
            {
                found.notes.extend(said(open, alone, &level.measured[index].path));
            }
            found.finding = Finding::Module(divergence);
            return Ok(found);
        }
        scope = suspect.module.map(|index| level.measured[index].path.clone());
        chosen = below;
    }
}

/// What only one side runs inside of a module.
fn said(open: &Open, alone: &[Alone], module: &str) -> Option<String> {
    let inside: Vec<&Alone> = alone.iter().filter(|alone| is_in(&alone.path, module)).collect();
    let of = |side: usize| -> Option<String> {
        let paths: Vec<&str> =
            inside.iter().filter(|alone| alone.side == side).map(|alone| alone.path.as_str()).collect();
        let names = open.request.sides.each_ref().map(|side| side.name.as_str());
        (!paths.is_empty())
            .then(|| format!("{} runs {}, {} does not", names[side], paths.join(", "), names[1 - side]))
    };
    let both: Vec<String> = [of(0), of(1)].into_iter().flatten().collect();
    (!both.is_empty()).then(|| both.join("; "))
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
        let Reply::Captured(captured) =
            side.ask(&Ask::Capture(Capture { folder: own.clone(), modules, max_bytes, prefill }))?
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
        let departs = |measured: &Measured| limit.is_passed(measured.output);
        if departs(&measured) {
            // A set's order is not that of another process: one call may be another on the second side.
            let others =
                lists[1].iter().filter(|((path, call), _)| *path == name.path[1] && *call != name.call);
            for (_, other) in others {
                let turned = [calls[0].clone(), other.clone()];
                let again = measure(open, level.folder.path(), &turned)?;
                if again.output.is_some() && !departs(&again) {
                    (calls, measured) = (turned, again);
                    break;
                }
            }
        }
        let departs = departs(&measured);
        if departs && level.first.is_none() {
            level.first = Some(measured.path.clone());
        }
        if found.dtype != Dtype::F64 {
            // Rounding grows from module to module: each is judged on the other side's input.
            let fed = replay(open, sides, level.folder.path(), &calls)?;
            measured.input = fed.map(|_| Difference::default()).or(measured.input);
            measured.is_other_output &= fed.is_none();
            measured.output = fed.or(measured.output);
        }
        level.measured.push(measured);
        level.calls.push(calls);
    }
    found.modules += level.measured.len();
    Ok(level)
}

/// A side's modules as those of one pass.
fn joined(
    open: &Open,
    side: &Live,
    captured: Captured,
    folder: &Path,
) -> Result<Vec<CapturedModule>, LocalizeError> {
    match side.side.prefill {
        None => Ok(captured.modules),
        Some(prefill) => {
            cached::joined(&captured.modules, prefill, (open.mask.batch(), open.mask.seq()), folder)
                .map_err(|error| LocalizeError::io(folder, error))
        }
    }
}

/// Adds what a capture cost and left out.
fn account(found: &mut Found, side: &Live, captured: &Captured) {
    found.bytes += captured.bytes;
    found.passes_ns[0] += captured.elapsed_ns;
    found.passes_ns[1] += captured.plain_ns;
    if !captured.unchanged {
        found.unchanged = false;
        found.notes.push(format!("{}: the captured pass gave other logits than a plain one", side.side.name));
    }
    let left_out = |module: &&CapturedModule| {
        [&module.input, &module.output].into_iter().flatten().any(|tensor| tensor.file.is_none())
    };
    let paths: Vec<&str> = captured.modules.iter().filter(left_out).map(|m| m.path.as_str()).collect();
    if let (Some(first), Some(last)) = (paths.first(), paths.last()) {
        found.notes.push(format!(
            "{}: --max-disk left no room for {} of {} modules, {first} to {last}",
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
        (Some(a), Some(b)) => tensor::difference(a, b, open.mask).map_err(io),
        _ => Ok(None),
    };
    let mut measured = Measured {
        path: a.path.clone(),
        input: apart(&inputs)?,
        output: apart(&outputs)?,
        ..Measured::default()
    };
    // A router returns the experts that it chooses behind its scores.
    for (one, other) in a.more.iter().zip(&b.more).filter(|_| a.more.len() == b.more.len()) {
        let Some(apart) = apart(&(of("0", Some(one))?, of("1", Some(other))?))? else { continue };
        if measured.output.is_some_and(|first| apart.relative_l2 > first.relative_l2) {
            measured.output = Some(apart);
            measured.is_other_output = true;
        }
    }
    if let (true, (Some(a), Some(b))) = (a.path.ends_with(".softmax"), &inputs) {
        measured.scores = tensor::scores(a, b, open.mask).map_err(io)?;
        // Masked scores are any large number.
        let scores = measured.scores.map(|scores| scores.scores);
        measured.input = scores.or(measured.input);
    }
    Ok(measured)
}

/// The fed side's output on the other side's input, against that side's output; `None` where the module cannot be fed, or
/// its output not be compared.
fn replay(
    open: &Open,
    sides: &mut [Live; 2],
    folder: &Path,
    calls: &[CapturedModule; 2],
) -> Result<Option<Difference>, LocalizeError> {
    let io = |error| LocalizeError::io(folder, error);
    let Some([expected, replayed]) = fed(open, sides, folder, calls)? else { return Ok(None) };
    tensor::difference(&expected, &replayed, open.mask).map_err(io)
}

/// The output of the side that is not fed, and what the fed one gives on that side's input; `None` where the module cannot
/// be fed.
pub(super) fn fed(
    open: &Open,
    sides: &mut [Live; 2],
    folder: &Path,
    calls: &[CapturedModule; 2],
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
    if stored.laid_out_as(&like.shape, open.mask, &other).map_err(io)? {
        path = other;
    }
    // Whoever holds what was replayed before goes on reading that.
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
        output: output.clone(),
    };
    let Reply::Replayed(replayed) = side.ask(&Ask::Replay(ask))? else { return Err(side.out_of_turn()) };
    let replayed = Stored::at(&output, &replayed.shape).map_err(io)?;
    Ok(Some([expected, replayed]))
}

/// The suspect, fed the other side's input.
fn confirmed(
    open: &Open,
    sides: &mut [Live; 2],
    level: &Level,
    suspect: &Suspect,
    logits: Option<f64>,
) -> Result<Divergence, LocalizeError> {
    let Some(index) = suspect.module else {
        return Ok(Divergence { between: suspect.between.clone(), ..outside(level, logits) });
    };
    let (calls, measured) = (&level.calls[index], &level.measured[index]);
    // Token ids and tables of positions are no input that another one could stand for; and what is fed anew is asked
    // for its first output.
    let replayed =
        if measured.is_other_output { None } else { replay(open, sides, level.folder.path(), calls)? };
    let shown = suspect.step.map_or(measured.output, |(_, difference)| Some(difference));
    let path = |index: usize| {
        let module = &calls[index].path;
        suspect.step.map_or_else(|| module.clone(), |(step, _)| format!("{module}.{step}"))
    };
    Ok(Divergence {
        path: path(0),
        path_b: path(1),
        class_a: calls[0].class.clone(),
        class_b: calls[1].class.clone(),
        between: suspect.between.clone(),
        input: measured.input.map(|difference| difference.relative_l2),
        output: shown.map_or(f64::INFINITY, |difference| difference.relative_l2),
        replayed: replayed.map(|difference| difference.relative_l2),
        worst: shown.and_then(|difference| difference.worst),
    })
}

/// The model's code outside of all modules.
fn outside(level: &Level, logits: Option<f64>) -> Divergence {
    let last = level.measured.iter().rfind(|module| ancestors(&module.path).next().is_none());
    Divergence {
        path: ROOT.to_owned(),
        path_b: ROOT.to_owned(),
        between: Some(Between { after: last.map(|module| module.path.clone()), before: None }),
        output: logits.unwrap_or(f64::INFINITY),
        ..Divergence::default()
    }
}
