//! Mixtures of experts in a dtype that rounds. At a near-tie (two router scores closer than rounding explains),
//! rounding sends a token to another expert, so that a block differs although each of its modules computes the same
//! function. A router or expert that computes another function is distinguished by a replay with the same input: the
//! scores differ, or the outputs of tokens that go to the same experts do.

use std::collections::HashSet;
use std::io;

use bounds::limits::CHECKPOINT_JSON_BYTES;
use reference::protocol::CapturedModule;
use serde_json::Value;

use super::arguments::matched;
use super::capture::{Name, capture};
use super::live::{Found, Live, Open};
use super::replay::fed;
use super::tensor::{self, Difference, Stored};
use super::walk::{Limit, Measured, ancestors, is_coarse, is_in, suspect};
use super::{Finding, LocalizeError, NearTies};
use compare::mask::Mask;

/// Tokens as (row of the batch, position).
type Tokens = HashSet<(usize, usize)>;

/// The result of sorting the coarse modules.
pub(super) enum Sifted {
    /// This module differs on the same input.
    Differs(String),
    /// None differs on the same input, except by near-ties.
    Spread(Box<Finding>),
}

/// Whether the modules contain a mixture of experts.
pub(super) fn is_routed(names: &[Name]) -> bool {
    names.iter().any(|name| mixture(&name.path[0]).is_some())
}

/// The module that holds a router and its experts, given the path of the experts.
fn mixture(path: &str) -> Option<&str> {
    path.strip_suffix(".experts")
}

/// Sorts the coarse modules that differ on the first side's input: modules that compute another function, and blocks
/// in which a router only passes on a rounding difference of its input.
pub(super) fn sift(
    open: &Open,
    sides: &mut [Live; 2],
    names: &[Name],
    found: &mut Found,
    limit: Limit,
) -> Result<Sifted, LocalizeError> {
    let coarse: Vec<&Name> = names.iter().filter(|name| is_coarse(&name.path[0])).collect();
    let level = capture(open, sides, &coarse, found, limit)?;
    let mut worst = 0.0_f64;
    // Modules left out of the capture may differ.
    let mut is_known = open.request.options.modules == ["*"];
    for measured in level.measured.iter().filter(|module| !holds(&level.measured, &module.path)) {
        let path = &measured.path;
        if !limit.is_passed(measured.output) {
            is_known &= measured.output.is_some();
            worst = worst.max(measured.output.map_or(0.0, |apart| apart.at_worst()));
            continue;
        }
        let is_above_a_mixture = |name: &Name| {
            mixture(&name.path[0]).is_some_and(|mixture| mixture != path && is_in(mixture, path))
        };
        if !names.iter().any(is_above_a_mixture) {
            return Ok(Sifted::Differs(path.clone()));
        }
        let inside: Vec<&Name> = names.iter().filter(|name| is_or_is_child(&name.path[0], path)).collect();
        let mut parts = capture(open, sides, &inside, found, limit)?;
        for part in parts.measured.iter_mut().filter(|part| part.path != *path) {
            if limit.is_passed(part.output) {
                let apart = without_ties(open, sides, (names, &part.path), found, limit)?;
                part.output = apart.or(part.output);
            }
        }
        let whole = parts.measured.iter().position(|part| part.path == *path);
        // The difference is in the block's own code after children that all agree; that code agrees in the wider
        // dtype.
        let is_passed_on = suspect(&parts.measured, whole, limit).is_some_and(|suspect| {
            let is_behind_all = suspect.between.is_some_and(|between| between.before.is_none());
            suspect.module == whole && suspect.step.is_none() && is_behind_all
        });
        if whole.is_none() || !is_passed_on {
            return Ok(Sifted::Differs(path.clone()));
        }
        for part in parts.measured.iter().filter(|part| part.path != *path) {
            is_known &= part.output.is_some();
            worst = worst.max(part.output.map_or(0.0, |apart| apart.at_worst()));
        }
    }
    let near_ties = if is_known { near_ties(open, sides, names, found, (limit, worst))? } else { None };
    let first = level.first.unwrap_or_default();
    Ok(Sifted::Spread(Box::new(Finding::Spread { first, near_ties })))
}

