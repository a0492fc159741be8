//! Chooses the part that a unit is taken from. If several parts computed a unit, their numbers must be equal.

use miette::{Result, miette};
use serde_json::{Value, json};

use super::parts::{Part, is_finished};
use crate::execute::cell::{Cell, Completed, Outcome};
use crate::spec::units::Unit;
use crate::spec::variant::Variant;

/// The part with the most finished cells of the unit, the first of equal ones; `None` if no part has any record of it.
///
/// # Errors
/// Two parts have different numbers.
pub(super) fn chosen<'a>(unit: &Unit, parts: &'a [Part]) -> Result<Option<&'a Part>> {
    let having: Vec<&Part> = parts.iter().filter(|part| part.share.units.contains(&unit.name)).collect();
    for (at, one) in having.iter().enumerate() {
        for other in &having[at + 1..] {
            compared(unit, one, other)?;
        }
    }
    let counted = |part: &&Part| cells(unit, part).filter(|(_, cell)| is_finished(cell)).count();
    let begun = having.iter().copied().filter(|part| cells(unit, part).next().is_some());
    // `max_by_key` returns the last of equal parts.
    Ok(begun.rev().max_by_key(counted))
}

/// The cells of a unit that a part has records of.
fn cells<'a>(unit: &'a Unit, part: &'a Part) -> impl Iterator<Item = (&'a Variant, &'a Cell)> {
    let case = part.manifest.cases.iter().find(|case| case.name == unit.case);
    let own = case.into_iter().flat_map(|case| &case.variants);
    own.filter(|variant| unit.variants.contains(&variant.name()))
        .filter_map(|variant| Some((variant, part.cell(&unit.case, variant)?)))
}

/// Refuses two parts whose finished cells of a unit differ in anything but time.
fn compared(unit: &Unit, one: &Part, other: &Part) -> Result<()> {
    for (variant, cell) in cells(unit, one) {
        let Some(again) = other.cell(&unit.case, variant) else { continue };
        if !is_finished(cell) || !is_finished(again) {
            continue;
        }
        let (a, b) = (numbers(cell), numbers(again));
        if a != b {
            let differs = a.as_object().into_iter().flatten().find(|(key, value)| b.get(key) != Some(value));
            let what = differs.map_or("outcome", |(key, _)| key);
            return Err(miette!(
                help =
                    "the two machines computed different results: find out which is wrong, and leave it out",
                "{}/{} differs between {} and {} in its {what}",
                unit.case,
                variant.name(),
                one.folder.path().display(),
                other.folder.path().display()
            ));
        }
    }
    Ok(())
}

/// Everything in a cell's record that does not depend on time or on the machine.
fn numbers(cell: &Cell) -> Value {
    match &cell.outcome {
        Outcome::Completed(completed) => {
            let Completed {
                shape, positions, written, noise, ignored_keys, unread_tensors, unfinished, ..
            } = completed;
            let noise = noise.as_ref().map(|noise| (noise.same_process, noise.second_process));
            json!({
                "outcome": "completed",
                "logits": written.as_ref().map(|written| &written.sha256),
                "shape": shape,
                "positions": positions,
                "noise": noise,
                "ignored_keys": ignored_keys,
                "unread_tensors": unread_tensors,
                "unfinished": unfinished.as_ref().map(|failure| failure.kind),
            })
        }
        Outcome::Unsupported { .. } => json!({ "outcome": "unsupported" }),
        Outcome::Failed(failure) => json!({ "outcome": failure.kind }),
    }
}
