//! Descends level by level through the modules: captures and measures both sides, then replays the deepest suspect.

use std::collections::HashSet;

use reference::protocol::{Capture, CapturedModule, Dtype, Reply, Request as Ask, glob};

use super::arguments::matched;
use super::capture::{Level, Name, capture, joined};
use super::live::{Found, Live, Open};
use super::pair::pairs;
use super::replay::{Kind, differing, replay};
use super::routed::{self, Sifted};
use super::walk::{Limit, Suspect, ancestors, is_coarse, is_in, suspect};
use super::{Between, Divergence, Finding, LocalizeError};
use crate::execute::runner::NoResult;

use crate::results::localized::{ModuleError, ROOT};

/// The modules of the two sides.
pub(super) enum Names {
    /// A side does not expose its modules, for this reason.
    Hidden(String),
    /// Common modules in the first side's order, and modules that only one side runs.
    Common(Vec<Name>, Vec<Alone>),
}

/// A module that only one side runs.
#[derive(Clone, Debug)]
pub(super) struct Alone {
    side: usize,
    path: String,
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
            chunks: Vec::new(),
        });
        match side.try_ask(&ask) {
            Ok(Reply::Captured(captured)) => lists.push(joined(open, side, captured, open.scratch)?),
            Ok(_) => return Err(side.out_of_turn()),
            Err(NoResult::Unsupported(reason)) => {
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
            // Dropout and Identity do nothing at inference, so a missing one is not a difference.
            let does_nothing = ["Dropout", "Identity"].iter().any(|word| module.class.contains(word));
            !others.contains(module.path.as_str()) && !does_nothing
        };
        let alone = |module: &CapturedModule| Alone { side, path: module.path.clone() };
        lists[side].iter().filter(is_alone).map(alone).collect::<Vec<_>>()
    };
    let alone = [alone(0), alone(1)].concat();
    Ok(Names::Common(common, alone))
}

/// Descends from the coarse modules to the deepest suspect. With `wider_agrees`, the two sides agree in a wider
/// dtype.
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
        // A token that is routed to another expert changes only one of many positions.
        limit.position = threshold;
        match routed::sift(open, sides, names, &mut found, limit)? {
            Sifted::Differs(path) => {
                chosen = names.iter().filter(|name| is_in(&name.path[0], &path)).collect();
                scope = Some(path);
            }
            Sifted::Spread(spread) => {
                found.finding = *spread;
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
            let divergence = confirmed(open, sides, &level, &suspect, (limit, found.logits))?;
            if let (Some(index), true) = (suspect.module, divergence.replayed.is_some()) {
                let call = &level.calls[index][0];
                let is_it = |module: &&mut ModuleError| module.path == call.path && module.call == call.call;
                for module in found.profile.iter_mut().filter(is_it) {
                    module.replayed = divergence.replayed;
                }
            }
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

/// A note on the modules that only one side runs inside `module`.
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

/// Replays the suspect with the other side's input and describes the divergence.
fn confirmed(
    open: &Open,
    sides: &mut [Live; 2],
    level: &Level,
    suspect: &Suspect,
    (limit, logits): (Limit, Option<f64>),
) -> Result<Divergence, LocalizeError> {
    let Some(index) = suspect.module else {
        let (between, arguments) = (suspect.between.clone(), suspect.arguments.clone());
        return Ok(Divergence { between, arguments, ..outside(level, logits) });
    };
    let (calls, measured) = (&level.calls[index], &level.measured[index]);
    // Token ids and position tables cannot be replaced by the other side's. A replay returns only the first output.
    let matched = matched(open, calls);
    let replayed = if measured.is_other_output {
        None
    } else {
        replay(open, sides, level.folder.path(), calls, &matched.both)?
    };
    // With the other side's mask the module agrees, so what differs is the code that makes the mask.
    let is_given = suspect.arguments.is_empty() && replayed.is_some() && !limit.is_passed(replayed);
    let arguments = if is_given {
        differing(open, sides, level.folder.path(), calls, (limit, Kind::Mask))?
    } else {
        suspect.arguments.clone()
    };
    let replayed = replayed.filter(|_| arguments.is_empty() || !suspect.arguments.is_empty());
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
        arguments,
        not_replayed: matched.others.iter().map(|name| (*name).to_owned()).collect(),
        worst: shown.and_then(|difference| difference.worst),
    })
}

/// A divergence in the model's code outside of all its modules.
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