/// Difference of a mixture on the same input, without the tokens that its router sends elsewhere although their
/// scores agree; `None` if it is not a mixture or the scores of such a token differ.
fn without_ties(
    open: &Open,
    sides: &mut [Live; 2],
    (names, path): (&[Name], &str),
    found: &mut Found,
    limit: Limit,
) -> Result<Option<Difference>, LocalizeError> {
    let Some(chosen) = experts_of_a_token(open) else { return Ok(None) };
    let of_mixture = [path.to_owned(), format!("{path}.gate")];
    let is_mixture = names.iter().any(|name| mixture(&name.path[0]) == Some(path));
    let named = |path: &String| names.iter().find(|name| name.path[0] == *path);
    let ([Some(whole), Some(gate)], true) = (of_mixture.each_ref().map(named), is_mixture) else {
        return Ok(None);
    };
    let level = capture(open, sides, &[whole, gate], found, limit)?;
    let at = |path: &String| level.measured.iter().position(|module| module.path == *path);
    let [Some(whole), Some(gate)] = of_mixture.each_ref().map(at) else { return Ok(None) };
    let mut outputs = |index: usize| {
        let calls = &level.calls[index];
        fed(open, sides, level.folder.path(), calls, &matched(open, calls).both)
    };
    let (Some(scores), Some([a, b])) = (outputs(gate)?, outputs(whole)?) else { return Ok(None) };
    let io = |error| LocalizeError::io(level.folder.path(), error);
    let Some((moved, apart)) = moved(open.sequences.output(), &scores, chosen).map_err(io)? else {
        return Ok(None);
    };
    if apart > limit.position {
        return Ok(None);
    }
    let (batch, seq) = (open.sequences.output().batch(), open.sequences.output().seq());
    let stays = |(row, at)| open.sequences.output().is_real(row, at) && !moved.contains(&(row, at));
    let rest = (0..batch).flat_map(|row| (0..seq).map(move |at| (row, at))).map(stays).collect();
    match Mask::new(batch, seq, rest) {
        Some(rest) => tensor::difference(&a, &b, &rest).map_err(io),
        None => Ok(None),
    }
}

/// Whether the level has other modules inside this one.
fn holds(modules: &[Measured], path: &str) -> bool {
    modules.iter().any(|other| other.path != path && is_in(&other.path, path))
}

fn is_or_is_child(path: &str, module: &str) -> bool {
    path == module || ancestors(path).next() == Some(module)
}

/// Counts the tokens that routers send to other experts; `None` if there are none, or if the scores of the first such
/// router differ by more than rounding.
fn near_ties(
    open: &Open,
    sides: &mut [Live; 2],
    names: &[Name],
    found: &mut Found,
    (limit, worst): (Limit, f64),
) -> Result<Option<NearTies>, LocalizeError> {
    let Some(chosen) = experts_of_a_token(open) else { return Ok(None) };
    let mixtures: HashSet<&str> = names.iter().filter_map(|name| mixture(&name.path[0])).collect();
    let is_router = |name: &&Name| {
        let mixture = name.path[0].strip_suffix(".gate");
        mixture.is_some_and(|mixture| mixtures.contains(mixture))
    };
    let routers: Vec<&Name> = names.iter().filter(is_router).collect();
    let level = capture(open, sides, &routers, found, limit)?;
    let mut moved = Tokens::new();
    let mut first: Option<(String, f64)> = None;
    let io = |error| LocalizeError::io(level.folder.path(), error);
    for (calls, measured) in level.calls.iter().zip(&level.measured) {
        let of = |index: &str, module: &CapturedModule| {
            Stored::open(&level.folder.path().join(index), module.output.as_ref()).map_err(io)
        };
        let (Some(a), Some(b)) = (of("0", &calls[0])?, of("1", &calls[1])?) else { return Ok(None) };
        let Some((here, scores)) = self::moved(open.sequences.output(), &[a, b], chosen).map_err(io)? else {
            return Ok(None);
        };
        if first.is_none() && !here.is_empty() {
            first = Some((measured.path.clone(), scores));
        }
        moved.extend(here);
    }
    let positions = (0..open.sequences.output().batch())
        .flat_map(|row| (0..open.sequences.output().seq()).map(move |at| (row, at)));
    let of = positions.filter(|(row, at)| open.sequences.output().is_real(*row, *at)).count();
    // These scores are not from a replay, so they carry the rounding of the whole model before them.
    let local = limit.overall * open.request.tolerances.local_factor;
    let is_a_tie = |(router, scores): (String, f64)| {
        (scores <= local).then_some(NearTies { router, tokens: moved.len(), of, scores, worst })
    };
    Ok(first.and_then(is_a_tie))
}

/// The tokens for which the two scores choose different experts, and the largest relative L2 of the scores of such a
/// token; `None` if scores are not stored per token.
fn moved(mask: &Mask, [a, b]: &[Stored; 2], chosen: usize) -> io::Result<Option<(Tokens, f64)>> {
    let (mut moved, mut largest) = (Tokens::new(), 0.0_f64);
    for row in 0..mask.batch() {
        for position in (0..mask.seq()).filter(|position| mask.is_real(row, *position)) {
            let at = |stored: &Stored| stored.at_position(mask, row, position);
            let (Some(a), Some(b)) = (at(a)?, at(b)?) else { return Ok(None) };
            if best(&a, chosen) != best(&b, chosen) {
                moved.insert((row, position));
                let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
                let apart = squares(&mut a.iter().zip(&b).map(|(a, b)| a - b));
                largest = largest.max((apart / squares(&mut a.iter().copied())).sqrt());
            }
        }
    }
    Ok(Some((moved, largest)))
}

/// Indices of the `chosen` largest scores, ascending.
fn best(scores: &[f64], chosen: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order.truncate(chosen);
    order.sort_unstable();
    order
}

/// Number of experts per token, from the checkpoint's config.
fn experts_of_a_token(open: &Open) -> Option<usize> {
    let path = open.request.sides[0].load.checkpoint.join("config.json");
    let config: Value =
        serde_json::from_slice(&bounds::file::read(&path, CHECKPOINT_JSON_BYTES).ok()?).ok()?;
    config["num_experts_per_tok"].as_u64().map(|chosen| chosen as usize)
}
